"""The drawn face at rest, and what each action unit does to it.

Face coordinates: the origin is midway between the pupils, x grows to the person's left (the right of a frontal
image), y down, z towards the viewer; one unit is half the width of the face, about 68 mm. Proportions follow common
adult anthropometry (pupils 63 mm apart, mouth 72 mm and chin 115 mm below them), with eyes a fifth larger for
legibility.

A face is a table of control points in the plane of x and y; the skin slides over a fixed head (`geometry.surface`),
so an AU is a displacement in two dimensions. The tables give the person's left half, from the midline outwards; the
right half is its mirror image. Displacements are for intensity 1.0 (FACS E) and add up. What each AU moves is after
Ekman & Friesen's Facial Action Coding System (1978); the amounts are ours.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fer.synth.expressions import ACTION_UNITS

Array = NDArray[np.float64]
Points = tuple[tuple[float, float], ...]

SIDES = ("right", "left")

# Ribbons are cubic strokes through four points: brows, lids, and every fold of the skin. These come in pairs, ...
PAIRED_RIBBONS: dict[str, Points] = {
    "brow": ((0.18, -0.33), (0.36, -0.42), (0.57, -0.43), (0.80, -0.31)),
    "lid_upper": ((0.225, 0.035), (0.37, -0.105), (0.55, -0.115), (0.715, 0.0)),
    "lid_lower": ((0.225, 0.035), (0.38, 0.09), (0.56, 0.09), (0.715, 0.0)),
    "crease": ((0.25, -0.06), (0.38, -0.165), (0.56, -0.18), (0.75, -0.05)),
    "bag": ((0.25, 0.12), (0.38, 0.20), (0.55, 0.20), (0.70, 0.10)),
    "crow_upper": ((0.78, -0.05), (0.83, -0.07), (0.88, -0.10), (0.93, -0.14)),
    "crow_middle": ((0.78, 0.0), (0.84, 0.0), (0.90, 0.0), (0.95, 0.0)),
    "crow_lower": ((0.77, 0.05), (0.82, 0.08), (0.88, 0.12), (0.92, 0.17)),
    "glabella": ((0.10, -0.24), (0.085, -0.31), (0.085, -0.39), (0.105, -0.47)),
    "forehead_low": ((0.22, -0.60), (0.38, -0.66), (0.56, -0.66), (0.74, -0.57)),
    "forehead_high": ((0.20, -0.76), (0.37, -0.82), (0.54, -0.82), (0.70, -0.73)),
    "nose_wrinkle": ((0.10, 0.10), (0.14, 0.17), (0.19, 0.24), (0.26, 0.30)),
    "nose_wrinkle_low": ((0.13, 0.25), (0.17, 0.31), (0.22, 0.36), (0.29, 0.40)),
    "ala": ((0.13, 0.69), (0.25, 0.69), (0.265, 0.56), (0.17, 0.51)),
    "nasolabial": ((0.27, 0.58), (0.38, 0.72), (0.46, 0.88), (0.50, 1.06)),
    "dimple": ((0.47, 0.94), (0.51, 1.00), (0.515, 1.07), (0.48, 1.13)),
    "marionette": ((0.42, 1.10), (0.45, 1.17), (0.46, 1.24), (0.45, 1.31)),
}
# ... and these cross the midline, from the person's right to the left.
MIDLINE_RIBBONS: dict[str, Points] = {
    "forehead_mid_low": ((-0.28, -0.60), (-0.10, -0.58), (0.10, -0.58), (0.28, -0.60)),
    "forehead_mid_high": ((-0.26, -0.76), (-0.09, -0.74), (0.09, -0.74), (0.26, -0.76)),
    "nose_root": ((-0.12, -0.14), (-0.04, -0.11), (0.04, -0.11), (0.12, -0.14)),
    "nose_root_low": ((-0.11, -0.03), (-0.04, 0.0), (0.04, 0.0), (0.11, -0.03)),
    "mentolabial": ((-0.20, 1.31), (-0.07, 1.28), (0.07, 1.28), (0.20, 1.31)),
    "chin_boss": ((-0.16, 1.50), (-0.06, 1.43), (0.06, 1.43), (0.16, 1.50)),
}
# The four edges of the lips, midline to corner.
LIP_EDGES: dict[str, Points] = {
    "upper_outer": ((0.0, 0.955), (0.10, 0.925), (0.25, 0.985), (0.38, 1.05)),
    "upper_inner": ((0.0, 1.050), (0.10, 1.045), (0.25, 1.047), (0.365, 1.05)),
    "lower_inner": ((0.0, 1.056), (0.10, 1.052), (0.25, 1.051), (0.365, 1.05)),
    "lower_outer": ((0.0, 1.205), (0.10, 1.195), (0.25, 1.135), (0.38, 1.05)),
}
# The outline of the face, from the temple down to the chin, and single points that anchor the nose and the soft
# shading.
JAW: Points = ((0.99, -0.30), (1.02, 0.10), (0.98, 0.55), (0.88, 1.00), (0.64, 1.42), (0.32, 1.64))
CHIN: Points = ((0.0, 1.70),)
NOSE: Points = ((0.0, 0.58),)
NOSTRIL: Points = ((0.095, 0.66),)
CHEEK: Points = ((0.60, 0.50),)

# Per AU: displacements (outwards, down) of the points of a group, in the order above; the lip edges and the outline
# give the half from midline to corner (temple to chin). Absent groups stay.
_JAW_DROP: Points = ((0, 0), (0, 0), (-0.01, 0.03), (-0.02, 0.09), (-0.02, 0.17), (0, 0.21))
MOVES: dict[int, dict[str, Points]] = {
    1: {
        "brow": ((0.0, -0.25), (0.0, -0.15), (0.0, -0.02), (0.0, 0.02)),
        "lid_upper": ((0, 0), (0, -0.025), (0, -0.005), (0, 0)),
        "crease": ((0.0, -0.04), (0.0, -0.03), (0, 0), (0, 0)),
    },
    2: {
        "brow": ((0.0, -0.02), (0.0, -0.09), (0.0, -0.18), (0.0, -0.16)),
        "lid_upper": ((0, 0), (0, 0), (0, -0.015), (0, 0)),
        "crease": ((0, 0), (0, 0), (0.0, -0.03), (0.0, -0.02)),
    },
    4: {
        "brow": ((-0.075, 0.145), (-0.05, 0.12), (-0.03, 0.08), (0.0, 0.03)),
        "lid_upper": ((0, 0), (0.0, 0.03), (0.0, 0.02), (0, 0)),
        "crease": ((0.0, 0.04), (0.0, 0.05), (0.0, 0.03), (0, 0)),
    },
    5: {
        "lid_upper": ((0, 0), (0.0, -0.075), (0.0, -0.075), (0, 0)),
        "lid_lower": ((0, 0), (0.0, 0.015), (0.0, 0.015), (0, 0)),
        "crease": ((0, 0), (0.0, -0.04), (0.0, -0.04), (0, 0)),
    },
    6: {
        "lid_lower": ((0, 0), (0.0, -0.05), (0.0, -0.055), (0, 0)),
        "lid_upper": ((0, 0), (0.0, 0.02), (0.0, 0.03), (0, 0)),
        "brow": ((0, 0), (0, 0), (0.0, 0.015), (0.0, 0.03)),
        "bag": ((0.0, -0.01), (0.0, -0.03), (0.0, -0.03), (0.0, -0.02)),
        "cheek": ((0.0, -0.12),),
    },
    7: {
        "lid_lower": ((0, 0), (0.0, -0.065), (0.0, -0.06), (0, 0)),
        "lid_upper": ((0, 0), (0.0, 0.05), (0.0, 0.045), (0, 0)),
    },
    9: {
        "ala": ((0.01, -0.06), (0.03, -0.08), (0.03, -0.08), (0.02, -0.07)),
        "nostril": ((0.01, -0.06),),
        "nose": ((0.0, -0.05),),
        "brow": ((-0.03, 0.08), (-0.01, 0.06), (0.0, 0.03), (0, 0)),
        "lid_lower": ((0, 0), (0.0, -0.035), (0.0, -0.025), (0, 0)),
        "lid_upper": ((0, 0), (0.0, 0.03), (0.0, 0.015), (0, 0)),
        "upper_outer": ((0.0, -0.05), (0.0, -0.06), (0.0, -0.04), (0, 0)),
        "upper_inner": ((0.0, -0.025), (0.0, -0.03), (0.0, -0.02), (0, 0)),
        "nasolabial": ((0.02, -0.07), (0.03, -0.05), (0.02, -0.03), (0, 0)),
        "cheek": ((0.0, -0.06),),
    },
    10: {
        "upper_outer": ((0.0, -0.075), (0.0, -0.10), (0.02, -0.11), (0.02, 0.0)),
        "upper_inner": ((0.0, -0.055), (0.0, -0.075), (0.01, -0.07), (0.01, 0.0)),
        "ala": ((0.0, -0.02), (0.02, -0.03), (0.02, -0.03), (0.01, -0.02)),
        "nasolabial": ((0.02, -0.04), (0.06, -0.06), (0.06, -0.04), (0.03, 0.0)),
        "cheek": ((0.0, -0.06),),
    },
    11: {
        "upper_outer": ((0, 0), (0.0, -0.01), (0.01, -0.025), (0, 0)),
        "nasolabial": ((0.01, -0.02), (0.03, -0.02), (0.02, 0.0), (0, 0)),
    },
    12: {
        "upper_outer": ((0.0, 0.02), (0.03, 0.01), (0.09, -0.055), (0.16, -0.165)),
        "upper_inner": ((0.0, 0.02), (0.03, 0.005), (0.09, -0.055), (0.155, -0.165)),
        "lower_inner": ((0.0, 0.02), (0.03, 0.01), (0.09, -0.04), (0.155, -0.165)),
        "lower_outer": ((0.0, 0.0), (0.03, 0.0), (0.09, -0.035), (0.16, -0.165)),
        "nasolabial": ((0.03, -0.02), (0.10, -0.05), (0.14, -0.07), (0.16, -0.08)),
        "dimple": ((0.15, -0.13), (0.15, -0.13), (0.15, -0.13), (0.15, -0.13)),
        "marionette": ((0.12, -0.08), (0.10, -0.06), (0.08, -0.04), (0.06, -0.02)),
        "cheek": ((0.03, -0.10),),
    },
    14: {
        "upper_outer": ((0, 0), (0.01, 0.0), (0.03, 0.0), (0.07, -0.02)),
        "upper_inner": ((0, 0), (0.01, 0.0), (0.03, 0.0), (0.07, -0.02)),
        "lower_inner": ((0, 0), (0.01, 0.0), (0.03, -0.01), (0.07, -0.02)),
        "lower_outer": ((0, 0), (0.01, 0.0), (0.03, -0.015), (0.07, -0.02)),
        "dimple": ((0.05, -0.02), (0.06, -0.02), (0.06, -0.02), (0.05, -0.02)),
    },
    15: {
        "upper_outer": ((0.0, -0.01), (0.0, 0.0), (0.01, 0.06), (0.02, 0.16)),
        "upper_inner": ((0.0, -0.01), (0.0, 0.0), (0.01, 0.05), (0.02, 0.16)),
        "lower_inner": ((0.0, -0.01), (0.0, 0.0), (0.01, 0.05), (0.02, 0.16)),
        "lower_outer": ((0.0, -0.01), (0.0, 0.0), (0.01, 0.05), (0.02, 0.16)),
        "marionette": ((0.03, 0.10), (0.03, 0.08), (0.03, 0.06), (0.02, 0.05)),
        "nasolabial": ((0, 0), (0, 0), (0.0, 0.02), (0.01, 0.05)),
    },
    17: {
        "upper_outer": ((0.0, -0.03), (0.0, -0.025), (0.0, -0.01), (0.0, 0.03)),
        "upper_inner": ((0.0, -0.04), (0.0, -0.035), (0.0, -0.01), (0.0, 0.03)),
        "lower_inner": ((0.0, -0.04), (0.0, -0.035), (0.0, -0.01), (0.0, 0.03)),
        "lower_outer": ((0.0, -0.05), (0.0, -0.045), (0.0, -0.02), (0.0, 0.03)),
        "mentolabial": ((0.0, -0.06), (0.0, -0.06), (0.0, -0.06), (0.0, -0.06)),
        "chin": ((0.0, -0.06),),
    },
    20: {
        "upper_outer": ((0.0, 0.02), (0.04, 0.02), (0.11, 0.02), (0.20, 0.10)),
        "upper_inner": ((0.0, 0.01), (0.04, 0.01), (0.11, 0.015), (0.20, 0.10)),
        "lower_inner": ((0.0, 0.03), (0.04, 0.035), (0.12, 0.07), (0.20, 0.10)),
        "lower_outer": ((0.0, 0.0), (0.04, 0.005), (0.12, 0.06), (0.20, 0.10)),
        "nasolabial": ((0, 0), (0.03, 0.0), (0.08, 0.0), (0.12, 0.0)),
        "marionette": ((0.14, 0.02), (0.12, 0.02), (0.10, 0.02), (0.08, 0.02)),
    },
    23: {
        "upper_outer": ((0.0, 0.05), (0.0, 0.06), (-0.02, 0.025), (-0.05, 0.0)),
        "upper_inner": ((0, 0), (0, 0), (-0.02, 0.0), (-0.05, 0.0)),
        "lower_inner": ((0, 0), (0, 0), (-0.02, 0.0), (-0.05, 0.0)),
        "lower_outer": ((0.0, -0.07), (0.0, -0.065), (-0.02, -0.03), (-0.05, 0.0)),
    },
    24: {
        "upper_outer": ((0.0, 0.06), (0.0, 0.075), (-0.02, 0.035), (-0.04, 0.01)),
        "upper_inner": ((0, 0), (0, 0), (-0.02, 0.0), (-0.04, 0.01)),
        "lower_inner": ((0, 0), (0, 0), (-0.02, 0.0), (-0.04, 0.01)),
        "lower_outer": ((0.0, -0.085), (0.0, -0.08), (-0.02, -0.045), (-0.04, 0.01)),
    },
    25: {
        "upper_outer": ((0.0, -0.02), (0.0, -0.02), (0.0, -0.015), (0, 0)),
        "upper_inner": ((0.0, -0.03), (0.0, -0.03), (0.0, -0.02), (0, 0)),
        "lower_inner": ((0.0, 0.10), (0.0, 0.095), (0.0, 0.06), (0, 0)),
        "lower_outer": ((0.0, 0.09), (0.0, 0.085), (0.0, 0.05), (0, 0)),
    },
    26: {
        "upper_outer": ((0, 0), (0, 0), (-0.03, 0.01), (-0.06, 0.05)),
        "upper_inner": ((0.0, -0.01), (0.0, -0.01), (-0.03, 0.0), (-0.06, 0.05)),
        "lower_inner": ((0.0, 0.24), (0.0, 0.235), (-0.03, 0.17), (-0.06, 0.05)),
        "lower_outer": ((0.0, 0.22), (0.0, 0.215), (-0.03, 0.16), (-0.06, 0.05)),
        "mentolabial": ((0.0, 0.20), (0.0, 0.21), (0.0, 0.21), (0.0, 0.20)),
        "chin_boss": ((0.0, 0.21), (0.0, 0.21), (0.0, 0.21), (0.0, 0.21)),
        "chin": ((0.0, 0.22),),
        "jaw": _JAW_DROP,
    },
}

# Per fold: half-width, depth at rest, depth added by age, depth added by each AU. Depth 1 darkens the skin by about
# half.
FOLDS: dict[str, tuple[float, float, float, dict[int, float]]] = {
    "crease": (0.020, 0.42, 0.10, {5: -0.15, 1: 0.1}),
    "bag": (0.022, 0.10, 0.25, {6: 0.50, 7: 0.40, 9: 0.25, 12: 0.10}),
    "crow_upper": (0.014, 0.0, 0.35, {6: 0.65, 12: 0.10}),
    "crow_middle": (0.014, 0.0, 0.30, {6: 0.65, 12: 0.10}),
    "crow_lower": (0.014, 0.0, 0.30, {6: 0.65, 12: 0.10}),
    "glabella": (0.022, 0.0, 0.20, {4: 0.85, 9: 0.30}),
    "forehead_low": (0.020, 0.0, 0.30, {2: 0.60}),
    "forehead_high": (0.018, 0.0, 0.25, {2: 0.45}),
    "nose_wrinkle": (0.018, 0.0, 0.0, {9: 0.80}),
    "nose_wrinkle_low": (0.018, 0.0, 0.0, {9: 0.65}),
    "ala": (0.020, 0.50, 0.0, {9: 0.25, 10: 0.10}),
    "nasolabial": (0.028, 0.10, 0.35, {9: 0.35, 10: 0.50, 11: 0.70, 12: 0.55, 20: 0.20}),
    "dimple": (0.024, 0.0, 0.10, {14: 0.95, 12: 0.15}),
    "marionette": (0.020, 0.0, 0.30, {15: 0.70, 17: 0.20, 20: 0.25}),
    "forehead_mid_low": (0.020, 0.0, 0.30, {1: 0.65}),
    "forehead_mid_high": (0.018, 0.0, 0.25, {1: 0.45}),
    "nose_root": (0.020, 0.0, 0.10, {9: 0.85, 4: 0.15}),
    "nose_root_low": (0.018, 0.0, 0.0, {9: 0.75}),
    "mentolabial": (0.040, 0.35, 0.10, {17: 0.35, 24: 0.15, 25: -0.10}),
    "chin_boss": (0.030, 0.0, 0.10, {17: 0.60}),
}


class Anatomy(NamedTuple):
    """The tables above as arrays. N control points, R ribbons, A action units; ribbons are the first 4 R points."""

    names: tuple[str, ...]
    """(N,) group of each point, e.g. "brow.left", "upper_inner", "chin"."""
    rest: Array
    """(N, 2) points at rest."""
    moves: tuple[Array, Array]
    """(A, N, 2) displacement by the AUs of the right and of the left half."""
    ribbons: tuple[str, ...]
    """(R,) names of the ribbons."""
    fold_width: Array
    """(R,) half-widths; 0 for brows and lids, which are no folds."""
    fold_rest: Array
    """(R, 2) depth at rest, and added by age."""
    fold_depth: tuple[Array, Array]
    """(A, R) depth added by the AUs of the right and of the left half."""


def _control_points() -> Iterator[tuple[str, str, int, float, float]]:
    """Name, group, row in the group's table, x and y of every control point, those of the ribbons first."""
    halves = tuple(zip((-1, 1), SIDES, strict=True))
    for group, points in PAIRED_RIBBONS.items():
        for sign, side in halves:
            yield from ((f"{group}.{side}", group, at, sign * x, y) for at, (x, y) in enumerate(points))
    for group, points in MIDLINE_RIBBONS.items():
        yield from ((group, group, at, x, y) for at, (x, y) in enumerate(points))
    for group, points in LIP_EDGES.items():
        yield from ((group, group, at, -points[at][0], points[at][1]) for at in (3, 2, 1))
        yield from ((group, group, at, x, y) for at, (x, y) in enumerate(points))
    yield from (("jaw.right", "jaw", at, -x, y) for at, (x, y) in enumerate(JAW))
    yield "chin", "chin", 0, *CHIN[0]
    yield from (("jaw.left", "jaw", at, *JAW[at]) for at in reversed(range(len(JAW))))
    yield "nose", "nose", 0, *NOSE[0]
    for group, (point,) in (("nostril", NOSTRIL), ("cheek", CHEEK)):
        yield from ((f"{group}.{side}", group, 0, sign * point[0], point[1]) for sign, side in halves)


