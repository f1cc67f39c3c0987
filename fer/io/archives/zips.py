"""Zip archives: judged whole by their list of members, then unpacked."""

from __future__ import annotations

import stat
import struct
import zipfile
from pathlib import Path
from typing import IO

from fer.console import progress
from fer.io.archives.streams import chunks
from fer.io.archives.tree import Tree, decode_names
from fer.io.disk import refuse_full_disk
from fer.io.files import FileError

_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
}


def is_zip(head: bytes) -> bool:
    """Whether a file that begins with these bytes is a zip archive, be it without members."""
    return head.startswith((b"PK\x03\x04", b"PK\x05\x06"))


def unpack_zip(path: Path, tree: Tree, encoding: str | None) -> None:
    """Unpacks a zip archive; everything is judged before the first byte is written.

    Args:
        encoding: of names that are not flagged as UTF-8; None: `decode_names` tells.

    Raises:
        FileError: it is cut off, encrypted or hostile, or the disk has no room.
        Exception: what the standard library says of damaged data, for `fer.io.archives.streams.damage_named`.
    """
    with open(path, "rb") as handle:
        directory, start = end_of_zip(handle, str(path))
        tree.budget.judge(*_survey(directory))
        del directory
    with zipfile.ZipFile(path) as archive:
        members = sorted(archive.infolist(), key=lambda member: member.header_offset)
        names = decode_names(
            [
                member.orig_filename if member.flag_bits & 0x800 else member.orig_filename.encode("cp437")
                for member in members
            ],
            encoding,
            str(path),
        )
        _refuse_overlap(members, start, str(path))
        for member, name in zip(members, names, strict=True):
            _refuse_kind(member, name, path)
            tree.claim(name, member.file_size, folder=_is_folder(member, name))
        refuse_full_disk(tree.folder, tree.needed, str(path))
        total = sum(member.file_size for member in members)
        with progress(total, f"extract {path.name}", "B") as bar:
            for member, name in zip(members, names, strict=True):
                if not _is_folder(member, name):
                    with archive.open(member) as reader:
                        tree.write(name, member.file_size, chunks(reader, tree.budget), bar)


def end_of_zip(handle: IO[bytes], name: str) -> tuple[bytes, int]:
    """The central directory of a zip and where it starts; FileError where the file ends before it."""
    end = "begins as a zip archive and has no end: cut off; fetch it again"
    size = handle.seek(0, 2)
    handle.seek(-min(size, 22 + 65535), 2)
    tail = handle.read()
    found = tail.rfind(b"PK\x05\x06")
    if found < 0 or len(tail) - found < 22:
        raise FileError(f"{name}: {end}")
    length, offset = struct.unpack_from("<LL", tail, found + 12)
    stop = size - len(tail) + found
    handle.seek(max(0, stop - 20))
    locator = handle.read(20)
    if locator.startswith(b"PK\x06\x07"):  # zip64: its own record holds the figures
        stop = min(struct.unpack_from("<Q", locator, 8)[0], size)
        handle.seek(stop)
        record = handle.read(56)
        if not record.startswith(b"PK\x06\x06") or len(record) < 56:
            raise FileError(f"{name}: {end}")
        length, offset = struct.unpack_from("<QQ", record, 40)
    start = stop - length  # not `offset`: something may stand before the archive
    if start < 0 or offset > start:
        raise FileError(f"{name}: {end}")
    handle.seek(start)
    return handle.read(length), start


def _survey(directory: bytes) -> tuple[int, int]:
    """Number of entries and sum of their sizes as declared, found without an object for each."""
    entries = total = place = 0
    while place < len(directory):
        if directory[place : place + 4] != b"PK\x01\x02":
            raise zipfile.BadZipFile("its list of files is damaged")
        size, *lengths = struct.unpack_from("<LHHH", directory, place + 24)
        entries += 1
        total += size  # of a member beyond 4 GiB at least that much
        place += 46 + sum(lengths)
    return entries, total


def _refuse_overlap(members: list[zipfile.ZipInfo], stop: int, path: str) -> None:
    """Members that share their bytes: how 10 MB of zip become petabytes (Fifield, "A better zip bomb", 2019)."""
    starts = [*(member.header_offset for member in members), stop]
    for member, end in zip(members, starts[1:], strict=True):
        if member.header_offset + 30 + member.compress_size > end:
            raise FileError(f"{path}: {member.filename!r} overlaps with another member: a zip bomb")


def _refuse_kind(member: zipfile.ZipInfo, name: str, path: Path) -> None:
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise FileError(f"{path}: {name!r} is {_KINDS.get(kind, 'no plain file')}; only files and folders are unpacked")
    if member.flag_bits & 1:
        raise FileError(
            f"{path}: {name!r} is encrypted: unpack the archive by hand with its password, and give the folder"
        )
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        raise FileError(
            f"{path}: {name!r} is compressed by method {member.compress_type} (9 is Deflate64), which is not read: "
            "unpack the archive with `7z x`, and give the folder"
        )


def _is_folder(member: zipfile.ZipInfo, name: str) -> bool:
    return name.endswith("/") or stat.S_ISDIR(member.external_attr >> 16)
