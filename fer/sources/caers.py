"""CAER-S: stills of television shows with their surroundings, in class folders (Lee, Kim, Kim, Park and Sohn,
"Context-Aware Emotion Recognition Networks", ICCV 2019).

The images are whole scenes, often with several people; nothing published says whose face the label means. A third
party's list of boxes (`train/Angry/0001.png,0,295,97,394,195`: path, class, x1, y1, x2, y2) can be given; else the
faces have to be found, and the crop stage's `faces` decides among them. Copies spell the folders differently
(train/Angry beside test/Anger in that list), so images are known by split, class and number, never by how a folder is
written.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from fer.console import log
from fer.io.files import FileError
from fer.labels import DATASET_LABELS, named
from fer.shards.schema import Split
from fer.sources.archives import open_nested
from fer.sources.base import Box, Entry, Reject, nfc, one_face
from fer.sources.csvfile import read_rows
from fer.sources.layout import class_folders, in_order, list_files, pixels, posix, split_named, stem
from fer.sources.tree import Catalogue, Published, TreeConfig, TreeSource

CLASS_NAMES = DATASET_LABELS["caers"]

# As papers print them. The list of boxes below names more training images than that, so a copy may hold more.
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
        default="drop", description="images without a box in the list: leave out, or have their faces found"
    )


class CaersSource(TreeSource):
    """Reader of CAER-S; see the module."""

    config: CaersConfig
    title = "CAER-S"
    generator = "caers"
    how_to_get = (
        "Request it at https://caer-dataset.github.io (download page). A folder of it looks like this:\n"
        "  train/Anger/0001.png ... train/Surprise/0001.png\n"
        "  test/Anger/0001.png                      or valid/; Train/ and Angry/ are understood too"
    )

    def prepare(self, tree: Path, cache: Path) -> Path:
        """Some copies come as train.zip and test.zip in a folder."""
        return open_nested(tree, cache)

    def scan(self, tree: Path) -> Catalogue:
        """Images below a split and a class folder; see `TreeSource.scan`."""
        found, others = class_folders(tree)
        listed = self.config.boxes is not None
        boxes = read_boxes(Path(self.config.boxes)) if self.config.boxes is not None else {}
        entries: list[Entry | Reject] = []
        keys: set[str] = set()
        excluded: Counter[str] = Counter()
        for (split, folder), files in found.items():
            name = named(folder)
            if name not in CLASS_NAMES:
                others += files
                continue
            label = self.label_space.index(str(name))
            for file in files:
                key = f"{split}/{name}/{nfc(stem(file))}"
                keys.add(key)
                box = boxes.get(key)
                if listed and box is None and self.config.missing_boxes == "drop":
                    excluded["no_box_in_list"] += 1
                    continue
                entries.append(Entry(key=key, path=file, split=split, faces=one_face(label, box=box), is_crop=False))
        if not keys:
            raise FileError(f"{tree}: {_what_is_wrong(others)}. {self.how_to_get}")
        entries += [Reject(file, "no_label", "not in a class folder of train/ or test/", file) for file in others]
        if absent := len(boxes.keys() - keys):
            log.warning("CAER-S: %d boxes of %s are of images that are not there", absent, self.config.boxes)
        return Catalogue(
            form=f"class folders with boxes, others: {self.config.missing_boxes}" if listed else "class folders",
            entries=in_order(entries),
            excluded=excluded,
            notes={"boxes": len(boxes), "boxes_without_picture": absent} if listed else {},
        )

    def published(self, catalogue: Catalogue) -> Published:
        """Of the images, by split alone; of the list of boxes, where only its images are taken."""
        if self.config.boxes is None or self.config.missing_boxes == "find":
            return PUBLISHED
        return {split: dict(zip(CLASS_NAMES, counts, strict=True)) for split, counts in PUBLISHED_BOXES.items()}


def read_boxes(path: Path) -> dict[str, Box]:
    """The boxes of a list, or of the lists in a folder, by the keys of their images, e.g. "train/anger/0001".

    Raises:
        FileError: none there, or lines that are not path, class, x1, y1, x2, y2; two boxes of one image.
    """
    files = [path / file for file in list_files(path, (".txt", ".csv"))] if path.is_dir() else [path]
    if not files:
        raise FileError(f"{path}: no list of boxes (.txt) in this folder")
    boxes: dict[str, Box] = {}
    for file in files:
        for line, fields in read_rows(file):
            try:
                key, box = _box(fields, split_named(file.stem))
            except ValueError as error:
                raise FileError(
                    f"{file}: line {line}: {error}; expected lines like train/Angry/0001.png,0,295,97,394,195"
                ) from None
            if boxes.setdefault(key, box) != box:
                raise FileError(f"{file}: line {line}: another box of {fields[0]} in a line above")
    return boxes


def _box(fields: list[str], default: Split | None) -> tuple[str, Box]:
    """One line; `default` is the split of paths without one. ValueError says what is wrong."""
    if len(fields) != 6:
        raise ValueError(f"{len(fields)} fields")
    parts = posix(fields[0]).split("/")
    name = named(parts[-2]) if len(parts) > 1 else None
    split = (split_named(parts[-3]) if len(parts) > 2 else None) or default
    if name not in CLASS_NAMES or split is None:
        raise ValueError(f"no split and class in {fields[0]!r}")
    if fields[1] != str(CLASS_NAMES.index(str(name))):
        raise ValueError(f"class {fields[1]!r} of an image of {name}, which is {CLASS_NAMES.index(str(name))}")
    x1, y1, x2, y2 = (pixels(field) for field in fields[2:])
    if not (x2 > x1 and y2 > y1):
        raise ValueError(f"box {', '.join(fields[2:])}")
    split = "train" if split == "train" else "test"
    return f"{split}/{name}/{stem(parts[-1]) or parts[-1]}", (x1, y1, x2, y2)


def _what_is_wrong(files: list[str]) -> str:
    if not files:
        return "no images in it"
    if any(named(file.split("/")[-2]) in CLASS_NAMES for file in files if "/" in file):
        return "class folders, but not below train/ and test/; give the folder that holds both"
    return f"no class folders below train/ and test/ (the first image is {min(files)})"