def _assemble() -> Anatomy:
    points = list(_control_points())
    names = tuple(name for name, *_ in points)
    moves = np.zeros((2, len(ACTION_UNITS), len(points), 2))
    for number, (_, group, at, x, _) in enumerate(points):
        # A point on one side takes that side's AUs; a point on the midline the mean of both.
        outwards, left = np.sign(x), 0.5 * (1 + np.sign(x))
        for row, unit in enumerate(ACTION_UNITS):
            dx, dy = MOVES[unit][group][at] if group in MOVES[unit] else (0.0, 0.0)
            for half, share in enumerate((1 - left, left)):
                moves[half, row, number] = share * outwards * dx, share * dy
    ribbons = names[: 4 * (2 * len(PAIRED_RIBBONS) + len(MIDLINE_RIBBONS)) : 4]
    width, base = np.zeros(len(ribbons)), np.zeros((len(ribbons), 2))
    depth = np.zeros((2, len(ACTION_UNITS), len(ribbons)))
    for row, ribbon in enumerate(ribbons):
        group, _, side = ribbon.partition(".")
        if group in FOLDS:
            width[row], base[row, 0], base[row, 1], by_unit = FOLDS[group]
            shares = {"right": (1.0, 0.0), "left": (0.0, 1.0), "": (0.5, 0.5)}[side]
            for unit, amount in by_unit.items():
                depth[:, ACTION_UNITS.index(unit), row] = amount * shares[0], amount * shares[1]
    rest = np.array([(x, y) for *_, x, y in points])
    return Anatomy(names, rest, (moves[0], moves[1]), ribbons, width, base, (depth[0], depth[1]))


ANATOMY = _assemble()


def where(*groups: str) -> NDArray[np.intp]:
    """Indices of the control points of the given groups; "brow" stands for both "brow.right" and "brow.left"."""
    return np.flatnonzero([name in groups or name.partition(".")[0] in groups for name in ANATOMY.names])
