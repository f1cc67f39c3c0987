"""What grows on a head and what is put in front of it: hair, beard, glasses, and the occluders."""

import numpy as np

from fer.synth.anatomy import Array
from fer.synth.brush import Canvas, disc, fill, fill_all, outline, place
from fer.synth.geometry import FaceGeometry, Fixed
from fer.synth.identity import Color, Identity, mix

# Share of the way from the hairline (10 points, left to right) to the nose that hair falls.
_FALL = {
    "fringe": np.array([0.10, 0.20, 0.26, 0.30, 0.27, 0.30, 0.27, 0.28, 0.20, 0.10]),
    "parted": np.array([0.22, 0.26, 0.24, 0.17, 0.09, 0.01, 0.05, 0.11, 0.13, 0.10]),
    "long": np.array([0.18, 0.17, 0.12, 0.06, 0.02, 0.04, 0.09, 0.14, 0.17, 0.18]),
    "short": np.array([0.0, 0.01, 0.0, 0.02, 0.01, 0.03, 0.01, 0.02, 0.01, 0.0]),
}
_CURTAIN = np.array([
    [-1.12, -0.3], [-1.24, 0.6], [-1.22, 1.6], [-0.9, 2.1], [0.9, 2.1], [1.22, 1.6], [1.24, 0.6], [1.12, -0.3],
])  # fmt: skip
MASK_COLORS: tuple[Color, ...] = ((206, 224, 236), (236, 236, 232), (42, 44, 48), (150, 190, 205))
LENS: Color = (26, 24, 26)


def paint_back_hair(canvas: Canvas, face: FaceGeometry, who: Identity, axes: Array) -> None:
    """Hair behind the head, and the head's dome: hair, or skin on a bald head."""
    skull = face.contours["skull"]
    if who.hair_style == "bald":
        fill(canvas, skull, mix(who.skin, (0, 0, 0), 0.04))
        return
    center = skull.mean(axis=0)
    if who.hair_style == "long":
        fill(canvas, place(center.astype(np.int32), _CURTAIN, axes), mix(who.hair, (0, 0, 0), 0.25))
    fill(canvas, np.rint(center + (skull - center) * (who.hair_volume + 0.04)).astype(np.int32), who.hair)


def paint_front_hair(canvas: Canvas, face: FaceGeometry, who: Identity) -> None:
    """Hair that falls over the forehead."""
    if who.hair_style == "bald":
        return
    hairline = face.contours["hairline"].astype(np.float64)
    to_nose = face.anchors["nose"] - hairline
    fall = _FALL[who.hair_style] * (0.85 + 1.5 * (who.hair_volume - 1.0))
    lower = hairline + to_nose * fall[:, None]
    upper = hairline - to_nose * 0.06
    fill(canvas, np.rint(np.concatenate([upper, lower[::-1]])).astype(np.int32), who.hair)
    if who.hair_style != "short":  # a few lighter strands
        strand = mix(who.hair, (255, 240, 220), 0.16)
        for at in (2, 5, 7):
            path = np.rint(np.stack([upper[at], 0.5 * (upper[at] + lower[at]), lower[at]])).astype(np.int32)
            outline(canvas, path, strand, 0.02 * face.pose.scale, closed=False)


def paint_beard(canvas: Canvas, face: FaceGeometry, who: Identity) -> None:
    """Beard and moustache; lips are painted over it."""
    if who.beard == "none":
        return
    jaw, right, left = face.contours["jaw"], face.anchors["mouth.right"], face.anchors["mouth.left"]
    lip_top = face.contours["lips"][9]
    base = 0.40 * face.anchors["nose"] + 0.60 * lip_top
    half = 0.30 * (left - right)
    if who.beard != "moustache":
        color = mix(who.skin, who.hair, 0.26 if who.beard == "stubble" else 0.86)
        upper = np.stack([
            0.75 * jaw[29] + 0.25 * left, 0.45 * jaw[26] + 0.55 * left, base + 1.25 * half, base, base - 1.25 * half,
            0.45 * jaw[10] + 0.55 * right, 0.75 * jaw[7] + 0.25 * right,
        ])  # fmt: skip
        fill(canvas, np.rint(np.concatenate([jaw[6:31], upper])).astype(np.int32), color)
    if who.beard in ("moustache", "full"):
        brush = np.stack([right - 0.15 * half, base - half, base, base + half, left + 0.15 * half, lip_top])
        fill(canvas, np.rint(brush).astype(np.int32), mix(who.skin, who.hair, 0.9))


