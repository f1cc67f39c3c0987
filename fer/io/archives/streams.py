"""What all archives share: their kind by their first bytes, their content in pieces, and what damage is called."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from fer.io.archives.tree import Budget
from fer.io.files import FileError

CHUNK = 1 << 20

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


def opener_of(head: bytes) -> Callable[[IO[bytes]], Any] | None:
    """What decompresses a file that begins with these bytes; None where it is not compressed by gzip, bzip2 or xz."""
    return next((opener for magic, opener in _COMPRESSED.items() if head.startswith(magic)), None)


def foreign(head: bytes) -> str:
    """What a file is that is not read here, and how to get at its content."""
    known = next((text for magic, text in _FOREIGN.items() if head.startswith(magic)), None)
    return known or "no zip or tar archive: unpack it by hand, and give the folder"


def chunks(reader: IO[bytes], budget: Budget | None = None) -> Iterator[bytes]:
    """What is left to read, counted where there is a budget."""
    while chunk := reader.read(CHUNK):
        if budget is not None:
            budget.spend(len(chunk))
        yield chunk


@contextmanager
def damage_named(name: Path | str) -> Iterator[None]:
    """Turns what the standard library says of damaged data into a FileError.

    Args:
        name: what messages call the archive.
    """
    try:
        yield
    except FileError:
        raise
    except EOFError:
        raise FileError(f"{name}: the archive is cut off; fetch it again") from None
    except _DAMAGE as error:
        raise FileError(f"{name}: the archive is damaged or cut off ({error}); fetch it again") from None
