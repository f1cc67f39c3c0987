"""Rows of FER2013 in its published files: the original csv, icml_face_data.csv, Parquet of encoded images.

The content decides which form a file has, never its name. The csv has three columns in any order (`emotion`, `pixels`,
`Usage`; `emotion, Usage, pixels` with spaces in icml_face_data.csv), 2,304 gray values a row. A byte order mark,
Windows line ends, quotes and spaces around fields are accepted. A row's position is its line after the header, blank
and corrupt lines counted: the same position as in FERPlus, and the same whatever else is wrong with the file. A Parquet
file may give the position in the published csv in a column `row`, -1 where it is unknown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from fer.io.files import FileError, refuse_impostor
from fer.io.images import ImageError, decode_image
from fer.shards.schema import Split
from fer.sources.csvfile import RowError

SIDE = 48
USAGES: dict[str, Split] = {"Training": "train", "PublicTest": "validation", "PrivateTest": "test"}

_PIXEL = {str(value).encode(): value for value in range(256)}
_COLUMNS = ("image", "label", "usage")
# What the first line of a file without these columns shows, and the remedy.
_HINTS = (
    (rb"\0", "it holds NUL bytes: save it as plain text (ASCII or UTF-8), not as UTF-16"),
    (rb"\r[^\r\n]", "its lines end in CR alone: convert it, e.g. with `tr '\\r' '\\n'`"),
    (rb"emotion.*usage|usage.*emotion", "the fields must be separated by commas"),
    (rb"emotion.*pixels", "the Kaggle competition's train.csv lacks Usage, use fer2013.csv or icml_face_data.csv"),
)
_READ_ROWS = 512
_MAX_HEADER_BYTES = 4096
_MAX_LINE_BYTES = 1 << 16  # 2,304 values of three digits take 9,216


@dataclass(frozen=True)
class Row:
    """One good row: `label` in FER2013's numbers, (48, 48) uint8 gray pixels."""

    label: int
    split: Split
    pixels: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Line:
    """The place of a row.

    Attributes:
        position: in this file; 0 is the first after the header.
        number, offset: line number and byte offset in a csv.
        published: position in the file as it was published, or None where that is unknown.
    """

    position: int
    number: int
    offset: int
    published: int | None = None


class CsvColumns(NamedTuple):
    """Index of each field in a line."""

    emotion: int
    pixels: int
    usage: int


def form_of(path: Path) -> str:
    """The form of a file: "csv" or "parquet".

    Raises:
        FileError: neither; says what the file seems to be.
    """
    refuse_impostor(path, path.name)
    with path.open("rb") as handle:
        if handle.read(4) == b"PAR1":
            return "parquet"
    csv_columns(path)
    return "csv"


def read_rows(
    path: Path, start: Line | None = None, stop: int | None = None
) -> Iterator[tuple[Line, Row | RowError | None]]:
    """Rows of a file of either form; see `csv_rows` and `parquet_rows`."""
    if form_of(path) == "csv":
        return csv_rows(path, start, stop)
    return parquet_rows(path, start.position if start else 0, stop)


def csv_columns(path: Path) -> CsvColumns:
    """The header's order of columns; FileError where it is not a FER2013 header."""
    with path.open("rb") as handle:
        header = handle.readline(_MAX_HEADER_BYTES).removeprefix(b"\xef\xbb\xbf")
    names = [_text(name).lower() for name in header.split(b",")]
    if not set(CsvColumns._fields) <= set(names):
        shown = header[:60].decode("ascii", "replace").strip()
        hint = next((f"; {hint}" for pattern, hint in _HINTS if re.search(pattern, header, re.IGNORECASE)), "")
        raise FileError(
            f"{path.name}: not a FER2013 csv: its first line must name the columns emotion, pixels and Usage, "
            f"found {shown!r}{hint}"
        )
    if len(names) != 3:
        raise FileError(f"{path.name}: not a FER2013 csv: {len(names)} columns in its first line, expected 3")
    return CsvColumns(*map(names.index, CsvColumns._fields))


def csv_rows(
    path: Path, start: Line | None = None, stop: int | None = None
) -> Iterator[tuple[Line, Row | RowError | None]]:
    """Line after line of a csv: a good row, what is wrong with it, or None for a blank line.

    Args:
        start: first line to read; None is the first line after the header.
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
            text, length, complete = _read_line(handle)
            if not text:
                return
            line = Line(position, start.number + position - start.position, offset, position)
            try:
                if length > _MAX_LINE_BYTES:
                    raise RowError("line_length", f"{length} bytes in one line, expected some 9,000")
                yield line, parse_csv_row(text, columns) if text.strip() else None
            except RowError as error:
                if not complete:
                    raise FileError(
                        f"{path.name}: ends in the middle of a row (line {line.number}): the file is truncated; "
                        "fetch it again"
                    ) from None
                yield line, error
            position, offset = position + 1, offset + length


def _read_line(handle: BinaryIO) -> tuple[bytes, int, bool]:
    """The next line, of an overlong one the beginning; its length; whether a line end closes it."""
    text = more = handle.readline(_MAX_LINE_BYTES)
    length = len(text)
    while len(more) == _MAX_LINE_BYTES and not more.endswith(b"\n"):
        more = handle.readline(_MAX_LINE_BYTES)
        length += len(more)
    return text, length, more.endswith(b"\n")


def parse_csv_row(text: bytes, columns: CsvColumns) -> Row:
    """One line as a row; RowError says what is wrong."""
    fields = text.split(b",")
    if len(fields) != 3:
        raise RowError("columns", f"{len(fields)} fields, expected 3")
    label, split = _label(_text(fields[columns.emotion])), _split(_text(fields[columns.usage]))
    values = fields[columns.pixels].strip().strip(b'"').split()
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
    if missing := set(_COLUMNS) - set(reader.columns):
        raise FileError(
            f"{path.name}: not a FER2013 Parquet: it lacks {', '.join(sorted(missing))} (it has "
            f"{', '.join(reader.columns)}); expected image (encoded bytes), label (0 .. 6) and usage "
            "(Training, PublicTest, PrivateTest)"
        )
    stop = reader.rows if stop is None else stop
    columns = [*_COLUMNS, *({"row"} & set(reader.columns))]
    for first in range(start, stop, _READ_ROWS):
        for position, record in enumerate(reader.slice(first, min(first + _READ_ROWS, stop), columns), first):
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
        pixels = decode_image(data if isinstance(data, bytes) else b"")
    except ImageError as error:
        raise RowError(error.reason, str(error)) from None
    if pixels.shape[:2] != (SIDE, SIDE):
        raise RowError("picture_size", f"{pixels.shape[1]} x {pixels.shape[0]} px, expected {SIDE} x {SIDE}")
    if (pixels != pixels[:, :, :1]).any():
        raise RowError("colour", "a color image, expected gray")
    return Row(label, split, np.ascontiguousarray(pixels[:, :, 0]))


def _text(field: bytes) -> str:
    return field.strip().strip(b'"').strip().decode("ascii", "replace")


def _label(text: str) -> int:
    if len(text) != 1 or text not in "0123456":
        raise RowError("label", f"label {text!r}, expected 0 .. 6")
    return int(text)


def _split(text: str) -> Split:
    if text not in USAGES:
        raise RowError("usage", f"Usage {text!r}, expected {', '.join(USAGES)}")
    return USAGES[text]
