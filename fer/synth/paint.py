"""Paint one face: skin, features, folds, light.

Shading is a product: the painted colors, times a fine layer (the folds, a little blurred), times a smooth layer
(blobs of shade and a lamp over a sphere, worked out on a coarse grid and enlarged).
"""

from dataclasses import dataclass

import cv2
import numpy as np

from fer.synth.anatomy import Array
from fer.synth.brush import OVERSAMPLE, Canvas, disc, fill, fill_all, plane
from fer.synth.geometry import FIXED, FaceGeometry
from fer.synth.identity import Color, Identity, mix
from fer.synth.wear import paint_back_hair, paint_beard, paint_front_hair, paint_glasses


@dataclass(frozen=True)
class Light:
    """One distant lamp, and light from everywhere."""

    direction: tuple[float, float, float]
    """Unit vector to the lamp in scene axes (right, down, to the viewer)."""
    contrast: float
    """Share of the light that comes from the lamp, 0 .. 1."""


_GRID = 24  # cells of the smooth layer, each way
_BLACK: Color = (0, 0, 0)

# The smooth layer of a frontal face: anchor, offset and radii in face units, relative change of R, G and B.
_BLOBS: tuple[tuple[str, tuple[float, float], tuple[float, float], Color], ...] = (
    ("eye.right", (0.02, -0.12), (0.34, 0.20), (-0.14, -0.17, -0.18)),
    ("eye.left", (-0.02, -0.12), (0.34, 0.20), (-0.14, -0.17, -0.18)),
    ("eye.right", (0.25, 0.10), (0.12, 0.28), (-0.12, -0.15, -0.16)),
    ("eye.left", (-0.25, 0.10), (0.12, 0.28), (-0.12, -0.15, -0.16)),
    ("bridge", (0.0, 0.05), (0.10, 0.40), (0.12, 0.12, 0.11)),
    ("nose", (0.0, 0.0), (0.15, 0.12), (0.12, 0.07, 0.06)),
    ("nose", (0.0, 0.17), (0.26, 0.09), (-0.18, -0.22, -0.22)),
    ("brow", (0.0, 0.0), (0.55, 0.28), (0.07, 0.07, 0.06)),
    ("chin", (0.0, -0.22), (0.26, 0.15), (0.07, 0.06, 0.06)),
    ("mouth", (0.0, -0.20), (0.10, 0.08), (-0.05, -0.06, -0.06)),
    ("cheek.right", (0.0, 0.0), (0.28, 0.24), (0.06, 0.0, 0.0)),
    ("cheek.left", (0.0, 0.0), (0.28, 0.24), (0.06, 0.0, 0.0)),
)
_CHEEKS = (10, 11)
_OFFSETS, _RADII = np.array([blob[1] for blob in _BLOBS]), np.array([blob[2] for blob in _BLOBS], np.float32)
_TINTS = np.array([blob[3] for blob in _BLOBS], np.float32)
_CELLS = (np.arange(_GRID, dtype=np.float32) + 0.5) / _GRID


