"""Parquet tables as plain Python rows and columns: the only form in which other packages see Parquet.

Files are byte-identical for identical rows: fixed writer options, no time stamps, sorted metadata. Every page carries a
checksum, and is checked against it when read: a flipped byte is an error, never a wrong image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fer.config import nearest
from fer.io.files import FileError, open_atomic


def write_table(
    path: Path,
    rows: Sequence[Mapping[str, Any]] | Mapping[str, Any] | Iterator[pa.Table],
    schema: pa.Schema,
    *,
    metadata: Mapping[str, str] | None = None,
    rows_per_group: int = 512,
) -> None:
    """Writes a whole table by rename.

    Args:
        rows: mappings with the schema's columns; columns by name (sequences or arrays); or tables, all but the last of
            whole row groups, of which one at a time is held.
        metadata: texts for the file's schema metadata.
        rows_per_group: rows of a row group; the last may be shorter.
    """
    if isinstance(rows, Mapping):
        tables = iter([pa.table({name: rows[name] for name in schema.names}, schema=schema)])
    else:
        tables = rows if isinstance(rows, Iterator) else iter([pa.Table.from_pylist(list(rows), schema=schema)])
    pairs = {key.encode(): value.encode() for key, value in sorted((metadata or {}).items())}
    schema = schema.with_metadata(pairs or None)
    texts = [field.name for field in schema if pa.types.is_string(field.type) and field.name != "sample_id"]
    options: dict[str, Any] = {
        "compression": "none",  # encoded images do not shrink any further, and the rest is small
        "use_dictionary": texts or False,
        "write_statistics": False,
        "write_page_checksum": True,
        "store_schema": True,
    }
    with open_atomic(path) as handle, pq.ParquetWriter(handle, schema, **options) as writer:
        for table in tables:
            writer.write_table(table.select(schema.names).cast(schema), rows_per_group)


def schema_of(columns: Mapping[str, type]) -> pa.Schema:
    """A schema of texts, numbers and truth values; each may be missing (None)."""
    kinds = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    return pa.schema([(name, kinds[kind]) for name, kind in columns.items()])


class TableReader:
    """Random access to the rows of one file.

    Args:
        schema: columns that must be there, of these types; others may stand beside them.
        remedy: for the errors, e.g. the command that repairs the file.

    Raises:
        FileError: absent, truncated, damaged, or without these columns; the message names the file.
    """

    def __init__(self, path: Path, schema: pa.Schema | None = None, *, remedy: str = "") -> None:
        self.path, self._remedy = path, f"; {remedy}" if remedy else ""
        try:
            self._file = pq.ParquetFile(path, page_checksum_verification=True)
        except FileNotFoundError:
            raise FileError(f"{path}: no such file{self._remedy}") from None
        except (pa.ArrowInvalid, OSError) as error:
            why = f"truncated, or no Parquet file ({_first_line(error)})"
            raise FileError(f"{path}: {why}{self._remedy}") from None
        self._require(schema or ())

    def _require(self, schema: Iterable[pa.Field]) -> None:
        has = self._file.schema_arrow
        for field in schema:
            if (count := has.names.count(field.name)) != 1:
                there = f"{nearest(field.name, has.names) if not count else ''}; found {', '.join(has.names)[:120]}"
                raise FileError(f"{self.path}: has {count or 'no'} column {field.name!r}{there}{self._remedy}")
            if (kind := has.field(field.name).type) != field.type:
                raise FileError(f"{self.path}: column {field.name!r} is {kind}, expected {field.type}{self._remedy}")

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self._file.metadata.num_rows)

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self._file.schema_arrow.names)

    @property
    def row_groups(self) -> list[int]:
        """Rows of each row group."""
        about = self._file.metadata
        return [int(about.row_group(index).num_rows) for index in range(about.num_row_groups)]

    @property
    def metadata(self) -> dict[str, str]:
        """Texts of the schema metadata."""
        return {key.decode(): value.decode() for key, value in (self._file.schema_arrow.metadata or {}).items()}

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows."""
        return self._guard(lambda: self._file.read(columns=columns, use_threads=False))

    def slice(self, start: int, stop: int, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Rows start .. stop - 1; reads only the row groups that hold them."""
        ends = list(accumulate(self.row_groups, initial=0))
        groups = [index for index, first in enumerate(ends[:-1]) if first < stop and ends[index + 1] > start]
        if not groups:
            return []
        table = self._guard(lambda: self._file.read_row_groups(groups, columns=columns, use_threads=False))
        rows: list[dict[str, Any]] = table.slice(start - ends[groups[0]], stop - start).to_pylist()
        return rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Row after row, a few hundred in memory."""
        for batch in self.batches():
            yield from batch.to_pylist()

    def batches(self, columns: Sequence[str] | None = None, rows: int = 512) -> Iterator[pa.RecordBatch]:
        """Batches of rows in order."""
        iterator = self._file.iter_batches(batch_size=rows, columns=columns, use_threads=False)
        while (batch := self._guard(lambda: next(iterator, None))) is not None:
            yield batch

    def _guard(self, read: Any) -> Any:
        try:
            return read()
        except (pa.ArrowInvalid, OSError) as error:
            raise FileError(f"{self.path}: damaged ({_first_line(error)}){self._remedy}") from None


def read_table(path: Path, columns: Sequence[str] | None = None) -> dict[str, list[Any]]:
    """A whole file as columns of Python values. FileError as for `TableReader`."""
    columns_: dict[str, list[Any]] = TableReader(path).table(columns).to_pydict()
    return columns_


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
