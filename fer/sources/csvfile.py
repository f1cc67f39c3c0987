"""csv tables of labels and paths, whatever wrote them.

Accepted: a byte order mark; LF, CRLF or CR alone as line end; quoted fields; `,`, `;` or tab between the fields; any
order and case of the columns; spaces around fields. Refused with the line and the remedy: another encoding than UTF-8,
NUL bytes, an unclosed quote, an overlong line, a header without the required columns.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fer.config import nearest
from fer.io.files import FileError, refuse_impostor

LONGEST_LINE = 1 << 20
"""Characters; the rows of the datasets read here have at most some thousand."""


class RowError(ValueError):
    """A row or a record that cannot be used; `reason` is a short stable word for counting."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class Record:
    """A row of a table with a header.

    Attributes:
        line: number in the file, from 1.
        fields: text of each requested column; None where the row has another number of fields than the header.
        complaint: what is wrong with a row without fields.
    """

    line: int
    fields: dict[str, str] | None
    complaint: str


def read_records(path: Path, columns: Sequence[str], what: str) -> Iterator[Record]:
    """The rows of a table whose first line names its columns; blank lines are skipped.

    Args:
        columns: the required ones, as they are named in `Record.fields`; case and spaces do not matter.
        what: the expected table, for the error's text, e.g. "FERPlus votes (fer2013new.csv)".

    Raises:
        FileError: no such table, or a damaged one.
    """
    header = read_header(path, what)
    names = [fold(name) for name in header]
    for column in columns:
        if fold(column) not in names:
            raise FileError(
                f"{path}: not {what}: its first line lacks the column {column!r}{nearest(column, header)}; "
                f"found {', '.join(header)[:120]!r}"
            )
        if names.count(fold(column)) > 1:
            raise FileError(f"{path}: its first line names the column {column!r} twice")
    positions = {column: names.index(fold(column)) for column in columns}
    rows = read_rows(path, _delimiter(path))
    next(rows)
    for line, row in rows:
        fields = {name: row[index] for name, index in positions.items()} if len(row) == len(header) else None
        yield Record(line, fields, f"{len(row)} fields, expected {len(header)}")


def read_header(path: Path, what: str) -> list[str]:
    """The names in the first line, without the spaces around them; FileError as for `read_records`."""
    for _, row in read_rows(path, _delimiter(path)):
        return row
    raise FileError(f"{path}: not {what}: no line with anything in it")


def read_rows(path: Path, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Line number and stripped fields of every line that is not blank.

    Raises:
        FileError: absent, a web page, not UTF-8, NUL bytes, or quotes that do not pair.
    """
    number = 0
    try:
        reader = csv.reader(_lines(path), delimiter=delimiter, strict=True, skipinitialspace=True)
        for fields in reader:
            number = reader.line_num
            if any(fields):
                yield number, [field.strip() for field in fields]
    except csv.Error as error:
        raise FileError(f"{path}: not a csv from line {number + 1} on ({error}): an unclosed quote?") from None


def fold(name: str) -> str:
    """A column's name without what does not matter: case, and spaces around it."""
    return name.strip().casefold()


def _delimiter(path: Path) -> str:
    """The separator of the fields: the one of `, ; tab` that the first line holds most of."""
    first = next((line for line in _lines(path) if line.strip()), "")
    return max(",;\t", key=first.count)


def _lines(path: Path) -> Iterator[str]:
    """Lines with LF, CRLF or CR at their ends, in any mixture."""
    if not path.is_file():
        raise FileError(f"{path}: no such file")
    refuse_impostor(path, str(path))
    number = 0
    with path.open(encoding="utf-8-sig", newline="") as handle:
        try:
            while text := handle.readline(LONGEST_LINE):
                number += 1
                if "\0" in text:
                    raise FileError(f"{path}: NUL bytes in line {number}: UTF-16, or a damaged file; save it as UTF-8")
                if len(text) == LONGEST_LINE and text[-1] not in "\r\n":
                    raise FileError(f"{path}: line {number} has more than {LONGEST_LINE} characters: not a table")
                yield text
        except UnicodeDecodeError as error:
            byte = f"byte {error.object[error.start]:#04x} after line {number}"
            raise FileError(f"{path}: not UTF-8 text ({byte}): save it as UTF-8") from None
