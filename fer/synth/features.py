"""Brows, eyes, lips and folds of a face with an expression, in the plane of the face; nothing here knows the pose."""

from math import pi
from typing import NamedTuple

import numpy as np

from fer.synth.anatomy import ANATOMY, Array, where
from fer.synth.expressions import ACTION_UNITS, Expression
from fer.synth.identity import Identity, rest_points


def _spline(controls: int, samples: int) -> Array:
    """(samples, controls) weights of the Catmull-Rom curve through the controls, ends doubled."""
    weights = np.zeros((samples, controls))
    for row, at in enumerate(np.linspace(0, controls - 1, samples)):
        segment = min(int(at), controls - 2)
        t = at - segment
        blend = (
            0.5 * (-t + 2 * t * t - t**3), 1 + 0.5 * (-5 * t * t + 3 * t**3),
            0.5 * (t + 4 * t * t - 3 * t**3), 0.5 * (-t * t + t**3),
        )  # fmt: skip
        for offset, weight in enumerate(blend):
            weights[row, min(max(segment - 1 + offset, 0), controls - 1)] += weight
    return weights


def _cubic(samples: int) -> Array:
    """(samples, 4) weights of the cubic through four points, evenly spaced in the parameter."""
    nodes = np.linspace(0, 1, 4)
    t = np.linspace(0, 1, samples)
    return np.stack([
        np.prod([(t - nodes[k]) / (nodes[j] - nodes[k]) for k in range(4) if k != j], axis=0) for j in range(4)
    ], axis=1)  # fmt: skip


_RIBBON, _LIP = _cubic(9), _spline(7, 19)
JAWLINE = _spline(13, 37)
_CIRCLE = np.stack([np.cos(np.arange(16) * pi / 8), np.sin(np.arange(16) * pi / 8)], axis=1)
_FOLD_TAPER = np.array([0.25, 0.6, 0.9, 1.0, 1.0, 1.0, 0.9, 0.6, 0.25])
_BROW_TAPER = np.array([0.75, 0.95, 1.0, 0.98, 0.93, 0.86, 0.74, 0.52, 0.2])
_SHALLOWEST = 0.05  # folds less deep than this are not drawn
_LID_WIDTH = {"lid_upper": 0.021, "lid_lower": 0.009}
_SEAM = 1.05  # height of the closed mouth
_ROW = {name: row for row, name in enumerate(ANATOMY.ribbons)}
_LIPS_AT = where("upper_outer", "upper_inner", "lower_inner", "lower_outer").reshape(4, 7)
_CHIN_AT, _NOSE_AT, _NOSTRILS_AT, _CHEEKS_AT = where("chin")[0], where("nose")[0], where("nostril"), where("cheek")
_JAW_AT = where("jaw", "chin")
_MOVES = np.concatenate(ANATOMY.moves).reshape(2 * len(ACTION_UNITS), -1)
_FOLD_DEPTH = np.concatenate(ANATOMY.fold_depth)
_AU6, _AU12, _AU24, _AU25, _AU26 = (ACTION_UNITS.index(unit) for unit in (6, 12, 24, 25, 26))

ANCHORS = (
    "eye.right", "eye.left", "nose", "mouth.right", "mouth.left", "cheek.right", "cheek.left", "chin", "root", "bridge",
    "brow", "mouth",
)  # fmt: skip
"""Single points that metadata and shading hang on; the first five are the landmarks."""


class Features(NamedTuple):
    """One face in face units (see `anatomy`)."""

    contours: dict[str, Array]
    """Closed contours (points, 2) on the skin by name, and "anchors" (12, 2) in the order of `ANCHORS`."""
    strokes: Array
    """(S, 18, 2) outlines of the brows, the lids and every fold that shows."""
    stroke_rows: list[int]
    """Their S rows in `ANATOMY.ribbons`."""
    jaw: Array
    """(37, 2) from the right temple over the chin to the left."""
    fold_depth: Array
    """(S,) how deep each fold is, 0 .. 1.1; 0 for brows and lids."""
    cheek_lift: tuple[float, float]
    """Right and left."""
    mouth_open: float
    """Height of the opening between the lips."""


def features(who: Identity, expression: Expression, gaze: tuple[float, float]) -> Features:
    """Displace the subject's control points by the expression, and draw the curves through them."""
    both = np.array(expression.right + expression.left)
    points = rest_points(who) + (both @ _MOVES).reshape(-1, 2)
    depth = ANATOMY.fold_rest[:, 0] + who.age * ANATOMY.fold_rest[:, 1] + both @ _FOLD_DEPTH
    depth = np.clip(depth, 0.0, 1.1)
    rows = np.flatnonzero((depth > _SHALLOWEST) | (ANATOMY.fold_width == 0))

    strokes: Array = _RIBBON @ points[: 4 * len(ANATOMY.ribbons)].reshape(-1, 4, 2)
    contours: dict[str, Array] = {}
    centers = [_eye(strokes, who, gaze, index, contours) for index in (0, 1)]
    aus = expression.aus
    press = min(1.0, 1.5 * aus[_AU24]) * max(0.0, 1.0 - aus[_AU25] - aus[_AU26])
    lips = _lip_edges(points, press)
    jaw_drop = float(points[_CHIN_AT, 1] - rest_points(who)[_CHIN_AT, 1])
    _mouth(lips, _SEAM + who.mouth_height, max(jaw_drop, 0.0), contours)
    for side, at in zip(("right", "left"), _NOSTRILS_AT, strict=True):
        contours[f"nostril.{side}"] = points[at] + np.array([0.055, 0.028]) * _CIRCLE
    contours["anchors"] = np.array([
        *centers, points[_NOSE_AT], lips[0, 0], lips[0, -1], *points[_CHEEKS_AT], points[_CHIN_AT],
        (0.0, -0.05), (0.0, 0.25), (0.0, -0.7), 0.5 * (lips[1, 9] + lips[2, 9]),
    ])  # fmt: skip
    return Features(
        contours,
        _outlines(strokes, who)[rows],
        rows.tolist(),
        JAWLINE @ points[_JAW_AT],
        depth[rows],
        (_cheek_lift(expression.right), _cheek_lift(expression.left)),
        float((lips[2, :, 1] - lips[1, :, 1]).max()),
    )


