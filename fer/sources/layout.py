"""What readers of folder layouts share: files in natural order, lines of text, safe .npy, archives within a folder.

Nothing here follows a link in a circle, runs what a file holds, or believes a size that a file only claims.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fer.hashing import stable_hash
from fer.io.files import FileError
from fer.shards.schema import SPLITS, Split
from fer.sources.base import Reject
from fer.sources.csvfile import read_rows
from fer.sources.pack import Entry, nfc

PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
ARCHIVE_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")

_JUNK = ("__macosx", "thumbs.db", "desktop.ini", "@eadir")  # left behind by macOS, Windows and Synology
_LARGEST_NPY = 1 << 16

_SPLITS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "train_set": "train",
    "trainset": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "val_set": "validation",
    "valid_set": "validation",
    "test": "test",
    "testing": "test",
    "test_set": "test",
}


def walk(tree: Path) -> Iterator[tuple[str, os.DirEntry[str], bool]]:
    """Everything below a folder, in no order: its path relative to it, with "/", and whether it is a folder.

    Links are followed, but for one that leads back to a folder it lies in. What is hidden and what operating systems
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
    wanted = tuple(endings)
    found = (path for path, _, is_folder in walk(tree) if not is_folder and path.lower().endswith(wanted))
    return sorted(found, key=natural)


def natural(path: str) -> tuple[str, str]:
    """Sorts 2.jpg before 10.jpg, and equally whatever the encoding of accents and Korean syllables."""
    return re.sub(r"\d+", _sortable, nfc(path)), path


def _sortable(number: re.Match[str]) -> str:
    """Digits with their count in front, which sorts as text as the number does."""
    digits = number[0].lstrip("0")
    return f"{min(len(digits), 99):02d}{digits}"


def reject(key: str, reason: str, detail: str, origin: str) -> Reject:
    """What is wrong with a picture or a line, in the place of its entry."""
    return Reject(sample_id=key, reason=reason, detail=detail, origin=origin)


def in_order(entries: Iterable[Entry | Reject]) -> list[Entry | Reject]:
    """Train, validation, test, each in natural order of the keys; what is wrong comes last."""

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
    """A path as a list may spell it, in this one's spelling: no backslashes, no "./" before it."""
    return path.strip().strip('"').replace("\\", "/").removeprefix("./")


def label_rows(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line number, file name and label of each line "name label" of a list: blanks, a comma or a semicolon between.

    A line of one word has no label: "". Paths before the name are cut off, with "/" or with backslashes.

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
        raise ValueError(f"no .npy file ({str(error).splitlines()[0][:80]})") from None
    if dtype.kind not in "biufU":
        raise ValueError(f"values of type {dtype}, which only unpickling could read" if dtype.hasobject else f"{dtype}")
    left = len(data) - stream.tell()
    if prod(shape) != count or left != count * dtype.itemsize:
        raise ValueError(f"shape {shape} of {dtype} in {left} bytes, expected {count} values")
    return np.frombuffer(data, dtype, count, stream.tell())


def open_nested(
    tree: Path, cache: Path, *, wanted: Callable[[str], bool] = lambda _: True, encoding: str | None = None
) -> Path:
    """A folder as if the archives in it were unpacked where they lie, each into a folder of its name.

    The folder itself is not written to: what is unpacked stays in `cache`, and so does a tree of links to it and to the
    rest. Archives within these archives are opened too. An archive beside a folder of its name counts as unpacked.

    Args:
        wanted: which archives to open, by their paths.
        encoding: of the names in archives that do not state it; None: `fer.io.archives.extract` tells.

    Returns:
        `tree` where it holds no such archive.

    Raises:
        FileError: a damaged or a hostile archive.
    """
    from fer.io.archives import extract

    opened = tree
    for level in ("outer", "inner"):
        archives = [file for file in list_files(opened, ARCHIVE_ENDINGS) if wanted(file)]
        unpacked: dict[str, Path] = {}
        for archive in archives:
            if (opened / _without_ending(archive)).is_dir():
                continue
            about = (opened / archive).stat()
            target = cache / f"unpacked-{stable_hash(archive, about.st_size, about.st_mtime_ns):016x}"
            if not target.is_dir():
                extract(opened / archive, target, encoding=encoding)
            unpacked[archive] = target
        if not unpacked:
            break
        links = cache / f"links-{level}"
        _remove_links(links)
        _link(opened, links, "", unpacked)
        opened = links
    return opened


def _link(source: Path, target: Path, prefix: str, unpacked: Mapping[str, Path]) -> None:
    """A folder of links to what `source` holds, with what was unpacked in the places of the archives."""
    target.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        relative = f"{prefix}{path.name}"
        if relative in unpacked:
            (target / _without_ending(path.name)).symlink_to(unpacked[relative].resolve(), target_is_directory=True)
        elif any(archive.startswith(f"{relative}/") for archive in unpacked):
            _link(path, target / path.name, f"{relative}/", unpacked)
        else:
            (target / path.name).symlink_to(path.resolve())


def _without_ending(archive: str) -> str:
    ending = max((ending for ending in ARCHIVE_ENDINGS if archive.lower().endswith(ending)), key=len)
    return archive[: -len(ending)]


def _remove_links(folder: Path) -> None:
    """Removes a tree of folders and links, never what the links lead to."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.is_symlink():
            path.unlink()
        else:
            _remove_links(path)
    folder.rmdir()
