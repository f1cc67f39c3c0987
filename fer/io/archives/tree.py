"""The folder that an archive is unpacked into: which names it may take, and how much it may hold."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fer.io.disk import disk_errors
from fer.io.files import FileError

_BLOCK = 4096  # what the smallest file takes on a disk
_LONGEST_NAME = 255  # bytes of one folder's or file's name, as on Linux
_LONGEST_PATH = 1024  # bytes below the destination
_DRIVE = re.compile(r"[A-Za-z]:")
BY_HAND = "where you trust it, unpack it by hand and give the folder"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an archive may hold. Real datasets stay far below: the largest known, AffectNet as published in 2021, has
    120 GB in 1.46 million files, of which four in five are annotations of a few hundred bytes.

    Attributes:
        bytes: unpacked.
        ratio: unpacked bytes for each byte of the archive. Tables shrink to a tenth, zeros to a thousandth.
        ratio_from: unpacked bytes up to which the ratio does not matter.
        entries: files and folders.
        bytes_per_entry: mean size at least, beyond `small_entries` of them: nothing but names is no dataset.
    """

    bytes: int = 2 << 40
    ratio: float = 100.0
    ratio_from: int = 64 << 20
    entries: int = 2_000_000
    bytes_per_entry: int = 64
    small_entries: int = 250_000


DEFAULT = Limits()


class Budget:
    """Counts what comes out of an archive.

    Args:
        name: of the archive, for messages.
        size: of the archive in bytes.
    """

    def __init__(self, name: str, size: int, limits: Limits) -> None:
        self.name, self._size, self._limits = name, size, limits
        self._spent = self._entries = self._content = 0

    def spend(self, count: int) -> None:
        """`count` bytes came out; FileError where that is too many."""
        self._spent += count
        self._judge_bytes(self._spent)

    def enter(self, size: int) -> None:
        """One more file or folder, of `size` bytes as declared; FileError where that is too many."""
        self._entries += 1
        self._content += size
        self.judge(self._entries, self._content)

    def judge(self, entries: int, content: int) -> None:
        """FileError where so many files and folders of so many bytes in all are more than the limits allow."""
        limits = self._limits
        if entries > limits.entries:
            raise FileError(f"{self.name}: more than {limits.entries:,} files and folders: a bomb; {BY_HAND}")
        if entries > limits.small_entries and content < entries * limits.bytes_per_entry:
            raise FileError(f"{self.name}: {entries:,} files with hardly anything in them: a bomb; {BY_HAND}")
        self._judge_bytes(content)

    def _judge_bytes(self, count: int) -> None:
        limits = self._limits
        if count > limits.bytes:
            raise FileError(f"{self.name}: unpacks to more than {limits.bytes / 1e9:,.0f} GB: a bomb; {BY_HAND}")
        if count > limits.ratio_from and count > limits.ratio * self._size:
            raise FileError(
                f"{self.name}: unpacks to more than {limits.ratio:g} times its {self._size:,} bytes: a bomb; {BY_HAND}"
            )


