"""The file of FER2013's rows: found in what the user has, counted, cut into blocks. FERPlus is read the same way."""

from __future__ import annotations

import shutil
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from fer.console import log, progress
from fer.io.archives import is_tar
from fer.io.files import FileError, refuse_impostor, sha256
from fer.io.transfer import download
from fer.sources.archives import open_tree
from fer.sources.base import BLOCK_ROWS, Block, RawSample, Reject, read_description
from fer.sources.fer2013_rows import Line, Row, RowError, csv_rows, form_of, parquet_rows
from fer.sources.layout import list_files
from fer.sources.tree import TreeSource

_ARCHIVES = (b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")
_SHOWN_BAD_ROWS = 8
_SHOWN_FILES = 6


class RowsSource(TreeSource):
    """A reader of one file of rows, or of packed pictures where the layout was folders; see `TreeSource`."""

    def blocks(self, raw: Path) -> list[Block]:
        """Runs of rows, or packed files."""
        description = read_description(raw)
        return file_blocks(description) if "index" in description else super().blocks(raw)

    def read(self, raw: Path, block: Block) -> Iterator[RawSample | Reject]:
        """Every labelled picture of a block, of a file of rows as (48, 48) grey pixels; or a Reject."""
        of_rows = "index" in read_description(raw)
        yield from self.read_rows(raw, block) if of_rows else super().read(raw, block)

    @abstractmethod
    def read_rows(self, raw: Path, block: Block) -> Iterator[RawSample | Reject]:
        """The pictures of a block of rows."""


@dataclass(kw_only=True)
class Scan:
    """What one pass over a file tells.

    Attributes:
        form: "csv" or "parquet".
        rows: lines after the header, blank and corrupt ones counted.
        bad: corrupt rows by kind, and some of them in words.
        index: position, line number and byte offset of the first row of each block.
    """

    form: str
    rows: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    index: list[list[int]] = field(default_factory=list)

    def add_bad(self, kind: str, detail: str, line: Line) -> None:
        """Counts a corrupt row."""
        self.bad[kind] += 1
        if len(self.examples) < _SHOWN_BAD_ROWS:
            self.examples.append(f"{'line' if self.form == 'csv' else 'row'} {line.number}: {kind}: {detail}")

    @property
    def description(self) -> dict[str, Any]:
        """What source.json says of it, and `file_blocks` reads."""
        return {
            "form": self.form,
            "rows": self.rows,
            "bad_rows": dict(sorted(self.bad.items())),
            "index": self.index,
        }


def fetch(path: str, cache: Path, *, sha256_hex: str | None) -> Path:
    """The file of rows, or the folder of pictures, that a path means: a file, a folder, an archive, or a URL of one.

    A file from elsewhere, and what an archive holds, are kept in `cache`.

    Raises:
        FileError: absent, damaged, or an archive or folder without anything of FER2013.
    """
    local = Path(path)
    if "://" in path:
        local = cache / file_name(path)
        if sha256_hex or not local.exists():
            download(path, local, sha256_hex=sha256_hex)
    elif local.is_dir():
        return _find(local)
    elif not local.is_file():
        raise FileError(f"{path}: no such file or folder; set the key `path` of this dataset to where it is")
    elif sha256_hex and (digest := sha256(local)) != sha256_hex.lower():
        raise FileError(f"{path}: sha256 is {digest}, expected {sha256_hex}: another or a damaged file")
    with keep_only_good(cache):
        refuse_impostor(local, local.name)
        return _find(open_tree(str(local), cache)) if _is_archive(local) else local


@contextmanager
def keep_only_good(cache: Path) -> Iterator[None]:
    """Empties the cache where what was fetched turns out to be no usable data: another attempt must fetch it anew."""
    try:
        yield
    except FileError:
        shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir(parents=True)
        raise


def _find(tree: Path) -> Path:
    """The one file of rows in a folder; else the folder itself, where there is none."""
    found = []
    for name in list_files(tree, (".csv", ".parquet", ".data")):
        try:
            form = form_of(tree / name)
            if form == "csv" or _is_fer2013_parquet(tree / name):
                found.append(name)
        except FileError:
            continue  # some other table
    if len(found) > 1:
        raise FileError(f"{tree}: several files of FER2013's rows ({', '.join(found)}); set `path` to one of them")
    return tree / found[0] if found else tree


def _is_fer2013_parquet(path: Path) -> bool:
    from fer.shards.table import TableReader

    return {"image", "label", "usage"} <= set(TableReader(path).columns)


def _is_archive(path: Path) -> bool:
    with path.open("rb") as handle:
        head = handle.read(512)
    return head.startswith(_ARCHIVES) or is_tar(head)


def contents(tree: Path) -> str:
    """A few of the names in a folder, for messages."""
    names = [path.name + ("/" if path.is_dir() else "") for path in sorted(tree.iterdir())]
    return ", ".join([*names[:_SHOWN_FILES], *(["..."] if len(names) > _SHOWN_FILES else [])]) or "nothing"


def scan(path: Path, max_bad_fraction: float, see: Callable[[Line, Row], str | None]) -> Scan:
    """Reads every row once.

    Args:
        max_bad_fraction: a larger share of corrupt rows is an error; a smaller one a warning.
        see: called for each good row; a returned text says why it is corrupt all the same.

    Raises:
        FileError: no file of FER2013's rows, a truncated one, or too many corrupt rows.
    """
    result = Scan(form=form_of(path))
    blank = 0
    with progress(None, f"check {path.name}", "row") as bar:
        for line, row in read_rows(path, result.form):
            if line.position % BLOCK_ROWS == 0:
                result.index.append([line.position, line.number, line.offset])
                bar.update(BLOCK_ROWS)
            result.rows = line.position + 1
            if isinstance(row, RowError):
                result.add_bad(row.kind, str(row), line)
            elif row is None:
                blank += 1
            elif problem := see(line, row):
                result.add_bad("votes", problem, line)
    if result.rows == blank:
        raise FileError(f"{path.name}: a header and no rows: the file is truncated; fetch it again")
    if blank:
        log.info("%s: %d blank lines skipped", path.name, blank)
    _judge(path.name, result, result.rows - blank, max_bad_fraction)
    return result


def _judge(name: str, result: Scan, rows: int, max_bad_fraction: float) -> None:
    if not result.bad:
        return
    total = sum(result.bad.values())
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(result.bad.items()))
    listing = "\n  ".join([*result.examples, *(["..."] if total > len(result.examples) else [])])
    report = f"{name}: {total} of {rows} rows are corrupt ({kinds}):\n  {listing}"
    if total > max_bad_fraction * rows:
        raise FileError(
            f"{report}\nThat is more than max_bad_fraction = {max_bad_fraction:g} of the rows: fetch "
            "the file again, or raise datasets.<name>.max_bad_fraction in params.yaml to leave these rows out"
        )
    log.warning("%s\nThey are left out.", report)


