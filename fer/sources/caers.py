"""CAER-S: stills of television shows with their surroundings, in class folders (Lee, Kim, Kim, Park and Sohn,
"Context-Aware Emotion Recognition Networks", ICCV 2019).

The pictures are whole scenes, often with several people; nothing published says whose face the label means. A list of
boxes by others (`train/Angry/0001.png,0,295,97,394,195`: path, class, x1, y1, x2, y2) can be given; else the faces have
to be found, and the crop stage's `faces` decides among them. Copies spell the folders differently (train/Angry beside
test/Anger in that list), so pictures are known by split, class and number, never by how a folder is written.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from fer.console import log
from fer.io.files import FileError
from fer.labels import DATASET_LABELS, LabelSpace, named, space
from fer.shards.schema import Split
from fer.sources.base import Reject
from fer.sources.csvfile import read_rows
from fer.sources.entries import one_face
from fer.sources.layout import (
    PICTURE_ENDINGS,
    in_order,
    list_files,
    natural,
    open_nested,
    posix,
    reject,
    split_named,
    stem,
)
from fer.sources.pack import Entry, nfc
from fer.sources.tree import Catalogue, TreeConfig, TreeSource

CLASS_NAMES = DATASET_LABELS["caers"]

# As papers print them. The list of boxes below names more training pictures than that, so a copy may hold more.
PUBLISHED = {"train": 44996, "test": 20987}

# Boxes of larrylu0426/CAERS-Annotation by class, in the order of CLASS_NAMES.
PUBLISHED_BOXES: dict[Split, tuple[int, ...]] = {
    "train": (6856, 6890, 6873, 6814, 6799, 6910, 6824),
    "test": (2988, 2980, 2972, 2990, 2985, 2983, 2970),
}


class CaersConfig(TreeConfig):
    """CAER-S (Lee et al. 2019): class folders of whole scenes, and a list of boxes where there is one."""

    more_paths: ClassVar[tuple[str, ...]] = ("boxes",)

    source: Literal["caers"]
    label_space: Literal["basic7", "basic8"] = Field(default="basic7", description="CAER-S has no contempt")
    boxes: str | None = Field(
        default=None,
        min_length=1,
        description="list of face boxes, or the folder of train.txt and test.txt; null: the faces have to be found",
    )
    missing_boxes: Literal["drop", "find"] = Field(
        default="drop", description="pictures without a box in the list: leave out, or have their faces found"
    )


@dataclass(frozen=True)
class Place:
    """What identifies a picture however its folders are spelt. `number` is the file's name without its ending."""

    split: Split
    name: str
    number: str


Boxes = dict[Place, tuple[float, float, float, float]]


class CaersSource(TreeSource):
    """Reader of CAER-S; see the module."""

    config: CaersConfig
    title = "CAER-S"
    generator = "caers"
    how_to_get = (
        "Ask for it at https://caer-dataset.github.io (download page). A folder of it looks like this:\n"
        "  train/Anger/0001.png ... train/Surprise/0001.png\n"
        "  test/Anger/0001.png                      or valid/; Train/ and Angry/ are understood too"
    )

    @property
    def label_space(self) -> LabelSpace:
        """As configured."""
        return space(self.config.label_space)

    def prepare(self, tree: Path, cache: Path) -> Path:
        """Some copies come as train.zip and test.zip in a folder."""
        return open_nested(tree, cache)

    def scan(self, tree: Path) -> Catalogue:
        """Pictures below a split and a class folder; see `TreeSource.scan`."""
        pictures, strays = _pictures(tree)
        if not pictures:
            raise FileError(f"{tree}: {_what_is_wrong(tree)}. {self.how_to_get}")
        boxes = None if self.config.boxes is None else read_boxes(Path(self.config.boxes))
        entries: list[Entry | Reject] = list(strays)
        excluded: Counter[str] = Counter()
        for place, path in pictures.items():
            box = (boxes or {}).get(place)
            if boxes is not None and box is None and self.config.missing_boxes == "drop":
                excluded["no_box_in_list"] += 1
                continue
            label = self.label_space.index(place.name)
            key = f"{place.split}/{place.name}/{place.number}"
            entries.append(Entry(key=key, path=path, split=place.split, faces=one_face(label, box=box), is_crop=False))
        absent = len((boxes or {}).keys() - pictures.keys())
        if absent:
            log.warning("CAER-S: %d boxes of %s are of pictures that are not there", absent, self.config.boxes)
        form = "class folders" if boxes is None else f"class folders with boxes, others: {self.config.missing_boxes}"
        notes = {"boxes": len(boxes), "boxes_without_picture": absent} if boxes is not None else {}
        return Catalogue(form=form, entries=in_order(entries), excluded=excluded, notes=notes)

    def published(self, catalogue: Catalogue) -> Mapping[str, Mapping[str, int] | int]:
        """Of the pictures, by split alone; of the list of boxes, where only its pictures are taken."""
        if self.config.boxes is None or self.config.missing_boxes == "find":
            return PUBLISHED
        return {split: dict(zip(CLASS_NAMES, counts, strict=True)) for split, counts in PUBLISHED_BOXES.items()}


