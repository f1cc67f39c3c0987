"""AffectNet: faces from the web, most labeled by one person (Mollahosseini, Hasani and Mahoor, "AffectNet: A Database
for Facial Expression, Valence, and Arousal Computing in the Wild", IEEE Transactions on Affective Computing, 2017).

Layouts: the first release (tables of uncropped images, with boxes and 68 landmarks), the release of March 2021
(crops and .npy annotations), class folders (DAN's converter), text lists (POSTER), and the part that is on Kaggle.
Numbers of expressions are 0 Neutral, Happiness, Sadness, Surprise, Fear, Disgust, Anger, 7 Contempt.

AffectNet's test set was never published: everybody reports on its validation set, which is the test split here. A
validation split is then taken from the training faces, as for every dataset without one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

from pydantic import Field

from fer.console import progress
from fer.io.files import FileError
from fer.labels import DATASET_LABELS, LabelSpace, named, space
from fer.shards.schema import Split
from fer.sources.archives import open_nested
from fer.sources.base import Box, Entry, Landmarks, Reject, hashed_split, one_face
from fer.sources.csvfile import Record, fold, read_header, read_records
from fer.sources.layout import (
    IMAGE_ENDINGS,
    ListedImages,
    class_folders,
    find_layout,
    in_order,
    label_rows,
    list_files,
    pixels,
    posix,
    read_npy,
    split_named,
    stem,
)
from fer.sources.tree import Catalogue, Published, TreeConfig, TreeSource

CLASS_NAMES = DATASET_LABELS["affectnet8"]

# Faces an expression of the training set, counted on the first release without the row that has no box; the release of
# March 2021 holds the same 287,651. Its validation set lacks one face of contempt.
TRAIN = (74874, 134415, 25459, 14090, 6378, 3803, 24882, 3750)
TEST = {"csv release": (500,) * 8, "folder release": (*(500,) * 7, 499)}
TEST |= dict.fromkeys(("class folders", "text lists"), TEST["folder release"])

_CSV_COLUMNS = (
    "subDirectory_filePath",
    "face_x",
    "face_y",
    "face_width",
    "face_height",
    "facial_landmarks",
    "expression",
)
_CSV = "a table of AffectNet (training.csv, validation.csv)"
_NO_EXPRESSION = {8: "none", 9: "uncertain", 10: "no_face"}  # numbers behind the eight; not part of the task
_LIST = re.compile(r"(train|valid|validation|val|test)[\w-]*annotations?[\w-]*\.txt", re.IGNORECASE)

FIVE_OF_68 = (range(36, 42), range(42, 48), (30,), (48,), (54,))
"""Of iBUG's 68 points, counted from 0, from the image's left: the person's right eye, left eye, nose, mouth corners."""


class AffectNetConfig(TreeConfig):
    """AffectNet with seven or eight expressions (Mollahosseini et al. 2017), in any of its layouts."""

    source: Literal["affectnet"]
    classes: Literal[7, 8] = Field(default=8, description="7 drops contempt")
    folder_order: Literal["affectnet", "alphabetical"] = Field(
        default="affectnet", description="what class folders named 0 .. 7 mean; alphabetical: anger, contempt, ..."
    )
    test_fraction: float = Field(
        default=0.1, gt=0, lt=1, description="share of the images that are test, where the layout has no splits"
    )


class _Reading:
    """What a release holds so far; a Catalogue without its form."""

    def __init__(self, config: AffectNetConfig, labels: LabelSpace) -> None:
        self.subset = config.subset
        self.entries: list[Entry | Reject] = []
        self.excluded: Counter[str] = Counter()
        self.notes: dict[str, int] = {}
        self._labels, self._test_fraction = labels, config.test_fraction

    def add(
        self,
        key: str,
        path: str,
        split: Split | None,
        name: str,
        box: Box | None = None,
        landmarks: Landmarks | None = None,
    ) -> None:
        """Takes an image of class `name`, unless only seven classes are asked for; `split` None: by a hash."""
        if name not in self._labels.labels:
            self.excluded[name] += 1
            return
        faces = one_face(self._labels.index(name), box=box, landmarks=landmarks)
        split = split or hashed_split(key, self._test_fraction)
        self.entries.append(Entry(key=key, path=path, split=split, faces=faces, is_crop=box is None))

    def reject(self, key: str, reason: str, detail: str, origin: str) -> None:
        """Notes an unusable image or row."""
        self.entries.append(Reject(key, reason, detail, origin))

    def finish(self, listed: ListedImages) -> None:
        """Takes what is wrong with the rows of a label list."""
        self.entries += listed.rejects
        self.excluded += listed.excluded


