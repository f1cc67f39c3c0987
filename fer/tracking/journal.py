"""Entries that a tracking store did not take, kept in `.work/unsent` until it does.

    <time>-<process>.jsonl    one a run: the first line identifies the run, each other one is a call and its arguments
    <time>-<process>/         copies of the files that calls are about, since the originals may be replaced meanwhile

A writer holds a lock on its file, which distinguishes the journal of a living process from one that is left to be sent.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from fer.console import log
from fer.io.files import FileError, name_in_errors

MAX_FILE_BYTES = 16 << 20

Entry = tuple[str, dict[str, Any]]


class Journal:
    """The calls of one run, in order; each is in the file before the next starts.

    Args:
        root: the project's folder.
        run: the facts that identify the run, for `open_journal`.
    """

    def __init__(self, root: Path, run: dict[str, Any]) -> None:
        folder = _folder(root)
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{time.time_ns():020d}-{os.getpid()}.jsonl"  # names sort by time
        # Renamed once it is locked and has its first line: before, another process would take it for an abandoned one.
        new = self.path.with_suffix(".new")
        self._file = open(new, "w", encoding="utf-8")  # noqa: SIM115 - open, and locked, as long as the run
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._copies = 0
        self._write(run)
        new.rename(self.path)

    def append(self, call: str, arguments: dict[str, Any], keep: Path | None = None) -> None:
        """Adds a call.

        Args:
            arguments: such that JSON can hold them.
            keep: file or folder that is copied, and whose copy the argument `path` will name when the call is read.
                More than 16 MiB are left out, with a warning, and the call with them.
        """
        if keep is not None:
            if (size := _size(keep)) > MAX_FILE_BYTES:
                log.warning(
                    "%s: its %.0f MB are too many to be kept until MLflow works; the run lacks it", keep, size / 1e6
                )
                return
            arguments = {**arguments, "path": self._copy(keep)}
        self._write([call, arguments])

    def entries(self) -> list[Entry]:
        """The calls so far."""
        with open(self.path, encoding="utf-8") as file:
            content = _read(file, self.path)
        assert content is not None, "the first line was written when the journal was made"
        return content[1]

    def close(self) -> None:
        """Leaves the file to the process that sends it."""
        self._file.close()

    def discard(self) -> None:
        """Removes the file: everything in it was sent."""
        _remove(self.path)
        self._file.close()

    def _copy(self, path: Path) -> str:
        """Copies a file or folder; the copy's place, relative to the folder of journals."""
        self._copies += 1
        copy = self.path.with_suffix("") / f"{self._copies:04d}" / path.name
        copy.parent.mkdir(parents=True)
        if path.is_dir():
            shutil.copytree(path, copy)
        else:
            shutil.copyfile(path, copy)
        return copy.relative_to(self.path.parent).as_posix()

    def _write(self, value: Any) -> None:
        with name_in_errors(self.path):
            self._file.write(json.dumps(value) + "\n")
            self._file.flush()


def left_journals(root: Path) -> list[Path]:
    """All journals of a project, the oldest first."""
    return sorted(_folder(root).glob("*.jsonl"))


@contextmanager
def open_journal(path: Path) -> Iterator[tuple[dict[str, Any], list[Entry]] | None]:
    """The facts that identify a journal's run, and its calls; None where a living process writes it or sends it.

    The journal is removed where the block ends without an error.

    Raises:
        FileError: it is damaged.
    """
    try:
        file = open(path, encoding="utf-8")  # noqa: SIM115 - closed below
    except FileNotFoundError:  # sent by another process
        yield None
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Without a name it was sent, and removed, by another process while this one opened it.
            free = os.fstat(file.fileno()).st_nlink > 0
        except BlockingIOError:
            free = False
        yield _read(file, path) if free else None
        if free:
            _remove(path)


def _folder(root: Path) -> Path:
    return root / ".work" / "unsent"


def _read(file: IO[str], path: Path) -> tuple[dict[str, Any], list[Entry]] | None:
    """The content of a journal; None where its disk had no room for the first line."""
    lines = [line for line in file if line.endswith("\n")]  # a killed writer may have left half a line
    if not lines:
        return None
    try:
        run, *calls = map(json.loads, lines)
    except ValueError as error:
        raise FileError(f"{path}: damaged ({error})") from None
    entries = []
    for call, arguments in calls:
        if "path" in arguments:
            arguments = {**arguments, "path": str(path.parent / arguments["path"])}
        entries.append((str(call), dict(arguments)))
    return run, entries


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    shutil.rmtree(path.with_suffix(""), ignore_errors=True)  # there are copies only where a call was about a file


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
