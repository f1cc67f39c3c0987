"""What readers of folder layouts share: where a layout begins, its files in natural order, its lists and class folders.

Nothing here follows a link in a circle, executes what a file holds, or trusts a size that a file only claims.
"""

from __future__ import annotations

import io
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fer.io.files import FileError
from fer.shards.schema import SPLITS, Split
from fer.sources.base import Entry, Reject, nfc
from fer.sources.csvfile import read_rows

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")

_JUNK = ("__macosx", "thumbs.db", "desktop.ini", "@eadir")  # left behind by macOS, Windows and Synology
_LARGEST_NPY = 1 << 16

_SPLITS: dict[str, Split] = {
    **dict.fromkeys(("train", "training", "train_set", "trainset"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "val_set", "valid_set"), "validation"),
    **dict.fromkeys(("test", "testing", "test_set"), "test"),
}


def walk(tree: Path) -> Iterator[tuple[str, os.DirEntry[str], bool]]:
    """Everything below a folder, in no order: its path relative to it, with "/", and whether it is a folder.

    Links are followed, except one that leads back to a folder above it. What is hidden and what operating systems
    leave behind is not listed.

    Raises:
        FileError: a folder may not be read.
    """
    pending = [(os.fspath(tree), "", os.path.realpath(tree), frozenset[str]())]
    while pending:
        folder, prefix, real, above = pending.pop()
        if real in above:
            continue
        try:
            with os.scandir(folder) as found:
                entries = list(found)
        except OSError as error:
            raise FileError(f"{nfc(folder)}: cannot be listed: {error.strerror}") from None
        within = above | {real}
        for entry in entries:
            if entry.name.startswith(".") or entry.name.lower() in _JUNK:
                continue
            link = entry.is_symlink()
            is_folder = os.path.isdir(entry.path) if link else entry.is_dir()  # noqa: PTH112 - the others raise
            yield prefix + entry.name, entry, is_folder
            if is_folder:
                below = os.path.realpath(entry.path) if link else f"{real}/{entry.name}"
                pending.append((entry.path, f"{prefix}{entry.name}/", below, within))


def list_files(tree: Path, endings: Sequence[str]) -> list[str]:
    """Paths below `tree` whose lower-case names end in one of `endings`, with "/", in natural order; see `walk`."""
    lowered = tuple(endings)
    found = (path for path, _, is_folder in walk(tree) if not is_folder and path.lower().endswith(lowered))
    return sorted(found, key=natural)


def folders(folder: Path) -> list[Path]:
    """The folders in a folder by name, links to folders too, without what `walk` passes over."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith(".") and path.name.lower() not in _JUNK
    )


def find_layout(tree: Path, holds: Callable[[Path], bool], depth: int = 3) -> Path | None:
    """The folder of `tree` for which `holds`, searched from the top down; None where there is none.

    Raises:
        FileError: several on the same level: it is ambiguous which is meant.
    """
    level = [tree]
    for _ in range(depth + 1):
        found = [folder for folder in level if holds(folder)]
        if len(found) > 1:
            names = ", ".join(str(folder.relative_to(tree)) for folder in found[:4])
            raise FileError(f"{tree}: the layout is in several folders ({names}); set `path` to one of them")
        if found:
            return found[0]
        level = [inner for folder in level for inner in folders(folder)]
    return None


def natural(path: str) -> tuple[str, str]:
    """Sorts 2.jpg before 10.jpg, and equally whatever the encoding of accents and Korean syllables."""
    return re.sub(r"\d+", _sortable, nfc(path)), path


def _sortable(number: re.Match[str]) -> str:
    """Digits with their count in front, which sorts as text as the number does."""
    digits = number[0].lstrip("0")
    return f"{min(len(digits), 99):02d}{digits}"


def in_order(entries: Iterable[Entry | Reject]) -> list[Entry | Reject]:
    """Train, validation, test, each in natural order of the keys; rejects come last."""

    def place(entry: Entry | Reject) -> tuple[int, tuple[str, str]]:
        if isinstance(entry, Reject):
            return len(SPLITS), natural(entry.sample_id)
        return SPLITS.index(entry.split), natural(entry.key)

    return sorted(entries, key=place)


def split_named(folder: str) -> Split | None:
    """The split that a folder's name means, e.g. "Train" or "val_set"; None for another name."""
    return _SPLITS.get(folder.strip().lower())


def stem(path: str) -> str:
    """The last part of a path without its ending."""
    return path.rpartition("/")[2].rpartition(".")[0]


