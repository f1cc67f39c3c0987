"""Rows of a table of paths and labels: which columns it has, and what a row says of a face."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, model_validator

from fer.config import Config, nearest
from fer.io.files import FileError, refuse_impostor
from fer.labels import LabelSpace, named
from fer.shards.schema import Split
from fer.sources.base import AnnotatedFace, one_face
from fer.sources.csvfile import read_records
from fer.sources.layout import split_named

LEFT_OUT = "none"
"""In `classes`: rows of this class are left out."""

_WHAT = "the table of this dataset"


class TableColumns(Config):
    """Names of the table's columns; null: there is none."""

    path: str = Field(default="path", min_length=1, description="of the picture, relative to `root`")
    label: str = Field(default="label", min_length=1, description="name or number of the class")
    split: str | None = Field(default=None, min_length=1, description="train, val or test")
    subject: str | None = Field(default=None, min_length=1, description="who is shown")
    box: list[str] | None = Field(
        default=None, min_length=4, max_length=4, description="x1, y1, x2, y2 in px of the upright picture"
    )
    landmarks: list[str] | None = Field(
        default=None,
        min_length=10,
        max_length=10,
        description="x and y, in px, of right eye, left eye, nose, right and left mouth corner of the person",
    )

    def names(self) -> list[str]:
        """All that are there."""
        single = [self.path, self.label, *(name for name in (self.split, self.subject) if name)]
        return [*single, *(self.box or []), *(self.landmarks or [])]

    @model_validator(mode="after")
    def _all_differ(self) -> TableColumns:
        if twice := [name for name, count in Counter(self.names()).items() if count > 1]:
            raise ValueError(f"column {twice[0]!r} is named twice")
        return self


class BadRowError(ValueError):
    """A row that cannot be used; `reason` is a short stable word for counting."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class Face:
    """A good row. `split` is None where no column says it."""

    path: str
    split: Split | None
    annotation: AnnotatedFace


def table_rows(table: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str] | str]]:
    """Line or row number, and the texts of the columns or what is wrong with the row.

    Raises:
        FileError: no table, a damaged one, or one without these columns.
    """
    if not table.is_file():
        raise FileError(f"{table}: no such file; set the key `path` of this dataset to the table")
    refuse_impostor(table, str(table))
    with table.open("rb") as handle:
        parquet = handle.read(4) == b"PAR1"
    if parquet:
        yield from _parquet_rows(table, columns)
    else:
        for record in read_records(table, columns, _WHAT):
            yield record.line, record.complaint if record.fields is None else record.fields


def _parquet_rows(table: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str] | str]]:
    from fer.shards.table import TableReader  # pyarrow is not for `fer --help`

    reader = TableReader(table)
    for column in columns:
        if column not in reader.columns:
            raise FileError(
                f"{table}: not {_WHAT}: it lacks the column {column!r}{nearest(column, reader.columns)}; found "
                f"{', '.join(reader.columns)[:120]!r}"
            )
    for start in range(0, reader.rows, 4096):
        for step, row in enumerate(reader.slice(start, start + 4096, list(columns))):
            yield start + step, {name: _text(value) for name, value in row.items()}


def _text(value: object) -> str:
    """A value as a csv would hold it."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).strip()


def parse_row(
    row: Mapping[str, str],
    columns: TableColumns,
    classes: Sequence[str] | Mapping[str, str] | None,
    labels: LabelSpace,
    where: str,
) -> Face | None:
    """What a row says, or None where `classes` leaves it out.

    Args:
        where: table and line, for the error's text.

    Raises:
        BadRowError: it cannot be used.
        FileError: its label is a number, and nothing says what the numbers mean.
    """
    label = _label(row[columns.label], classes, labels, where)
    if label == LEFT_OUT:
        return None
    if not row[columns.path]:
        raise BadRowError("bad_row", "no path")
    split = None
    if columns.split:
        split = split_named(row[columns.split])
        if split is None:
            raise BadRowError("unknown_split", f"{columns.split} {row[columns.split]!r}, expected train, val or test")
    box = _numbers(row, columns.box, "bad_box")
    if box and not (box[0] < box[2] and box[1] < box[3]):
        raise BadRowError("bad_box", f"box {', '.join(f'{value:g}' for value in box)}: x1 < x2 and y1 < y2 must hold")
    points = _numbers(row, columns.landmarks, "bad_landmarks")
    (face,) = one_face(
        labels.index(label),
        subject=(row[columns.subject] or None) if columns.subject else None,
        box=(box[0], box[1], box[2], box[3]) if box else None,
        landmarks=tuple(zip(points[::2], points[1::2], strict=True)) if points else None,
    )
    return Face(row[columns.path], split, face)


def _label(text: str, classes: Sequence[str] | Mapping[str, str] | None, labels: LabelSpace, where: str) -> str:
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 4 else None
    if isinstance(classes, Mapping):
        if text in classes:
            return classes[text]
    elif classes is not None and number is not None:
        if number < len(classes):
            return classes[number]
        raise BadRowError("unknown_label", f"label {number}, and `classes` names {len(classes)}, from 0 on")
    if number is not None and classes is None:
        raise FileError(
            f"{where}: label {text!r} is a number, and datasets number the same classes in different orders: set the "
            f"key `classes` of this dataset to the labels in the order of the numbers, from {', '.join(labels.labels)}"
        )
    name = named(text)
    if name not in labels.labels:
        raise BadRowError("unknown_label", f"label {text!r}, expected one of {', '.join(labels.labels)}")
    return name


def _numbers(row: Mapping[str, str], names: Sequence[str] | None, reason: str) -> list[float] | None:
    """The values of some columns; None where there are no columns, or all are empty."""
    if not names or not any(row[name] for name in names):
        return None
    try:
        values = [float(row[name]) for name in names]
    except ValueError:
        values = [math.nan]
    if not all(map(math.isfinite, values)):
        raise BadRowError(reason, f"{', '.join(f'{name} {row[name]!r}' for name in names)}: expected numbers")
    return values