class AffectNetSource(TreeSource):
    """Reader of AffectNet; see the module."""

    config: AffectNetConfig
    title = "AffectNet"
    generator = "affectnet"
    how_to_get = (
        "Request it at https://www.mohammadmahoor.com/pages/databases/affectnet/ (as a principal investigator, from an "
        "academic address). A folder of the first release looks like this:\n"
        "  training.csv, validation.csv             subDirectory_filePath,face_x,...,expression,valence,arousal\n"
        "  Manually_Annotated_Images/689/....jpg    the uncropped images\n"
        "of the release of March 2021:\n"
        "  train_set/images/0.jpg                   crops of 224 px\n"
        "  train_set/annotations/0_exp.npy          and 0_lnd.npy\n"
        "  val_set/                                 likewise\n"
        "and of what other projects make of it:\n"
        "  train/0/0.jpg, val/0/0.jpg               classes 0 .. 7, or by name\n"
        "  train_set/train_annotations_7class.txt, valid_set/valid_annotations_7class.txt"
    )

    @property
    def label_space(self) -> LabelSpace:
        """Without or with contempt."""
        return space("basic7" if self.config.classes == 7 else "basic8")

    def prepare(self, tree: Path, cache: Path) -> Path:
        """Some copies come as an archive of each set in a folder."""
        return open_nested(tree, cache)

    def scan(self, tree: Path) -> Catalogue:
        """Whichever layout it is; see `TreeSource.scan`."""
        forms = {
            "csv release": _tables(tree),
            "folder release": list_files(tree, ("_exp.npy",)),
            "text lists": [file for file in list_files(tree, (".txt",)) if _LIST.fullmatch(file.rpartition("/")[2])],
            "Kaggle part": [file for file in list_files(tree, ("labels.csv",)) if _has(tree / file, ("pth", "label"))],
        }
        found = [form for form, files in forms.items() if files]
        if len(found) > 1:
            examples = ", ".join(f"{form} ({forms[form][0]})" for form in found)
            raise FileError(f"{tree}: several layouts at once: {examples}; set `path` to the folder of one")
        reading = _Reading(self.config, self.label_space)
        form = found[0] if found else "class folders"
        if found:
            _READERS[form](tree, forms[form], reading)
        else:
            self._read_class_folders(tree, reading)
        return Catalogue(form=form, entries=in_order(reading.entries), excluded=reading.excluded, notes=reading.notes)

    def published(self, catalogue: Catalogue) -> Published:
        """Of the two releases, and of what is made of the second; nothing of Kaggle's part."""
        if catalogue.form not in TEST:
            return {}
        both = {"train": TRAIN, "test": TEST[catalogue.form]}
        classes = self.config.classes
        return {split: dict(zip(CLASS_NAMES[:classes], counts, strict=False)) for split, counts in both.items()}

    def _read_class_folders(self, tree: Path, reading: _Reading) -> None:
        """Class folders below train/ and val/ (DAN's converter), the crops in them."""
        found, others = class_folders(tree)
        order = CLASS_NAMES if any(folder == "7" for _, folder in found) else CLASS_NAMES[:7]
        numbered = dict(enumerate(sorted(order) if self.config.folder_order == "alphabetical" else order))
        usable = 0
        for (split, folder), files in found.items():
            name = numbered.get(int(folder)) if folder.isdecimal() else named(folder)
            if name not in CLASS_NAMES:
                others += files
                continue
            usable += len(files)
            split = "train" if split == "train" else "test"
            for file in files:
                reading.add(f"{split}/{stem(file)}", file, split, str(name))
        if not usable:
            there = "images without labels" if others else "no images and no tables"
            if list_files(tree, (".rar",)):
                raise FileError(f"{tree}: {there}, but RAR archives: extract them first (`unrar x` on the first part)")
            raise FileError(f"{tree}: {there}; is it the folder above, or one further down? {self.how_to_get}")
        for file in others:
            reading.reject(file, "no_label", "not in a class folder of train/ or val/", file)