def read_rows(
    path: Path, form: str, start: Line | None = None, stop: int | None = None
) -> Iterator[tuple[Line, Row | RowError | None]]:
    """Rows of a file of either form; see `csv_rows` and `parquet_rows`."""
    if form == "csv":
        yield from csv_rows(path, start, stop)
    else:
        yield from parquet_rows(path, start.position if start else 0, stop)


def file_blocks(description: Mapping[str, Any]) -> list[Block]:
    """Runs of rows, from source.json."""
    starts = [Line(*entry) for entry in description["index"]]
    stops = [*(line.position for line in starts[1:]), description["rows"]]
    return [
        Block(
            index=number, file=description["file"], start=line.position, stop=stop, offset=line.offset, line=line.number
        )
        for number, (line, stop) in enumerate(zip(starts, stops, strict=True))
    ]


def block_rows(raw: Path, block: Block) -> Iterator[tuple[Line, Row | RowError | None]]:
    """The rows of a block of `file_blocks`."""
    # The first row of a csv stands behind its header: only a Parquet file's blocks have no offset.
    form = "csv" if block.offset else "parquet"
    yield from read_rows(raw / block.file, form, Line(block.start, block.line, block.offset), block.stop)


def file_name(path: str) -> str:
    """Under which name a file lies in data/raw."""
    name = Path(unquote(urlsplit(path).path) if "://" in path else path).name
    return name if name and name not in ("source.json", "..") else "fer2013.data"
