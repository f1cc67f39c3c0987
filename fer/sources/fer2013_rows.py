"""Rows of FER2013 out of its published forms: the original csv, icml_face_data.csv, Parquet of encoded pictures.

The form is told by content, never by the file's name. The csv has three columns in any order (`emotion`, `pixels`,
`Usage`; `emotion, Usage, pixels` with spaces in icml_face_data.csv), 2,304 grey values a row. A byte order mark,
Windows line ends, quotes and spaces around fields are taken. A row's position is its line after the header, blank and
corrupt lines counted: the same position as in FERPlus, and the same whatever else is wrong with the file. A Parquet
file may say the position in the published csv in a column `row`, -1 where it is not known.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from fer.io.files import FileError, refuse_impostor
from fer.io.images import ImageError, decode_image
from fer.shards.schema import Split

SIDE = 48
USAGES: dict[str, Split] = {"Training": "train", "PublicTest": "validation", "PrivateTest": "test"}
CLASSES = 7

_PIXEL = {str(value).encode(): value for value in range(256)}
_LONGEST_HEADER = 4096
_LONGEST_LINE = 1 << 16
"""Bytes; 2,304 values of three digits take 9,216."""


class RowError(ValueError):
    """A corrupt row; `kind` is a short stable word for counting."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


@dataclass(frozen=True)
class Row:
    """One good row: `label` in FER2013's numbers, (48, 48) uint8 grey pixels."""

    label: int
    split: Split
    pixels: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Line:
    """Where a row stands.

    Attributes:
        position: in this file; 0 is the first after the header.
        number, offset: line number and byte offset in a csv.
        published: position in the file as it was published, or None where that is not known.
    """

    position: int
    number: int
    offset: int
    published: int | None = None


@dataclass(frozen=True)
class CsvColumns:
    """Which field of a line is which."""

    emotion: int
    pixels: int
    usage: int


def form_of(path: Path) -> str:
    """Which form a file has: "csv" or "parquet".

    Raises:
        FileError: neither; says what the file seems to be.
    """
    refuse_impostor(path, path.name)
    with path.open("rb") as handle:
        if handle.read(4) == b"PAR1":
            return "parquet"
    csv_columns(path)
    return "csv"


def csv_columns(path: Path) -> CsvColumns:
    """The header's order of columns; FileError where it is no FER2013 header."""
    with path.open("rb") as handle:
        header = handle.readline(_LONGEST_HEADER).removeprefix(b"\xef\xbb\xbf")
    names = [_field(name).decode("ascii", "replace").lower() for name in header.split(b",")]
    try:
        columns = CsvColumns(names.index("emotion"), names.index("pixels"), names.index("usage"))
    except ValueError:
        shown = header[:60].decode("ascii", "replace").strip()
        raise FileError(
            f"{path.name}: not a FER2013 csv: its first line must name the columns emotion, pixels and Usage, "
            f"found {shown!r}{_cause(header)}"
        ) from None
    if len(names) != 3:
        raise FileError(f"{path.name}: not a FER2013 csv: {len(names)} columns in its first line, expected 3")
    return columns


def _cause(header: bytes) -> str:
    """What is probably wrong with a header, and the remedy."""
    text = header.lower()
    if b"\0" in text:
        return "; it holds NUL bytes: save it as plain text (ASCII or UTF-8), not as UTF-16"
    if b"\r" in text.rstrip(b"\r\n"):
        return "; its lines end in CR alone: convert it, e.g. with `tr '\\r' '\\n'`"
    if b"emotion" in text and b"usage" in text:
        return "; the fields must be separated by commas"
    if b"emotion" in text and b"pixels" in text:
        return "; the Kaggle competition's train.csv lacks Usage, take fer2013.csv or icml_face_data.csv"
    return ""


def csv_rows(
    path: Path, start: Line | None = None, stop: int | None = None
) -> Iterator[tuple[Line, Row | RowError | None]]:
    """Line after line of a csv: a good row, what is wrong with it, or None for a blank line.

    Args:
        start: where to begin; None is the first line after the header.
        stop: position to end before; None is the end of the file.

    Raises:
        FileError: the file ends in the middle of a row.
    """
    columns = csv_columns(path)
    with path.open("rb") as handle:
        if start is None:
            start = Line(0, 2, len(handle.readline()))
        handle.seek(start.offset)
        position, offset = start.position, start.offset
        while stop is None or position < stop:
            text, length, whole = _read_line(handle)
            if not text:
                return
            line = Line(position, start.number + position - start.position, offset, position)
            try:
                if length > _LONGEST_LINE:
                    raise RowError("line_length", f"{length} bytes in one line, expected some 9,000")
                yield line, parse_csv_row(text, columns) if text.strip() else None
            except RowError as error:
                if not whole:
                    raise FileError(
                        f"{path.name}: ends in the middle of a row (line {line.number}): the file is truncated; "
                        "fetch it again"
                    ) from None
                yield line, error
            position, offset = position + 1, offset + length


