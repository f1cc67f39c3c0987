"""Extraction of untrusted zip and tar archives: everything or nothing, and never a byte outside the destination.

Hostile or broken archives are refused with the reason: names that lead elsewhere or collide, links, devices,
encryption, bombs, truncated files. Sizes are counted as they are written, and the content decides which kind of
archive a file is. `fer.io.archive_tree` has the limits and the rules for names. The `data` filter of `tarfile` is not
used: it allows links, backslashes and names that collide.
"""

from __future__ import annotations

import bz2
import copy
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
from typing import IO, Any

from fer.console import progress
from fer.io import compat
from fer.io.archive_tree import DEFAULT, Budget, Limits, Tree, decode_names
from fer.io.files import FileError, publish_directory, refuse_full_disk

_CHUNK = 1 << 20
_TAR_HEADER_BYTES = 1 << 20  # most bytes between the contents of two members: headers of long names are far shorter
_COMPRESSED: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}
_UNSUPPORTED = {
    b"Rar!": "a RAR archive: unpack it with `unrar x`, and give the folder",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive: unpack it with `7z x`, and give the folder",
    b"EGGA": "an EGG archive: unpack it with Bandizip or ALZip, and give the folder",
    b"ALZ\x01": "an ALZ archive: unpack it with Bandizip or `unalz`, and give the folder",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it with `tar --zstd -xf`, and give the folder",
    b"PK\x07\x08": "one part of a split zip archive: join the parts with `zip -s 0 IN.zip --out WHOLE.zip`",
}
_DAMAGE = (  # what the standard library raises for damaged data
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error, OSError, RuntimeError, ValueError,
)  # fmt: skip
_ZIP_KINDS = {
    stat.S_IFLNK: "a symbolic link", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
}  # fmt: skip
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


def extract(archive: Path, destination: Path, *, limits: Limits = DEFAULT, encoding: str | None = None) -> None:
    """Extracts a zip or tar archive (plain, gz, bz2, xz) into a new folder, which appears complete, by rename.

    Only plain files and folders come out, with the permissions of new files: no set-uid bit, no time, no owner.

    Names of a zip that are flagged as UTF-8 are UTF-8. The others have no stated encoding: they are read as `encoding`
    where it is given; else as UTF-8 where all of them are valid UTF-8; else as CP949 (Korean Windows) where all are
    valid CP949; else as CP437, the zip format's own. The same holds for a tar, each name for itself.

    Args:
        archive: the file. Its content decides its kind, not its name.
        destination: folder that does not exist yet. The leftovers of a killed extraction beside it are removed.
        limits: against bombs.
        encoding: of names without a stated one, e.g. "cp949".

    Raises:
        FileError: not an archive, or one that is damaged, truncated, encrypted or hostile; names in another encoding,
            or an unknown encoding; or too little disk space. Nothing is left of it.
    """
    if destination.exists():
        raise FileError(f"{destination}: exists already; remove it to extract {archive.name} again")
    if not archive.is_file():
        raise FileError(f"{archive}: {'is a folder, not an archive' if archive.is_dir() else 'no such file'}")
    try:
        " ".encode(encoding or "utf-8")  # the codec is not looked up for an empty text
    except LookupError:
        raise FileError(f"{archive}: unknown encoding {encoding!r}; for Korean Windows it is 'cp949'") from None
    head = _head(archive)
    if not head:
        raise FileError(f"{archive}: the file is empty; fetch it again")
    with publish_directory(destination, many_files=True) as folder, _damage(archive):
        tree = Tree(folder, Budget(str(archive), archive.stat().st_size, limits))
        if _is_zip(head):
            _extract_zip(archive, tree, encoding)
        elif is_tar(head) or _decompressor(head):
            _extract_tar(archive, _decompressor(head), tree, encoding)
        else:
            known = next((text for magic, text in _UNSUPPORTED.items() if head.startswith(magic)), None)
            raise FileError(f"{archive}: {known or 'not a zip or tar archive: unpack it by hand, and give the folder'}")
        if not tree.files:
            raise FileError(f"{archive}: the archive holds no file")


def refuse_truncated(path: Path, name: str) -> None:
    """FileError, calling the file `name`, where it is an archive by its first bytes and has no proper end.

    A compressed file is read through, which also finds damage inside; of a zip and of a plain tar, only the end is
    checked. Other files pass.
    """
    head = _head(path)
    with open(path, "rb") as handle:
        if _is_zip(head):
            _zip_directory(handle, name)
        elif is_tar(head):
            size = handle.seek(0, 2)
            handle.seek(-min(size, 2 * tarfile.BLOCKSIZE), 2)
            if handle.read().strip(b"\0") or size % tarfile.BLOCKSIZE:
                raise FileError(f"{name}: a tar archive without its end: cut off; fetch it again")
        elif decompress := _decompressor(head):
            budget = Budget(name, path.stat().st_size)
            with _damage(name), progress(None, f"check {path.name}", "B") as bar:
                for chunk in _chunks(decompress(handle), budget):
                    bar.update(len(chunk))


