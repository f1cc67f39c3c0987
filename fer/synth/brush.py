"""Filling contours of the scene on an oversampled canvas."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fer.synth.anatomy import Array
from fer.synth.geometry import FIXED, FIXED_BITS, Fixed, Pose

Canvas = NDArray[np.uint8]

OVERSAMPLE = 2
"""Canvas pixels a scene pixel, each way."""

_SHIFT = FIXED_BITS - 1  # fractional bits on the canvas: the numbers stay, the pixels are half as large
_RING = np.stack([np.cos(np.arange(20) * np.pi / 10), np.sin(np.arange(20) * np.pi / 10)], axis=1)
_RING4 = np.sign(_RING) * np.abs(_RING) ** 0.5


def fill(canvas: Canvas, contour: Fixed, color: Sequence[float] | float) -> None:
    """Fill a closed contour (n, 2) in 1/1024 px of the scene, anti-aliased; the canvas is (h, w, 3) or (h, w) uint8."""
    fill_all(canvas, [contour], color)


def fill_all(canvas: Canvas, contours: Sequence[Fixed], color: Sequence[float] | float) -> None:
    """Fill several contours with one color."""
    ink: Any = color
    # Pixel centers are half integers in the scene and whole numbers in cv2: half a canvas pixel apart.
    cv2.fillPoly(canvas, [contour - (1 << (_SHIFT - 1)) for contour in contours], ink, cv2.LINE_AA, _SHIFT)


def outline(canvas: Canvas, contour: Fixed, color: Sequence[float], width: float, *, closed: bool = True) -> None:
    """Stroke a contour; `width` in scene px, at least one canvas pixel."""
    thickness = max(1, round(width * OVERSAMPLE))
    shifted = contour - (1 << (_SHIFT - 1))
    cv2.polylines(canvas, [shifted], closed, tuple(color), thickness, cv2.LINE_AA, _SHIFT)


def plane(pose: Pose) -> Array:
    """(2, 2) whose rows are one face unit across and one down the face, in px of the scene: the frontal plane,
    turned."""
    axes: Array = pose.scale * pose.rotation[:2, :2].T
    return axes


def place(center: Fixed, shape: Array, axes: Array) -> Fixed:
    """A shape (n, 2) in face units, laid on the turned frontal plane about a point of the scene."""
    return np.rint(center + FIXED * (shape @ axes)).astype(np.int32)


def disc(center: Fixed, across: float, down: float, axes: Array, *, square: bool = False) -> Fixed:
    """An ellipse, or a rectangle with round corners, with half-axes in face units."""
    return place(center, (_RING4 if square else _RING) * [across, down], axes)
