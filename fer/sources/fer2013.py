"""FER2013: 35,887 grey faces of 48 x 48 px with seven labels (Goodfellow et al., "Challenges in Representation
Learning", ICONIP 2013). It is not redistributed; `datasets.<name>.path` says where yours is.

Layouts, told by content: the original csv, icml_face_data.csv, a Parquet of encoded pictures, each also inside its
archive or folder; and Kaggle's folders of class folders (msambare/fer2013), JPEGs that differ a little from the
original pixels. Usage maps to splits as the challenge meant it: Training is train, PublicTest validation, PrivateTest
test. Kaggle's test/ holds both; the file names say which a picture is.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from fer.console import log
from fer.io.files import FileError
from fer.labels import DATASET_LABELS, LabelSpace, named, space, to_canonical
from fer.shards.schema import Split
from fer.sources.base import AnnotatedFace, Block, Entry, RawSample, Reject, one_face
from fer.sources.fer2013_file import RowsSource, block_rows, contents, fetch, file_name, keep_only_good, scan
from fer.sources.fer2013_rows import SIDE, USAGES, Line, Row, RowError
from fer.sources.layout import PICTURE_ENDINGS, find_layout, folders, list_files, split_named
from fer.sources.tree import Catalogue, TreeConfig

HOME_PAGE = (
    "https://www.kaggle.com/competitions/challenges-in-representation-learning-facial-expression-recognition-challenge"
)
CLASS_NAMES = DATASET_LABELS["fer2013"]

# Rows a class in FER2013's own label order, counted on the published file.
PUBLISHED: dict[str, tuple[int, ...]] = {
    "train": (3995, 436, 4097, 7215, 4830, 3171, 4965),
    "validation": (467, 56, 496, 895, 653, 415, 607),
    "test": (491, 55, 528, 879, 594, 416, 626),
}

_EXPECTED = (
    "expected one of: fer2013.csv or icml_face_data.csv (columns emotion, pixels, Usage); a Parquet file (image, "
    "label, usage); an archive or a folder with one of these in it; folders train/<class>/ and test/<class>/ of "
    "pictures named Training_*.jpg, PublicTest_*.jpg and PrivateTest_*.jpg"
)


class Fer2013Config(TreeConfig):
    """FER2013 (Goodfellow et al. 2013) in any of its public layouts."""

    source: Literal["fer2013"]
    label_space: Literal["basic7", "basic8"] = Field(default="basic7", description="FER2013 has no contempt")
    path: str | None = Field(
        default=None,
        description="fer2013.csv, icml_face_data.csv or Parquet (image, label, usage); the archive or folder that "
        "holds one; Kaggle's folders train/<class>/ and test/<class>/; or a URL",
    )
    subset: bool = Field(default=False, description="accept another number of rows than the published 35,887")


class Fer2013Source(RowsSource):
    """Reader of FER2013; see the module. Of a file of rows data/raw keeps the file, of folders their pictures."""

    config: Fer2013Config
    title = "FER2013"
    generator = "fer2013"
    how_to_get = f"Its home is {HOME_PAGE} (fer2013.tar.gz, or icml_face_data.csv)."

    @property
    def label_space(self) -> LabelSpace:
        """As configured."""
        return space(self.config.label_space)

    def download(self, out: Path, cache: Path) -> dict[str, Any]:
        """Fetches, recognises and counts the data; see `fer.sources.base.Source.download`."""
        if self.config.path is None:
            raise FileError(
                f"FER2013 is not part of this project and has no free download link: ask for it at {HOME_PAGE} "
                "(fer2013.tar.gz, or icml_face_data.csv), then set the key `path` of this dataset in params.yaml "
                "(datasets.<name>.path) to the csv or to its URL"
            )
        place = fetch(self.config.path, cache, sha256_hex=self.config.sha256)
        if place.is_dir():
            return self.take(place, out)
        counts = {split: [0] * len(CLASS_NAMES) for split in PUBLISHED}

        def count(_: Line, row: Row) -> None:
            counts[row.split][row.label] += 1

        name = file_name(str(place))
        with keep_only_good(cache):
            found = scan(place, self.config.max_bad_fraction, count)
        _check_counts(name, counts, sum(found.bad.values()), self.config.subset)
        shutil.copyfile(place, out / name)
        return {
            "file": name,
            "counts": {split: dict(zip(CLASS_NAMES, row, strict=True)) for split, row in counts.items()},
            "published": {split: dict(zip(CLASS_NAMES, row, strict=True)) for split, row in PUBLISHED.items()},
            **found.description,
        }

    def read_rows(self, raw: Path, block: Block) -> Iterator[RawSample | Reject]:
        """Every labelled picture of a block, as (48, 48) grey pixels; or a Reject."""
        canonical = to_canonical(CLASS_NAMES, self.label_space)
        for line, row in block_rows(raw, block):
            key = f"fer2013/{line.position:08d}"
            origin = f"{block.file}:{line.number}"
            if isinstance(row, RowError):
                yield Reject(sample_id=key, reason=f"row_{row.kind}", detail=str(row), origin=origin)
            elif row is not None:
                label = canonical[row.label]
                face = AnnotatedFace(box=(0.0, 0.0, SIDE, SIDE), landmarks=None, label=label, clean_label=label)
                yield RawSample(key=key, image=row.pixels, split=row.split, faces=(face,), is_crop=True, origin=origin)

    def scan(self, tree: Path) -> Catalogue:
        """One entry a picture of Kaggle's folders; see `TreeSource.scan`."""
        if find_layout(tree, is_ferplus_layout):
            raise FileError(
                f"{tree}: these are FERPlus's folders (FER2013Train/fer0000000.png ...), whose label.csv holds votes "
                "and no label of FER2013: read them with `source: ferplus`"
            )
        root = find_layout(tree, lambda folder: bool(_split_folders(folder)))
        if root is None:
            raise FileError(f"{tree}: not FER2013: found {contents(tree)}; {_EXPECTED}")
        entries: list[Entry | Reject] = []
        told = True
        for split, inside in _split_folders(root).items():
            for class_folder in folders(inside):
                label = named(class_folder.name)
                if label not in CLASS_NAMES:
                    raise FileError(
                        f"{class_folder}: no class of FER2013 ({', '.join(CLASS_NAMES)}); for other folders use "
                        "`source: folders`, whose key `classes` says what each means"
                    )
                for name in list_files(class_folder, PICTURE_ENDINGS):
                    path = class_folder / name
                    said = _split_of_name(path, split)
                    told &= said is not None
                    face = one_face(self.label_space.index(label), box=None)
                    key = path.relative_to(root).as_posix()
                    where = path.relative_to(tree).as_posix()
                    entries.append(Entry(key=key, path=where, split=said or split, faces=face, is_crop=True))
        if not told:
            log.warning(
                "%s: the names do not say which picture is of PublicTest (Training_*, PublicTest_*, PrivateTest_*): "
                "folders are taken as splits, and test/ may hold both",
                tree,
            )
        form = "class folders" if told else "class folders, PublicTest and PrivateTest together"
        return Catalogue(form=form, entries=entries, notes={"usage_in_names": told})

    def published(self, catalogue: Catalogue) -> Mapping[str, Mapping[str, int] | int]:
        """As counted on the csv; the two tests added up where nothing tells them apart."""
        train, public, private = (dict(zip(CLASS_NAMES, row, strict=True)) for row in PUBLISHED.values())
        splits = {entry.split for entry in catalogue.entries if isinstance(entry, Entry)}
        if catalogue.notes["usage_in_names"] or "validation" in splits:
            return {"train": train, "validation": public, "test": private}
        return {"train": train, "test": {name: public[name] + private[name] for name in CLASS_NAMES}}


