"""What a disk can hold, and what it says when it cannot."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeGuard

from fer.io.files import FileError

_AGAIN = "run the same command again"
_REMEDIES = {
    errno.ENOSPC: f"make room and {_AGAIN}",
    errno.EDQUOT: f"make room, or have the quota raised, and {_AGAIN}",
    errno.EFBIG: f"raise the limit of a file's size (ulimit -f) and {_AGAIN}",
    errno.EROFS: f"make it writable, or work in another folder, and {_AGAIN}",
    errno.EACCES: f"allow it to this user and {_AGAIN}",
    errno.EPERM: f"allow it to this user and {_AGAIN}",
    errno.EIO: "the disk, or the network that it is reached by, is failing: see the kernel's log (dmesg)",
    errno.ENAMETOOLONG: "use shorter names, or a folder higher up",
    errno.EMFILE: f"raise the limit of open files (ulimit -n) and {_AGAIN}",
    errno.ENFILE: f"the machine has too many files open: end what is not needed and {_AGAIN}",
    errno.ENOTDIR: "something that is no folder stands there: move it away",
    errno.EEXIST: "something else stands there: move it away",
    errno.EISDIR: "a folder stands there: move it away",
}


def is_of_the_disk(error: object) -> TypeGuard[OSError]:
    """Whether what failed is the disk, a limit or a permission: no defect, and no better the next time."""
    return isinstance(error, OSError) and error.errno in _REMEDIES


def explained(error: OSError) -> str:
    """One line of path, cause and remedy, of an error `is_of_the_disk`."""
    assert error.errno is not None
    path = error.filename2 or error.filename  # of two, such as a rename's, what is written is the second
    where = f"{path.decode(errors='replace') if isinstance(path, bytes) else path}: " if path is not None else ""
    return f"{where}{os.strerror(error.errno)}; {_REMEDIES[error.errno]}"


@contextmanager
def disk_errors(path: Path, remedy: str) -> Iterator[None]:
    """Turns what the operating system says while `path` is written into a FileError that names it.

    Args:
        path: what is written.
        remedy: what to do; closes the message.
    """
    try:
        yield
    except OSError as error:
        raise FileError(f"{path}: cannot be written: {error.strerror or error}; {remedy}") from error


def refuse_full_disk(folder: Path, needed: int, what: str) -> None:
    """FileError where `needed` bytes do not fit beside what is on the disk of `folder`.

    Args:
        what: that needs them, for the message.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise FileError(f"{what}: needs {needed / 1e9:,.2f} GB in {folder}, where {free / 1e9:,.2f} GB are free")
