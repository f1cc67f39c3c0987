"""What a disk can hold, and what it says when it cannot: for writers of much data."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fer.files import FileError


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
