"""One picture in, its face crops out: a pure function of the sample and the configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from fer.faces import align
from fer.faces.config import CropConfig
from fer.pictures import ImageError, decode_image
from fer.sources.base import AnnotatedFace, RawSample, Reject

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Detection:
    """A face in a picture: box and landmarks in px of the picture, the detector's score (None: annotated by hand)."""

    box: tuple[float, float, float, float]
    landmarks: tuple[tuple[float, float], ...] | None
    score: float | None
    annotation: AnnotatedFace


class Detector(Protocol):
    """Finds the faces of a picture that carry a label."""

    def detect(self, image: Image, faces: Sequence[AnnotatedFace]) -> list[Detection]:
        """The faces to crop, in a stable order.

        Args:
            image: (H, W, 3) uint8 RGB.
            faces: what the dataset publishes of this picture.
        """
        ...


class AnnotatedDetector:
    """Takes every face that the dataset annotates, as it is annotated."""

    def detect(self, image: Image, faces: Sequence[AnnotatedFace]) -> list[Detection]:
        """See `Detector.detect`."""
        return [
            Detection(box=face.box, landmarks=face.landmarks, score=None, annotation=face)
            for face in faces
            if face.box is not None
        ]


DETECTORS: dict[str, type[Detector]] = {"annotated": AnnotatedDetector}


@dataclass(frozen=True, kw_only=True)
class FaceCrop:
    """One face. `image` is JPEG (aligned) or PNG (passed through); landmarks are five (x, y) in px of the crop."""

    sample_id: str
    image: bytes
    height: int
    width: int
    channels: int
    landmarks: tuple[tuple[float, float], ...] | None
    detection: Detection
    split: str
    origin: str

    def row(self) -> dict[str, Any]:
        """As a row of `fer.shards.schema.face_schema`."""
        face = self.detection.annotation
        points = self.landmarks
        return {
            "sample_id": self.sample_id,
            "image": self.image,
            "label": face.label,
            "clean_label": face.clean_label,
            "subject": face.subject,
            "pose": face.pose and list(face.pose),
            "distribution": face.distribution and list(face.distribution),
            "height": self.height,
            "width": self.width,
            "channels": self.channels,
            "split": self.split,
            "box": list(self.detection.box),
            "landmarks": points and [value for point in points for value in point],
            "score": self.detection.score,
            "origin": self.origin,
        }


def crop_sample(sample: RawSample, config: CropConfig) -> list[FaceCrop | Reject]:
    """Every face of a picture, cut out and aligned, or why it was refused.

    A picture that is a face crop already keeps its pixels and its size, as PNG. A sample's id is the picture's key,
    with "#0", "#1" ... behind it where the picture has several faces.

    Reject reasons: "no_face"; "face_too_small"; "bad_landmarks"; "outside_picture"; those of `fer.files.ImageError`.
    """
    try:
        image = decode_image(sample.image) if isinstance(sample.image, bytes) else sample.image
    except ImageError as error:
        return [Reject(sample_id=sample.key, reason=error.reason, detail=str(error), origin=sample.origin)]
    image = _without_equal_channels(image)
    if sample.is_crop:
        assert len(sample.faces) == 1
        face = sample.faces[0]
        whole = (0.0, 0.0, float(image.shape[1]), float(image.shape[0]))
        detection = Detection(box=face.box or whole, landmarks=face.landmarks, score=None, annotation=face)
        return [_finish(sample, sample.key, image, face.landmarks, detection, config)]
    found = DETECTORS[config.detector]().detect(image, sample.faces)
    if not found:
        return [Reject(sample_id=sample.key, reason="no_face", detail="no face in this picture", origin=sample.origin)]
    ids = [sample.key if len(found) == 1 else f"{sample.key}#{index}" for index in range(len(found))]
    return [_cut(sample, name, image, detection, config) for name, detection in zip(ids, found, strict=True)]


def _cut(sample: RawSample, name: str, image: Image, detection: Detection, config: CropConfig) -> FaceCrop | Reject:
    def refuse(reason: str, detail: str) -> Reject:
        return Reject(sample_id=name, reason=reason, detail=detail, origin=sample.origin)

    x1, y1, x2, y2 = detection.box
    height, width = image.shape[:2]
    if not min(x2 - x1, y2 - y1) >= config.min_face_size:
        return refuse("face_too_small", f"{x2 - x1:.0f} x {y2 - y1:.0f} px, at least {config.min_face_size:g}")
    if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
        return refuse("outside_picture", f"box {x1:.0f}, {y1:.0f}, {x2:.0f}, {y2:.0f} in {width} x {height} px")
    if detection.landmarks is None:
        matrix, landmarks = align.box_similarity(detection.box, config.size, config.box_margin), None
    else:
        points = np.array(detection.landmarks, dtype=np.float64)
        try:
            matrix = align.similarity(points, align.template(config.size))
        except ValueError as error:
            return refuse("bad_landmarks", str(error))
        landmarks = tuple((float(x), float(y)) for x, y in align.transform(matrix, points))
    return _finish(sample, name, align.warp(image, matrix, config.size), landmarks, detection, config)


def _finish(
    sample: RawSample,
    name: str,
    image: Image,
    landmarks: tuple[tuple[float, float], ...] | None,
    detection: Detection,
    config: CropConfig,
) -> FaceCrop:
    return FaceCrop(
        sample_id=name,
        image=_encode_png(image) if sample.is_crop else _encode_jpeg(image, config.jpeg_quality),
        height=image.shape[0],
        width=image.shape[1],
        channels=1 if image.ndim == 2 else 3,
        landmarks=landmarks,
        detection=detection,
        split=sample.split,
        origin=sample.origin,
    )


def _without_equal_channels(image: Image) -> Image:
    """Grey pictures as (H, W): a third of the work, and of the bytes."""
    if image.ndim == 3 and (image[:, :, 0] == image[:, :, 1]).all() and (image[:, :, 0] == image[:, :, 2]).all():
        return np.ascontiguousarray(image[:, :, 0])
    return image


def _encode_jpeg(image: Image, quality: int) -> bytes:
    options = [
        cv2.IMWRITE_JPEG_QUALITY, quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ]  # fmt: skip
    return _encode(".jpg", image, options)


def _encode_png(image: Image) -> bytes:
    return _encode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 6])


def _encode(suffix: str, image: Image, options: list[int]) -> bytes:
    bgr = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(suffix, bgr, options)
    assert done
    return data.tobytes()