def is_tar(head: bytes) -> bool:
    """Whether the first 512 bytes of a file are the header of a tar, by its magic number or else its checksum."""
    if head[257:262] == b"ustar":
        return True
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _is_zip(head: bytes) -> bool:
    return head.startswith((b"PK\x03\x04", b"PK\x05\x06"))  # the second: a zip without members


def _decompressor(head: bytes) -> Callable[[IO[bytes]], Any] | None:
    return next((opener for magic, opener in _COMPRESSED.items() if head.startswith(magic)), None)


def _head(path: Path) -> bytes:
    with open(path, "rb") as handle:
        return handle.read(tarfile.BLOCKSIZE)


def _chunks(reader: IO[bytes], budget: Budget | None = None) -> Iterator[bytes]:
    while chunk := reader.read(_CHUNK):
        if budget is not None:
            budget.count_bytes(len(chunk))
        yield chunk


@contextmanager
def _damage(name: Path | str) -> Iterator[None]:
    """Turns what the standard library raises for damaged data into a FileError."""
    try:
        yield
    except FileError:
        raise
    except EOFError:
        raise FileError(f"{name}: the archive is cut off; fetch it again") from None
    except _DAMAGE as error:
        raise FileError(f"{name}: the archive is damaged or cut off ({error}); fetch it again") from None


# ------------------------------------------------------------------------------------------------ zip


def _extract_zip(path: Path, tree: Tree, encoding: str | None) -> None:
    """Everything is checked before the first byte is written."""
    with open(path, "rb") as handle:
        directory, start = _zip_directory(handle, str(path))
        copy.copy(tree.budget).count_entries(*_survey(directory))  # claims below count again, one by one
        del directory
    with zipfile.ZipFile(path) as archive:
        infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
        names = decode_names([compat.zip_name(info) for info in infos], encoding, str(path))
        # Members that share their bytes: how 10 MB of zip become petabytes (Fifield, "A better zip bomb", 2019).
        ends = [*(info.header_offset for info in infos), start][1:]
        for info, end in zip(infos, ends, strict=True):
            if info.header_offset + 30 + info.compress_size > end:
                raise FileError(f"{path}: {info.filename!r} overlaps with another member: a zip bomb")
        files: list[tuple[zipfile.ZipInfo, Path]] = []
        for info, name in zip(infos, names, strict=True):
            kind = stat.S_IFMT(info.external_attr >> 16)
            _refuse_zip_kind(info, kind, f"{path}: {name!r}")
            is_folder = name.endswith("/") or kind == stat.S_IFDIR
            target = tree.claim(name, info.file_size, is_folder=is_folder)
            files += [] if is_folder else [(info, target)]
        refuse_full_disk(tree.folder, tree.needed, str(path))
        with progress(sum(info.file_size for info, _ in files), f"extract {path.name}", "B") as bar:
            for info, target in files:
                with archive.open(info) as reader:
                    tree.write(target, info.file_size, _chunks(reader, tree.budget), bar)


def _zip_directory(handle: IO[bytes], name: str) -> tuple[bytes, int]:
    """The central directory of a zip and where it starts; FileError where the file ends before it."""
    truncated = FileError(f"{name}: begins as a zip archive and has no end: cut off; fetch it again")
    size = handle.seek(0, 2)
    handle.seek(-min(size, 22 + 65535), 2)
    tail = handle.read()
    found = tail.rfind(b"PK\x05\x06")
    if found < 0 or len(tail) - found < 22:
        raise truncated
    length, offset = struct.unpack_from("<LL", tail, found + 12)
    stop = size - len(tail) + found
    handle.seek(max(0, stop - 20))
    locator = handle.read(20)
    if locator.startswith(b"PK\x06\x07"):  # zip64 has the numbers in a record of its own
        stop = min(struct.unpack_from("<Q", locator, 8)[0], size)
        handle.seek(stop)
        record = handle.read(56)
        if not record.startswith(b"PK\x06\x06") or len(record) < 56:
            raise truncated
        length, offset = struct.unpack_from("<QQ", record, 40)
    start = stop - length  # not `offset`: the file may begin with something else
    if start < 0 or offset > start:
        raise truncated
    handle.seek(start)
    return handle.read(length), start