def paint_glasses(canvas: Canvas, face: FaceGeometry, who: Identity, axes: Array) -> None:
    """Frames without tint."""
    if who.glasses == "none":
        return
    frame = mix(who.hair, (30, 26, 30), 0.6)
    width = 0.045 * face.pose.scale
    rims = []
    for side in ("right", "left"):
        square = who.glasses == "square"
        rims.append(disc(face.anchors[f"eye.{side}"], 0.37, 0.27 if square else 0.31, axes, square=square))
        outline(canvas, rims[-1], frame, width)
        ear = face.contours[f"ear.{side}"][2]
        hinge = rims[-1][10 if side == "right" else 0]
        outline(canvas, np.stack([hinge, ear]), frame, width, closed=False)
    outline(canvas, np.stack([rims[0][0], rims[1][10]]), frame, width, closed=False)


def sunglasses(face: FaceGeometry, axes: Array) -> list[Fixed]:
    """Contours of the two lenses."""
    return [disc(face.anchors[f"eye.{side}"], 0.40, 0.30, axes, square=True) for side in ("right", "left")]


def mask(face: FaceGeometry) -> list[Fixed]:
    """Contour of a medical mask, from the bridge of the nose to under the chin."""
    jaw = face.contours["jaw"].astype(np.float64)
    middle = jaw[6:31].mean(axis=0)
    edge = middle + (jaw[6:31] - middle) * 1.03
    top = 0.55 * face.anchors["nose"] + 0.45 * face.anchors["bridge"]
    return [np.rint(np.concatenate([edge, top[None]])).astype(np.int32)]


def hand(face: FaceGeometry, axes: Array, at: tuple[float, float], turn: tuple[float, float]) -> list[Fixed]:
    """Palm and four fingers about the point `at`, face units from the nose; `turn` is (cosine, sine) of the angle."""
    rotation = np.array([[turn[0], turn[1]], [-turn[1], turn[0]]])
    center = place(face.anchors["nose"], np.array([at]), axes)[0]
    parts = [disc(center, 0.42, 0.50, rotation @ axes, square=True)]
    for index, length in enumerate((0.80, 0.95, 0.92, 0.72)):
        x = -0.33 + 0.22 * index
        finger = np.array([[x - 0.10, -0.2], [x + 0.10, -0.2], [x + 0.11, -0.3 - length], [x + 0.06, -0.4 - length],
                           [x - 0.06, -0.4 - length], [x - 0.11, -0.3 - length]])  # fmt: skip
        parts.append(place(center, finger, rotation @ axes))
    return parts


def paint_occluder(canvas: Canvas, kind: str, parts: list[Fixed], skin: Color, tint: int, scale: float) -> None:
    """Paint the contours of `sunglasses`, `mask` or `hand`; `tint` picks a mask's color, `scale` is px a face unit."""
    if kind == "hand":
        for part in parts:
            fill(canvas, part, mix(skin, (0, 0, 0), 0.06))
            outline(canvas, part, mix(skin, (60, 20, 10), 0.35), 0.02 * scale)
    elif kind == "mask":
        color = MASK_COLORS[tint % len(MASK_COLORS)]
        fill_all(canvas, parts, color)
        rim, low = parts[0][[0, 24]], parts[0][12]
        for share in (0.25, 0.5):  # pleats
            line = np.rint(rim * (1 - share) + low * share).astype(np.int32)
            outline(canvas, line, mix(color, (90, 100, 110), 0.4), 0.02 * scale, closed=False)
    else:
        fill_all(canvas, parts, LENS)
        outline(canvas, np.stack([parts[0][0], parts[1][10]]), LENS, 0.06 * scale, closed=False)
        for part in parts:  # a reflection
            center = part.mean(axis=0)
            glint = center + (part[12:16] - center) * [[0.8], [0.8], [0.45], [0.45]]
            fill(canvas, np.rint(glint).astype(np.int32), (88, 92, 100))
