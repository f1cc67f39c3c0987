"""Assignment of labels to detected faces, and the checks before a face is cropped: pure functions.

A dataset gives a label's face by a box, or only by its image. With a detector, a published box is refined: the
detection that overlaps it most gets its label, and has tighter landmarks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fer.faces.config import CropConfig
from fer.faces.detection import Box, Detection, Landmarks
from fer.sources.base import AnnotatedFace

REASONS = {
    "no_face": "the dataset annotates no face, or the detector finds none for the label",
    "several_faces": "the label could be that of any of several faces (crop.faces)",
    "low_score": "its score is below crop.min_score",
    "face_too_small": "the shorter side of its box is below crop.min_face_size",
    "outside_picture": "more of its box than crop.max_outside is beyond the image",
    "bad_landmarks": "its landmarks are not finite, coincide, or do not resemble a face",
}
"""Reasons of refused faces in rejects.parquet, and their meaning. `fer.io.images` has the reasons of refused images."""

FLOOR = 0.5
"""Detectors return faces down to this fraction of `min_score`, which tells low_score from no_face."""


@dataclass(frozen=True, kw_only=True)
class Face:
    """A face with its label, in px of its image.

    Attributes:
        annotation: its label and everything else that the dataset publishes.
        box, landmarks: the detector's, or the published ones.
        score: the detector's; None where a person annotated the face.
    """

    annotation: AnnotatedFace
    box: Box
    landmarks: Landmarks | None
    score: float | None


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A label without a usable face: a key of `REASONS`, and the details."""

    reason: str
    detail: str


def choose(
    annotations: Sequence[AnnotatedFace],
    found: Sequence[Detection] | None,
    size: tuple[int, int],
    config: CropConfig,
    min_score: float,
) -> list[Face | Refusal]:
    """The faces of an image for its labels, in the order of the labels; at least one result.

    Args:
        annotations: of the image.
        found: the detector's faces, best first, including some below `min_score`; None to use the published boxes as
            they are.
        size: (height, width) of the image in px.
        config: `faces`, `unmatched`, `min_overlap` and `min_face_size` are used.
        min_score: of a face, 0..1.

    Raises:
        ValueError: a label without a box, and no detector to find its face.
    """
    if not annotations:
        return [Refusal(reason="no_face", detail="no face in this image")]
    if found is None:
        return [_as_annotated(one) for one in annotations]
    sure = [one for one in found if (one.score or 0.0) >= min_score]
    unsure = [one for one in found if (one.score or 0.0) < min_score]
    partners = match([one.box for one in annotations], [one.box for one in sure], config.min_overlap)
    chosen: list[Face | Refusal] = []
    for index, annotation in enumerate(annotations):
        if annotation.box is None:
            free = [one for number, one in enumerate(sure) if number not in partners.values()]
            unboxed = sum(one.box is None for one in annotations)
            if unboxed > 1:
                chosen.append(Refusal(reason="several_faces", detail=f"{unboxed} labels of this image have no box"))
            else:
                chosen += _anywhere(annotation, free, unsure, size, config, min_score)
        elif index in partners:
            chosen.append(_detected(annotation, sure[partners[index]]))
        elif config.unmatched == "annotated":
            chosen.append(_as_annotated(annotation))
        else:
            chosen.append(_missed(annotation.box, unsure, config, min_score))
    return chosen


def match(boxes: Sequence[Box | None], others: Sequence[Box], least: float) -> dict[int, int]:
    """Pairs of the boxes that overlap most, each in one pair at most: the best pair first, ties by position.

    Args:
        least: lowest intersection over union of a pair, 0..1.

    Returns:
        index in `boxes` -> index in `others`.
    """
    pairs = [
        (-iou, i, j)
        for i, box in enumerate(boxes)
        if box is not None
        for j, other in enumerate(others)
        if (iou := overlap(box, other)) >= least
    ]
    taken: dict[int, int] = {}
    for _, i, j in sorted(pairs):
        if i not in taken and j not in taken.values():
            taken[i] = j
    return taken


def overlap(one: Box, other: Box) -> float:
    """Intersection over union, 0..1; 0 for boxes without an area."""
    shared = _area((max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])))
    return shared / (_area(one) + _area(other) - shared) if shared > 0 else 0.0


def unfit(box: Box, size: tuple[int, int], config: CropConfig) -> Refusal | None:
    """Why a face with this box is not cropped: too small, or beyond the image; None if it is.

    Args:
        size: (height, width) of the image in px.
    """
    x1, y1, x2, y2 = box
    height, width = size
    if not _shorter_side(box) >= config.min_face_size:  # refuses NaN too
        detail = f"{x2 - x1:.0f} x {y2 - y1:.0f} px, at least {config.min_face_size:g}"
        return Refusal(reason="face_too_small", detail=detail)
    inside = _area((max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))))
    if inside == 0 or 1 - inside / _area(box) > config.max_outside:
        detail = f"box {x1:.0f}, {y1:.0f}, {x2:.0f}, {y2:.0f} in {width} x {height} px"
        return Refusal(reason="outside_picture", detail=detail)
    return None


def _as_annotated(annotation: AnnotatedFace) -> Face:
    if annotation.box is None:
        raise ValueError("a label without a box; set crop.detector to retinaface or yunet in params.yaml")
    return Face(annotation=annotation, box=annotation.box, landmarks=annotation.landmarks, score=None)


def _detected(annotation: AnnotatedFace, detection: Detection) -> Face:
    return Face(annotation=annotation, box=detection.box, landmarks=detection.landmarks, score=detection.score)


def _missed(box: Box, unsure: Sequence[Detection], config: CropConfig, min_score: float) -> Refusal:
    """Why a published box has no detection."""
    there = [one for one in unsure if overlap(box, one.box) >= config.min_overlap]
    if there:
        return _too_unsure(there, min_score)
    return Refusal(reason="no_face", detail="the detector finds no face in the published box")


def _anywhere(
    annotation: AnnotatedFace,
    free: Sequence[Detection],
    unsure: Sequence[Detection],
    size: tuple[int, int],
    config: CropConfig,
    min_score: float,
) -> list[Face | Refusal]:
    """The faces for a label of the whole image; small faces in the background are ignored."""
    if not free:
        if unsure:
            return [_too_unsure(unsure, min_score)]
        return [Refusal(reason="no_face", detail="the detector finds no face in this image")]
    if config.faces == "all":
        return [_detected(annotation, one) for one in free]
    large = [one for one in free if _shorter_side(one.box) >= config.min_face_size] or free
    if config.faces == "single" and len(large) > 1:
        return [Refusal(reason="several_faces", detail=f"{len(large)} faces in this image")]
    if config.faces == "central":
        return [_detected(annotation, min(large, key=lambda one: _off_center(one.box, size)))]
    return [_detected(annotation, max(large, key=lambda one: _area(one.box)))]


def _too_unsure(unsure: Sequence[Detection], min_score: float) -> Refusal:
    best = max(one.score or 0.0 for one in unsure)
    return Refusal(reason="low_score", detail=f"the best score is {best:.2f}, below {min_score:g}")


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def _shorter_side(box: Box) -> float:
    return min(box[2] - box[0], box[3] - box[1])


def _off_center(box: Box, size: tuple[int, int]) -> float:
    """Squared distance between the centers of box and image in px."""
    return ((box[0] + box[2] - size[1]) / 2) ** 2 + ((box[1] + box[3] - size[0]) / 2) ** 2
