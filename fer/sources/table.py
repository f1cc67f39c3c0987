"""Any csv or Parquet table with a row for each face: the path of its image, and its label.

The names of the columns are configured; only `path` and `label` are required. A label is a name (of the label space, or
one of the usual spellings of `fer.labels.SPELLINGS`) or a number, which needs `classes`: the order of numbers is never
guessed. Rows of the same image are its faces, which then need boxes, in px of the upright image.

Splits come from a column (train, val, test in the usual spellings); without one, a hash of the subject, or else of the
image's path, assigns `test_fraction` of the images to test.
"""

from __future__ import annotations

import math
import os
import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from fer.config import Config, nearest
from fer.io.files import FileError, refuse_impostor
from fer.labels import named, space
from fer.shards.schema import Split
from fer.sources.archives import fetch
from fer.sources.base import AnnotatedFace, Entry, LabelSpaceName, Reject, hashed_split, nfc, one_face
from fer.sources.csvfile import RowError, read_records
from fer.sources.layout import list_files, posix, split_named
from fer.sources.tree import Catalogue, TreeConfig, TreeSource

LEFT_OUT = "none"
"""In `classes`: rows of this class are left out."""

_TABLES = (".csv", ".tsv", ".parquet")
_READ_ROWS = 4096
_SHOWN_FILES = 6
_WHAT = "the table of this dataset"


class TableColumns(Config):
    """Names of the table's columns; null: no such column."""

    path: str = Field(default="path", min_length=1, description="of the image, relative to `root`")
    label: str = Field(default="label", min_length=1, description="name or number of the class")
    split: str | None = Field(default=None, min_length=1, description="train, val or test")
    subject: str | None = Field(default=None, min_length=1, description="the person in the image")
    box: list[str] | None = Field(
        default=None, min_length=4, max_length=4, description="x1, y1, x2, y2 in px of the upright image"
    )
    landmarks: list[str] | None = Field(
        default=None,
        min_length=10,
        max_length=10,
        description="x and y, in px, of right eye, left eye, nose, right and left mouth corner of the person",
    )

    def names(self) -> list[str]:
        """All configured columns."""
        single = [self.path, self.label, *(name for name in (self.split, self.subject) if name)]
        return [*single, *(self.box or []), *(self.landmarks or [])]

    @model_validator(mode="after")
    def _all_differ(self) -> TableColumns:
        if twice := [name for name, count in Counter(self.names()).items() if count > 1]:
            raise ValueError(f"column {twice[0]!r} is named twice")
        return self


