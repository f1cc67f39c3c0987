"""What a tracking store could not be told, kept in `.work/unsent` until it can be: files of JSON lines, one a run.

The first line says what run it is, each other one names a call and its arguments. A writer holds a lock on its file, so
that what a living process still writes is told from what is left to be sent.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Entry = tuple[str, dict[str, Any]]


class Journal:
    """The calls of one run, as they come; each is in the file before the next begins.

    Args:
        root: the project's folder.
        run: what the run is, for `open_journal`.
    """

    def __init__(self, root: Path, run: dict[str, Any]) -> None:
        folder = root / ".work" / "unsent"
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{time.time_ns():020d}-{os.getpid()}.jsonl"  # by name in order of time
        self._file = open(self.path, "w", encoding="utf-8")  # noqa: SIM115 - open, and locked, as long as the run
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._write(run)

    def append(self, call: str, arguments: dict[str, Any]) -> None:
        """Adds a call; its arguments are such that JSON can hold them."""
        self._write([call, arguments])

    def close(self) -> None:
        """Leaves the file to whoever sends it."""
        self._file.close()

    def _write(self, value: Any) -> None:
        self._file.write(json.dumps(value) + "\n")
        self._file.flush()


def left_journals(root: Path) -> list[Path]:
    """All journals of a project, the oldest first."""
    return sorted((root / ".work" / "unsent").glob("*.jsonl"))


@contextmanager
def open_journal(path: Path) -> Iterator[tuple[dict[str, Any], list[Entry]] | None]:
    """What run a journal is of, and its calls; None where a living process writes it or sends it.

    The file is removed where the block ends without an error.
    """
    try:
        file = open(path, encoding="utf-8")  # noqa: SIM115 - closed below
    except FileNotFoundError:  # sent by another process
        yield None
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        lines = [line for line in file if line.endswith("\n")]  # a killed writer may have left half a line
        if lines:
            run, *calls = map(json.loads, lines)
            yield run, [(str(call), dict(arguments)) for call, arguments in calls]
        path.unlink(missing_ok=True)
