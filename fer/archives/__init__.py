"""Opening archives that strangers made: everything or nothing, and never a byte outside the destination.

What is hostile or broken is refused with its reason: names that lead elsewhere or collide, links, devices, encryption,
bombs, cut-off files. Nothing of an archive is believed: sizes are counted as they are written, and the content decides
what kind of archive it is.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, ClassVar

from fer.archives.tree import DEFAULT, Budget, Limits, Tree, decode_names
from fer.console import progress
from fer.disk import refuse_full_disk
from fer.files import FileError, publish_directory

__all__ = ["DEFAULT", "Limits", "extract", "refuse_truncated"]

_CHUNK = 1 << 20
_HEADER_BYTES = 1 << 20  # the most that may stand between two members of a tar: headers of long names are far shorter

_COMPRESSED: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}
_FOREIGN = {
    b"Rar!": "a RAR archive: unpack it with `unrar x`, and give the folder",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive: unpack it with `7z x`, and give the folder",
    b"EGGA": "an EGG archive: unpack it with Bandizip or ALZip, and give the folder",
    b"ALZ\x01": "an ALZ archive: unpack it with Bandizip or `unalz`, and give the folder",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it with `tar --zstd -xf`, and give the folder",
    b"PK\x07\x08": "one part of a split zip archive: join the parts with `zip -s 0 IN.zip --out WHOLE.zip`",
}
# What the standard library says of damaged data.
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
    struct.error,
)


def extract(archive: Path, destination: Path, *, limits: Limits = DEFAULT, encoding: str | None = None) -> None:
    """Unpacks a zip or tar archive (plain, gz, bz2, xz) into a new folder, which appears complete, by rename.

    Only plain files and folders come out, with the permissions of new files: no set-uid bit, no time, no owner.

    Names of a zip that are flagged as UTF-8 are UTF-8. The others have no stated encoding: they are read as `encoding`
    where it is given; else as UTF-8 where all of them are valid UTF-8; else as CP949 (what Korean Windows writes) where
    all are valid CP949; else as CP437, which the zip format names. The same holds for a tar, each name for itself.

    Args:
        archive: the file. Its content decides what it is, not its name.
        destination: folder that does not exist yet. What a killed extraction left beside it is removed.
        limits: against bombs.
        encoding: of names without a stated one, e.g. "cp949".

    Raises:
        FileError: no archive, or one that is damaged, cut off, encrypted or hostile, or too little disk space; nothing
            is left of it.
    """
    if destination.exists():
        raise FileError(f"{destination}: exists already; remove it to extract {archive.name} anew")
    head = _head(archive)
    budget = Budget(str(archive), archive.stat().st_size, limits)
    unpack = _zip if head.startswith((b"PK\x03\x04", b"PK\x05\x06")) else _tar
    with publish_directory(destination, many_files=True) as folder:
        tree = Tree(folder, budget)
        with _damage(archive):
            unpack(archive, head, tree, encoding)
        if not tree.files:
            raise FileError(f"{archive}: the archive holds no file")


def refuse_truncated(path: Path, name: str) -> None:
    """FileError where a file is an archive by its first bytes and has no proper end. Other files pass.

    A compressed file is read through, which also finds damage inside; of a zip and of a plain tar only the end is.

    Args:
        path: the file.
        name: what messages call it.
    """
    with open(path, "rb") as handle:
        head = handle.read(512)
    if head.startswith(b"PK\x03\x04"):
        with open(path, "rb") as handle:
            _end_of_zip(handle, name)
    elif head[257:262] == b"ustar":
        with open(path, "rb") as handle:
            handle.seek(-min(path.stat().st_size, 1024), 2)
            if handle.read().strip(b"\0") or path.stat().st_size % tarfile.BLOCKSIZE:
                raise FileError(f"{name}: a tar archive without its end: cut off; fetch it again")
    elif opener := _opener(head):
        budget = Budget(name, path.stat().st_size, DEFAULT)
        with open(path, "rb") as handle, _damage(name), progress(None, f"check {path.name}", "B") as bar:
            for chunk in _chunks(opener(handle), budget):
                bar.update(len(chunk))


# ------------------------------------------------------------------------------------------------ zip


def _zip(path: Path, head: bytes, tree: Tree, encoding: str | None) -> None:
    """Everything is judged before the first byte is written."""
    with open(path, "rb") as handle:
        directory, start = _end_of_zip(handle, str(path))
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
                        tree.write(name, member.file_size, _chunks(reader, tree.budget), bar)


def _end_of_zip(handle: IO[bytes], name: str) -> tuple[bytes, int]:
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


_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
}


def _is_folder(member: zipfile.ZipInfo, name: str) -> bool:
    return name.endswith("/") or stat.S_ISDIR(member.external_attr >> 16)


# ------------------------------------------------------------------------------------------------ tar


class _Header(tarfile.TarInfo):
    """A header that does not take damage for the end of the archive, as the standard library does."""

    archive: ClassVar[str] = ""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> _Header:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the block of zeros that ends an archive
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"header at byte {tar.offset}: {error}") from None


class _Unpacked:
    """The bytes of a tar, decompressed and counted."""

    def __init__(self, stream: IO[bytes], budget: Budget) -> None:
        self._stream, self._budget = stream, budget
        self._header: int | None = 0  # bytes of the header that is being read

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._budget.spend(len(data))
        if self._header is not None:
            self._header += len(data)
            if self._header > _HEADER_BYTES + _CHUNK:  # tarfile reads a header whole, and a chunk ahead
                raise FileError(f"{self._budget.name}: a header of more than {_HEADER_BYTES >> 20} MiB: a bomb")
        return data

    def next_header(self, tar: tarfile.TarFile) -> tarfile.TarInfo | None:
        """The next member of the tar that is read from here, or None at its end."""
        self._header = 0
        member = tar.next()
        self._header = None
        tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
        return member


def _tar(path: Path, head: bytes, tree: Tree, encoding: str | None) -> None:
    """Member after member, as they come."""
    opener = _opener(head)
    if not opener and head[257:262] != b"ustar" and not _old_tar(head):
        raise FileError(f"{path}: {_foreign(head)}")
    refuse_full_disk(tree.folder, path.stat().st_size, str(path))
    with open(path, "rb") as handle, progress(path.stat().st_size, f"extract {path.name}", "B") as bar:
        stream = _Unpacked(opener(handle) if opener else handle, tree.budget)
        try:
            tar = tarfile.open(  # noqa: SIM115 - closed below
                fileobj=stream,  # type: ignore[call-overload]
                mode="r|",
                bufsize=_CHUNK,
                tarinfo=_Header,
                encoding=encoding or "utf-8",
                errors="surrogateescape",
            )
        except tarfile.ReadError as error:
            what = "one compressed file, no archive of files" if opener else "no archive"
            raise FileError(f"{path}: {what} ({error})") from None
        with tar:
            while (member := stream.next_header(tar)) is not None:
                _refuse_tar_kind(member, path)
                [name] = decode_names([_raw(member.name)], encoding, str(path))
                tree.claim(name, member.size, folder=member.isdir())
                if member.isreg():
                    reader = tar.extractfile(member)
                    assert reader is not None
                    tree.write(name, member.size, _chunks(reader))
                bar.update(handle.tell() - bar.n)
            # tarfile stops at the first block of zeros: what is behind it holds the check sum of a compressed file.
            rest: Any = tar.fileobj
            for chunk in _chunks(rest):
                if chunk.strip(b"\0"):
                    raise FileError(f"{path}: more data behind its end: several archives joined; unpack them by hand")


def _raw(name: str) -> str | bytes:
    """A name, or its bytes where they were no UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return name.encode("utf-8", "surrogateescape")
    return name