class TableConfig(TreeConfig):
    """Any csv or Parquet table of paths and labels."""

    more_paths: ClassVar[tuple[str, ...]] = ("root",)

    source: Literal["table"]
    path: str | None = Field(
        default=None, description="the table, csv or Parquet; or a folder or an archive that holds it with its images"
    )
    root: str | None = Field(
        default=None, min_length=1, description="folder that the paths start from; null: the folder of the table"
    )
    label_space: LabelSpaceName = Field(default="basic7", description="the labels that the rows are mapped onto")
    columns: TableColumns = Field(default=TableColumns(), description="names of the columns")
    classes: list[str] | dict[str, str] | None = Field(
        default=None,
        min_length=1,
        description="labels in the order of the numbers 0, 1, ...; or the label of each number or name of the table; "
        "none leaves rows out; null: the usual names",
    )
    crops: bool = Field(default=True, description="images of one face each; false: whole images with faces in them")
    test_fraction: float = Field(
        default=0.2, ge=0, lt=1, description="share of the images that are test where there is no split column"
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
            raise ValueError("columns.box: boxes belong to whole images; set `crops: false`")
        return self


_Face = tuple[Split | None, AnnotatedFace]
"""A good row: its split, None where there is no column of splits, and what it says of a face."""


class TableSource(TreeSource):
    """Reader of tables; see the module."""

    config: TableConfig
    title = "table"
    generator = "table"
    how_to_get = "Expected a csv or Parquet file with a column of paths and one of labels; `columns` gives their names."

    def download(self, out: Path, cache: Path) -> dict[str, Any]:
        """Opens the table and packs its images; see `fer.sources.base.Source.download`."""
        table = self._given()
        if table is None:
            if self.config.root is not None:
                raise FileError(f"{self.config.path}: `root` goes with a table; a folder or archive holds its images")
            return super().download(out, cache)
        root = self._root(fetch(str(table), cache, sha256_hex=self.config.sha256))
        if not root.is_dir():
            raise FileError(f"{root}: no such folder; set the key `root` of this dataset to where the images are")
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
        files, column = _Files(root, Path()), self.config.columns.path
        try:
            names = {row[column] for _, row in table_rows(table, [column]) if isinstance(row, dict)}
        except FileError:  # `download` reports what is wrong with the table
            return
        for name in names:
            with suppress(ValueError):  # a RowError, or a name that no file can have
                path = files.resolve(name)
                if not os.access(f"{root}/{path}", os.F_OK):
                    path = files.find(name)
                yield "root", path, f"{root}/{path}"

    def scan(self, tree: Path) -> Catalogue:
        """One entry per image, with all its rows; see `TreeSource.scan`."""
        table, base = self._given(), Path()
        if table is None:
            tables = list_files(tree, _TABLES)
            if len(tables) != 1:
                found = f"found {', '.join(tables[:_SHOWN_FILES]) or 'none'}"
                raise FileError(f"{tree}: expected one table (csv or Parquet) in it, {found}; set `path` to the table")
            table, base = tree / tables[0], Path(tables[0]).parent
        files, columns = _Files(tree, base), self.config.columns
        images: dict[str, list[_Face]] = {}
        rejects: list[Entry | Reject] = []
        excluded: Counter[str] = Counter()
        for line, row in table_rows(table, columns.names()):
            origin = f"{table.name}:{line}"
            try:
                if isinstance(row, str):
                    raise RowError("bad_row", row)
                face = self._face(row, origin)
                if face is None:
                    excluded["left_out_by_classes"] += 1
                else:
                    images.setdefault(files.find(row[columns.path]), []).append(face)
            except RowError as error:
                rejects.append(Reject(f"row-{line}", error.reason, str(error), origin))
        entries = [self._entry(path, faces, base, excluded) for path, faces in images.items()]
        form = f"{'Parquet' if table.suffix.lower() == '.parquet' else 'csv'} table"
        return Catalogue(form=form, entries=[*entries, *rejects], excluded=excluded)

    def _given(self) -> Path | None:
        """The table itself, where `path` names it."""
        path = self.config.path
        if path is None or "://" in path or Path(path).is_dir() or not path.lower().endswith(_TABLES):
            return None
        return Path(path)

    def _root(self, table: Path) -> Path:
        """The folder that the paths of a table start from."""
        return table.parent if self.config.root is None else Path(self.config.root)

    def _face(self, row: Mapping[str, str], where: str) -> _Face | None:
        """The face of a row, or None where `classes` leaves it out.

        Args:
            where: table and line, for the error's text.

        Raises:
            RowError: it cannot be used.
            FileError: its label is a number, and `classes` does not say what the numbers mean.
        """
        columns = self.config.columns
        label = self._label(row[columns.label], where)
        if label == LEFT_OUT:
            return None
        if not row[columns.path]:
            raise RowError("bad_row", "no path")
        split = split_named(row[columns.split]) if columns.split else None
        if columns.split and split is None:
            detail = f"{columns.split} {row[columns.split]!r}, expected train, val or test"
            raise RowError("unknown_split", detail)
        box = _numbers(row, columns.box, "bad_box")
        if box and not (box[0] < box[2] and box[1] < box[3]):
            detail = f"box {', '.join(f'{value:g}' for value in box)}: x1 < x2 and y1 < y2 must hold"
            raise RowError("bad_box", detail)
        points = _numbers(row, columns.landmarks, "bad_landmarks")
        (face,) = one_face(
            self.label_space.index(label),
            subject=(row[columns.subject] or None) if columns.subject else None,
            box=(box[0], box[1], box[2], box[3]) if box else None,
            landmarks=tuple(zip(points[::2], points[1::2], strict=True)) if points else None,
        )
        return split, face

    def _label(self, text: str, where: str) -> str:
        """A label of the label space, or LEFT_OUT."""
        classes, known = self.config.classes, self.label_space.labels
        number = int(text) if text.isascii() and text.isdecimal() and len(text) < 4 else None
        if isinstance(classes, Mapping):
            if text in classes:
                return classes[text]
        elif classes is not None and number is not None:
            if number < len(classes):
                return classes[number]
            raise RowError("unknown_label", f"label {number}, and `classes` names {len(classes)}, from 0 on")
        if number is not None and classes is None:
            raise FileError(
                f"{where}: label {text!r} is a number, and datasets number the same classes in different orders: set "
                f"the key `classes` of this dataset to the labels in the order of the numbers, from {', '.join(known)}"
            )
        name = named(text)
        if name not in known:
            raise RowError("unknown_label", f"label {text!r}, expected one of {', '.join(known)}")
        return name

    def _entry(self, path: str, faces: Sequence[_Face], base: Path, excluded: Counter[str]) -> Entry | Reject:
        """All rows of one image as an entry."""
        inside = Path(path).relative_to(base) if Path(path).is_relative_to(base) else Path(path)
        key = nfc(inside.as_posix())
        kept = list(dict.fromkeys(faces))
        if len(kept) < len(faces):
            excluded["same_row_again"] += len(faces) - len(kept)
        splits = {split for split, _ in kept}
        if len(splits) > 1 or (len(kept) > 1 and not all(face.box for _, face in kept)):
            detail = f"{len(kept)} rows of one image in {len(splits)} splits, of which not all have a box"
            return Reject(key, "contradicting_rows", detail, path)
        annotations = tuple(face for _, face in kept)
        split = splits.pop() or hashed_split(annotations[0].subject or key, self.config.test_fraction)
        return Entry(key=key, path=path, split=split, faces=annotations, is_crop=self.config.crops)


class _Files:
    """The files below a folder, in any Unicode form of their names. `base`: folder in it that the paths start from."""

    def __init__(self, tree: Path, base: Path) -> None:
        self._tree, self._base = tree, base.as_posix()
        self._names: dict[str, str] | None = None

    def resolve(self, path: str) -> str:
        """A path of the table relative to the tree; RowError where it leads out of the tree."""
        inside = posixpath.normpath(posixpath.join(self._base, posix(path)))
        if inside.startswith("/"):
            if not Path(inside).is_relative_to(self._tree):
                raise RowError("outside_root", f"path {path!r} does not lie in {self._tree.name}/")
            inside = Path(inside).relative_to(self._tree).as_posix()
        if inside.split("/")[0] == "..":
            raise RowError("outside_root", f"path {path!r} leads out of {self._tree.name}/")
        return inside

    def find(self, path: str) -> str:
        """The same, as it is spelt on disk."""
        inside = self.resolve(path)
        if (self._tree / inside).is_file():
            return inside
        if self._names is None:
            self._names = {nfc(name): name for name in list_files(self._tree, ("",))}
        return self._names.get(nfc(inside), inside)


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
    if not parquet:
        for record in read_records(table, columns, _WHAT):
            yield record.line, record.complaint if record.fields is None else record.fields
        return
    from fer.shards.table import TableReader  # pyarrow is not for `fer --help`

    reader = TableReader(table)
    for column in columns:
        if column not in reader.columns:
            raise FileError(
                f"{table}: not {_WHAT}: it lacks the column {column!r}{nearest(column, reader.columns)}; found "
                f"{', '.join(reader.columns)[:120]!r}"
            )
    for start in range(0, reader.rows, _READ_ROWS):
        for number, row in enumerate(reader.slice(start, start + _READ_ROWS, list(columns)), start):
            yield number, {name: _text(value) for name, value in row.items()}


def _text(value: object) -> str:
    """A value as a csv would hold it."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).strip()


def _numbers(row: Mapping[str, str], names: Sequence[str] | None, reason: str) -> list[float] | None:
    """The values of some columns; None where there are no columns, or all are empty."""
    if not names or not any(row[name] for name in names):
        return None
    values = []
    with suppress(ValueError):
        values = [float(row[name]) for name in names]
    if not values or not all(map(math.isfinite, values)):
        raise RowError(reason, f"{', '.join(f'{name} {row[name]!r}' for name in names)}: expected numbers")
    return values
