"""FER2013: 35,887 gray faces of 48 x 48 px with seven labels (Goodfellow et al., "Challenges in Representation
Learning", ICONIP 2013). It is not redistributed; `datasets.<name>.path` names the user's copy.

The content decides the layout: the original csv, icml_face_data.csv, a Parquet of encoded images, each also inside its
archive or folder; and Kaggle's folders of class folders (msambare/fer2013), JPEGs that differ a little from the
original pixels. Usage maps to splits as the challenge meant it: Training is train, PublicTest validation, PrivateTest
test. Kaggle's test/ holds both; the file names tell them apart.
"""

from __future__ import annotations

import re
import shutil
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from fer.console import log, progress
from fer.io.archives import is_tar
from fer.io.files import FileError, refuse_impostor
from fer.labels import DATASET_LABELS, named, to_canonical
from fer.shards.schema import SPLITS, Split
from fer.sources.archives import fetch, open_tree
from fer.sources.base import (
    BLOCK_ROWS,
    AnnotatedFace,
    Block,
    Entry,
    RawSample,
    Reject,
    generator_of,
    one_face,
    read_description,
)
from fer.sources.csvfile import RowError
from fer.sources.fer2013_rows import SIDE, USAGES, Line, Row, form_of, read_rows
from fer.sources.layout import IMAGE_ENDINGS, find_layout, folders, list_files, split_named
from fer.sources.tree import Catalogue, Published, TreeConfig, TreeSource

CLASS_NAMES = DATASET_LABELS["fer2013"]

# Rows of each class in FER2013's own label order, counted on the published file.
PUBLISHED: dict[str, dict[str, int]] = {
    split: dict(zip(CLASS_NAMES, counts, strict=True))
    for split, counts in (
        ("train", (3995, 436, 4097, 7215, 4830, 3171, 4965)),
        ("validation", (467, 56, 496, 895, 653, 415, 607)),
        ("test", (491, 55, 528, 879, 594, 416, 626)),
    )
}

