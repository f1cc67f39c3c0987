"""Face crops of images: a pure function of the samples and the configuration.

Images are decoded, searched for faces in batches, and cropped one after the other. At most `BATCH` of them, or
`BATCH_PIXELS` and one image more, are in memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np

from fer.faces import align
from fer.faces.config import CropConfig
from fer.faces.detect import DEFAULTS, create_detector
from fer.faces.detection import Box, Detection, Detector, Image
from fer.faces.select import FLOOR, Face, Refusal, choose, unfit
from fer.io.images import ImageError, decode_image
from fer.sources.base import RawSample, Reject

BATCH, BATCH_PIXELS = 16, 64_000_000
"""Images of one call of the detector: so many, or fewer where they have so many pixels. A function of the images alone,
so that results do not depend on the number of workers."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class FaceCrop:
    """One cropped face.

    Attributes:
        image: JPEG (aligned) or PNG (published as a crop).
        landmarks: five (x, y) in px of the crop.
        face: box, score and label, in px of the image.
        pose: yaw, pitch, roll in degrees: the annotated one, else that of the detected landmarks, else None.
    """

    sample_id: str
    image: bytes
    height: int
    width: int
    channels: int
    landmarks: tuple[tuple[float, float], ...] | None
    face: Face
    pose: tuple[float, float, float] | None
    split: str
    origin: str

    def row(self) -> dict[str, Any]:
        """As a row of `fer.shards.schema.face_schema`."""
        annotation = self.face.annotation
        points = self.landmarks
        return {
            "sample_id": self.sample_id,
            "image": self.image,
            "label": annotation.label,
            "clean_label": annotation.clean_label,
            "subject": annotation.subject,
            "pose": self.pose and list(self.pose),
            "distribution": annotation.distribution and list(annotation.distribution),
            "height": self.height,
            "width": self.width,
            "channels": self.channels,
            "split": self.split,
            "box": list(self.face.box),
            "landmarks": points and [value for point in points for value in point],
            "score": self.face.score,
            "origin": self.origin,
        }


@dataclass(frozen=True, kw_only=True)
class Unreadable(Reject):
    """An image that cannot be decoded, for a reason of `fer.io.images`."""


@dataclass(frozen=True, kw_only=True)
class Finder:
    """A detector, and the lowest score of a face."""

    detector: Detector
    min_score: float


def finder(config: CropConfig, weights: str | None) -> Finder | None:
    """The configured detector, created once per process; None where the published boxes are used as they are.

    Args:
        weights: the detector's file.

    Raises:
        FileError: the weights are missing, or not this detector's.
    """
    if config.detector == "annotated":
        return None
    assert weights is not None
    min_score = DEFAULTS[config.detector].min_score if config.min_score is None else config.min_score
    return Finder(
        detector=_detector(config.detector, weights, min_score * FLOOR, config.detector_side), min_score=min_score
    )


@lru_cache(maxsize=1)
def _detector(name: str, weights: str, min_score: float, longest_side: int | None) -> Detector:
    return create_detector(name, weights=Path(weights), min_score=min_score, longest_side=longest_side)


def crop_samples(
    samples: Iterable[RawSample | Reject], config: CropConfig, finder: Finder | None = None, *, threads: int = 1
) -> Iterator[list[FaceCrop | Reject]]:
    """Every face with a label, cropped and aligned, or the reason of its refusal, image by image.

    An image that is a face crop already keeps its pixels and its size, as PNG. A crop's id is the sample's key,
    followed by "#0", "#1" ... where the image has several faces with a label. A refused sample stays as it is.

    Args:
        samples: images, or rejects of the reader.
        config: how faces are chosen and cropped.
        finder: see `finder`; None uses the published boxes as they are.
        threads: for decoding; any number gives the same result.

    Yields:
        for each sample at least one result. Reject reasons: the keys of `fer.faces.select.REASONS`; for an `Unreadable`
        those of `fer.io.images.ImageError`.

    Raises:
        ValueError: a label without a box, and no finder; it names the image.
        RuntimeError: anything unexpected; it names the image.
    """
    for batch in _batches(in_order(_open, samples, threads), BATCH if finder else 1):
        searched = [image for image in batch if isinstance(image, _Decoded) and image.is_searched]
        found = dict(zip(map(id, searched), _detect(searched, finder), strict=True)) if finder else {}
        for image in batch:
            if isinstance(image, Reject):
                yield [image]
                continue
            with _named(image.sample):
                faces = _crop(image, found.get(id(image)), config, finder.min_score if finder else 0.0)
            yield faces


# ------------------------------------------------------------------------------------------------ decoding


@dataclass(frozen=True, kw_only=True, eq=False)
class _Decoded:
    """A decoded image: (H, W) uint8 gray or (H, W, 3) uint8 RGB."""

    sample: RawSample
    image: Image

    @property
    def is_searched(self) -> bool:
        """Whether it has a label whose face may have to be detected."""
        return bool(self.sample.faces) and not self.sample.is_crop


def _open(sample: RawSample | Reject) -> _Decoded | Reject:
    if isinstance(sample, Reject):
        return sample
    with _named(sample):
        try:
            image = decode_image(sample.image) if isinstance(sample.image, bytes) else sample.image
        except ImageError as error:
            return Unreadable(sample_id=sample.key, reason=error.reason, detail=str(error), origin=sample.origin)
        return _Decoded(sample=sample, image=_without_equal_channels(image))


