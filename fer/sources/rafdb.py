"""RAF-DB, basic expressions: 15,339 faces from the web, each labeled by about 40 people (Li, Deng and Du, "Reliable
Crowdsourcing and Deep Locality-Preserving Learning for Expression Recognition in the Wild", CVPR 2017).

Layouts: the published one (`EmoLabel/list_patition_label.txt` with `Image/aligned`, or `Image/original` with boxes and
five landmarks), its archives extracted or not; and class folders, which other projects make of it. The published order
of the numbers is 1 Surprise ... 7 Neutral; some projects sort the folders into AffectNet's order, and numbers alone do
not tell. The compound expressions come in a list of the same name, with labels to 11; they are another task.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import Field

from fer.io.files import FileError
from fer.labels import DATASET_LABELS, named
from fer.shards.schema import Split
from fer.sources.archives import open_nested
from fer.sources.base import Entry, Reject, nfc, one_face
from fer.sources.layout import (
    IMAGE_ENDINGS,
    ListedImages,
    class_folders,
    in_order,
    label_rows,
    list_files,
    pixels,
    split_named,
    stem,
)
from fer.sources.tree import Catalogue, Published, TreeConfig, TreeSource

CLASS_NAMES = DATASET_LABELS["rafdb"]

# Images per class in RAF-DB's own order (Li et al. 2017); 12,271 and 3,068 together.
PUBLISHED: dict[Split, tuple[int, ...]] = {
    "train": (1290, 281, 717, 4772, 1982, 705, 2524),
    "test": (329, 74, 160, 1185, 478, 162, 680),
}

_ORDERS = {"rafdb": CLASS_NAMES, "affectnet": DATASET_LABELS["affectnet7"]}
_LISTS = ("list_patition_label.txt", "list_partition_label.txt")
_NAME = re.compile(r"(train|test)_(\d+)(_aligned)?", re.IGNORECASE)
_COMPOUND = 11

_COMPOUND_ERROR = (
    "these are RAF-DB's compound expressions (labels to 11, e.g. happily surprised), which are another task; the basic "
    "ones come as basic.zip, with labels 1 .. 7"
)


class RafDbConfig(TreeConfig):
    """RAF-DB basic (Li et al. 2017): the folder basic/, its archives, or class folders made of it."""

    source: Literal["rafdb"]
    label_space: Literal["basic7", "basic8"] = Field(default="basic7", description="RAF-DB basic has no contempt")
    images: Literal["aligned", "original"] = Field(
        default="aligned",
        description="aligned: the published crops of 100 px; original: whole images with boxes and five landmarks",
    )
    folder_order: Literal["rafdb", "affectnet"] | None = Field(
        default=None, description="what class folders named 0 .. 6 mean; null: refuse to guess"
    )


class RafDbSource(TreeSource):
    """Reader of RAF-DB basic; see the module."""

    config: RafDbConfig
    title = "RAF-DB"
    generator = "rafdb"
    how_to_get = (
        "Request it at http://whdeng.cn/RAF/model1.html (from an academic address); basic.zip holds it. A folder of it "
        "looks like this, with the archives in Image/ and Annotation/ extracted or not:\n"
        "  basic/EmoLabel/list_patition_label.txt       train_00001.jpg 5\n"
        "  basic/Image/aligned/train_00001_aligned.jpg  for images: aligned\n"
        "  basic/Image/original/train_00001.jpg         for images: original, with\n"
        "  basic/Annotation/manual/train_00001_manu_attri.txt and\n"
        "  basic/Annotation/boundingbox/train_00001_boundingbox.txt\n"
        "or like this, with classes 1 .. 7, 0 .. 6 (then with folder_order) or by name:\n"
        "  train/1/train_00001_aligned.jpg\n"
        "  test/1/test_0001_aligned.jpg                 or val/, or valid/"
    )

    def prepare(self, tree: Path, cache: Path) -> Path:
        """RAF-DB comes as archives in an archive; only those are opened whose files are read."""
        kinds = ("aligned",) if self.config.images == "aligned" else ("original", "manual", "boundingbox")
        pattern = re.compile("|".join(("basic", *kinds)), re.IGNORECASE)
        return open_nested(tree, cache, opens=lambda archive: bool(pattern.search(archive.rpartition("/")[2])))

    def scan(self, tree: Path) -> Catalogue:
        """The label list where there is one, else class folders; see `TreeSource.scan`."""
        lists = list_files(tree, _LISTS)
        lists = [file for file in lists if "emolabel" in f"/{file}".lower()] or lists
        if not lists:
            return self._scan_folders(tree)
        rows = {file: list(label_rows(tree / file)) for file in lists}
        basic = [file for file in lists if not _is_compound(rows[file])]
        if not basic:
            raise FileError(f"{tree / lists[0]}: {_COMPOUND_ERROR}")
        if len(basic) > 1:
            raise FileError(f"{tree}: several label lists ({', '.join(basic)}); set `path` to the folder of one")
        return self._scan_list(tree, basic[0], rows[basic[0]])

    def published(self, catalogue: Catalogue) -> Published:
        """The same for all layouts: they hold the same images."""
        return {split: dict(zip(CLASS_NAMES, counts, strict=True)) for split, counts in PUBLISHED.items()}

    def _scan_list(self, tree: Path, file: str, rows: list[tuple[int, str, str]]) -> Catalogue:
        aligned = self.config.images == "aligned"
        images = _images(tree, aligned=aligned)
        if not images:
            other = "original" if aligned else "aligned"
            hint = f"; there are {other} ones: set images: {other}" if _images(tree, aligned=not aligned) else ""
            raise FileError(f"{tree}: no {self.config.images} images beside {file}{hint}. {self.how_to_get}")
        annotations = {} if aligned else self._annotations(tree)
        entries: list[Entry | Reject] = []
        listed = ListedImages(images, subset=self.config.subset)
        meaning = {str(number): name for number, name in enumerate(CLASS_NAMES, 1)}
        for line, name, label in rows:
            row, origin = f"line-{line}", f"{file}:{line}"
            key = _key(name.rpartition(".")[0] or name)
            if key is None:
                entries.append(Reject(row, "bad_row", f"{name!r} is not a name of RAF-DB", origin))
                continue
            problem = "" if label in meaning else f"label {label!r}, expected 1 .. 7"
            if path := listed.path(key, label, origin, key=key, row=row, problem=problem):
                entries.append(self._entry(tree, key, path, meaning[label], annotations))
        unlisted = listed.unlisted().items()
        entries += [Reject(key, "no_label", "the label list does not name it", path) for key, path in unlisted]
        return Catalogue(
            form=f"label list, {self.config.images} images",
            entries=in_order([*entries, *listed.rejects]),
            excluded=listed.excluded,
        )

    def _entry(
        self, tree: Path, key: str, path: str, name: str, annotations: Mapping[str, tuple[str, str]]
    ) -> Entry | Reject:
        """A listed image; of an original one with the content of its two annotation files."""
        split: Split = "train" if key.startswith("train") else "test"
        label = self.label_space.index(name)
        if self.config.images == "aligned":
            return Entry(key=key, path=path, split=split, faces=one_face(label), is_crop=True)
        try:
            box_file, points_file = annotations.get(key, ("", ""))
            x1, y1, x2, y2 = _numbers(tree, box_file, 4)
            if not (x2 > x1 and y2 > y1):
                raise ValueError(f"{box_file}: a box of no area: {x1:g}, {y1:g}, {x2:g}, {y2:g}")
            flat = _numbers(tree, points_file, 10)  # then gender, race and age
        except ValueError as error:
            return Reject(key, "bad_annotation", str(error), path)
        faces = one_face(label, box=(x1, y1, x2, y2), landmarks=tuple(zip(flat[::2], flat[1::2], strict=True)))
        return Entry(key=key, path=path, split=split, faces=faces, is_crop=False)

    def _annotations(self, tree: Path) -> dict[str, tuple[str, str]]:
        """The files of box and of five landmarks of each image; "" where one is not there."""
        boxes = {stem(file)[: -len("_boundingbox")]: file for file in list_files(tree, ("_boundingbox.txt",))}
        points = {stem(file)[: -len("_manu_attri")]: file for file in list_files(tree, ("_manu_attri.txt",))}
        for kind, found in (("boundingbox", boxes), ("manual", points)):
            if not found:
                raise FileError(
                    f"{tree}: no Annotation/{kind}, which images: original needs (boxes came with version 1.1 of "
                    f"2018). {self.how_to_get}"
                )
        return {key: (boxes.get(key, ""), points.get(key, "")) for key in boxes | points}

    def _scan_folders(self, tree: Path) -> Catalogue:
        found, others = class_folders(tree)
        if not found:
            what = (
                "train/ and valid/ without a folder for each class: the images have no labels"
                if any(split_named(file.split("/")[-2]) for file in others if "/" in file)
                else "neither EmoLabel/list_patition_label.txt nor class folders below train/ and test/"
            )
            above = "; is it the folder above this one?" if others else ""
            raise FileError(f"{tree}: {what}{above} {self.how_to_get}")
        if self.config.images == "original":
            raise FileError(f"{tree}: class folders carry no boxes and landmarks; set images: aligned, or give basic/")
        meaning = self._meaning(tree, {place: len(files) for place, files in found.items()})
        entries: list[Entry | Reject] = [
            Reject(file, "no_label", "not in a class folder of train/ or test/", file) for file in others
        ]
        for (split, folder), files in found.items():
            faces = one_face(self.label_space.index(meaning[folder]))
            for file in files:
                key = _key(stem(file))
                if key and split != "validation" and not key.startswith(split):
                    raise FileError(f"{tree / file}: is in the {split} folder, which is not RAF-DB's split of {key}")
                key = key or f"{split}/{meaning[folder]}/{nfc(stem(file))}"
                entries.append(Entry(key=key, path=file, split=split, faces=faces, is_crop=True))
        return Catalogue(
            form="class folders", entries=in_order(entries), notes={"folders": dict(sorted(meaning.items()))}
        )

    def _meaning(self, tree: Path, sizes: Mapping[tuple[Split, str], int]) -> dict[str, str]:
        """The class of each folder name.

        Args:
            sizes: number of images of each class folder.

        Raises:
            FileError: an unknown name, or numbers that may mean two things.
        """
        names = {folder for _, folder in sizes}
        by_name = {name: str(known) for name in names if (known := named(name)) in CLASS_NAMES}
        if by_name:
            if unknown := sorted(names - by_name.keys()):
                raise FileError(f"{tree}: {', '.join(unknown)} beside folders named by class; what are they?")
            return by_name
        if unknown := sorted(name for name in names if not name.isdecimal()):
            raise FileError(f"{tree}: folders {', '.join(unknown[:4])} are not classes of RAF-DB. {self.how_to_get}")
        numbers = {name: int(name) for name in names}
        low, high = min(numbers.values()), max(numbers.values())
        if len(CLASS_NAMES) < high <= _COMPOUND and low:
            raise FileError(f"{tree}: {_COMPOUND_ERROR}")
        if (low == 0) == (high == len(CLASS_NAMES)) or high > len(CLASS_NAMES):
            raise FileError(f"{tree}: class folders {low} .. {high}, expected 1 .. 7 or 0 .. 6")
        order = self.config.folder_order or ("rafdb" if low else None)
        if order is None:
            published = dict(zip(CLASS_NAMES, PUBLISHED["train"], strict=True))
            fitting = "".join(
                f"\nThe number of images in each training folder fits folder_order: {order}"
                for order, classes in _ORDERS.items()
                if all(sizes.get(("train", name)) == published[classes[number]] for name, number in numbers.items())
            )
            raise FileError(
                f"{tree}: class folders 0 .. 6 are met in two orders. Set datasets.<name>.folder_order to\n"
                f"  rafdb      where 0 .. 6 are {', '.join(_ORDERS['rafdb'])} (RAF-DB's numbers less one), or\n"
                f"  affectnet  where they are {', '.join(_ORDERS['affectnet'])} (as DDAMFN sorts them){fitting}"
            )
        return {name: _ORDERS[order][number - (low > 0)] for name, number in numbers.items()}


def _key(name: str) -> str | None:
    """What identifies an image, "train_00001", by its name without ending; None for a name of other data."""
    match = _NAME.fullmatch(name)
    return f"{match[1].lower()}_{match[2]}" if match else None


def _is_compound(rows: list[tuple[int, str, str]]) -> bool:
    return any(label.isdecimal() and len(CLASS_NAMES) < int(label) <= _COMPOUND for _, _, label in rows)


def _images(tree: Path, *, aligned: bool) -> dict[str, str]:
    """Images of one kind by their keys; a folder of the kind's name wins over copies elsewhere.

    Raises:
        FileError: two of a name.
    """
    found: dict[str, str] = {}
    home = "/aligned/" if aligned else "/original/"
    for file in list_files(tree, IMAGE_ENDINGS):
        key = _key(stem(file))
        if key is None or stem(file).lower().endswith("_aligned") != aligned:
            continue
        if key in found and (home in f"/{found[key]}".lower()) == (home in f"/{file}".lower()):
            raise FileError(f"{tree}: {key} is there twice, as {found[key]} and as {file}: remove one of them")
        if key not in found or home in f"/{file}".lower():
            found[key] = file
    return found


def _numbers(tree: Path, file: str, count: int) -> list[float]:
    """The first numbers of a small text file; ValueError says what it holds instead."""
    if not file:
        raise ValueError("no file of its box or of its landmarks")
    text = (tree / file).read_bytes()[:4096].decode("utf-8", "replace").removeprefix("\ufeff")
    words = [word for word in re.split(r"[\s,;]+", text) if word][:count]
    with suppress(ValueError):
        if len(words) == count:
            return [pixels(word) for word in words]
    raise ValueError(f"{file}: expected {count} numbers, found {' '.join(words)[:60]!r}")
