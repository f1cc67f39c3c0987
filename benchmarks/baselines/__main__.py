"""One contender in a process of its own, so that memory and threads are its own; started by `fer bench ingest`.

    python -m benchmarks.baselines prepare NAME FOLDER SIZE ROWS
    python -m benchmarks.baselines read NAME FOLDER SIZE BATCH WORKERS EPOCHS

The last line printed is what it found, as JSON.
"""

import gc
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import psutil

from benchmarks.baselines import CONTENDERS, Job, contender
from benchmarks.data import made_up
from fer.processes import quiet_libraries

_SECONDS_BETWEEN_SAMPLES = 0.25


def main(verb: str, name: str, folder: str, *numbers: str) -> None:
    """Does what the command line says."""
    quiet_libraries()
    found: dict[str, float] = {}
    if verb == "prepare":
        size, rows = map(int, numbers)
        contender(name).prepare(made_up(rows, size), Path(folder))
    else:
        size, batch, workers, epochs = map(int, numbers)
        found = read(name, Job(Path(folder), size, batch, workers), epochs=epochs)
    print(json.dumps(found), flush=True)
    os._exit(0)  # loaders whose processes live on between epochs have no common way to be ended


def read(name: str, job: Job, *, epochs: int) -> dict[str, float]:
    """Measurements of a contender: a first epoch starts everything, `epochs` more are timed.

    Returns:
        images_per_second: of the epochs after the first. cpu_us: processor time of one of their images in microseconds.
        first_batch_s: from nothing but imported libraries to the first normalized batch. memory_mb: most memory above
        that of the imported libraries, in 10**6 bytes.
    """
    import torch

    torch.set_num_threads(1)
    module = contender(name)
    import_module("albumentations")  # which all of them would import when they build their transforms
    gc.collect()
    peak = _Peak()
    started = time.perf_counter()
    epoch = module.epochs(job, **CONTENDERS[name][1])
    first_batch, images = 0.0, 0
    for number in range(1 + epochs):
        if number == 1:
            timed, cpu, images = time.perf_counter(), cpu_seconds(), 0
        for images_BCHW, labels in epoch(number):
            assert images_BCHW.shape == (job.batch, 3, job.size, job.size), images_BCHW.shape
            assert images_BCHW.dtype == torch.float32, images_BCHW.dtype
            images += len(labels)
            first_batch = first_batch or time.perf_counter() - started
            del images_BCHW, labels  # else two batches are in memory while the next one is made
    seconds, cpu = time.perf_counter() - timed, cpu_seconds() - cpu
    return {
        "images_per_second": images / seconds,
        "cpu_us": 1e6 * cpu / images,
        "first_batch_s": first_batch,
        "memory_mb": peak.above(),
    }


class _Peak:
    """The most memory of this process and its children above what it is now."""

    def __init__(self) -> None:
        self._before = self._most = memory_mb()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self._most = max(self._most, memory_mb())
            time.sleep(_SECONDS_BETWEEN_SAMPLES)

    def above(self) -> float:
        """In 10**6 bytes."""
        return max(self._most, memory_mb()) - self._before


def cpu_seconds() -> float:
    """Processor time of this process and its living descendants since they started."""
    return _total(lambda process: sum(process.cpu_times()[:2]))


def memory_mb() -> float:
    """Resident memory of this process and its living descendants in 10**6 bytes; what they share counts once."""
    return _total(lambda process: process.memory_full_info().pss) / 1e6


def _total(measure: Callable[[psutil.Process], float]) -> float:
    own, total = psutil.Process(), 0.0
    for process in (own, *own.children(recursive=True)):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            total += measure(process)
    return total


if __name__ == "__main__":
    main(*sys.argv[1:])
