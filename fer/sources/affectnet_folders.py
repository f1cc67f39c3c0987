"""AffectNet's release of March 2021, and the lists and folders of crops that other projects make of the releases.

As in `fer.sources.affectnet_csv`, all eight expressions are read, and AffectNet's validation is the test split.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from fer.console import progress
from fer.io.files import FileError
from fer.labels import named
from fer.shards.schema import Split
from fer.sources.affectnet_csv import CLASS_NAMES, Landmarks, Picture, Reading, five_of_68, whole
from fer.sources.csvfile import read_records
from fer.sources.layout import PICTURE_ENDINGS, label_rows, list_files, posix, read_npy, reject, split_named, stem

_LIST = re.compile(r"(train|valid|validation|val|test)[\w-]*annotations?[\w-]*\.txt", re.IGNORECASE)


def read_npy_release(tree: Path, files: Sequence[str]) -> Reading:
    """The release of March 2021: folders of crops, and of .npy files with one value each.

    Args:
        files: paths of the *_exp.npy.

    Raises:
        FileError: they are not below train_set/ or val_set/, so that their split is unknown.
    """
    reading = Reading()
    pictures = {
        (file.rpartition("/images/")[0], stem(file)): file
        for file in list_files(tree, PICTURE_ENDINGS)
        if "/images/" in f"/{file}"
    }
    if not pictures or not all(_split_of(file.rpartition("/")[0]) for file in files):
        raise FileError(
            f"{tree}: {files[0]} is not below train_set/ or val_set/ with images/ beside it; give the folder that "
            "holds train_set/ and val_set/"
        )
    with progress(len(files), "read annotations", "picture") as bar:
        for file in files:
            bar.update()
            folder, _, name = file.rpartition("/")
            folder = folder.rpartition("/")[0]
            number = name[: -len("_exp.npy")]
            split = _split_of(folder)
            key = f"{split}/{number}"
            path = pictures.pop((folder, number), None)
            if path is None:
                detail = f"no picture {folder}/images/{number}.*"
                reading.rows.append(reject(key, "missing_file", detail, file))
                continue
            try:
                name = _expression(tree / file)
                landmarks = _npy_landmarks(tree / file.replace("_exp.npy", "_lnd.npy"))
            except (ValueError, OSError) as error:
                reading.rows.append(reject(key, "bad_annotation", str(error), file))
                continue
            reading.rows.append(Picture(key=key, path=path, split=split, name=name, landmarks=landmarks))
    for (folder, number), path in pictures.items():
        key = f"{_split_of(folder) or folder}/{number}"
        reading.rows.append(reject(key, "no_label", f"no {number}_exp.npy beside it", path))
    return reading


def _expression(path: Path) -> str:
    (value,) = read_npy(path, 1)
    number = whole(str(value))
    if number not in range(len(CLASS_NAMES)):
        raise ValueError(f"{path.name}: expression {value}, expected 0 .. 7")
    return CLASS_NAMES[number]


def _npy_landmarks(path: Path) -> Landmarks | None:
    if not path.is_file():
        return None
    return five_of_68([str(value) for value in read_npy(path, 136)])


def lists_in(tree: Path) -> list[str]:
    """Text files of names and labels beside a set's pictures, as POSTER reads them."""
    return [file for file in list_files(tree, (".txt",)) if _LIST.fullmatch(file.rpartition("/")[2])]


