"""Any csv or Parquet table with a row for each face: where the picture is and what its label is.

The names of the columns are keys; only `path` and `label` must be there. A label is a name (of the label space, or one
of the usual spellings of `fer.labels.SPELLINGS`) or a number, which needs `classes`: the order of numbers is never
guessed. Rows of the same picture are its faces, which then need boxes, in px of the upright picture.

Splits come from a column (train, val, test in the usual spellings); without one, a hash of the subject, or else of the
picture's path, deals `test_fraction` of the pictures to test.
"""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from fer.config import nearest
from fer.io.files import FileError, sha256
from fer.labels import LabelSpace, space
from fer.sources.base import Entry, LabelSpaceName, Reject, hashed_split, nfc
from fer.sources.layout import list_files, posix
from fer.sources.table_rows import LEFT_OUT, BadRowError, Face, TableColumns, parse_row, table_rows
from fer.sources.tree import Catalogue, TreeConfig, TreeSource

_TABLES = (".csv", ".tsv", ".parquet")


class TableConfig(TreeConfig):
    """Any csv or Parquet table of paths and labels."""

    more_paths: ClassVar[tuple[str, ...]] = ("root",)

    source: Literal["table"]
    path: str | None = Field(
        default=None, description="the table, csv or Parquet; or a folder or an archive that holds it with its pictures"
    )
    root: str | None = Field(
        default=None, min_length=1, description="folder that the paths start from; null: where the table lies"
    )
    label_space: LabelSpaceName = Field(default="basic7", description="the labels that the rows are mapped onto")
    columns: TableColumns = Field(default=TableColumns(), description="names of the columns")
    classes: list[str] | dict[str, str] | None = Field(
        default=None,
        min_length=1,
        description="labels in the order of the numbers 0, 1, ...; or the label of each number or name of the table; "
        "none leaves rows out; null: the usual names",
    )
    crops: bool = Field(default=True, description="pictures of one face each; false: whole pictures with faces in them")
    test_fraction: float = Field(
        default=0.2, ge=0, lt=1, description="share of the pictures that are test where no column says the split"
    )

    @model_validator(mode="after")
    def _consistent(self) -> TableConfig:
        known = (*space(self.label_space).labels, LEFT_OUT)
        for label in self.classes.values() if isinstance(self.classes, dict) else self.classes or []:
            if label not in known:
                raise ValueError(
                    f"classes: {label!r}{nearest(label, known)}; label space {self.label_space} has "
                    f"{', '.join(known[:-1])}; {LEFT_OUT!r} leaves rows out"
                )
        if self.crops and self.columns.box:
            raise ValueError("columns.box: boxes belong to whole pictures; set `crops: false`")
        return self


