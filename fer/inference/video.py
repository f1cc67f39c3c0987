"""Faces in video: found frame by frame, followed from frame to frame, their probabilities smoothed over time.

A face of a frame continues the track whose last box it overlaps most (intersection over union, greedily from the
greatest on, as in the SORT tracker without its motion model: Bewley et al., "Simple Online and Realtime Tracking", ICIP
2016). Its probabilities are an exponential mean: `smooth` of the track's plus `1 - smooth` of the frame's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np

from fer.faces.detection import Box
from fer.inference.model import Face, Model, Result
from fer.inference.photos import unreadable
from fer.io.files import FileError
from fer.io.images import ImageError
from fer.shards.pixels import Pixels

VIDEO_ENDINGS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
MIN_OVERLAP = 0.3
"""Intersection over union from which on two boxes of consecutive frames are of one face."""
PATIENCE = 10
"""Frames that a track outlives without its face."""
SMOOTH = 0.6


def overlap(one: Box, other: Box) -> float:
    """Intersection over union, 0 .. 1."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0.0, width) * max(0.0, height)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return shared / (areas - shared) if shared else 0.0


class Tracker:
    """The tracks of one video.

    Args:
        smooth: weight of the past in a face's probabilities, 0 .. 1 exclusive; 0 takes each frame for itself.
    """

    def __init__(self, smooth: float = SMOOTH) -> None:
        if not 0 <= smooth < 1:
            raise ValueError(f"smooth = {smooth}: 0 to less than 1 is allowed")
        self._smooth = smooth
        self._numbers = count(1)
        self._last: dict[int, tuple[int, Face]] = {}  # track -> frame in which it was last seen, and its face there
        self._frame = 0

    def follow(self, faces: tuple[Face, ...]) -> tuple[Face, ...]:
        """The faces of the next frame, each with its track and smoothed probabilities; label and order follow them."""
        self._frame += 1
        self._last = {key: seen for key, seen in self._last.items() if self._frame - seen[0] <= PATIENCE + 1}
        pairs = [
            (overlap(_box(face), _box(last)), index, track)
            for index, face in enumerate(faces)
            for track, (_, last) in self._last.items()
        ]
        tracks: dict[int, int] = {}
        for value, index, track in sorted(pairs, key=lambda pair: (-pair[0], *pair[1:])):
            if value >= MIN_OVERLAP and index not in tracks and track not in tracks.values():
                tracks[index] = track
        found = []
        for index, face in enumerate(faces):
            track = tracks.get(index) or next(self._numbers)
            face = self._smoothed(replace(face, track=track), track)
            self._last[track] = (self._frame, face)
            found.append(face)
        return tuple(found)

    def _smoothed(self, face: Face, track: int) -> Face:
        if track not in self._last:
            return face
        past = self._last[track][1].probabilities
        mixed = {
            label: self._smooth * past[label] + (1 - self._smooth) * value
            for label, value in face.probabilities.items()
        }
        return replace(face, probabilities=mixed, label=max(mixed, key=mixed.__getitem__))


def _box(face: Face) -> Box:
    assert face.box is not None
    return face.box


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A frame and its faces; `image` is (H, W, 3) RGB, None where the video could not be read."""

    image: Pixels | None
    result: Result


class Video:
    """A video file, or a camera.

    Args:
        source: path, or number of the camera.
        name: of it, for results.

    Attributes:
        rate: frames a second; 25 where the source does not say.
    """

    def __init__(self, source: Path | int, name: str) -> None:
        self._source, self._name, self.rate = source, name, 25.0

    def frames(self, model: Model, smooth: float = SMOOTH) -> Iterator[Frame]:
        """Each frame with its faces. What cannot be read is one frame without an image, and with the reason."""
        tracker, number = Tracker(smooth), -1
        for number, (seconds, image) in enumerate(self._images()):
            result = model.predict(image)
            faces = tracker.follow(result.faces)
            result = replace(result, name=self._name, faces=faces, frame=number, seconds=seconds)
            yield Frame(image=image, result=result)
        if number < 0:
            what = "no such camera, or it is in use" if isinstance(self._source, int) else "no video that can be read"
            error = ImageError("not_a_video", what)
            refused = unreadable(self._name, error)
            yield Frame(image=None, result=Result(name=self._name, faces=(), refused=(refused,), read=False))

    def _images(self) -> Iterator[tuple[float, Pixels]]:
        source: Any = self._source if isinstance(self._source, int) else str(self._source)
        capture = cv2.VideoCapture(source)
        try:
            rate = capture.get(cv2.CAP_PROP_FPS)
            self.rate = rate if 1 <= rate <= 1000 else self.rate
            for number in count():
                done, image = capture.read()
                if not done:
                    return
                yield round(number / self.rate, 3), np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)
        finally:
            capture.release()


class VideoWriter:
    """Writes frames of one size; opened by the first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)

    def add(self, image: Pixels, rate: float) -> None:
        """Appends (H, W, 3) RGB; FileError where OpenCV cannot write the file."""
        if self._writer is None:
            self._size = (image.shape[1] // 2 * 2, image.shape[0] // 2 * 2)  # players expect even sides
            self._writer = cv2.VideoWriter(str(self._path), cv2.VideoWriter.fourcc(*"mp4v"), rate, self._size)
            if not self._writer.isOpened():
                raise FileError(f"{self._path}: OpenCV cannot write this video here")
        even = image[: self._size[1], : self._size[0]]
        self._writer.write(cv2.cvtColor(even, cv2.COLOR_RGB2BGR))

    def close(self) -> bool:
        """Whether there was a frame."""
        if self._writer is not None:
            self._writer.release()
        return self._writer is not None


@contextmanager
def writing(target: Path) -> Iterator[VideoWriter]:
    """A video (.mp4) that takes its name when the block ends; after a signal it holds what was seen until then."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        path = Path(folder) / target.name
        writer = VideoWriter(path)
        try:
            yield writer
        finally:
            if writer.close():
                os.replace(path, target)
