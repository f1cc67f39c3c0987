"""The folder that an archive is extracted into: which names it may take, and how much it may hold."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fer.io.files import FileError, disk_errors, write_all

_BLOCK = 4096  # bytes of the smallest file on a disk
_LONGEST_NAME = 255  # bytes of one name, as on Linux
_LONGEST_PATH = 1024  # bytes below the destination
_DRIVE = re.compile(r"[A-Za-z]:")
_BY_HAND = "if you trust it, extract it by hand and give the folder"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an archive may hold. Real datasets are far below these limits: the largest known, AffectNet as published in
    2021, has 120 GB in 1.46 million files, four fifths of them annotations of a few hundred bytes.

    Attributes:
        bytes: extracted size.
        ratio: extracted bytes per byte of the archive. Tables shrink to a tenth, zeros to a thousandth.
        ratio_from: extracted bytes up to which the ratio is not checked.
        entries: files and folders.
        bytes_per_entry: least mean size where there are more than `small_entries` entries.
    """

    bytes: int = 2 << 40
    ratio: float = 100.0
    ratio_from: int = 64 << 20
    entries: int = 2_000_000
    bytes_per_entry: int = 64
    small_entries: int = 250_000


DEFAULT = Limits()


class Budget:
    """Counts the entries and bytes of one archive; every method raises FileError where a limit is exceeded.

    Args:
        name: of the archive, for messages.
        size: of the archive in bytes.
    """

    def __init__(self, name: str, size: int, limits: Limits = DEFAULT) -> None:
        self.name, self._size, self._limits = name, size, limits
        self._extracted = self._entries = self._declared = 0

    def count_bytes(self, count: int) -> None:
        """`count` more bytes were extracted."""
        self._extracted += count
        self._check_bytes(self._extracted)

    def count_entries(self, declared: int, entries: int = 1) -> None:
        """`entries` more files and folders, of `declared` bytes in all."""
        limits = self._limits
        self._entries += entries
        self._declared += declared
        if self._entries > limits.entries:
            raise FileError(f"{self.name}: more than {limits.entries:,} files and folders: a bomb; {_BY_HAND}")
        if self._entries > limits.small_entries and self._declared < self._entries * limits.bytes_per_entry:
            raise FileError(f"{self.name}: {self._entries:,} files with almost no content: a bomb; {_BY_HAND}")
        self._check_bytes(self._declared)

    def _check_bytes(self, count: int) -> None:
        limits, too_much = self._limits, ""
        if count > limits.bytes:
            too_much = f"{limits.bytes / 1e9:,.0f} GB"
        elif count > limits.ratio_from and count > limits.ratio * self._size:
            too_much = f"{limits.ratio:g} times its {self._size:,} bytes"
        if too_much:
            raise FileError(f"{self.name}: unpacks to more than {too_much}: a bomb; {_BY_HAND}")


class Tree:
    """A new folder, filled with files of new names.

    Args:
        folder: empty.
        budget: of the archive that fills it.
    """

    def __init__(self, folder: Path, budget: Budget) -> None:
        self.folder, self.budget = folder, budget
        self.needed = 0  # bytes on the disk, in whole blocks
        self.files = 0
        self._taken: dict[str, str] = {}  # name as the least discerning file system sees it -> spelling, folders with /

    def claim(self, name: str, size: int, *, is_folder: bool) -> Path:
        """Checks and reserves a name; writes nothing. Folders are created when a file is written into them.

        Args:
            name: as the archive has it.
            size: in bytes, as declared.

        Returns:
            the path of the file or folder.

        Raises:
            FileError: the name leads outside, cannot be a file's name, or is taken, also by a name that differs only in
                case or Unicode form, which some file systems take for the same; or the archive holds too much.
        """
        parts = self._parts(name)
        self.budget.count_entries(0 if is_folder else size)
        for length in range(1, len(parts) + is_folder):
            self._take("/".join(parts[:length]) + "/")
        if not is_folder:
            if not parts:
                raise FileError(f"{self.budget.name}: a file with the name {name!r}")
            self._take("/".join(parts))
            self.files += 1
            self.needed += _BLOCK + -(-size // _BLOCK) * _BLOCK
        return self.folder.joinpath(*parts)

    def write(self, path: Path, size: int, chunks: Iterable[bytes], bar: Any = None) -> None:
        """Writes a file that was claimed.

        Args:
            size: in bytes, as declared.
            chunks: its content.
            bar: of progress, in bytes written.

        Raises:
            FileError: another number of bytes than declared, or a disk error.
        """
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
                    write_all(writer, chunk)
                if bar is not None:
                    bar.update(len(chunk))
        if left:
            name = path.relative_to(self.folder).as_posix()
            raise FileError(f"{self.budget.name}: {name!r} does not have its declared {size:,} bytes: damaged")

    def _take(self, spelling: str) -> None:
        key = _folded(spelling.rstrip("/"))
        known = self._taken.get(key)
        if known is None or (known == spelling and known.endswith("/")):  # a new name, or a folder seen before
            self._taken[key] = spelling
            return
        one, other = known.rstrip("/"), spelling.rstrip("/")
        how = "twice" if one == other else f"and {other!r}, which differ only in case or Unicode form"
        raise FileError(f"{self.budget.name}: holds {one!r} {how}: only one of them could be kept; {_BY_HAND}")

    def _parts(self, name: str) -> list[str]:
        """The folders and the file of a name, empty for the root; FileError for an unsafe one."""
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
            raise FileError(f"{self.budget.name}: the name {shown!r} {why}: not a trustworthy archive; {_BY_HAND}")
        return parts


def decode_names(names: Sequence[str | bytes], encoding: str | None, archive: str) -> list[str]:
    """Names of an archive as text; see `fer.io.archives.extract` for the rule.

    Args:
        names: text where the archive states the encoding, else bytes.
        encoding: of the bytes, None where unknown.
        archive: for messages.

    Raises:
        FileError: a name is not in `encoding`.
    """
    wrong = b""
    for one in [encoding] if encoding else ["utf-8", "cp949", "cp437"]:  # the last decodes every byte
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