def is_ferplus_layout(folder: Path) -> bool:
    """Whether a folder holds what FERPlus's generate_training_data.py writes."""
    return (folder / "FER2013Train").is_dir()


def _split_folders(folder: Path) -> dict[Split, Path]:
    """The folders of a folder that are splits and hold class folders; none where one of them holds no class."""
    found: dict[Split, Path] = {}
    for inner in folders(folder):
        split = split_named(inner.name)
        if split and any(named(one.name) for one in folders(inner)):
            if split in found:
                raise FileError(f"{folder}: {found[split].name}/ and {inner.name}/ are the same split; remove one")
            found[split] = inner
    return found


def _split_of_name(path: Path, split: Split) -> Split | None:
    """The split that a picture's name tells, "PublicTest_123.jpg" for one; None where it tells none."""
    match = re.match(rf"({'|'.join(USAGES)})_", path.name)
    said = USAGES[match[1]] if match else None
    if said and (said == "train") != (split == "train"):
        raise FileError(f"{path}: a picture of {match and match[1]} among those of {split}; move it to its folder")
    return said


def _check_counts(name: str, counts: Mapping[str, list[int]], bad: int, subset: bool) -> None:
    """FileError where the rows are not the published ones, but for corrupt rows that were left out."""
    missing = [want - have for split, row in PUBLISHED.items() for have, want in zip(counts[split], row, strict=True)]
    complete = min(missing) >= 0 and sum(missing) == bad
    lines = [f"  {'':<14} {'found':>8} {'published':>10}"]
    for split, row in PUBLISHED.items():
        lines.append(f"  {split:<14} {sum(counts[split]):>8} {sum(row):>10}")
        lines += [
            f"    {label:<12} {have:>8} {want:>10}"
            for label, have, want in zip(CLASS_NAMES, counts[split], row, strict=True)
        ]
    table = "\n".join(lines)
    found = sum(map(sum, counts.values()))
    if complete:
        log.info("%s: %d rows, as published\n%s", name, found, table)
    elif subset:
        log.warning("%s: a subset of FER2013, %d of 35887 rows; its figures are not comparable\n%s", name, found, table)
    else:
        raise FileError(
            f"{name}: not the rows that were published:\n{table}\nFetch the whole file, or set "
            "datasets.<name>.subset: true in params.yaml to work on this part of it"
        )
