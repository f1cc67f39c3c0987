"""What assignment, the search for duplicates and the statistics need of each face; the images stay on disk."""

from __future__ import annotations

import hashlib
import math
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import cv2
import numpy as np

from fer.console import progress
from fer.io.files import FileError
from fer.shards.duplicates import PRINT, Fingerprint, fingerprint
from fer.shards.schema import ShardError, Split, face_schema
from fer.shards.table import TableReader

_THREADS = 4
_LEVELS = np.arange(256, dtype=np.int64)
_COLUMNS = ["sample_id", "image", "label", "split", "subject", "pose", "score"]


@dataclass(frozen=True, slots=True)
class Face:
    """One row of data/faces.

    Attributes:
        split: the published one.
        subject, yaw, score: None where unknown; yaw in degrees, the score is the detector's.
        size: (height, width) in px.
        gray: one channel.
        pixels: digest of the decoded image: equal for equal pixels, whatever the encoding.
        sums: number of pixels, then sum and sum of squares of red, green, blue, 0 .. 255: exact.
    """

    sample_id: str
    label: int
    split: Split
    subject: str | None
    yaw: float | None
    score: float | None
    size: tuple[int, int]
    gray: bool
    pixels: bytes
    sums: tuple[int, ...]


def survey(files: Sequence[Path], total: int, name: str, prints: BinaryIO | None = None) -> list[Face]:
    """One pass over every image of a dataset.

    Args:
        prints: takes the fingerprints, as records of `fer.shards.duplicates.PRINT`.

    Raises:
        FileError: damaged files, other columns, not the `total` faces that were announced, or one of them twice.
        ShardError: an image cannot be decoded.
    """
    faces: list[Face] = []
    with progress(total, f"read {name}", "face") as bar, ThreadPoolExecutor(_THREADS) as pool:
        for file in files:
            for batch in TableReader(file, face_schema(), remedy=f"run `dvc repro -f crop@{name}`").batches(_COLUMNS):
                measured = list(pool.map(partial(_measure, with_print=prints is not None), batch.to_pylist()))
                faces += (face for face, _ in measured)
                if prints:
                    prints.write(np.array([one for _, one in measured], PRINT).tobytes())
                bar.update(batch.num_rows)
    if len(faces) != total:
        raise FileError(
            f"{files[0].parent}: {len(faces)} faces, faces.json says {total}; run `dvc repro -f crop@{name}`"
        )
    doubles = [sample for sample, count in Counter(face.sample_id for face in faces).items() if count > 1]
    if doubles:
        raise FileError(f"{files[0].parent}: sample id {doubles[0]!r} occurs twice; run `dvc repro -f crop@{name}`")
    return faces


def mean_std(faces: Sequence[Face]) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Of red, green and blue over all pixels, 0 .. 1. Exact sums, so that the order of rows does not matter."""
    count, *moments = (sum(column) for column in zip(*(face.sums for face in faces), strict=True))
    mean, std = [], []
    for total, squares in zip(moments[::2], moments[1::2], strict=True):
        mean.append(total / (count * 255))
        std.append(math.sqrt((count * squares - total * total) / (count * count)) / 255)
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def _measure(record: dict[str, Any], with_print: bool) -> tuple[Face, Fingerprint | None]:
    # Our own crops: one channel or three, never turned by EXIF.
    image = cv2.imdecode(np.frombuffer(record["image"], np.uint8), cv2.IMREAD_ANYCOLOR)
    if image is None:
        raise ShardError(f"face {record['sample_id']!r}: its image cannot be decoded; run `dvc repro -f crop`")
    channels = [image] if image.ndim == 2 else [image[:, :, channel] for channel in (2, 1, 0)]  # OpenCV decodes to BGR
    sums = [image.shape[0] * image.shape[1]]
    moments = []
    for channel in channels:
        histogram = np.bincount(channel.reshape(-1), minlength=256)
        moments.append((int(histogram @ _LEVELS), int(histogram @ _LEVELS**2)))
    for moment in moments * (3 // len(moments)):
        sums += moment
    digest = hashlib.blake2b(
        repr(image.shape).encode() + np.ascontiguousarray(image).tobytes(), digest_size=16
    ).digest()
    face = Face(
        sample_id=record["sample_id"],
        label=record["label"],
        split=cast(Split, sys.intern(record["split"])),
        subject=record["subject"],
        yaw=record["pose"] and record["pose"][0],
        score=record["score"],
        size=image.shape[:2],
        gray=image.ndim == 2,
        pixels=digest,
        sums=tuple(sums),
    )
    return face, fingerprint(image) if with_print else None
