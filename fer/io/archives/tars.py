"""Tar archives, plain or compressed: unpacked member after member, as they come."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import IO, Any

from fer.console import progress
from fer.io.archives.streams import CHUNK, chunks, foreign, opener_of
from fer.io.archives.tree import Budget, Tree, decode_names
from fer.io.disk import refuse_full_disk
from fer.io.files import FileError

HEAD_BYTES = tarfile.BLOCKSIZE

_HEADER_BYTES = 1 << 20  # the most that may stand between two members of a tar: headers of long names are far shorter


def is_tar(head: bytes) -> bool:
    """Whether a file that begins with these bytes is a tar archive by its magic number; older ones have none."""
    return head[257:262] == b"ustar"


def refuse_tar_without_end(handle: IO[bytes], name: str) -> None:
    """FileError where a plain tar archive does not end in two blocks of zeros.

    Args:
        name: what messages call it.
    """
    size = handle.seek(0, 2)
    handle.seek(-min(size, 2 * tarfile.BLOCKSIZE), 2)
    if handle.read().strip(b"\0") or size % tarfile.BLOCKSIZE:
        raise FileError(f"{name}: a tar archive without its end: cut off; fetch it again")


def unpack_tar(path: Path, head: bytes, tree: Tree, encoding: str | None) -> None:
    """Unpacks a tar archive, member after member.

    Args:
        head: the first `HEAD_BYTES` of the file.
        encoding: of names that are not UTF-8; None: `decode_names` tells.

    Raises:
        FileError: it is no tar archive, a hostile one, or the disk has no room.
        Exception: what the standard library says of damaged data, for `fer.io.archives.streams.damage_named`.
    """
    opener = opener_of(head)
    if not opener and not is_tar(head) and not _is_old_tar(head):
        raise FileError(f"{path}: {foreign(head)}")
    refuse_full_disk(tree.folder, path.stat().st_size, str(path))
    with open(path, "rb") as handle, progress(path.stat().st_size, f"extract {path.name}", "B") as bar:
        stream = _Unpacked(opener(handle) if opener else handle, tree.budget)
        try:
            tar = tarfile.open(  # noqa: SIM115 - closed below
                fileobj=stream,  # type: ignore[call-overload]
                mode="r|",
                bufsize=CHUNK,
                tarinfo=_Header,
                encoding=encoding or "utf-8",
                errors="surrogateescape",
            )
        except tarfile.ReadError as error:
            what = "one compressed file, no archive of files" if opener else "no archive"
            raise FileError(f"{path}: {what} ({error})") from None
        with tar:
            while (member := stream.next_header(tar)) is not None:
                _refuse_kind(member, path)
                [name] = decode_names([_raw(member.name, encoding or "utf-8")], encoding, str(path))
                tree.claim(name, member.size, folder=member.isdir())
                if member.isreg():
                    reader = tar.extractfile(member)
                    assert reader is not None
                    tree.write(name, member.size, chunks(reader))
                bar.update(handle.tell() - bar.n)
            # tarfile stops at the first block of zeros: what is behind it holds the check sum of a compressed file.
            rest: Any = tar.fileobj
            for chunk in chunks(rest):
                if chunk.strip(b"\0"):
                    raise FileError(f"{path}: more data behind its end: several archives joined; unpack them by hand")


class _Header(tarfile.TarInfo):
    """A header that does not take damage for the end of the archive, as the standard library does."""

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
            if self._header > _HEADER_BYTES + CHUNK:  # tarfile reads a header whole, and a chunk ahead
                raise FileError(f"{self._budget.name}: a header of more than {_HEADER_BYTES >> 20} MiB: a bomb")
        return data

    def next_header(self, tar: tarfile.TarFile) -> tarfile.TarInfo | None:
        """The next member of the tar that is read from here, or None at its end."""
        self._header = 0
        member = tar.next()
        self._header = None
        tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
        return member


def _raw(name: str, encoding: str) -> str | bytes:
    """A name, or its bytes where they were not in `encoding`."""
    try:
        name.encode()
    except UnicodeEncodeError:  # tarfile has put a lone surrogate for each byte that it could not read
        return name.encode(encoding, "surrogateescape")
    return name


def _refuse_kind(member: tarfile.TarInfo, path: Path) -> None:
    if member.issym() or member.islnk():
        raise FileError(
            f"{path}: {member.name!r} is a {'symbolic' if member.issym() else 'hard'} link; only files and folders are "
            "unpacked: make the archive anew with `tar --dereference --hard-dereference`"
        )
    if not (member.isreg() or member.isdir()):
        raise FileError(f"{path}: {member.name!r} is a device or pipe; only files and folders are unpacked")
    if member.issparse():
        raise FileError(f"{path}: {member.name!r} is a sparse file; make the archive anew without `--sparse`")


def _is_old_tar(head: bytes) -> bool:
    """Whether this is the header of a tar from before POSIX, which has no magic number."""
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True