def _without_equal_channels(image: Image) -> Image:
    """Gray images as (H, W): a third of the work, and of the bytes."""

    def equal(part: Image) -> bool:
        return bool((part[..., 0] == part[..., 1]).all() and (part[..., 0] == part[..., 2]).all())

    if image.ndim == 3 and equal(image[::16, ::16]) and equal(image):  # a few pixels show most colors
        return np.ascontiguousarray(image[:, :, 0])
    return image


def in_order(task: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """Results in the order of the items, computed ahead by at most one per thread."""
    if threads == 1:
        yield from map(task, items)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        ahead: deque[Future[R]] = deque()
        for item in items:
            ahead.append(pool.submit(task, item))
            if len(ahead) > threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _batches(images: Iterable[_Decoded | Reject], most: int) -> Iterator[list[_Decoded | Reject]]:
    """Batches of at most `most` images, ended early by the image that reaches `BATCH_PIXELS`."""
    batch: list[_Decoded | Reject] = []
    pixels = 0
    for image in images:
        batch.append(image)
        pixels += 0 if isinstance(image, Reject) else image.image.shape[0] * image.image.shape[1]
        if len(batch) >= most or pixels >= BATCH_PIXELS:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch


# ------------------------------------------------------------------------------------------------ detect and crop


def _detect(images: list[_Decoded], finder: Finder) -> list[list[Detection]]:
    try:
        return finder.detector.detect([one.image for one in images]) if images else []
    except Exception:  # noqa: BLE001 - one by one, so that the failing image is named
        found = []
        for one in images:
            with _named(one.sample):
                found += finder.detector.detect([one.image])
        return found


def _crop(
    decoded: _Decoded, found: list[Detection] | None, config: CropConfig, min_score: float
) -> list[FaceCrop | Reject]:
    sample, image = decoded.sample, decoded.image
    if sample.is_crop:
        assert len(sample.faces) == 1
        annotation = sample.faces[0]
        whole = (0.0, 0.0, float(image.shape[1]), float(image.shape[0]))
        face = Face(annotation=annotation, box=annotation.box or whole, landmarks=annotation.landmarks, score=None)
        return [_finish(sample, sample.key, image, face.landmarks, face, config)]
    chosen = choose(sample.faces, found, image.shape[:2], config, min_score)
    names = [sample.key if len(chosen) == 1 else f"{sample.key}#{index}" for index in range(len(chosen))]
    return [_cut(sample, name, image, face, config) for name, face in zip(names, chosen, strict=True)]


def _cut(sample: RawSample, name: str, image: Image, face: Face | Refusal, config: CropConfig) -> FaceCrop | Reject:
    def refuse(refusal: Refusal) -> Reject:
        return Reject(sample_id=name, reason=refusal.reason, detail=refusal.detail, origin=sample.origin)

    if isinstance(face, Refusal):
        return refuse(face)
    if refusal := unfit(face.box, image.shape[:2], config):
        return refuse(refusal)
    points = None if face.landmarks is None else np.array(face.landmarks, dtype=np.float64)
    try:
        matrix = _placement(face.box, points, config)
    except ValueError as error:
        return refuse(Refusal(reason="bad_landmarks", detail=str(error)))
    crop = align.warp(image, matrix, config.size, config.border)
    placed = points if points is None else align.transform(matrix, points)
    landmarks = placed if placed is None else tuple((float(x), float(y)) for x, y in placed)
    return _finish(sample, name, crop, landmarks, face, config)


def _placement(box: Box, points: align.Points | None, config: CropConfig) -> align.Points:
    """The (2, 3) matrix from px of the image to px of the crop; ValueError for unusable landmarks."""
    if points is None or config.align == "square":
        if points is not None and not np.isfinite(points).all():
            raise ValueError("the landmarks are not finite")
        return align.box_similarity(box, config.size, config.box_margin)
    if config.align == "poses":
        return align.similarity(points, align.pose_template(points, config.size))
    return align.similarity(points, align.template(config.size))


def _finish(
    sample: RawSample,
    name: str,
    image: Image,
    landmarks: tuple[tuple[float, float], ...] | None,
    face: Face,
    config: CropConfig,
) -> FaceCrop:
    if config.color == "gray" and image.ndim == 3:
        image = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
    pose = face.annotation.pose
    if pose is None and face.score is not None and face.landmarks is not None:
        pose = align.pose_of(face.landmarks)
    return FaceCrop(
        sample_id=name,
        image=_encode(image, None if sample.is_crop else config.jpeg_quality),
        height=image.shape[0],
        width=image.shape[1],
        channels=1 if image.ndim == 2 else 3,
        landmarks=landmarks,
        face=face,
        pose=pose,
        split=sample.split,
        origin=sample.origin,
    )


@contextmanager
def _named(sample: RawSample) -> Iterator[None]:
    """Adds the name of the image to every error."""
    try:
        yield
    except Exception as error:
        text = f"{sample.key} ({sample.origin}): {error}"
        raise (
            ValueError(text) if isinstance(error, ValueError) else RuntimeError(f"{type(error).__name__} in {text}")
        ) from error


def _encode(image: Image, jpeg_quality: int | None) -> bytes:
    """As JPEG without chroma subsampling, or as PNG."""
    suffix, options = ".png", [cv2.IMWRITE_PNG_COMPRESSION, 6]
    if jpeg_quality is not None:
        full_chroma = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
        suffix, options = ".jpg", [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality, *full_chroma]
    done, data = cv2.imencode(suffix, image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    assert done
    return data.tobytes()