_ARCHIVES = (b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")


class RowsConfig(TreeConfig):
    """A dataset with FER2013's rows in one file."""

    path: str | None = Field(
        default=None,
        description="fer2013.csv, icml_face_data.csv or Parquet (image, label, usage); the archive or folder that "
        "holds one; a folder of images in a public layout of this dataset; or a URL",
    )


RowLabels = Callable[[Line, Row], tuple[AnnotatedFace] | str]
"""The labeled face of a row, or why the dataset's own rules exclude it; RowError where the label is corrupt."""


class RowsSource(TreeSource):
    """A reader of one file of rows, or of packed images where the layout is folders; see `TreeSource`.

    Of a file of rows data/raw keeps the file, of folders their images.
    """

    config: RowsConfig
    class_names: ClassVar[tuple[str, ...]]
    """The dataset's classes."""

    @abstractmethod
    def row_labels(self, raw: Path) -> RowLabels:
        """Labels for rows that are read in their order, with what `raw` holds."""

    def describe_labels(self, labels: Any, name: str, excluded: Mapping[str, int]) -> dict[str, Any]:
        """Keys for source.json after the last row of a file; FileError where the labels do not fit the rows."""
        return {}

    def number_of(self, line: Line) -> int | None:
        """The number in a row's key; None excludes the row."""
        return line.position

    def download(self, out: Path, cache: Path) -> dict[str, Any]:
        """Fetches, counts and copies the rows, or packs the images; see `fer.sources.base.Source.download`."""
        if self.config.path is None:
            return super().download(out, cache)  # tells how to get it
        path = fetch_rows(self.config.path, cache, sha256_hex=self.config.sha256)
        if path.is_dir():
            return self.take(path, out)
        labels = self.row_labels(out)
        with keep_only_good(cache):
            about = self._count_rows(path, labels)
        catalogue = Catalogue(form=path.name, entries=(), excluded=about.get("excluded", {}))
        counts, published = about["counts"], self.published(catalogue)
        classes = {split: row for split, row in published.items() if isinstance(row, Mapping)}
        lacking = [row[name] - counts[split][name] for split, row in classes.items() for name in row]
        complete = lacking and min(lacking) >= 0 and sum(lacking) == sum(about["bad_rows"].values())
        self._compare(counts, counts if complete else published, catalogue)
        name = "fer2013.data" if path.name == "source.json" else path.name
        shutil.copyfile(path, out / name)
        return {"file": name, "published": published, **generator_of(self.generator, path.parent), **about}

    def _count_rows(self, path: Path, labels: RowLabels) -> dict[str, Any]:
        """The content of source.json about a file of rows, each of which is read once.

        Its `index` is position, line number and byte offset of the first row of each block.

        Raises:
            FileError: no file of FER2013's rows, a truncated one, or too many corrupt rows.
        """
        form, rows = form_of(path), 0
        index: list[list[int]] = []
        counts: Counter[tuple[Split, int]] = Counter()
        excluded: Counter[str] = Counter()
        rejects: list[Reject] = []
        with progress(None, f"check {path.name}", "row") as bar:
            for line, found in self._samples(path, labels):
                if line.position % BLOCK_ROWS == 0:
                    index.append([line.position, line.number, line.offset])
                    bar.update(BLOCK_ROWS)
                rows = line.position + 1
                if isinstance(found, RawSample):
                    counts[found.split, found.faces[0].label] += 1
                elif isinstance(found, Reject):
                    rejects.append(found)
                else:
                    excluded[found] += 1
        if (blank := excluded.pop("blank", 0)) == rows:
            raise FileError(f"{path.name}: a header and no rows: the file is truncated; fetch it again")
        if blank:
            log.info("%s: %d blank lines skipped", path.name, blank)
        self._judge(rejects, rows - blank)
        labels_of = {name: self.label_space.index(name) for name in self.class_names}
        return {
            "form": form,
            "rows": rows,
            "bad_rows": dict(sorted(Counter(reject.reason.removeprefix("row_") for reject in rejects).items())),
            "index": index,
            "counts": {split: {name: counts[split, label] for name, label in labels_of.items()} for split in SPLITS},
            **self.describe_labels(labels, path.name, excluded),
        }

    def _samples(
        self, path: Path, labels: RowLabels, start: Line | None = None, stop: int | None = None
    ) -> Iterator[tuple[Line, RawSample | Reject | str]]:
        """Each row as a sample or a Reject, or the reason that excludes it."""
        for line, row in read_rows(path, start, stop):
            number = self.number_of(line)
            if row is None or number is None:
                yield line, "blank" if row is None else "no_position"
                continue
            key, origin = f"{self.generator}/{number:08d}", f"{path.name}:{line.number}"
            try:
                if isinstance(row, RowError):
                    raise row
                faces = labels(line, row)
            except RowError as error:
                yield line, Reject(key, f"row_{error.reason}", str(error), origin)
            else:
                sample = partial(RawSample, key=key, image=row.pixels, split=row.split, is_crop=True, origin=origin)
                yield line, faces if isinstance(faces, str) else sample(faces=faces)

    def blocks(self, raw: Path) -> list[Block]:
        """Runs of rows, or packed files."""
        about = read_description(raw)
        if "index" not in about:
            return super().blocks(raw)
        stops = [*(position for position, _, _ in about["index"][1:]), about["rows"]]
        return [
            Block(index=number, file=about["file"], start=position, stop=stop, offset=offset, line=line)
            for number, ((position, line, offset), stop) in enumerate(zip(about["index"], stops, strict=True))
        ]

    def read(self, raw: Path, block: Block) -> Iterator[RawSample | Reject]:
        """Every labeled image of a block, of a file of rows as (48, 48) gray pixels; or a Reject."""
        if "index" not in read_description(raw):
            yield from super().read(raw, block)
            return
        start = Line(block.start, block.line, block.offset)
        for _, found in self._samples(raw / block.file, self.row_labels(raw), start, block.stop):
            if isinstance(found, RawSample | Reject):
                yield found


def fetch_rows(path: str, cache: Path, *, sha256_hex: str | None) -> Path:
    """The file of rows, or the folder of images, at a path: a file, a folder, an archive, or a URL of one.

    A downloaded file, and the content of an archive, are kept in `cache`.

    Raises:
        FileError: absent, damaged, or an archive or folder with several files of rows.
    """
    local = fetch(path, cache, sha256_hex=sha256_hex)
    if local.is_dir():
        return _find(local)
    with keep_only_good(cache):
        refuse_impostor(local, local.name)
        with local.open("rb") as handle:
            head = handle.read(512)
        return _find(open_tree(str(local), cache)) if head.startswith(_ARCHIVES) or is_tar(head) else local


@contextmanager
def keep_only_good(cache: Path) -> Iterator[None]:
    """Empties the cache where the fetched file turns out to be unusable, so that another attempt fetches it again."""
    try:
        yield
    except FileError:
        shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir(parents=True)
        raise


def _find(tree: Path) -> Path:
    """The one file of rows in a folder; else the folder itself."""
    from fer.shards.table import TableReader  # pyarrow is not for `fer --help`

    found = []
    for name in list_files(tree, (".csv", ".parquet", ".data")):
        try:
            if form_of(tree / name) == "csv" or {"image", "label", "usage"} <= set(TableReader(tree / name).columns):
                found.append(name)
        except FileError:
            continue  # some other table
    if len(found) > 1:
        raise FileError(f"{tree}: several files of FER2013's rows ({', '.join(found)}); set `path` to one of them")
    return tree / found[0] if found else tree


class Fer2013Config(RowsConfig):
    """FER2013 (Goodfellow et al. 2013) in any of its public layouts: rows in one file, or Kaggle's class folders."""

    source: Literal["fer2013"]
    label_space: Literal["basic7", "basic8"] = Field(default="basic7", description="FER2013 has no contempt")
    subset: bool = Field(default=False, description="accept another number of rows than the published 35,887")


class Fer2013Source(RowsSource):
    """Reader of FER2013; see the module."""

    config: Fer2013Config
    title = "FER2013"
    generator = "fer2013"
    class_names = CLASS_NAMES
    how_to_get = (
        "Its home is https://www.kaggle.com/competitions/"
        "challenges-in-representation-learning-facial-expression-recognition-challenge (fer2013.tar.gz, or "
        "icml_face_data.csv). Expected one of: fer2013.csv or icml_face_data.csv (columns emotion, pixels, Usage); a "
        "Parquet file (image, label, usage); an archive or a folder with one of these in it; folders train/<class>/ "
        "and test/<class>/ of images named Training_*.jpg, PublicTest_*.jpg and PrivateTest_*.jpg"
    )

    def row_labels(self, raw: Path) -> RowLabels:
        """The labels in the rows themselves."""
        canonical = to_canonical(CLASS_NAMES, self.label_space)
        return lambda line, row: one_face(canonical[row.label], box=(0.0, 0.0, SIDE, SIDE))

    def scan(self, tree: Path) -> Catalogue:
        """One entry per image of Kaggle's folders; see `TreeSource.scan`."""
        if find_layout(tree, is_ferplus_layout):
            raise FileError(
                f"{tree}: these are FERPlus's folders (FER2013Train/fer0000000.png ...), whose label.csv holds votes "
                "and no label of FER2013: read them with `source: ferplus`"
            )
        root = self.root_of(tree, lambda folder: bool(_split_folders(folder)))
        entries: list[Entry | Reject] = []
        all_named = True
        for split, split_folder in _split_folders(root).items():
            for folder in folders(split_folder):
                label = named(folder.name)
                if label not in CLASS_NAMES:
                    raise FileError(
                        f"{folder}: not a class of FER2013 ({', '.join(CLASS_NAMES)}); for other folders use "
                        "`source: folders`, whose key `classes` maps each folder to a label"
                    )
                faces = one_face(self.label_space.index(label))
                for path in (folder / name for name in list_files(folder, IMAGE_ENDINGS)):
                    in_name = _split_in_name(path, split)
                    all_named &= in_name is not None
                    key, inside = path.relative_to(root).as_posix(), path.relative_to(tree).as_posix()
                    entries.append(Entry(key=key, path=inside, split=in_name or split, faces=faces, is_crop=True))
        if not all_named:
            log.warning(
                "%s: the file names do not tell PublicTest from PrivateTest (Training_*, PublicTest_*, PrivateTest_*): "
                "folders are read as splits, and test/ may hold both",
                tree,
            )
        form = "class folders" if all_named else "class folders, PublicTest and PrivateTest together"
        return Catalogue(form=form, entries=entries, notes={"usage_in_names": all_named})

    def published(self, catalogue: Catalogue) -> Published:
        """As counted on the csv; validation and test added up where nothing tells them apart."""
        splits = {entry.split for entry in catalogue.entries if isinstance(entry, Entry)}
        if catalogue.notes.get("usage_in_names", True) or "validation" in splits:
            return PUBLISHED
        train, public, private = PUBLISHED.values()
        return {"train": train, "test": {name: public[name] + private[name] for name in CLASS_NAMES}}


def is_ferplus_layout(folder: Path) -> bool:
    """Whether a folder holds the output of FERPlus's generate_training_data.py."""
    return (folder / "FER2013Train").is_dir()


def _split_folders(folder: Path) -> dict[Split, Path]:
    """The split folders in a folder that hold class folders."""
    found: dict[Split, Path] = {}
    for inner in folders(folder):
        split = split_named(inner.name)
        if split and any(named(one.name) for one in folders(inner)):
            if split in found:
                raise FileError(f"{folder}: {found[split].name}/ and {inner.name}/ are the same split; remove one")
            found[split] = inner
    return found


def _split_in_name(path: Path, split: Split) -> Split | None:
    """The split in an image's name, "PublicTest_123.jpg" for one; None where it has none."""
    match = re.match(rf"({'|'.join(USAGES)})_", path.name)
    found = USAGES[match[1]] if match else None
    if match and (found == "train") != (split == "train"):
        raise FileError(f"{path}: an image of {match[1]} among those of {split}; move it to its folder")
    return found
