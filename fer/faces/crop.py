"""From pictures to face crops: a pure function of the samples and the configuration.

Pictures are decoded, searched in batches, and cut one after the other; at most `BATCH` of them, and `BATCH_PIXELS` and
one more, are in memory, however many there are.
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
"""Pictures that are searched together: so many, or fewer where they have so many pixels. A function of the pictures
alone, so that nothing depends on who does the work."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class FaceCrop:
    """One face, cut out.

    Attributes:
        image: JPEG (aligned) or PNG (passed through).
        landmarks: five (x, y) in px of the crop.
        face: box, score and label, in px of the picture.
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
    """A picture that cannot be decoded; its reason is one of `fer.io.images`."""


@dataclass(frozen=True, kw_only=True)
class Finder:
    """A detector, and the score from which on what it finds is a face."""

    detector: Detector
    min_score: float


def finder(config: CropConfig, weights: str | None) -> Finder | None:
    """What looks for faces as configured, made once a process; None where the published boxes are taken as they are.

    Args:
        weights: the detector's file.

    Raises:
        FileError: the weights are not there, or are not this detector's.
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


def crop_sample(sample: RawSample, config: CropConfig, finder: Finder | None = None) -> list[FaceCrop | Reject]:
    """The faces of one picture; see `crop_samples`."""
    (faces,) = crop_samples([sample], config, finder)
    return faces


def crop_samples(
    samples: Iterable[RawSample | Reject], config: CropConfig, finder: Finder | None = None, *, threads: int = 1
) -> Iterator[list[FaceCrop | Reject]]:
    """Of each picture in turn every face with a label, cut out and aligned, or why it was refused.

    A picture that is a face crop already keeps its pixels and its size, as PNG. A sample's id is the picture's key,
    with "#0", "#1" ... behind it where the picture has several faces with a label. A refused sample stays as it is.

    Args:
        samples: pictures, or what was refused before.
        config: how faces are chosen and cut.
        finder: see `finder`; None takes the published boxes as they are.
        threads: that decode; the result is the same for any number.

    Yields:
        for each sample at least one result. Reject reasons: the keys of `fer.faces.select.REASONS`; for an `Unreadable`
        those of `fer.io.images.ImageError`.

    Raises:
        ValueError: a label without a box, and no finder; it names the picture.
        RuntimeError: anything unforeseen; it names the picture.
    """
    for batch in _batches(_in_order(_open, samples, threads), BATCH if finder else 1):
        searched = [picture for picture in batch if isinstance(picture, _Picture) and picture.is_searched]
        found = dict(zip(map(id, searched), _search(searched, finder), strict=True)) if finder else {}
        for picture in batch:
            if isinstance(picture, Reject):
                yield [picture]
                continue
            with _told(picture.sample):
                faces = _crop(picture, found.get(id(picture)), config, finder.min_score if finder else 0.0)
            yield faces


# ------------------------------------------------------------------------------------------------ decoding


@dataclass(frozen=True, kw_only=True, eq=False)
class _Picture:
    """A decoded picture: (H, W) uint8 grey or (H, W, 3) uint8 RGB."""

    sample: RawSample
    image: Image

    @property
    def is_searched(self) -> bool:
        """Whether there is a label whose face may have to be found."""
        return bool(self.sample.faces) and not self.sample.is_crop


def _open(sample: RawSample | Reject) -> _Picture | Reject:
    if isinstance(sample, Reject):
        return sample
    with _told(sample):
        try:
            image = decode_image(sample.image) if isinstance(sample.image, bytes) else sample.image
        except ImageError as error:
            return Unreadable(sample_id=sample.key, reason=error.reason, detail=str(error), origin=sample.origin)
        return _Picture(sample=sample, image=_without_equal_channels(image))


def _without_equal_channels(image: Image) -> Image:
    """Grey pictures as (H, W): a third of the work, and of the bytes."""

    def equal(part: Image) -> bool:
        return bool((part[..., 0] == part[..., 1]).all() and (part[..., 0] == part[..., 2]).all())

    if image.ndim == 3 and equal(image[::16, ::16]) and equal(image):  # a few pixels tell colour from grey
        return np.ascontiguousarray(image[:, :, 0])
    return image


def _in_order(task: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """Results in the order of the items, at most one for each thread ahead of what is taken."""
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


def _batches(pictures: Iterable[_Picture | Reject], most: int) -> Iterator[list[_Picture | Reject]]:
    """Runs of pictures, at most `most` of them, closed early by the one with which they have `BATCH_PIXELS`."""
    batch: list[_Picture | Reject] = []
    pixels = 0
    for picture in pictures:
        batch.append(picture)
        pixels += 0 if isinstance(picture, Reject) else picture.image.shape[0] * picture.image.shape[1]
        if len(batch) >= most or pixels >= BATCH_PIXELS:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch


# ------------------------------------------------------------------------------------------------ finding and cutting


def _search(pictures: list[_Picture], finder: Finder) -> list[list[Detection]]:
    try:
        return finder.detector.detect([picture.image for picture in pictures]) if pictures else []
    except Exception:  # noqa: BLE001 - one of them; looked for on its own so that it can be named
        found = []
        for picture in pictures:
            with _told(picture.sample):
                found += finder.detector.detect([picture.image])
        return found


def _crop(
    picture: _Picture, found: list[Detection] | None, config: CropConfig, min_score: float
) -> list[FaceCrop | Reject]:
    sample, image = picture.sample, picture.image
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
    """The (2, 3) matrix from px of the picture to px of the crop; ValueError for landmarks that cannot be used."""
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
    pose = face.annotation.pose
    if pose is None and face.score is not None and face.landmarks is not None:
        pose = align.pose_of(face.landmarks)
    return FaceCrop(
        sample_id=name,
        image=_encode_png(image) if sample.is_crop else _encode_jpeg(image, config.jpeg_quality),
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
def _told(sample: RawSample) -> Iterator[None]:
    """Names the picture in whatever goes wrong with it."""
    try:
        yield
    except Exception as error:
        text = f"{sample.key} ({sample.origin}): {error}"
        raise (
            ValueError(text) if isinstance(error, ValueError) else RuntimeError(f"{type(error).__name__} in {text}")
        ) from error


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