def _read_line(handle: BinaryIO) -> tuple[bytes, int, bool]:
    """The next line, or its beginning where it is beyond all measure; its length; whether a line end closes it."""
    text = more = handle.readline(_LONGEST_LINE)
    length = len(text)
    while len(more) == _LONGEST_LINE and not more.endswith(b"\n"):
        more = handle.readline(_LONGEST_LINE)
        length += len(more)
    return text, length, more.endswith(b"\n")


def parse_csv_row(text: bytes, columns: CsvColumns) -> Row:
    """One line as a row; RowError says what is wrong."""
    fields = [_field(field) for field in text.split(b",")]
    if len(fields) != 3:
        raise RowError("columns", f"{len(fields)} fields, expected 3")
    label = _label(fields[columns.emotion].decode("ascii", "replace"))
    split = _split(fields[columns.usage].decode("ascii", "replace"))
    values = fields[columns.pixels].split()
    if len(values) != SIDE * SIDE:
        raise RowError("pixel_count", f"{len(values)} pixels, expected {SIDE * SIDE}")
    try:
        pixels = bytes(map(_PIXEL.__getitem__, values))
    except KeyError as error:
        raise RowError(
            "pixel_value", f"pixel {error.args[0].decode('ascii', 'replace')!r}, expected 0 .. 255"
        ) from None
    return Row(label, split, np.frombuffer(pixels, np.uint8).reshape(SIDE, SIDE))


def parquet_rows(path: Path, start: int = 0, stop: int | None = None) -> Iterator[tuple[Line, Row | RowError]]:
    """Row after row of a Parquet file: columns image (encoded bytes, or a struct with `bytes`), label, usage.

    Raises:
        FileError: damaged, or without these columns.
    """
    from fer.shards.table import TableReader  # pyarrow is not for `fer --help`

    reader = TableReader(path)
    if missing := {"image", "label", "usage"} - set(reader.columns):
        raise FileError(
            f"{path.name}: no FER2013 Parquet: it lacks {', '.join(sorted(missing))} (it has "
            f"{', '.join(reader.columns)}); expected image (encoded bytes), label (0 .. 6) and usage "
            "(Training, PublicTest, PrivateTest)"
        )
    stop = reader.rows if stop is None else stop
    columns = ["image", "label", "usage", *({"row"} & set(reader.columns))]
    for first in range(start, stop, 512):
        for step, record in enumerate(reader.slice(first, min(first + 512, stop), columns)):
            position = first + step
            published = record.get("row", position)
            line = Line(position, position, 0, published if isinstance(published, int) and published >= 0 else None)
            try:
                yield line, _parse_record(record)
            except RowError as error:
                yield line, error


def _parse_record(record: dict[str, object]) -> Row:
    label, split = _label(str(record["label"])), _split(str(record["usage"]))
    image = record["image"]
    data = image.get("bytes") if isinstance(image, dict) else image
    try:
        picture = decode_image(data if isinstance(data, bytes) else b"")
    except ImageError as error:
        raise RowError(error.reason, str(error)) from None
    if picture.shape[:2] != (SIDE, SIDE):
        raise RowError("picture_size", f"{picture.shape[1]} x {picture.shape[0]} px, expected {SIDE} x {SIDE}")
    if (picture != picture[:, :, :1]).any():
        raise RowError("colour", "a coloured picture, expected grey")
    return Row(label, split, np.ascontiguousarray(picture[:, :, 0]))


def _field(text: bytes) -> bytes:
    return text.strip().strip(b'"').strip()


def _label(text: str) -> int:
    if len(text) != 1 or text not in "0123456":
        raise RowError("label", f"label {text!r}, expected 0 .. 6")
    return int(text)


def _split(text: str) -> Split:
    if text not in USAGES:
        raise RowError("usage", f"Usage {text!r}, expected {', '.join(USAGES)}")
    return USAGES[text]