def paint_face(canvas: Canvas, face: FaceGeometry, who: Identity, light: Light) -> None:
    """Paint a face, neck and shoulders excepted, onto a canvas (h, w, 3) RGB of `OVERSAMPLE` times the scene's size."""
    axes = plane(face.pose)
    covered = [face.contours["outline"], face.contours["skull"], face.contours["ear.right"], face.contours["ear.left"]]
    points = np.concatenate(covered)
    margin = 0.15 * face.pose.scale
    left, top = (int(v) for v in (points.min(axis=0) / FIXED - margin) * OVERSAMPLE)
    right, bottom = (int(v) for v in (points.max(axis=0) / FIXED + margin) * OVERSAMPLE)

    paint_back_hair(canvas, face, who, axes)
    if who.hair_style != "long":
        for side in ("right", "left"):
            ear = face.contours[f"ear.{side}"]
            fill(canvas, ear, mix(who.skin, (150, 40, 30), 0.08))
            center = ear.mean(axis=0)
            fill(canvas, np.rint(center + (ear - center) * 0.55).astype(np.int32), mix(who.skin, (60, 10, 0), 0.22))
    fill(canvas, face.contours["outline"], who.skin)
    paint_beard(canvas, face, who)
    _paint_mouth(canvas, face, who)
    _paint_eyes(canvas, face, who, axes)
    fill_all(canvas, [face.strokes["brow.right"], face.strokes["brow.left"]], who.brows)
    fill_all(canvas, [face.contours["nostril.right"], face.contours["nostril.left"]], mix(who.skin, (30, 8, 4), 0.68))

    height, width = canvas.shape[:2]
    rows, columns = slice(max(top, 0), min(bottom, height)), slice(max(left, 0), min(right, width))
    if rows.start < rows.stop and columns.start < columns.stop:
        shade = cv2.resize(_smooth(face, light, (left, top, right, bottom), axes), (right - left, bottom - top),
                           interpolation=cv2.INTER_CUBIC)  # fmt: skip
        shade = shade[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        folds = _fold_layer(face, (height, width), rows, columns)
        # Shadows on skin are warm: red falls least.
        warm = cv2.merge([cv2.convertScaleAbs(folds, alpha=0.85, beta=0.15 * 128), folds, folds])
        shade = cv2.multiply(shade, warm, scale=1 / 128)
        inside = np.zeros((height, width), np.uint8)
        for contour in covered:
            fill(inside, contour, 255)
        region = canvas[rows, columns]
        lit = cv2.multiply(region, shade, scale=1 / 128)
        cv2.copyTo(lit, inside[rows, columns], region)
    paint_front_hair(canvas, face, who)
    paint_glasses(canvas, face, who, axes)


def _paint_mouth(canvas: Canvas, face: FaceGeometry, who: Identity) -> None:
    fill(canvas, face.contours["lips"], who.lips)
    fill(canvas, face.contours["cavity"], mix(who.lips, (40, 6, 8), 0.88))
    if face.mouth_open > 0.03:
        fill(canvas, face.contours["tongue"], (150, 62, 66))
        if face.mouth_open > 0.16:
            fill(canvas, face.contours["lower_teeth"], (196, 188, 176))
        fill(canvas, face.contours["upper_teeth"], (238, 233, 222))


def _paint_eyes(canvas: Canvas, face: FaceGeometry, who: Identity, axes: Array) -> None:
    lash = mix(mix(who.hair, who.skin, 0.1), _BLACK, 0.72)
    for side in ("right", "left"):
        fill(canvas, face.contours[f"lids.{side}"], (236, 232, 228))
        fill(canvas, face.contours[f"iris.{side}"], who.eyes)
        fill(canvas, face.contours[f"pupil.{side}"], (12, 10, 10))
        pupil = face.contours[f"pupil.{side}"]
        if np.ptp(pupil[:, 1]) > 0.05 * face.pose.scale * FIXED:  # no glint on a closed eye
            glint = pupil.mean(axis=0).astype(np.int32) - np.array([30, 35], np.int32) * int(face.pose.scale)
            fill(canvas, disc(glint, 0.022, 0.022, axes), (250, 250, 250))
        fill(canvas, face.strokes[f"lid_lower.{side}"], mix(who.skin, (110, 40, 30), 0.45))
        fill(canvas, face.strokes[f"lid_upper.{side}"], lash)


def _fold_layer(face: FaceGeometry, size: tuple[int, int], rows: slice, columns: slice) -> Canvas:
    """A region of a canvas of the given size, uint8: 128 where the skin is smooth, darker in its folds."""
    layer: Canvas = np.full(size, 128, np.uint8)
    for name, depth in sorted(face.fold_depth.items(), key=lambda fold: fold[1]):
        if depth > 0:
            fill(layer, face.strokes[name], 128 - 72 * depth)
    sigma = 0.014 * face.pose.scale * OVERSAMPLE
    reach = 2 * round(2 * sigma) + 1  # two sigma each way: the fixed-point kernels of cv2 are the small ones
    return np.asarray(cv2.GaussianBlur(layer[rows, columns], (reach, reach), sigma), np.uint8)


def _smooth(face: FaceGeometry, light: Light, region: tuple[int, int, int, int], axes: Array) -> Canvas:
    """(_GRID, _GRID, 3) uint8 factors in 1/128 over a region (xyxy canvas px) of the head."""
    left, top, right, bottom = region
    x = (left + _CELLS * np.float32(right - left)) / OVERSAMPLE  # scene px of the cells
    y = (top + _CELLS * np.float32(bottom - top)) / OVERSAMPLE
    anchors = (np.array([face.anchors[blob[0]] for blob in _BLOBS]) / FIXED + _OFFSETS @ axes).astype(np.float32)
    # Distances in the axes of the turned face: across = (dx, dy) . unit row of the axes.
    across, down = (axes / (axes**2).sum(axis=1, keepdims=True)).astype(np.float32)
    dx, dy = (x - anchors[:, :1])[:, None, :], (y - anchors[:, 1:])[:, :, None]
    u = dx * (across[0] / _RADII[:, 0])[:, None, None] + dy * (across[1] / _RADII[:, 0])[:, None, None]
    v = dx * (down[0] / _RADII[:, 1])[:, None, None] + dy * (down[1] / _RADII[:, 1])[:, None, None]
    bump = u * u + v * v + 1.0
    bump = (1.0 / (bump * bump)).reshape(len(_BLOBS), -1).T
    tints = _TINTS.copy()
    tints[list(_CHEEKS)] += (
        0.10 * np.array(face.cheek_lift, np.float32)[:, None]
    )  # a raised cheek is round and catches the light
    blobs = 1.0 + (bump @ tints).reshape(_GRID, _GRID, 3)

    center = 0.5 * (face.contours["skull"].mean(axis=0) + face.anchors["mouth"]) / FIXED
    reach = 1.75 * face.pose.scale
    nx, ny = (x[None, :] - float(center[0])) / (0.8 * reach), (y[:, None] - float(center[1])) / reach
    nz = np.sqrt(np.maximum(1.0 - nx * nx - ny * ny, 0.05))
    lamp = np.maximum(nx * light.direction[0] + ny * light.direction[1] + nz * light.direction[2], 0.0)
    lit = 1.0 - light.contrast + 1.25 * light.contrast * lamp
    return np.asarray(np.clip(128.0 * blobs * lit[..., None], 0, 255), np.uint8)
