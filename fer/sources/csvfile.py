"""csv tables of labels and paths, whoever wrote them.

Read right: a byte order mark; LF, CRLF or CR alone as line end; quoted fields; `,`, `;` or tab between the fields; any
order and case of the columns; spaces around fields. Refused with the line and the remedy: another encoding than UTF-8,
NUL bytes, a quote that is never closed, a line beyond all measure, a header without the columns that are needed.
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

_DELIMITERS = ",;\t"


@dataclass(frozen=True)
class Record:
    """A row of a table with a header.

    Attributes:
        line: number in the file, from 1.
        fields: text of each column that was asked for; None where the row has another number of fields than the header.
        found: how many fields it has.
        expected: how many the header has.
    """

    line: int
    fields: dict[str, str] | None
    found: int
    expected: int

    @property
    def complaint(self) -> str:
        """What is wrong with a row without fields."""
        return f"{self.found} fields, expected {self.expected}"


def read_records(path: Path, columns: Sequence[str], what: str) -> Iterator[Record]:
    """The rows of a table whose first line names its columns; blank lines are skipped.

    Args:
        columns: those that must be there, as they are named in `Record.fields`; case and spaces do not matter.
        what: the table that was expected, for the error's text, e.g. "FERPlus votes (fer2013new.csv)".

    Raises:
        FileError: no such table, or one that breaks off.
    """
    header = read_header(path, what)
    names = [fold(name) for name in header]
    positions: dict[str, int] = {}
    for column in columns:
        if fold(column) not in names:
            raise FileError(
                f"{path}: not {what}: its first line lacks the column {column!r}{nearest(column, header)}; "
                f"found {', '.join(header)[:120]!r}"
            )
        if names.count(fold(column)) > 1:
            raise FileError(f"{path}: its first line names the column {column!r} twice")
        positions[column] = names.index(fold(column))
    rows = read_rows(path, _delimiter(path))
    next(rows)
    for line, row in rows:
        whole = len(row) == len(header)
        fields = {name: row[place] for name, place in positions.items()} if whole else None
        yield Record(line, fields, len(row), len(header))


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
        raise FileError(f"{path}: no csv from line {number + 1} on ({error}): a quote that is never closed?") from None


def fold(name: str) -> str:
    """A column's name with everything taken away that does not matter."""
    return name.strip().casefold()


def _delimiter(path: Path) -> str:
    """What separates the fields: the one of `, ; tab` that the first line holds most of."""
    first = next((line for line in _lines(path) if line.strip()), "")
    return max(_DELIMITERS, key=first.count)


def _lines(path: Path) -> Iterator[str]:
    """Lines with LF, CRLF or CR at their ends, whatever is mixed."""
    if not path.is_file():
        raise FileError(f"{path}: no such file")
    refuse_impostor(path, str(path))
    number = 0
    with path.open(encoding="utf-8-sig", newline="") as handle:
        while True:
            try:
                text = handle.readline(LONGEST_LINE)
            except UnicodeDecodeError as error:
                byte = f"byte {error.object[error.start]:#04x} after line {number}"
                raise FileError(f"{path}: not UTF-8 text ({byte}): save it as UTF-8") from None
            if not text:
                return
            number += 1
            if "\0" in text:
                raise FileError(f"{path}: NUL bytes in line {number}: UTF-16, or a damaged file; save it as UTF-8")
            if len(text) == LONGEST_LINE and text[-1] not in "\r\n":
                raise FileError(f"{path}: line {number} has more than {LONGEST_LINE} characters: not a table of labels")
            yield text