def _tables(tree: Path) -> list[str]:
    """The tables of the first release, one of each split.

    Raises:
        FileError: one whose name does not tell, or the automatically annotated part alone.
    """
    found: list[str] = []
    automatic = ""
    for file in list_files(tree, (".csv",)):
        if not _has(tree / file, _CSV_COLUMNS):
            continue
        name = file.rpartition("/")[2].lower()
        if "automatic" in name:
            automatic = file
        elif "train" in name or "valid" in name:
            found.append(file)
        else:
            raise FileError(f"{tree / file}: which split of AffectNet? Name it training.csv or validation.csv")
    if automatic and not found:
        raise FileError(
            f"{tree / automatic}: expressions that a network predicted, not people; the manually annotated part has "
            "training.csv and validation.csv"
        )
    if len(found) > len({_table_split(file) for file in found}):
        raise FileError(f"{tree}: several tables of one split ({', '.join(found)}); keep one of them")
    return found


def _table_split(file: str) -> Split:
    return "train" if "train" in file.rpartition("/")[2].lower() else "test"


def _has(path: Path, columns: tuple[str, ...]) -> bool:
    """Whether a table has these columns. A file that is not a table has none, unless its name says it should."""
    try:
        header = read_header(path, "a table of AffectNet")
    except FileError:
        if path.name.lower() in ("training.csv", "validation.csv", "labels.csv"):
            raise
        return False
    return {fold(column) for column in columns} <= {fold(name) for name in header}


def _read_csv_release(tree: Path, files: Sequence[str], reading: _Reading) -> None:
    """The first release: tables. An image named with several boxes shows several faces: one entry each.

    Raises:
        FileError: broken tables, or none of their images is there.
    """
    base = _image_folder(tree, files)
    seen: dict[str, tuple[Box, Split, str]] = {}
    for file in files:
        split = _table_split(file)
        with progress(None, f"read {file}", "row") as bar:
            for record in read_records(tree / file, _CSV_COLUMNS, _CSV):
                bar.update()
                row, origin = f"{file}-{record.line}", f"{file}:{record.line}"
                try:
                    face = _csv_face(record, reading.excluded)
                except ValueError as error:
                    reading.reject(row, "bad_row", str(error), origin)
                    continue
                if face is None:
                    continue
                path, name, box, landmarks = face
                key = path.rpartition(".")[0] or path
                first = seen.get(key)
                if first is not None and first[0] != box:  # another face of the same image
                    key = f"{key}-{box[0]:g}-{box[1]:g}"
                    first = seen.get(key)
                if first is not None and first[1:] == (split, name):
                    reading.excluded["listed_twice"] += 1
                elif first is not None:
                    detail = f"{key} is in {first[1]} as {first[2]} already: only that counts"
                    reading.reject(row, "conflicting_rows", detail, origin)
                elif (tree / base / path).is_file():
                    seen[key] = box, split, name
                    reading.add(key, f"{base}{path}", split, name, box, landmarks)
                elif reading.subset:
                    reading.excluded["not_in_this_copy"] += 1
                else:
                    reading.reject(key, "missing_file", "the table names it, and it is not there", origin)