def read_boxes(path: Path) -> Boxes:
    """The boxes of a list, or of the lists in a folder.

    Raises:
        FileError: none there, or lines that are not path, class, x1, y1, x2, y2; two boxes of one picture.
    """
    files = [path / file for file in list_files(path, (".txt", ".csv"))] if path.is_dir() else [path]
    if not files:
        raise FileError(f"{path}: no list of boxes (.txt) in this folder")
    boxes: Boxes = {}
    for file in files:
        for line, fields in read_rows(file):
            try:
                place, box = _box(fields, split_named(file.stem))
            except ValueError as error:
                raise FileError(
                    f"{file}: line {line}: {error}; expected lines like train/Angry/0001.png,0,295,97,394,195"
                ) from None
            if boxes.setdefault(place, box) != box:
                raise FileError(f"{file}: line {line}: another box of {fields[0]} stands above")
    return boxes


def _box(fields: list[str], default: Split | None) -> tuple[Place, tuple[float, float, float, float]]:
    """One line; `default` is the split of paths without one. ValueError says what is wrong."""
    if len(fields) != 6:
        raise ValueError(f"{len(fields)} fields")
    parts = posix(fields[0]).split("/")
    name = named(parts[-2]) if len(parts) > 1 else None
    split = (split_named(parts[-3]) if len(parts) > 2 else None) or default
    if name not in CLASS_NAMES or split is None:
        raise ValueError(f"no split and class in {fields[0]!r}")
    if fields[1] != str(CLASS_NAMES.index(name)):
        raise ValueError(f"class {fields[1]!r} of a picture of {name}, which is {CLASS_NAMES.index(name)}")
    x1, y1, x2, y2 = (float(field) for field in fields[2:])
    if not (x2 > x1 and y2 > y1 and max(map(abs, (x1, y1, x2, y2))) < 1e6):
        raise ValueError(f"box {', '.join(fields[2:])}")
    return Place("train" if split == "train" else "test", name, stem(parts[-1]) or parts[-1]), (x1, y1, x2, y2)


def _pictures(tree: Path) -> tuple[dict[Place, str], list[Reject]]:
    """The pictures by their places, and those that lie elsewhere.

    CAER-S has no validation split: who calls one so means the test pictures, unless there are those too.

    Raises:
        FileError: two pictures of one place, e.g. in train/Anger and in Train/Angry.
    """
    found: dict[tuple[Split, str], list[str]] = defaultdict(list)
    strays: list[Reject] = []
    for file in list_files(tree, PICTURE_ENDINGS):
        parts = file.split("/")
        split = split_named(parts[-3]) if len(parts) > 2 else None
        name = named(parts[-2]) if split else None
        if split and name in CLASS_NAMES:
            found[split, str(name)].append(file)
        else:
            strays.append(reject(file, "no_label", "not in a class folder of train/ or test/", file))
    has_test = any(split == "test" for split, _ in found)
    pictures: dict[Place, str] = {}
    for (split, name), files in found.items():
        for file in sorted(files, key=natural):
            place = Place(split if has_test or split == "train" else "test", name, nfc(stem(file)))
            if place in pictures:
                raise FileError(f"{tree}: the same picture twice, as {pictures[place]} and as {file}: leave one copy")
            pictures[place] = file
    return pictures, strays


def _what_is_wrong(tree: Path) -> str:
    files = list_files(tree, PICTURE_ENDINGS)
    if not files:
        return "no pictures in it"
    if any(named(file.split("/")[-2]) in CLASS_NAMES for file in files if "/" in file):
        return "class folders, but not below train/ and test/; give the folder that holds both"
    return f"no class folders below train/ and test/ (the first picture is {files[0]})"