def _survey(directory: bytes) -> tuple[int, int]:
    """Sum of the declared sizes and number of entries, without the memory of an object for each."""
    entries = total = place = 0
    while place < len(directory):
        if directory[place : place + 4] != b"PK\x01\x02":
            raise zipfile.BadZipFile("its list of files is damaged")
        size, *lengths = struct.unpack_from("<LHHH", directory, place + 24)
        entries += 1
        total += size  # for a member beyond 4 GiB, a lower bound
        place += 46 + sum(lengths)
    return total, entries


def _refuse_zip_kind(info: zipfile.ZipInfo, kind: int, what: str) -> None:
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise FileError(f"{what} is {_ZIP_KINDS.get(kind, 'a special file')}; only files and folders are extracted")
    if info.flag_bits & 1:
        raise FileError(f"{what} is encrypted: unpack the archive by hand with its password, and give the folder")
    if info.compress_type not in _ZIP_METHODS:
        raise FileError(
            f"{what} is compressed by method {info.compress_type} (9 is Deflate64), which is not supported: unpack the "
            "archive with `7z x`, and give the folder"
        )


# ------------------------------------------------------------------------------------------------ tar


def _extract_tar(path: Path, decompress: Callable[[IO[bytes]], Any] | None, tree: Tree, encoding: str | None) -> None:
    """Member after member, as they come: a tar has no list of its members."""
    refuse_full_disk(tree.folder, path.stat().st_size, str(path))
    own = encoding or "utf-8"
    with open(path, "rb") as handle, progress(path.stat().st_size, f"extract {path.name}", "B") as bar:
        stream = _TarStream(decompress(handle) if decompress else handle, tree.budget)
        try:
            tar = tarfile.open(  # noqa: SIM115 - closed below
                fileobj=stream,  # type: ignore[call-overload]
                mode="r|", bufsize=_CHUNK, tarinfo=_TarHeader, encoding=own, errors="surrogateescape",
            )  # fmt: skip
        except tarfile.ReadError as error:
            what = "one compressed file, not an archive of files" if decompress else "not an archive"
            raise FileError(f"{path}: {what} ({error})") from None
        with tar:
            while (member := stream.next_member(tar)) is not None:
                _refuse_tar_kind(member, path)
                [name] = decode_names([_tar_name(member, own)], encoding, str(path))
                target = tree.claim(name, member.size, is_folder=member.isdir())
                if member.isreg():
                    reader = tar.extractfile(member)
                    assert reader is not None
                    tree.write(target, member.size, _chunks(reader))
                bar.update(handle.tell() - bar.n)
            # tarfile stops at the first block of zeros; the checksum of a compressed file is behind it.
            if any(chunk.strip(b"\0") for chunk in _chunks(compat.tar_stream(tar))):
                raise FileError(f"{path}: more data behind its end: several archives joined; unpack them by hand")


class _TarHeader(tarfile.TarInfo):
    """A header whose damage is an error; the standard library takes it for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _TarHeader:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):  # the block that ends an archive
                raise
            raise tarfile.ReadError(f"a header: {error}") from None


class _TarStream:
    """The bytes of a tar, decompressed and counted."""

    def __init__(self, stream: IO[bytes], budget: Budget) -> None:
        self._stream, self._budget = stream, budget
        self._header: int | None = 0  # bytes of the header that is being read

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._budget.count_bytes(len(data))
        if self._header is not None:
            self._header += len(data)
            if self._header > _TAR_HEADER_BYTES + _CHUNK:  # tarfile reads a header whole, and a chunk ahead
                raise FileError(f"{self._budget.name}: a header of more than {_TAR_HEADER_BYTES >> 20} MiB: a bomb")
        return data

    def next_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo | None:
        """The next member of the tar that is read from here, or None at its end."""
        self._header = 0
        member = tar.next()
        self._header = None
        compat.forget_tar_members(tar)
        return member


def _tar_name(member: tarfile.TarInfo, encoding: str) -> str | bytes:
    """A member's name, or its bytes where they were not in `encoding`."""
    try:
        member.name.encode()
    except UnicodeEncodeError:  # tarfile has a lone surrogate for each byte that it could not decode
        return member.name.encode(encoding, "surrogateescape")
    return member.name


def _refuse_tar_kind(member: tarfile.TarInfo, path: Path) -> None:
    what = f"{path}: {member.name!r} is"
    if member.issym() or member.islnk():
        raise FileError(
            f"{what} a {'symbolic' if member.issym() else 'hard'} link; only files and folders are extracted: create "
            "the archive again with `tar --dereference --hard-dereference`"
        )
    if not (member.isreg() or member.isdir()):
        raise FileError(f"{what} a device or pipe; only files and folders are extracted")
    if member.issparse():
        raise FileError(f"{what} a sparse file; create the archive again without `--sparse`")
