"""Input and output of detectors: images, and the faces found in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]
Landmarks = tuple[tuple[float, float], ...]

COORDINATE_STEP = 1 / 16
"""Coordinates are multiples of this, in px of the image."""

SCORE_DIGITS = 4


@dataclass(frozen=True, kw_only=True)
class Detection:
    """A detected face, in continuous px of the image: the pixel r, c covers [c, c + 1) x [r, r + 1).

    Attributes:
        box: x1, y1, x2, y2, half-open; it may reach beyond the image.
        landmarks: five (x, y): right eye, left eye, nose, right mouth corner, left mouth corner (of the person); None
            where unknown.
        score: the detector's confidence in 0..1; None where a person annotated the face.
    """

    box: Box
    landmarks: Landmarks | None
    score: float | None


class Detector(Protocol):
    """Finds all faces of images."""

    def detect(self, images: Sequence[Image]) -> list[list[Detection]]:
        """The faces of each image, highest score first, equal scores by their box.

        Args:
            images: (H, W, 3) uint8 RGB or (H, W) uint8 gray, upright; their sizes may differ.
        """
        ...


class Shrunk(NamedTuple):
    """An image at the size of the search.

    Attributes:
        image: (h, w, 3) uint8 RGB.
        back: factors of x and y to px of the original image.
    """

    image: Image
    back: npt.NDArray[np.float64]


def shrunk_size(height: int, width: int, longest_side: int) -> tuple[int, int]:
    """Height and width of an image at the size of the search: in proportion, never enlarged, at least 1 px."""
    scale = min(1.0, longest_side / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def shrink(image: Image, longest_side: int) -> Shrunk:
    """The image at `shrunk_size`.

    Halved as often as possible, which is exact averaging and ten times faster than averaging over other areas, and then
    resized bilinearly. Halving drops the last row or column of an odd number.
    """
    height, width = shrunk_size(image.shape[0], image.shape[1], longest_side)
    halvings = 0
    while image.shape[0] >= 2 * height and image.shape[1] >= 2 * width:
        even = image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2]
        half = (even.shape[1] // 2, even.shape[0] // 2)
        image = np.asarray(cv2.resize(even, half, interpolation=cv2.INTER_AREA), dtype=np.uint8)
        halvings += 1
    back = np.array([image.shape[1] / width, image.shape[0] / height]) * 2**halvings
    if image.shape[:2] != (height, width):
        image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
    if image.ndim == 2:
        image = np.asarray(cv2.cvtColor(image, cv2.COLOR_GRAY2RGB), dtype=np.uint8)
    return Shrunk(image, back)


def detections(boxes: npt.ArrayLike, landmarks: npt.ArrayLike, scores: npt.ArrayLike) -> list[Detection]:
    """Detected faces in the form of the interface: rounded, then sorted.

    Args:
        boxes: (N, 4); landmarks: (N, 5, 2); scores: (N,), all in the units of `Detection`.
    """
    rounded_boxes = np.round(np.asarray(boxes, dtype=np.float64).reshape(-1, 4) / COORDINATE_STEP) * COORDINATE_STEP
    points = np.round(np.asarray(landmarks, dtype=np.float64).reshape(-1, 5, 2) / COORDINATE_STEP) * COORDINATE_STEP
    rounded_scores = np.round(np.asarray(scores, dtype=np.float64).reshape(-1), SCORE_DIGITS)
    found = [
        Detection(box=(x1, y1, x2, y2), landmarks=tuple((x, y) for x, y in five), score=score)
        for (x1, y1, x2, y2), five, score in zip(
            rounded_boxes.tolist(), points.tolist(), rounded_scores.tolist(), strict=True
        )
    ]
    return sorted(found, key=lambda face: (-(face.score or 0.0), face.box, face.landmarks))