def _csv_face(record: Record, excluded: Counter[str]) -> tuple[str, str, Box, Landmarks] | None:
    """Path, expression, box and landmarks of a row; None where it does not belong, which is counted. ValueError says
    what is wrong."""
    if record.fields is None:
        raise ValueError(record.complaint)
    row = record.fields
    path = posix(row["subDirectory_filePath"])
    number = _whole(row["expression"])
    if number in _NO_EXPRESSION:
        excluded[_NO_EXPRESSION[number]] += 1
        return None
    if number not in range(len(CLASS_NAMES)):
        raise ValueError(f"expression {row['expression']!r}, expected 0 .. 10")
    if not path or path.startswith("/") or ".." in path.split("/"):
        raise ValueError(f"path {row['subDirectory_filePath']!r}, expected one like 689/name.jpg")
    corner = [row[name] for name in ("face_x", "face_y", "face_width", "face_height")]
    try:
        x, y, width, height = (pixels(text) for text in corner)
        if not (width > 0 and height > 0):
            raise ValueError
    except ValueError:
        excluded["no_box"] += 1  # one Happiness row of the published list, which nobody counts
        return None
    landmarks = five_of_68(row["facial_landmarks"].rstrip("; ").split(";"))
    return path, CLASS_NAMES[number], (x, y, x + width, y + height), landmarks


def five_of_68(flat: Sequence[str]) -> Landmarks:
    """The five landmarks used here out of iBUG's 68 as x, y, x, y ...: the eyes are the mean of their six points.

    Raises:
        ValueError: not 136 values, or those that count are not finite numbers.
    """
    if len(flat) != 136:
        raise ValueError(f"{len(flat)} numbers of landmarks, expected 136")
    mean = [[sum(pixels(flat[2 * point + axis]) for point in points) / len(points) for axis in (0, 1)]
            for points in FIVE_OF_68]  # fmt: skip
    return tuple((x, y) for x, y in mean)


def _image_folder(tree: Path, files: Sequence[str]) -> str:
    """Where the paths of the tables start, relative to `tree`, with "/" behind it."""
    named_so = find_layout(tree, lambda folder: folder.name.lower() == "manually_annotated_images")
    beside = (tree / files[0]).parent
    heads = (islice(read_records(tree / file, _CSV_COLUMNS, _CSV), 500) for file in files)
    paths = [posix(row.fields[_CSV_COLUMNS[0]]) for head in heads for row in head if row.fields]
    for folder in (named_so, beside, tree):
        if folder is not None and any((folder / path).is_file() for path in paths):
            relative = folder.relative_to(tree).as_posix()
            return "" if relative == "." else f"{relative}/"
    raise FileError(
        f"{tree}: the tables are there ({', '.join(files)}), but no image of their first rows, e.g. "
        f"Manually_Annotated_Images/{paths[0] if paths else '...'}"
    )


def _read_npy_release(tree: Path, files: Sequence[str], reading: _Reading) -> None:
    """The release of March 2021: folders of crops, and of .npy files with one value each.

    Args:
        files: paths of the *_exp.npy.

    Raises:
        FileError: they are not below train_set/ or val_set/, so that their split is unknown.
    """
    images = {
        (file.rpartition("/images/")[0], stem(file)): file
        for file in list_files(tree, IMAGE_ENDINGS)
        if "/images/" in f"/{file}"
    }
    if not images or not all(_split_of(file.rpartition("/")[0]) for file in files):
        raise FileError(
            f"{tree}: {files[0]} is not below train_set/ or val_set/ with images/ beside it; give the folder that "
            "holds train_set/ and val_set/"
        )
    with progress(len(files), "read annotations", "image") as bar:
        for file in files:
            bar.update()
            annotations, _, name = file.rpartition("/")
            folder, number = annotations.rpartition("/")[0], name.removesuffix("_exp.npy")
            split = _split_of(folder)
            key = f"{split}/{number}"
            path = images.pop((folder, number), None)
            if path is None:
                reading.reject(key, "missing_file", f"no image {folder}/images/{number}.*", file)
                continue
            try:
                expression = _npy_expression(tree / file)
                landmarks = _npy_landmarks(tree / annotations / f"{number}_lnd.npy")
            except (ValueError, OSError) as error:
                reading.reject(key, "bad_annotation", str(error), file)
                continue
            reading.add(key, path, split, expression, landmarks=landmarks)
    for (folder, number), path in images.items():
        reading.reject(f"{_split_of(folder) or folder}/{number}", "no_label", f"no {number}_exp.npy beside it", path)


def _npy_expression(path: Path) -> str:
    (value,) = read_npy(path, 1)
    number = _whole(str(value))
    if number not in range(len(CLASS_NAMES)):
        raise ValueError(f"{path.name}: expression {value}, expected 0 .. 7")
    return CLASS_NAMES[number]


