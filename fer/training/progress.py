"""The progress of a run, for people and for the driver: a value in memory, and a small file in the work folder."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from typing import Any

from fer.io.storage import Folder, is_store
from fer.training.distributed import Distributed
from fer.training.state import TrainState

FILE_NAME = "progress.json"
STOP = "stop"
"""A file by which the driver asks the ranks to save and stop."""
_CHANGES = "changes.json"
_WRITE_SECONDS = 1.0
_STORE_SECONDS = 5.0
"""In a store, whose every file costs the ranks a request's time."""


@dataclass(frozen=True)
class Progress:
    """A run after one update.

    Attributes:
        epoch: finished epochs, of `epochs`.
        step: finished updates of the epoch in progress, of `steps`.
        images_per_second: over all ranks, in the last second or so.
        pids: process of each rank, in order of ranks.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    images_per_second: float
    pids: tuple[int, ...]


class ProgressFile:
    """`progress.json`: the `Progress` and the `records` of all finished epochs, whole, at most once a second."""

    def __init__(self, location: str, distributed: Distributed, *, epochs: int, steps: int) -> None:
        self._folder, self._is_main = Folder(location), distributed.is_main
        self._seconds = _STORE_SECONDS if is_store(location) else _WRITE_SECONDS
        self._epochs, self._steps = epochs, steps
        self._pids = tuple(distributed.gather(os.getpid()))
        self._written, self._images, self._rate = time.monotonic(), 0, 0.0
        self._looked, self._asked = self._written, ""

    def update(self, state: TrainState, *, images: int = 0, write: bool = False) -> Progress:
        """Counts `images` more; rank 0 writes the file once a second, and where `write` is true."""
        self._images += images
        elapsed = time.monotonic() - self._written
        due = elapsed >= self._seconds
        if due:
            self._rate, self._images, self._written = round(self._images / elapsed, 1), 0, time.monotonic()
        progress = Progress(state.epoch, self._epochs, state.step, self._steps, self._rate, self._pids)
        if self._is_main and (due or write):
            self._folder.write_json(FILE_NAME, {**asdict(progress), "records": state.records()})
        return progress

    def asked(self) -> str:
        """Why all ranks shall stop, or an empty text: on rank 0, which looks for the driver's request once a second."""
        if self._is_main and time.monotonic() - self._looked >= self._seconds:
            self._looked = time.monotonic()
            self._asked = "the driver is asked to end" if self._folder.find(STOP) is not None else ""
        return self._asked


def record_change(location: str, **facts: Any) -> None:
    """Adds to the record of a run why its workers changed, with how far it had come."""
    folder = Folder(location)
    seen = folder.find_json(FILE_NAME) or {}
    at = {"time": round(time.time()), "epoch": seen.get("epoch", 0), "step": seen.get("step", 0)}
    folder.write_json(_CHANGES, [*changes(location), {**at, **facts}])


def changes(location: str) -> list[dict[str, Any]]:
    """What `record_change` has recorded, with the `time` in seconds since 1970 and the finished `epoch` and `step`."""
    found: list[dict[str, Any]] = Folder(location).find_json(_CHANGES) or []
    return found