def _cheek_lift(aus: tuple[float, ...]) -> float:
    return aus[_AU6] + 0.6 * aus[_AU12]


def _eye(strokes: Array, who: Identity, gaze: tuple[float, float], index: int, contours: dict[str, Array]) -> Array:
    """Add the opening, iris and pupil of the right (0) or left (1) eye; its center."""
    side = ("right", "left")[index]
    upper, lower = strokes[_ROW[f"lid_upper.{side}"]], strokes[_ROW[f"lid_lower.{side}"]]
    lower[:, 1] = np.maximum(lower[:, 1], upper[:, 1] + 0.012)
    center: Array = np.array([0.5 * (upper[0, 0] + upper[-1, 0]), 0.3 * (upper[0, 1] + upper[-1, 1])])
    order = slice(None, None, 2 * index - 1)  # interpolation wants x to grow
    x, above, below = upper[order, 0], upper[order, 1], lower[order, 1]
    contours[f"lids.{side}"] = np.concatenate([upper, lower[::-1]])
    for part, radius in (("iris", 0.112), ("pupil", 0.052)):
        disc = center + np.array(gaze) + radius * who.eye_scale * _CIRCLE
        disc[:, 1] = np.clip(disc[:, 1], np.interp(disc[:, 0], x, above), np.interp(disc[:, 0], x, below))
        contours[f"{part}.{side}"] = disc
    return center


def _lip_edges(points: Array, press: float) -> Array:
    """(4, 19, 2) upper outer, upper inner, lower inner and lower outer edge, right to left; none crosses the next.

    `press` 0 .. 1 shuts lips that another AU would draw apart.
    """
    edges: Array = _LIP @ points[_LIPS_AT]
    y = edges[..., 1]
    seam = 0.5 * (y[1] + y[2])
    y[1], y[2] = np.minimum(y[1], seam), np.maximum(y[2], seam)
    y[1:3] += press * (seam - y[1:3])
    swell = np.sin(np.linspace(0, pi, y.shape[1]))
    y[0] = np.minimum(y[0], y[1] - 0.025 * swell)  # pressed lips keep a line of red
    y[3] = np.maximum(y[3], y[2] + 0.035 * swell)
    return edges


def _mouth(lips: Array, seam: float, jaw_drop: float, contours: dict[str, Array]) -> None:
    """Add the lips and what shows between them. Teeth hang from the skull and stand on the jaw: the lips uncover
    them."""
    contours["lips"] = np.concatenate([lips[0], lips[3, ::-1]])
    contours["cavity"] = np.concatenate([lips[1], lips[2, ::-1]])
    upper, lower = lips[1, 1:-1], lips[2, 1:-1]
    bite = np.minimum(np.maximum(upper[:, 1] + 0.02, seam + 0.075), lower[:, 1])
    contours["upper_teeth"] = np.concatenate([upper, np.column_stack([upper[:, 0], bite])[::-1]])
    rise = np.maximum(np.minimum(lower[:, 1], seam + 0.095 + jaw_drop), bite)
    contours["lower_teeth"] = np.concatenate([np.column_stack([lower[:, 0], rise]), lower[::-1]])
    floor, roof = lower[4:-4], upper[4:-4, 1]
    dome = floor[:, 1] - 0.45 * (floor[:, 1] - roof) * np.sin(np.linspace(0, pi, len(floor)))
    contours["tongue"] = np.concatenate([np.column_stack([floor[:, 0], dome]), floor[::-1]])


def _outlines(strokes: Array, who: Identity) -> Array:
    """(R, 18, 2): the center lines (R, 9, 2) given their width, tapered towards the ends."""
    along = np.empty_like(strokes)
    along[:, 1:-1] = strokes[:, 2:] - strokes[:, :-2]
    along[:, 0], along[:, -1] = strokes[:, 1] - strokes[:, 0], strokes[:, -1] - strokes[:, -2]
    normal = np.stack([-along[..., 1], along[..., 0]], axis=-1)
    normal /= np.sqrt((normal**2).sum(axis=-1, keepdims=True)) + 1e-9
    half = ANATOMY.fold_width[:, None] * _FOLD_TAPER
    for side in ("right", "left"):
        half[_ROW[f"brow.{side}"]] = who.brow_width * 1.25 * _BROW_TAPER
        for lid, width in _LID_WIDTH.items():
            half[_ROW[f"{lid}.{side}"]] = width
    offset = normal * half[..., None]
    return np.concatenate([strokes - offset, (strokes + offset)[:, ::-1]], axis=1)
