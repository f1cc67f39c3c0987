"""AffectNet's first release: tables of uncropped pictures, with a box, 68 landmarks and an expression each.

Rows of all eight expressions are read; who asks for seven drops contempt. What AffectNet calls validation is the test
split here: its own test set was never published.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fer.console import progress
from fer.io.files import FileError
from fer.labels import DATASET_LABELS
from fer.shards.schema import Split
from fer.sources.base import Reject
from fer.sources.csvfile import Record, read_records
from fer.sources.entries import find_layout
from fer.sources.layout import posix, reject

CLASS_NAMES = DATASET_LABELS["affectnet8"]
CSV_COLUMNS = (
    "subDirectory_filePath",
    "face_x",
    "face_y",
    "face_width",
    "face_height",
    "facial_landmarks",
    "expression",
)
NO_EXPRESSION = {8: "none", 9: "uncertain", 10: "no_face"}
"""Numbers of `expression` behind the eight; such rows do not belong to the task."""

_WHAT = "a table of AffectNet (training.csv, validation.csv)"
_IMAGES = "manually_annotated_images"

# iBUG's 68 points, counted from 0, from the picture's left: the person's right comes first.
_RIGHT_EYE, _LEFT_EYE, _NOSE, _RIGHT_MOUTH, _LEFT_MOUTH = range(36, 42), range(42, 48), [30], [48], [54]

Box = tuple[float, float, float, float]
Landmarks = tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A labelled picture; `split` is None where the layout has none. Box and landmarks in px of the picture."""

    key: str
    path: str
    split: Split | None
    name: str
    box: Box | None = None
    landmarks: Landmarks | None = None


@dataclass
class Reading:
    """What a release holds: pictures and what is wrong, rows left out by reason, and what else is worth saying."""

    rows: list[Picture | Reject] = field(default_factory=list)
    excluded: Counter[str] = field(default_factory=Counter)
    notes: dict[str, int] = field(default_factory=dict)


def read_csv_release(tree: Path, files: Mapping[str, Split], *, subset: bool) -> Reading:
    """The pictures that the tables name. A picture named with several boxes shows several faces: one entry each.

    Args:
        files: the tables, and what split each is.
        subset: pictures that are not there are no mistake.

    Raises:
        FileError: broken tables, or none of their pictures is there.
    """
    reading = Reading()
    base = _image_folder(tree, files)
    seen: dict[str, Picture] = {}
    for file, split in files.items():
        with progress(None, f"read {file}", "row") as bar:
            for record in read_records(tree / file, CSV_COLUMNS, _WHAT):
                bar.update()
                name, origin = f"{file}-{record.line}", f"{file}:{record.line}"
                try:
                    picture = _picture(record, split, base, reading.excluded)
                except ValueError as error:
                    reading.rows.append(reject(name, "bad_row", str(error), origin))
                    continue
                if picture is None:
                    continue
                first = seen.get(picture.key)
                if first is not None and first.box != picture.box:  # another face of the same picture
                    x, y, *_ = picture.box or (0.0, 0.0)
                    picture = replace(picture, key=f"{picture.key}-{x:g}-{y:g}")
                    first = seen.get(picture.key)
                if first is not None and (first.split, first.name) == (picture.split, picture.name):
                    reading.excluded["listed_twice"] += 1
                elif first is not None:
                    detail = f"{picture.key} is in {first.split} as {first.name} already: only that counts"
                    reading.rows.append(reject(name, "conflicting_rows", detail, origin))
                elif (tree / picture.path).is_file():
                    seen[picture.key] = picture
                    reading.rows.append(picture)
                elif subset:
                    reading.excluded["not_in_this_copy"] += 1
                else:
                    detail = "the table names it, and it is not there"
                    reading.rows.append(reject(picture.key, "missing_file", detail, origin))
    return reading


def _picture(record: Record, split: Split, base: str, excluded: Counter[str]) -> Picture | None:
    """A row's picture; None where the row does not belong, which is counted. ValueError says what is wrong."""
    if record.fields is None:
        raise ValueError(record.complaint)
    row = record.fields
    key = posix(row["subDirectory_filePath"])
    number = whole(row["expression"])
    if number in NO_EXPRESSION:
        excluded[NO_EXPRESSION[number]] += 1
        return None
    if number not in range(len(CLASS_NAMES)):
        raise ValueError(f"expression {row['expression']!r}, expected 0 .. 10")
    if not key or key.startswith("/") or ".." in key.split("/"):
        raise ValueError(f"path {row['subDirectory_filePath']!r}, expected one like 689/name.jpg")
    corner = [row[name] for name in ("face_x", "face_y", "face_width", "face_height")]
    try:
        x, y, width, height = (number_of(text) for text in corner)
        if not (width > 0 and height > 0):
            raise ValueError
    except ValueError:
        excluded["no_box"] += 1  # one Happiness row of the published list, which nobody counts
        return None
    landmarks = five_of_68(row["facial_landmarks"].rstrip("; ").split(";"))
    return Picture(
        key=key.rpartition(".")[0] or key,
        path=f"{base}{key}",
        split=split,
        name=CLASS_NAMES[number],
        box=(x, y, x + width, y + height),
        landmarks=landmarks,
    )


def five_of_68(flat: Sequence[str]) -> Landmarks:
    """The five landmarks used here out of iBUG's 68 as x, y, x, y ...: the eyes are the mean of their six points.

    Raises:
        ValueError: not 136 values, or those that count are no finite numbers.
    """
    if len(flat) != 136:
        raise ValueError(f"{len(flat)} numbers of landmarks, expected 136")

    def middle(points: Sequence[int]) -> tuple[float, float]:
        xs, ys = ([number_of(flat[2 * point + axis]) for point in points] for axis in (0, 1))
        return sum(xs) / len(xs), sum(ys) / len(ys)

    return middle(_RIGHT_EYE), middle(_LEFT_EYE), middle(_NOSE), middle(_RIGHT_MOUTH), middle(_LEFT_MOUTH)


def _image_folder(tree: Path, files: Mapping[str, Split]) -> str:
    """Where the paths of the tables start, relative to `tree`, with "/" behind it."""
    named_so = find_layout(tree, lambda folder: folder.name.lower() == _IMAGES)
    beside = (tree / next(iter(files))).parent
    paths = [posix(row.fields[CSV_COLUMNS[0]]) for row in _head(tree, files, 500) if row.fields]
    for folder in (named_so, beside, tree):
        if folder is not None and any((folder / path).is_file() for path in paths):
            relative = folder.relative_to(tree).as_posix()
            return "" if relative == "." else f"{relative}/"
    raise FileError(
        f"{tree}: the tables are there ({', '.join(files)}), and no picture of their first rows, e.g. "
        f"Manually_Annotated_Images/{paths[0] if paths else '...'}"
    )


def _head(tree: Path, files: Mapping[str, Split], rows: int) -> Iterator[Record]:
    for file in files:
        for index, record in enumerate(read_records(tree / file, CSV_COLUMNS, _WHAT)):
            if index == rows:
                break
            yield record


def whole(text: str) -> int:
    """A whole number, also as "3.0"; ValueError says what it is instead."""
    value = number_of(text)
    if value != int(value):
        raise ValueError(f"{text!r}, expected a whole number")
    return int(value)


def number_of(text: str) -> float:
    """A finite number of a sensible size; ValueError says what it is instead."""
    value = float(text)
    if not abs(value) < 1e6:  # also where it is no number
        raise ValueError(f"{text[:20]!r} is no number of pixels")
    return value