class Tree:
    """A new folder, filled with files of new names.

    Args:
        folder: empty.
        budget: of the archive that fills it.
    """

    def __init__(self, folder: Path, budget: Budget) -> None:
        self.folder, self.budget = folder, budget
        self.needed = 0  # bytes on the disk, in whole blocks
        self._files: dict[str, str] = {}  # names as the least discerning file system sees them -> as spelled
        self._folders: dict[str, str] = {}

    @property
    def files(self) -> int:
        """Number of files claimed."""
        return len(self._files)

    def claim(self, name: str, size: int, *, folder: bool) -> None:
        """Takes a name. Nothing is written.

        Args:
            name: as the archive says it.
            size: in bytes, as declared.
            folder: whether it names a folder; those are made when a file falls into them.

        Raises:
            FileError: it leads outside, cannot be a file's name, or another has it, or one that differs only in case
                or Unicode form, which some file systems take for the same; or the archive holds too much.
        """
        parts = self._parts(name)
        self.budget.enter(0 if folder else size)
        parents = len(parts) if folder else len(parts) - 1
        for length in range(1, parents + 1):
            self._claim_folder("/".join(parts[:length]))
        if folder:
            return
        path = "/".join(parts)
        if not path:
            raise FileError(f"{self.budget.name}: a file with the name {name!r}")
        key = _folded(path)
        if (other := self._files.get(key) or self._folders.get(key)) is not None:
            self._collide(other, path)
        self._files[key] = path
        self.needed += _BLOCK + -(-size // _BLOCK) * _BLOCK

    def write(self, name: str, size: int, chunks: Iterable[bytes], bar: Any = None) -> None:
        """Writes a file whose name was claimed.

        Args:
            chunks: its content.
            bar: of progress; told of the bytes written.

        Raises:
            FileError: another number of bytes came than was declared, or the disk refuses.
        """
        path = self.folder.joinpath(*self._parts(name))
        remedy = "make room and run the same command again"
        left = size
        with disk_errors(path, remedy):
            path.parent.mkdir(parents=True, exist_ok=True)
            writer = open(path, "xb", buffering=0)  # noqa: SIM115 - "x": never over a file, never through a link
        with writer:
            for chunk in chunks:
                left -= len(chunk)
                if left < 0:
                    break
                with disk_errors(path, remedy):
                    rest = memoryview(chunk)
                    while rest:
                        rest = rest[writer.write(rest) :]
                if bar is not None:
                    bar.update(len(chunk))
        if left:
            raise FileError(
                f"{self.budget.name}: {name!r} does not hold the {size:,} bytes that are said of it: damaged; fetch it "
                "again"
            )

    def _claim_folder(self, path: str) -> None:
        key = _folded(path)
        known = self._folders.setdefault(key, path)
        if known != path:
            self._collide(known, path)
        if key in self._files:
            self._collide(self._files[key], path)

    def _collide(self, one: str, other: str) -> None:
        how = "twice" if one == other else f"and {other!r}, which differ only in case or Unicode form"
        raise FileError(f"{self.budget.name}: holds {one!r} {how}: only one of them could be kept; {BY_HAND}")

    def _parts(self, name: str) -> list[str]:
        """A name's folders and file, none for the root; FileError where it cannot be trusted."""
        why = None
        if "\\" in name:
            why = "has a backslash"
        elif name.startswith("/") or _DRIVE.match(name):
            why = "is absolute"
        elif any(unicodedata.category(letter) == "Cc" for letter in name):
            why = "has a control character"
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            why = "leads out of its folder"
        elif any(len(part.encode()) > _LONGEST_NAME for part in parts) or len(name.encode()) > _LONGEST_PATH:
            why = "is too long"
        if why:
            shown = name if len(name) <= 200 else f"{name[:200]}..."
            raise FileError(f"{self.budget.name}: the name {shown!r} {why}; no archive that can be trusted; {BY_HAND}")
        return parts


def decode_names(names: Sequence[str | bytes], encoding: str | None, archive: str) -> list[str]:
    """Names of an archive as text; see `fer.io.archives.extract` for the rule.

    Args:
        names: text where the encoding was stated; else bytes.
        encoding: of the bytes, None where unknown.
        archive: for messages.

    Raises:
        FileError: a name is not in `encoding`.
    """
    unknown = [name for name in names if isinstance(name, bytes)]
    if not unknown:
        return [str(name) for name in names]
    tried = [encoding] if encoding else ["utf-8", "cp949", "cp437"]  # the last knows every byte
    for one in tried:
        try:
            return [name.decode(one) if isinstance(name, bytes) else name for name in names]
        except UnicodeDecodeError as error:
            wrong = error.object
    raise FileError(f"{archive}: the name {wrong!r} is not in encoding {encoding!r}; give another, or none")


def _folded(path: str) -> str:
    """The same text for names that some file system takes for the same: case and Unicode form do not count."""
    if path.isascii():
        return path.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