def _npy_landmarks(path: Path) -> Landmarks | None:
    return five_of_68([str(value) for value in read_npy(path, 136)]) if path.is_file() else None


def _read_lists(tree: Path, lists: Sequence[str], reading: _Reading) -> None:
    """POSTER's lists (train_set/train_annotations_7class.txt): a crop's name and its number in AffectNet's order."""
    images = list_files(tree, IMAGE_ENDINGS)
    for file in lists:
        folder, _, name = file.rpartition("/")
        match = _LIST.fullmatch(name)
        assert match
        split: Split = "train" if split_named(match[1]) == "train" else "test"
        own = {path.rpartition("/")[2].lower(): path for path in images if path.startswith(folder and f"{folder}/")}
        listed = ListedImages(own, subset=reading.subset)
        meaning = {str(number): name for number, name in enumerate(CLASS_NAMES)}
        for line, name, label in label_rows(tree / file):
            key = f"{split}/{name.rpartition('.')[0] or name}"
            problem = "" if label in meaning else f"label {label!r}, expected 0 .. 7"
            row = f"{file}-{line}"
            if path := listed.path(name.lower(), label, f"{file}:{line}", key=key, row=row, problem=problem):
                reading.add(key, path, split, meaning[label])
        reading.finish(listed)
        for name, path in listed.unlisted().items():
            reading.reject(f"{split}/{stem(name)}", "no_label", f"{file} does not name it", path)


def _read_kaggle(tree: Path, files: Sequence[str], reading: _Reading) -> None:
    """The part that is on Kaggle: class folders, and a table whose labels are the better ones (37 % differ)."""
    if len(files) > 1:
        raise FileError(f"{tree}: several labels.csv ({', '.join(files)}); set `path` to the folder of one")
    file = files[0]
    images = list_files(tree, IMAGE_ENDINGS)
    by_tail = {_tail(path): path for path in images}
    if len(by_tail) < len(images):
        raise FileError(f"{tree}: images of one name and folder are in several places; keep one copy")
    listed = ListedImages(by_tail, subset=reading.subset)
    reading.notes["folder_and_list_disagree"] = 0
    for record in read_records(tree / file, ("pth", "label"), "Kaggle's list of AffectNet"):
        row, origin = f"{file}-{record.line}", f"{file}:{record.line}"
        if record.fields is None:
            reading.reject(row, "bad_row", record.complaint, origin)
            continue
        tail, label = _tail(posix(record.fields["pth"])), named(record.fields["label"])
        key, problem = tail.rpartition(".")[0] or tail, ""
        if label not in CLASS_NAMES:
            problem = f"label {record.fields['label']!r}, expected one of {', '.join(CLASS_NAMES)}"
        # Whatever its label, a row that repeats an image does not count: the first does.
        if path := listed.path(tail, "", origin, key=key, row=row, problem=problem):
            folder = path.rpartition("/")[0]
            reading.notes["folder_and_list_disagree"] += named(folder.rpartition("/")[2]) not in (None, label)
            reading.add(key, path, _split_of(folder), str(label))
    reading.finish(listed)
    for tail, path in listed.unlisted().items():
        reading.reject(tail, "no_label", f"{file} does not name it", path)


def _tail(path: str) -> str:
    """An image's name and folder."""
    return "/".join(path.lower().split("/")[-2:])


def _split_of(folder: str) -> Split | None:
    """The split that any part of a path names; AffectNet's validation is the test here."""
    found = [split for part in folder.split("/") if (split := split_named(part))]
    return None if not found else "train" if found[-1] == "train" else "test"


def _whole(text: str) -> int:
    """A whole number, also as "3.0"; ValueError says what it is instead."""
    value = pixels(text)
    if value != int(value):
        raise ValueError(f"{text!r}, expected a whole number")
    return int(value)


_READERS = {
    "csv release": _read_csv_release,
    "folder release": _read_npy_release,
    "text lists": _read_lists,
    "Kaggle part": _read_kaggle,
}