def _refuse_tar_kind(member: tarfile.TarInfo, path: Path) -> None:
    if member.issym() or member.islnk():
        raise FileError(
            f"{path}: {member.name!r} is a {'symbolic' if member.issym() else 'hard'} link; only files and folders are "
            "unpacked: make the archive anew with `tar --dereference --hard-dereference`"
        )
    if not (member.isreg() or member.isdir()):
        raise FileError(f"{path}: {member.name!r} is a device or pipe; only files and folders are unpacked")
    if member.issparse():
        raise FileError(f"{path}: {member.name!r} is a sparse file; make the archive anew without `--sparse`")


def _old_tar(head: bytes) -> bool:
    """Whether this is the header of a tar from before POSIX, which has no magic number."""
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


# ------------------------------------------------------------------------------------------------ both


def _head(archive: Path) -> bytes:
    if not archive.is_file():
        raise FileError(f"{archive}: {'is a folder, no archive' if archive.is_dir() else 'no such file'}")
    with open(archive, "rb") as handle:
        head = handle.read(tarfile.BLOCKSIZE)
    if not head:
        raise FileError(f"{archive}: the file is empty; fetch it again")
    return head


def _opener(head: bytes) -> Callable[[IO[bytes]], Any] | None:
    return next((opener for magic, opener in _COMPRESSED.items() if head.startswith(magic)), None)


def _foreign(head: bytes) -> str:
    known = next((text for magic, text in _FOREIGN.items() if head.startswith(magic)), None)
    return known or "no zip or tar archive: unpack it by hand, and give the folder"


def _chunks(reader: IO[bytes], budget: Budget | None = None) -> Iterator[bytes]:
    """What is left to read, counted where there is a budget."""
    while chunk := reader.read(_CHUNK):
        if budget is not None:
            budget.spend(len(chunk))
        yield chunk


@contextmanager
def _damage(name: Path | str) -> Iterator[None]:
    """What the standard library says of damaged data, as a FileError."""
    try:
        yield
    except FileError:
        raise
    except EOFError:
        raise FileError(f"{name}: the archive is cut off; fetch it again") from None
    except _DAMAGE as error:
        raise FileError(f"{name}: the archive is damaged or cut off ({error}); fetch it again") from None
