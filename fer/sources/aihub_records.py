"""The JSON records of AI-Hub set 82: who says what of a picture, and where the face is.

A record as it is distributed, one of a list a file; AI-Hub's own document calls the three annotators faceBB_A ...:

    {"filename": "<64 hex digits>_여_20_기쁨_숙박 및 거주공간_20210126165538-010-011.jpg", "gender": "여", "age": 20,
     "faceExp_uploader": "기쁨", "bg_uploader": "숙박 및 거주공간",
     "annot_A": {"boxes": {"minX": 1.5, "minY": 2.0, "maxX": 3.0, "maxY": 4.0}, "faceExp": "기쁨"},
     "annot_B": {...}, "annot_C": {...}}

The boxes are in px of the picture after its EXIF rotation, as everywhere in this project (measured by others on
rotated and on mirrored photos).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from fer.io.files import FileError, refuse_impostor
from fer.labels import DATASET_LABELS, named
from fer.sources.base import nfc

CLASS_NAMES = DATASET_LABELS["aihub82"]
UNKNOWN = "unknown"
"""What an annotator says who cannot tell: 알수없음."""

_ANNOTATORS = (("annot_A", "faceBB_A"), ("annot_B", "faceBB_B"), ("annot_C", "faceBB_C"))
_CORNERS = ("minX", "minY", "maxX", "maxY")
_PERSON = re.compile(r"([0-9a-f]{64})_", re.IGNORECASE)
_FURTHEST = 100_000.0  # px; no camera's picture is so wide

Box = tuple[float, float, float, float]


class RecordError(ValueError):
    """A record that cannot be used; `reason` is a short stable word for counting."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Record:
    """One picture.

    Attributes:
        file: its name in NFC, without folders.
        person: the 64 hex digits that stand for who took it of himself.
        uploader: the class that he was asked to show; also the folder's and the file name's.
        votes: the annotators' classes or UNKNOWN, at most three.
        box: median of each coordinate over the annotators' valid boxes; None where none is valid.
    """

    file: str
    person: str
    uploader: str
    votes: tuple[str, ...]
    box: Box | None

    @property
    def distribution(self) -> tuple[float, ...] | None:
        """Share of each of CLASS_NAMES among the annotators who could tell; None where nobody could."""
        known = tuple(vote for vote in self.votes if vote != UNKNOWN)
        return _shares(known) if known else None

    @property
    def majority(self) -> str | None:
        """What more than half of the annotators say, which may be UNKNOWN; None where they do not agree."""
        return next((vote for vote in self.votes if 2 * self.votes.count(vote) > len(self.votes)), None)


@cache  # a few hundred of them, shared by half a million records
def _shares(votes: tuple[str, ...]) -> tuple[float, ...]:
    return tuple(votes.count(name) / len(votes) for name in CLASS_NAMES)


def read_json_records(path: Path) -> list[Any]:
    """The records of a file in UTF-8, or in the CP949 or EUC-KR that some copies were converted to.

    Raises:
        FileError: not JSON, or no list of records.
    """
    refuse_impostor(path, str(path))
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        try:
            text = data.decode("cp949")  # holds EUC-KR
        except UnicodeDecodeError as error:
            raise FileError(f"{path}: neither UTF-8 nor CP949 (byte {error.start}): a damaged file") from None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:  # a ValueError too for numbers of thousands of digits
        raise FileError(f"{path}: not valid JSON ({str(error)[:100]}): truncated? unpack it anew") from None
    if isinstance(found, dict) and "filename" not in found:
        inner = [value for value in found.values() if isinstance(value, list)]
        found = inner[0] if len(inner) == 1 else None
    if isinstance(found, dict):
        return [found]
    if not isinstance(found, list):
        raise FileError(f"{path}: no list of records (filename, faceExp_uploader, annot_A, ...)")
    return found


def parse_record(raw: Any) -> Record:
    """One record; RecordError says what is wrong with it."""
    if not isinstance(raw, Mapping):
        raise RecordError("bad_record", f"{type(raw).__name__}, expected an object with filename and annot_A ...")
    name = raw.get("filename")
    if not isinstance(name, str) or not name.strip():
        raise RecordError("bad_record", "no filename")
    file = nfc(name).replace("\\", "/").rpartition("/")[2].strip()
    match = _PERSON.match(file)
    if match is None:
        raise RecordError("bad_name", f"{file[:80]!r} does not begin with a person's 64 hex digits")
    annotations = [raw.get(key, raw.get(other)) for key, other in _ANNOTATORS]
    given = [annotation for annotation in annotations if isinstance(annotation, Mapping)]
    votes = tuple(vote for annotation in given if (vote := _vote(annotation)) is not None)
    boxes = [box for annotation in given if (box := parse_box(annotation)) is not None]
    return Record(
        file=file,
        person=match[1].lower(),
        uploader=_uploader(raw.get("faceExp_uploader"), file),
        votes=votes,
        box=_median(boxes) if boxes else None,
    )


def parse_box(annotation: Mapping[str, Any]) -> Box | None:
    """An annotator's box, cut off at the picture's left and top edge; None for one of no area or of no numbers.

    The right and bottom edge are not known here: the crop stage measures how far a box reaches beyond them.
    """
    inner = annotation.get("boxes")
    boxes = inner if isinstance(inner, Mapping) else annotation
    values = [_coordinate(boxes.get(corner)) for corner in _CORNERS]
    if any(value is None for value in values):
        return None
    x1, y1, x2, y2 = (max(0.0, value) for value in values if value is not None)
    return (x1, y1, x2, y2) if x2 > x1 and y2 > y1 else None


def _median(boxes: Sequence[Box]) -> Box:
    x1, y1, x2, y2 = (median(box[side] for box in boxes) for side in range(4))
    return x1, y1, x2, y2


def emotion_in(text: str) -> str | None:
    """The one class whose Korean name is a word of a file's or a folder's name; None for none or for several."""
    words = re.split(r"[\W_]+", nfc(text))
    found = {name for word in words if not word.isascii() and (name := named(word)) in CLASS_NAMES}
    return found.pop() if len(found) == 1 else None


def _vote(annotation: Mapping[str, Any]) -> str | None:
    """An annotator's class; None where he gave none. RecordError for what is neither a class nor unknown."""
    boxes = annotation.get("boxes")
    inner = boxes.get("label") if isinstance(boxes, Mapping) else None
    text = annotation.get("faceExp", annotation.get("label", inner))
    if text is None or text == "":
        return None
    if isinstance(text, str):
        if nfc(text).replace(" ", "") == "알수없음":
            return UNKNOWN
        if (name := named(text)) in CLASS_NAMES:
            return name
    raise RecordError("bad_label", f"an annotator says {str(text)[:40]!r}, expected 기쁨, 당황, ... or 알수없음")


def _uploader(text: Any, file: str) -> str:
    """The class that the picture was taken for: as the record says, else as the file's name does."""
    in_name = emotion_in(file)
    missing = text is None or text == ""
    said = in_name if missing else named(text) if isinstance(text, str) else None
    if said not in CLASS_NAMES:
        raise RecordError("bad_label", f"faceExp_uploader {str(text)[:40]!r}, expected 기쁨, 당황, 분노, ...")
    if in_name not in (None, said):
        raise RecordError("conflicting_labels", f"faceExp_uploader is {said}, the file's name says {in_name}")
    return str(said)


def _coordinate(value: Any) -> float | None:
    """A finite number of px; None for anything else."""
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        return None
    return number if number is not None and abs(number) <= _FURTHEST else None
