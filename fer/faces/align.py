"""Alignment by five landmarks to a template, by the box alone, and the head's pose.

Templates: ArcFace's (Deng et al., "ArcFace", CVPR 2019; InsightFace's `norm_crop`), and the five of DDAMFN's aligner
for five poses (github.com/SainingZhang/DDAMFN, `DDAMFN++/Retinaface_alignment_ver2.0/face_align_v2.0.py`), of which a
face takes the best-fitting one.

Coordinates are continuous px: the pixel in row r and column c covers [c, c + 1) x [r, r + 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from fer.faces.detection import Image

Points = npt.NDArray[np.float64]
Border = Literal["black", "replicate", "reflect"]

TEMPLATE_SIZE = 112
TEMPLATE: Points = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""Right eye, left eye, nose, right and left mouth corner (of the person) in a crop of 112 x 112 px; as published, that
is with the center of the first pixel at (0, 0)."""


POSES: dict[str, Points] = {
    "left profile": np.array(
        [[55.550, 49.477], [62.116, 49.339], [38.075, 70.237], [55.017, 92.262], [61.466, 92.979]]
    ),
    "left": np.array([[47.241, 48.598], [72.887, 49.540], [40.555, 71.067], [47.423, 93.643], [71.236, 94.353]]),
    "frontal": np.array([[33.566, 40.559], [78.321, 40.559], [55.338, 64.967], [38.479, 90.276], [73.591, 90.276]]),
    "right": np.array([[39.516, 49.540], [65.162, 48.598], [71.849, 71.067], [41.167, 94.353], [64.980, 93.643]]),
    "right profile": np.array(
        [[50.225, 49.339], [56.791, 49.477], [74.266, 70.237], [50.875, 92.979], [65.317, 92.262]]
    ),
}
"""DDAMFN's templates, by the side of the image that the face is turned to; points and units as in `TEMPLATE`."""

_BORDERS = {
    "black": cv2.BORDER_CONSTANT,
    "replicate": cv2.BORDER_REPLICATE,
    "reflect": cv2.BORDER_REFLECT,  # repeats the outermost pixel
}


def template(size: int) -> Points:
    """The (5, 2) template in a crop of `size` x `size` px."""
    return (TEMPLATE + 0.5) * (size / TEMPLATE_SIZE)


def pose_template(landmarks: Points, size: int) -> Points:
    """The one of DDAMFN's five templates, in a crop of `size` x `size` px, that (5, 2) landmarks fit best.

    As published: the least sum of the five distances after `similarity`; of equal ones the first of `POSES`.

    Raises:
        ValueError: see `similarity`.
    """
    templates = [(points + 0.5) * (size / TEMPLATE_SIZE) for points in POSES.values()]
    return min(templates, key=lambda points: _distance(landmarks, points))


def _distance(landmarks: Points, target: Points) -> float:
    return float(np.linalg.norm(transform(similarity(landmarks, target), landmarks) - target, axis=1).sum())


def similarity(source: Points, target: Points) -> Points:
    """The (2, 3) rotation, uniform scale and shift that map `source` to `target` with least squares.

    Umeyama (PAMI 1991) without reflection; in the plane it is one complex division: with centerd points as complex
    numbers, target = a * source has the least-squares solution a = sum(conj(source) * target) / sum(|source| ** 2).

    Args:
        source, target: (N, 2), N >= 2.

    Raises:
        ValueError: the source points are not finite, coincide, or do not determine the rotation.
    """
    if not np.isfinite(source).all():
        raise ValueError("the landmarks are not finite")
    here, there = source[:, 0] + 1j * source[:, 1], target[:, 0] + 1j * target[:, 1]
    center, goal = here.mean(), there.mean()
    spread = float((np.abs(here - center) ** 2).sum())
    if spread < 1e-6:
        raise ValueError("the landmarks coincide")
    a = (np.conj(here - center) * (there - goal)).sum() / spread
    if abs(a) < 1e-6:
        raise ValueError("the landmarks do not resemble a face")
    b = goal - a * center
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def box_similarity(box: Sequence[float], size: int, margin: float) -> Points:
    """The (2, 3) scale and shift that map a box, extended to a square and by `margin` on each side, to the crop."""
    x1, y1, x2, y2 = box
    scale = size / (max(x2 - x1, y2 - y1) * (1 + 2 * margin))
    return np.array(
        [[scale, 0.0, (size - scale * (x1 + x2)) / 2], [0.0, scale, (size - scale * (y1 + y2)) / 2]], dtype=np.float64
    )


def transform(matrix: Points, points: Points) -> Points:
    """(N, 2) points through a (2, 3) matrix."""
    moved: Points = points @ matrix[:, :2].T + matrix[:, 2]
    return moved


