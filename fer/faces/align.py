"""Alignment by five landmarks to the ArcFace template (Deng et al., "ArcFace", CVPR 2019; InsightFace's `norm_crop`).

Coordinates are continuous px: the pixel in row r and column c covers [c, c + 1) x [r, r + 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
Points = npt.NDArray[np.float64]

TEMPLATE_SIZE = 112
TEMPLATE: Points = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""Right eye, left eye, nose, right and left mouth corner (of the person) in a crop of 112 x 112 px; as published, that
is with the centre of the first pixel at (0, 0)."""


def template(size: int) -> Points:
    """The (5, 2) template in a crop of `size` x `size` px."""
    return (TEMPLATE + 0.5) * (size / TEMPLATE_SIZE)


def similarity(source: Points, target: Points) -> Points:
    """The (2, 3) rotation, uniform scale and shift that bring `source` nearest to `target` in the least-squares sense.

    Umeyama (PAMI 1991) without reflection; in the plane it is one complex division: with centred points as complex
    numbers, target = a * source has the least-squares solution a = sum(conj(source) * target) / sum(|source| ** 2).

    Args:
        source, target: (N, 2), N >= 2.

    Raises:
        ValueError: the source points are not finite, coincide, or do not determine the rotation.
    """
    if not np.isfinite(source).all():
        raise ValueError("the landmarks are not finite")
    here, there = source[:, 0] + 1j * source[:, 1], target[:, 0] + 1j * target[:, 1]
    centre, goal = here.mean(), there.mean()
    spread = float((np.abs(here - centre) ** 2).sum())
    if spread < 1e-6:
        raise ValueError("the landmarks coincide")
    a = (np.conj(here - centre) * (there - goal)).sum() / spread
    if abs(a) < 1e-6:
        raise ValueError("the landmarks do not resemble a face")
    b = goal - a * centre
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def box_similarity(box: Sequence[float], size: int, margin: float) -> Points:
    """The (2, 3) scale and shift that put a box, widened to a square and by `margin` on each side, into the crop."""
    x1, y1, x2, y2 = box
    scale = size / (max(x2 - x1, y2 - y1) * (1 + 2 * margin))
    return np.array(
        [[scale, 0.0, (size - scale * (x1 + x2)) / 2], [0.0, scale, (size - scale * (y1 + y2)) / 2]], dtype=np.float64
    )


def transform(matrix: Points, points: Points) -> Points:
    """(N, 2) points through a (2, 3) matrix."""
    moved: Points = points @ matrix[:, :2].T + matrix[:, 2]
    return moved


def warp(image: Image, matrix: Points, size: int) -> Image:
    """Cuts the (size, size) crop out of a picture, bilinearly; beyond the picture all is black, as in InsightFace.

    Bilinear sampling looks at 2 x 2 pixels, which aliases where the crop is less than half as large as the face in the
    picture. There the part of the picture that is seen is first shrunk by averaging whole blocks of pixels (area
    interpolation by an integer factor), so that at most a factor of two is left to the warp.

    Args:
        image: (H, W) or (H, W, 3) uint8.
        matrix: (2, 3), px of the picture to px of the crop.

    Returns:
        (size, size) or (size, size, 3) uint8.
    """
    factor = int(1.0 / math.hypot(matrix[0, 0], matrix[1, 0]))
    if factor >= 2:
        image, matrix = _shrink(image, matrix, size, factor)
    # OpenCV counts from the centre of the first pixel.
    linear, shift = matrix[:, :2], matrix[:, 2]
    counted = np.column_stack([linear, shift + linear @ np.array([0.5, 0.5]) - 0.5])
    crop = cv2.warpAffine(
        image, counted, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0
    )
    return np.asarray(crop, dtype=np.uint8)


def _shrink(image: Image, matrix: Points, size: int, factor: int) -> tuple[Image, Points]:
    """The picture's part under the crop, averaged over `factor` x `factor` blocks, and the matrix that goes with it."""
    back = np.asarray(cv2.invertAffineTransform(matrix), dtype=np.float64)
    corners = transform(back, np.array([[0, 0], [size, 0], [0, size], [size, size]], dtype=np.float64))
    height, width = image.shape[:2]
    x1, y1 = (max(0, int(value) - 2 * factor) for value in np.floor(corners.min(axis=0)))
    x2, y2 = (int(value) + 2 * factor for value in np.ceil(corners.max(axis=0)))
    part = image[y1 : max(min(height, y2), y1), x1 : max(min(width, x2), x1)]
    if part.size == 0:  # the crop lies outside the picture altogether
        return np.zeros((1, 1, *image.shape[2:]), np.uint8), matrix
    right, bottom = -part.shape[1] % factor, -part.shape[0] % factor
    whole = cv2.copyMakeBorder(part, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=0)
    small = cv2.resize(whole, (whole.shape[1] // factor, whole.shape[0] // factor), interpolation=cv2.INTER_AREA)
    linear, shift = matrix[:, :2], matrix[:, 2]
    return np.asarray(small, dtype=np.uint8), np.column_stack([linear * factor, shift + linear @ np.array([x1, y1])])