def posix(path: str) -> str:
    """A path as a list may spell it, in our spelling: no backslashes, no "./" before it."""
    return path.strip().strip('"').replace("\\", "/").removeprefix("./")


def pixels(text: str) -> float:
    """A finite number of a plausible size; ValueError says what it is instead."""
    value = float(text)
    if not abs(value) < 1e6:  # also where it is not a number
        raise ValueError(f"{text[:20]!r} is not a number of pixels")
    return value


def class_folders(tree: Path) -> tuple[dict[tuple[Split, str], list[str]], list[str]]:
    """The images below `<split>/<class>/`, at any height, and those that are elsewhere.

    A dataset that publishes no validation split is met with its test images in a folder of that name: those are test,
    unless there is a test folder too.

    Returns:
        paths by split and name of the class folder; and the other paths.
    """
    found: defaultdict[tuple[Split, str], list[str]] = defaultdict(list)
    others = []
    for file in list_files(tree, IMAGE_ENDINGS):
        parts = file.split("/")
        if len(parts) > 2 and (split := split_named(parts[-3])):
            found[split, parts[-2]].append(file)
        else:
            others.append(file)
    if any(split == "test" for split, _ in found):
        return dict(found), others
    return {("train" if split == "train" else "test", name): files for (split, name), files in found.items()}, others


class ListedImages:
    """Joins the rows of a label list with the images that are there; of each image the first row counts.

    Attributes:
        rejects: rows without a usable label or without an image.
        excluded: number of rows that do not count by the dataset's own rules, by reason.
    """

    def __init__(self, images: Mapping[str, str], *, subset: bool) -> None:
        self.rejects: list[Reject] = []
        self.excluded: Counter[str] = Counter()
        self._images, self._subset = images, subset
        self._labels: dict[str, str] = {}

    def path(self, name: str, label: str, origin: str, *, key: str, row: str, problem: str = "") -> str | None:
        """The image that a row labels; None where there is none, or the row does not count.

        Args:
            name: of the image, a key of `images`.
            label: as written: a row with the same is a repetition, one with another a contradiction.
            origin: file and line of the row.
            key, row: what a reject of the image, and one of the row, is called.
            problem: what is wrong with the label.
        """
        first = self._labels.get(name)
        self._labels.setdefault(name, label)
        if first == label:
            self.excluded["listed_twice"] += 1
        elif first is not None:
            detail = f"{name} has the labels {first} and {label}: only the first counts"
            self.rejects.append(Reject(row, "conflicting_labels", detail, origin))
        elif problem:
            self.rejects.append(Reject(key, "bad_label", problem, origin))
        elif name in self._images:
            return self._images[name]
        elif self._subset:
            self.excluded["not_in_this_copy"] += 1
        else:
            self.rejects.append(Reject(key, "missing_file", "the list names it, and it is not there", origin))
        return None

    def unlisted(self) -> dict[str, str]:
        """The images that no row names, with their paths."""
        return {name: path for name, path in self._images.items() if name not in self._labels}


def label_rows(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line number, file name and label of each line "name label" of a list: blanks, a comma or a semicolon between.

    A line of one word has no label: "". Folders before the name are removed, with "/" or with backslashes.

    Raises:
        FileError: as for `fer.sources.csvfile.read_rows`.
    """
    for line, (text, *_) in read_rows(path, "\x1f"):
        match = re.fullmatch(r"(.+?)[\s,;]+(\S+)", text)
        name, label = (match[1], match[2]) if match else (text, "")
        yield line, posix(name).rpartition("/")[2], label


def read_npy(path: Path, count: int) -> npt.NDArray[np.generic]:
    """The `count` numbers or texts of a .npy file as (count,). Objects are never unpickled.

    Raises:
        ValueError: not a .npy file of this many plain values; says what it is instead.
        OSError: not readable.
    """
    with path.open("rb") as handle:
        data = handle.read(_LARGEST_NPY + 1)
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(stream)
    except (ValueError, SyntaxError, TypeError, EOFError) as error:
        raise ValueError(f"not a .npy file ({str(error).splitlines()[0][:80]})") from None
    if dtype.kind not in "biufU":
        raise ValueError(f"values of type {dtype}, which only unpickling could read" if dtype.hasobject else f"{dtype}")
    left = len(data) - stream.tell()
    if prod(shape) != count or left != count * dtype.itemsize:
        raise ValueError(f"shape {shape} of {dtype} in {left} bytes, expected {count} values")
    return np.frombuffer(data, dtype, count, stream.tell())