def warp(image: Image, matrix: Points, size: int, border: Border = "black") -> Image:
    """Cuts the (size, size) crop out of an image, bilinearly.

    Bilinear sampling uses 2 x 2 pixels, which aliases where the crop is less than half as large as the face in the
    image. There the visible part of the image is first shrunk by averaging whole blocks of pixels (area interpolation
    by an integer factor), so that at most a factor of two is left to the warp.

    Args:
        image: (H, W) or (H, W, 3) uint8.
        matrix: (2, 3), px of the image to px of the crop.
        border: what the crop shows beyond the image: black (as in InsightFace and DDAMFN), its outermost pixels
            repeated, or the image mirrored at its edge.

    Returns:
        (size, size) or (size, size, 3) uint8.
    """
    factor = int(1.0 / math.hypot(matrix[0, 0], matrix[1, 0]))
    if factor >= 2:
        image, matrix = _shrink(image, matrix, size, factor, border)
    # OpenCV counts from the center of the first pixel.
    linear, shift = matrix[:, :2], matrix[:, 2]
    counted = np.column_stack([linear, shift + linear @ np.array([0.5, 0.5]) - 0.5])
    crop = cv2.warpAffine(
        image, counted, (size, size), flags=cv2.INTER_LINEAR, borderMode=_BORDERS[border], borderValue=0
    )
    return np.asarray(crop, dtype=np.uint8)


def _shrink(image: Image, matrix: Points, size: int, factor: int, border: Border) -> tuple[Image, Points]:
    """The part of the image under the crop, averaged over `factor` x `factor` blocks, and the matrix for it."""
    back = np.asarray(cv2.invertAffineTransform(matrix), dtype=np.float64)
    corners = transform(back, np.array([[0, 0], [size, 0], [0, size], [size, size]], dtype=np.float64))
    height, width = image.shape[:2]
    x1, y1 = (int(value) - 2 * factor for value in np.floor(corners.min(axis=0)))
    x2, y2 = (int(value) + 2 * factor for value in np.ceil(corners.max(axis=0)))
    outside = x1 < 0 or y1 < 0 or x2 > width or y2 > height
    linear, shift = matrix[:, :2], matrix[:, 2]
    if outside and border == "reflect":  # mirrored pixels may be anywhere, and must be mirrored at the very edge
        columns, rows = -(-width // factor), -(-height // factor)
        small = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA)
        scaled = linear * np.array([width / columns, height / rows])
        return np.asarray(small, dtype=np.uint8), np.column_stack([scaled, shift])
    if outside and border == "replicate":  # at least the pixels that are repeated
        x1, y1, x2, y2 = min(x1, width - 1), min(y1, height - 1), max(x2, 1), max(y2, 1)
    x1, y1 = max(0, x1), max(0, y1)
    part = image[y1 : max(min(height, y2), y1), x1 : max(min(width, x2), x1)]
    if part.size == 0:  # the whole crop is outside the image
        return np.zeros((1, 1, *image.shape[2:]), np.uint8), matrix
    right, bottom = -part.shape[1] % factor, -part.shape[0] % factor
    whole = cv2.copyMakeBorder(part, 0, bottom, 0, right, _BORDERS[border], value=0)
    small = cv2.resize(whole, (whole.shape[1] // factor, whole.shape[0] // factor), interpolation=cv2.INTER_AREA)
    return np.asarray(small, dtype=np.uint8), np.column_stack([linear * factor, shift + linear @ np.array([x1, y1])])


# ------------------------------------------------------------------------------------------------ pose

_HEAD: Points = np.array(
    [[-0.5, 0.0, 0.0], [0.5, 0.0, 0.0], [0.0, 0.57, 0.55], [-0.41, 1.155, 0.05], [0.41, 1.155, 0.05]]
)
"""The five landmarks of a head that faces the camera, in distances between the eyes. x to the right and y down in the
image: ArcFace's template. z towards the camera: published head models have the tip of the nose 0.4 to 0.7 before the
eyes, counted from the pupil or from a corner of the eye."""

_FROM_HEAD = np.linalg.pinv(_HEAD - _HEAD.mean(axis=0))


def pose_of(landmarks: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Yaw, pitch and roll in degrees, estimated from five landmarks and one model of all heads.

    The image is assumed to be a parallel projection of `_HEAD`, rotated and scaled: the least-squares affine map from
    the model to the landmarks (DeMenthon and Davis, "Model-based object pose in 25 lines of code", IJCV 1995, first
    step), and the rotation nearest to it. Good for yaw and roll; pitch depends on the length of the face and on an open
    mouth. docs/faces.md has the errors.

    Args:
        landmarks: five finite (x, y).

    Returns:
        yaw > 0: the nose to the right of the image; pitch > 0: down; roll > 0: clockwise; the rotation is that of
        pitch, then yaw, then roll. Whole tenths of a degree.
    """
    points = np.array(landmarks, dtype=np.float64)
    affine = (_FROM_HEAD @ (points - points.mean(axis=0))).T
    left, _, right = np.linalg.svd(affine, full_matrices=False)
    across, down = left @ right
    towards = np.cross(across, down)
    yaw = math.asin(max(-1.0, min(1.0, -towards[0])))
    pitch, roll = math.atan2(-towards[1], towards[2]), math.atan2(down[0], across[0])
    return round(math.degrees(yaw), 1), round(math.degrees(pitch), 1), round(math.degrees(roll), 1)
