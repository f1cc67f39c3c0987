"""The progress of a run, for people and for the driver: a value in memory, and a small file in the work folder."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from fer.io.files import write_json
from fer.training.distributed import Distributed
from fer.training.state import TrainState

FILE_NAME = "progress.json"
_WRITE_SECONDS = 1.0


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
    """`progress.json`: the `Progress` and the `records` of all finished epochs, by rename, at most once a second."""

    def __init__(self, folder: Path, distributed: Distributed, *, epochs: int, steps: int) -> None:
        self._path, self._is_main = folder / FILE_NAME, distributed.is_main
        self._epochs, self._steps = epochs, steps
        self._pids = tuple(distributed.gather(os.getpid()))
        self._written, self._images, self._rate = time.monotonic(), 0, 0.0

    def update(self, state: TrainState, *, images: int = 0, write: bool = False) -> Progress:
        """Counts `images` more; rank 0 writes the file once a second, and where `write` is true."""
        self._images += images
        elapsed = time.monotonic() - self._written
        due = elapsed >= _WRITE_SECONDS
        if due:
            self._rate, self._images, self._written = round(self._images / elapsed, 1), 0, time.monotonic()
        progress = Progress(state.epoch, self._epochs, state.step, self._steps, self._rate, self._pids)
        if self._is_main and (due or write):
            write_json(self._path, {**asdict(progress), "records": state.records()})
        return progress