class TableSource(TreeSource):
    """Reader of tables; see the module."""

    config: TableConfig
    title = "table"
    generator = "table"
    how_to_get = "Expected a csv or Parquet file with a column of paths and one of labels; `columns` says their names."

    @property
    def label_space(self) -> LabelSpace:
        """As configured."""
        return space(self.config.label_space)

    def download(self, out: Path, cache: Path) -> dict[str, Any]:
        """Opens the table and packs its pictures; see `fer.sources.base.Source.download`."""
        table = self._given()
        if table is None:
            if self.config.root is not None:
                raise FileError(f"{self.config.path}: `root` goes with a table; a folder or archive holds its pictures")
            return super().download(out, cache)
        if self.config.sha256 and (digest := sha256(table)) != self.config.sha256.lower():
            raise FileError(f"{table}: sha256 is {digest}, expected {self.config.sha256}: another or a damaged file")
        root = self._root(table)
        if not root.is_dir():
            raise FileError(f"{root}: no such folder; set the key `root` of this dataset to where the pictures are")
        return self.take(root, out)

    def inputs(self) -> Iterator[tuple[str, str, str]]:
        """The table and the images that it names: much else may lie in the folder that its paths start from."""
        table = self._given()
        if table is None:
            yield from super().inputs()
            return
        yield "path", "", str(table)
        root = self._root(table)
        if not root.is_dir():
            yield "root", "", str(root)
            return
        files = _Files(root, Path())
        try:
            named = {
                row[self.config.columns.path]
                for _, row in table_rows(table, [self.config.columns.path])
                if isinstance(row, dict)
            }
        except FileError:  # `download` tells what is wrong with the table
            return
        for name in named:
            with suppress(ValueError):  # a BadRowError, or no name that a file can have
                path = files.wanted(name)
                if not os.access(f"{root}/{path}", os.F_OK):
                    path = files.find(name)
                yield "root", path, f"{root}/{path}"

    def scan(self, tree: Path) -> Catalogue:
        """One entry a picture, with all its rows; see `TreeSource.scan`."""
        table = self._given()
        base = Path()
        if table is None:
            tables = list_files(tree, _TABLES)
            if len(tables) != 1:
                found = f"found {', '.join(tables[:6])}" if tables else "found none"
                raise FileError(f"{tree}: expected one table (csv or Parquet) in it, {found}; set `path` to the table")
            table, base = tree / tables[0], Path(tables[0]).parent
        files = _Files(tree, base)
        columns = self.config.columns
        pictures: dict[str, list[Face]] = {}
        rejects: list[Entry | Reject] = []
        excluded: Counter[str] = Counter()
        for line, row in table_rows(table, columns.names()):
            origin = f"{table.name}:{line}"
            try:
                if isinstance(row, str):
                    raise BadRowError("bad_row", row)
                face = parse_row(row, columns, self.config.classes, self.label_space, origin)
                if face is None:
                    excluded["left_out_by_classes"] += 1
                else:
                    pictures.setdefault(files.find(face.path), []).append(face)
            except BadRowError as error:
                rejects.append(Reject(sample_id=f"row-{line}", reason=error.reason, detail=str(error), origin=origin))
        entries = [self._picture(path, faces, base, excluded) for path, faces in pictures.items()]
        found = "Parquet" if table.suffix.lower() == ".parquet" else "csv"
        return Catalogue(form=f"{found} table", entries=[*entries, *rejects], excluded=excluded)

    def published(self, catalogue: Catalogue) -> Mapping[str, Mapping[str, int] | int]:
        """Nothing: the data are the user's own."""
        return {}

    def _given(self) -> Path | None:
        """The table itself, where `path` names it."""
        path = self.config.path
        if path is None or "://" in path or Path(path).is_dir() or not path.lower().endswith(_TABLES):
            return None
        return Path(path)

    def _root(self, table: Path) -> Path:
        """Where the paths of a table start."""
        return table.parent if self.config.root is None else Path(self.config.root)

    def _picture(self, path: str, faces: list[Face], base: Path, excluded: Counter[str]) -> Entry | Reject:
        """All rows of one picture as an entry."""
        inside = Path(path).relative_to(base) if Path(path).is_relative_to(base) else Path(path)
        key = nfc(inside.as_posix())
        kept = list(dict.fromkeys(faces))
        if len(kept) < len(faces):
            excluded["same_row_again"] += len(faces) - len(kept)
        splits = {face.split for face in kept}
        if len(splits) > 1 or (len(kept) > 1 and not all(face.annotation.box for face in kept)):
            detail = f"{len(kept)} rows of one picture in {len(splits)} splits, of which not all have a box"
            return Reject(sample_id=key, reason="contradicting_rows", detail=detail, origin=path)
        (split,) = splits
        name = kept[0].annotation.subject or key
        return Entry(
            key=key,
            path=path,
            split=split or hashed_split(name, self.config.test_fraction),
            faces=tuple(face.annotation for face in kept),
            is_crop=self.config.crops,
        )


class _Files:
    """The files below a folder, whatever the Unicode form of their names."""

    def __init__(self, tree: Path, base: Path) -> None:
        self._tree, self._base = tree, "" if base == Path() else base.as_posix()
        self._names: dict[str, str] | None = None

    def wanted(self, path: str) -> str:
        """A path of the table relative to the tree.

        Raises:
            BadRowError: it leads out of the tree.
        """
        wanted = posixpath.normpath(posixpath.join(self._base, posix(path)))
        if wanted.startswith("/"):
            absolute = Path(wanted)
            if not absolute.is_relative_to(self._tree):
                raise BadRowError("outside_root", f"path {path!r} does not lie in {self._tree.name}/")
            wanted = absolute.relative_to(self._tree).as_posix()
        if wanted.split("/")[0] == "..":
            raise BadRowError("outside_root", f"path {path!r} leads out of {self._tree.name}/")
        return wanted

    def find(self, path: str) -> str:
        """The same, as it is spelt on disk; BadRowError as for `wanted`."""
        wanted = self.wanted(path)
        if (self._tree / wanted).is_file():
            return wanted
        if self._names is None:
            self._names = {nfc(name): name for name in list_files(self._tree, ("",))}
        return self._names.get(nfc(wanted), wanted)