def read_lists(tree: Path, lists: Sequence[str], *, subset: bool) -> Reading:
    """POSTER's lists (train_set/train_annotations_7class.txt): a crop's name and its number in AffectNet's order."""
    reading = Reading()
    pictures = list_files(tree, PICTURE_ENDINGS)
    for file in lists:
        match = _LIST.fullmatch(file.rpartition("/")[2])
        assert match
        split: Split = "train" if split_named(match[1]) == "train" else "test"
        folder = file.rpartition("/")[0]
        own = {
            path.rpartition("/")[2].lower(): path
            for path in pictures
            if path.startswith(f"{folder}/" if folder else "")
        }
        seen: dict[str, str] = {}
        for line, name, label in label_rows(tree / file):
            key, origin = f"{split}/{name.rpartition('.')[0] or name}", f"{file}:{line}"
            name = name.lower()
            if label not in {str(number) for number in range(len(CLASS_NAMES))}:
                detail = f"label {label!r}, expected 0 .. 7"
                reading.rows.append(reject(f"{file}-{line}", "bad_label", detail, origin))
            elif name in seen:
                if seen[name] != label:
                    detail = f"{name} has the labels {seen[name]} and {label}: only the first counts"
                    reading.rows.append(reject(f"{file}-{line}", "conflicting_labels", detail, origin))
                reading.excluded["listed_twice"] += seen[name] == label
            elif name in own:
                picture = Picture(key=key, path=own[name], split=split, name=CLASS_NAMES[int(label)])
                reading.rows.append(picture)
            elif subset:
                reading.excluded["not_in_this_copy"] += 1
            else:
                reading.rows.append(reject(key, "missing_file", "the list names it, and it is not there", origin))
            seen.setdefault(name, label)
        for name in own.keys() - seen.keys():
            reading.rows.append(reject(f"{split}/{stem(name)}", "no_label", f"{file} does not name it", own[name]))
    return reading


def read_kaggle(tree: Path, file: str, *, subset: bool) -> Reading:
    """The part that is on Kaggle: class folders, and a table whose labels are the better ones (37 % differ)."""
    reading = Reading()
    pictures = {path.lower(): path for path in list_files(tree, PICTURE_ENDINGS)}
    by_tail = {"/".join(path.split("/")[-2:]): path for path in pictures}
    if len(by_tail) < len(pictures):
        raise FileError(f"{tree}: pictures of one name and folder lie in several places; leave one copy")
    disagree = 0
    seen: set[str] = set()
    for record in read_records(tree / file, ("pth", "label"), "Kaggle's list of AffectNet"):
        origin = f"{file}:{record.line}"
        if record.fields is None:
            reading.rows.append(reject(f"{file}-{record.line}", "bad_row", record.complaint, origin))
            continue
        tail = "/".join(posix(record.fields["pth"]).lower().split("/")[-2:])
        label = named(record.fields["label"])
        key = tail.rpartition(".")[0] or tail
        if label not in CLASS_NAMES:
            detail = f"label {record.fields['label']!r}, expected one of {', '.join(CLASS_NAMES)}"
            reading.rows.append(reject(key, "bad_label", detail, origin))
        elif tail in seen:
            reading.excluded["listed_twice"] += 1
        elif tail in by_tail:
            path = pictures[by_tail[tail]]
            disagree += named(path.split("/")[-2]) not in (None, label)
            split = _split_of(path.rpartition("/")[0])
            reading.rows.append(Picture(key=key, path=path, split=split, name=label))
        elif subset:
            reading.excluded["not_in_this_copy"] += 1
        else:
            reading.rows.append(reject(key, "missing_file", "the list names it, and it is not there", origin))
        seen.add(tail)
    for tail in by_tail.keys() - seen:
        reading.rows.append(reject(tail, "no_label", f"{file} does not name it", pictures[by_tail[tail]]))
    reading.notes["folder_and_list_disagree"] = disagree
    return reading


def read_class_folders(tree: Path, meaning: Callable[[str], str | None]) -> Reading:
    """Class folders below train/ and val/ (DAN's converter), the crops in them.

    Args:
        meaning: the class of a folder's name; None for one that is no class.
    """
    reading = Reading()
    for file in list_files(tree, PICTURE_ENDINGS):
        parts = file.split("/")
        split = split_named(parts[-3]) if len(parts) > 2 else None
        name = meaning(parts[-2]) if split else None
        if split and name:
            split = "train" if split == "train" else "test"
            reading.rows.append(Picture(key=f"{split}/{stem(file)}", path=file, split=split, name=name))
        else:
            reading.rows.append(reject(file, "no_label", "not in a class folder of train/ or val/", file))
    return reading


def _split_of(folder: str) -> Split | None:
    """The split that any part of a path names; AffectNet's validation is the test here."""
    found = [split for part in folder.split("/") if (split := split_named(part))]
    return None if not found else "train" if found[-1] == "train" else "test"
