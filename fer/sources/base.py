"""What every reader of a dataset shares: the records it yields, and the protocol it follows.

Conventions: boxes are x1, y1, x2, y2 in px, half-open; landmarks are five (x, y) in px in the order right eye, left
eye, nose, right mouth corner, left mouth corner (of the person); labels are indices into the dataset's label space.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from fer.hashing import stable_hash
from fer.io.files import FileError, read_object
from fer.labels import LabelSpace
from fer.shards.schema import Split

BLOCK_ROWS = 512
"""Samples of a unit of work. Fixed, so that the files of data/raw and data/faces do not depend on who cut the work."""

DRAWN = "SYNTHETIC.txt"
"""File beside drawn faces in a published layout (`fer.sources.drawn`), which are not to be taken for the dataset."""

LabelSpaceName = Literal["basic7", "basic8", "aihub7"]
Box = tuple[float, float, float, float]
Landmarks = tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnotatedFace:
    """What a dataset publishes of one face.

    Attributes:
        box: None where the dataset labels the image and leaves the face to be found.
        landmarks: None where unknown.
        clean_label: differs from `label` where noise was added on purpose.
        subject: who it is, an opaque name; None where unknown.
        pose: yaw, pitch, roll in degrees.
        distribution: probability of each class of the label space, summing to 1, where several people were asked.
    """

    box: Box | None
    landmarks: Landmarks | None
    label: int
    clean_label: int
    subject: str | None = None
    pose: tuple[float, float, float] | None = None
    distribution: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class RawSample:
    """One image of a dataset.

    Attributes:
        key: unique and stable, e.g. "fer2013/00000123".
        image: encoded bytes, or (H, W) uint8 gray or (H, W, 3) uint8 RGB.
        split: as published.
        faces: what is annotated; empty for an image without a face.
        is_crop: whether the image is a face crop already; it then has exactly one face.
        origin: file and row in data/raw, for tracing.
    """

    key: str
    image: bytes | npt.NDArray[np.uint8]
    split: Split
    faces: tuple[AnnotatedFace, ...]
    is_crop: bool
    origin: str


@dataclass(frozen=True, slots=True)
class Reject:
    """Something refused: a short stable reason for counting, details for a person, and where it was found."""

    sample_id: str
    reason: str
    detail: str
    origin: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One image of a layout.

    Attributes:
        key: unique in the dataset and the same wherever the layout is stored: usually `path` without what only
            packaging added. Normalized to NFC when packed.
        path: of the file, relative to the layout, as it is spelled on disk.
        split: as published.
        faces: what is published of it.
        is_crop: whether the image shows one face alone, already cropped.
    """

    key: str
    path: str
    split: Split
    faces: tuple[AnnotatedFace, ...]
    is_crop: bool


@dataclass(frozen=True, kw_only=True)
class Block:
    """A unit of work: rows start .. stop - 1 of one file.

    Attributes:
        index: position among the dataset's blocks.
        offset, line: byte offset and line number of the first row, for text files.
    """

    index: int
    file: str
    start: int
    stop: int
    offset: int = 0
    line: int = 0


class Source(Protocol):
    """A dataset's reader. Picklable: it is sent to the workers."""

    @property
    def label_space(self) -> LabelSpace:
        """What the labels of its faces index."""
        ...

    @property
    def generator(self) -> str:
        """What made the images, e.g. "fer2013" or "synthetic/1"; part of every shard."""
        ...

    @property
    def request(self) -> dict[str, Any]:
        """What was asked for, without machine-dependent paths: equal requests give equal bytes."""
        ...

    def download(self, out: Path, cache: Path) -> dict[str, Any]:
        """Writes the dataset's files, verified, into the empty folder `out`.

        Args:
            cache: folder where an interrupted transfer is kept, to resume from.

        Returns:
            what source.json says beside the request and the files: counts, and what `blocks` needs.

        Raises:
            ValueError: no usable data; says why and what to do.
        """
        ...

    def blocks(self, raw: Path) -> list[Block]:
        """The units of work of a downloaded folder, in order."""
        ...

    def read(self, raw: Path, block: Block) -> Iterator[RawSample | Reject]:
        """The samples of a block, in order; a row that cannot be read is a Reject."""
        ...


def one_face(
    label: int,
    *,
    subject: str | None = None,
    box: Box | None = None,
    landmarks: Landmarks | None = None,
    distribution: tuple[float, ...] | None = None,
) -> tuple[AnnotatedFace]:
    """The faces of an image that shows one."""
    face = AnnotatedFace(
        box=box, landmarks=landmarks, label=label, clean_label=label, subject=subject, distribution=distribution
    )
    return (face,)


def shares(weights: Sequence[float]) -> tuple[float, ...]:
    """Weights as parts of 1."""
    total = sum(weights)
    return tuple(weight / total for weight in weights)


def hashed_split(name: str, test_fraction: float) -> Split:
    """Test or train, by a hash of a subject or a sample alone: who is in test stays there whatever is added."""
    return "test" if stable_hash("test split", name) < test_fraction * 2**64 else "train"


def generator_of(name: str, folder: Path) -> dict[str, str]:
    """`generator` for source.json, where a folder, or one in it, holds drawn faces in the layout of the
    dataset `name`; else nothing."""
    drawn = (folder / DRAWN).is_file() or any(folder.glob(f"*/{DRAWN}"))
    return {"generator": f"synthetic/{name}"} if drawn else {}


def nfc(text: str) -> str:
    """The one spelling of names that differ in how accents and Korean syllables are encoded (macOS unzips to NFD).

    Bytes of a name that are not text become "?".
    """
    return unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode("utf-8"))


def describe(raw: Path) -> dict[str, Any]:
    """source.json of a downloaded folder.

    Raises:
        FileError: it was not downloaded, or source.json is not as it was written.
    """
    if not (raw / "source.json").is_file():
        raise FileError(f"{raw}: not downloaded; run `dvc repro download@{raw.name}`")
    return read_description(raw, request=dict, files=list)


def read_description(raw: Path, **expected: type) -> dict[str, Any]:
    """source.json of a downloaded folder; FileError where it lacks these keys or holds values of other types."""
    return read_object(raw / "source.json", expected, fetch_again(raw))


def fetch_again(raw: Path) -> str:
    """The remedy for a downloaded folder that is not what it was."""
    return f"run `dvc repro -f download@{raw.name}`"
