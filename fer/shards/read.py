"""Batches for training and evaluation, made ahead by threads, in an order that nothing but the seed decides.

Threads, not processes: reading, decoding and resizing release the interpreter's lock. A batch is made by one thread;
some batches are under way at once, and are handed out in order. Memory is bounded by the window of row groups, the
batches under way and the pixel cache, whatever the dataset's size.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fer.augment import Augmenter
from fer.models.base import Resize
from fer.processes import stable_hash
from fer.shards.dataset import RowGroups, ShardSet, ShardSplit
from fer.shards.order import balanced_weights, epoch_order, occurrences, rank_slice
from fer.shards.pixels import ModelInput, PixelCache, Pixels, decode, normalise, resize
from fer.shards.schema import ShardError

__all__ = ["Batch", "EvalBatches", "ModelInput", "SampleError", "ShardSet", "ShardSplit", "TrainBatches", "normalise"]

CACHE_BYTES = 256 << 20


class SampleError(ShardError):
    """A sample that cannot be made into pixels; the message names it, its file and what is wrong."""

    def __init__(self, sample_id: str, file: str, why: str) -> None:
        super().__init__(f"sample {sample_id!r} in {file}: {why}")
        self.sample_id = sample_id
        self.file = file
        self.why = why

    def __reduce__(self) -> tuple[type["SampleError"], tuple[str, str, str]]:
        """It travels between processes by its parts; an exception's own way keeps only the message."""
        return SampleError, (self.sample_id, self.file, self.why)


@dataclass(frozen=True)
class Batch:
    """Samples of one step, or of one rank's part of it.

    Attributes:
        images: uint8 (B, H, W, 3), RGB.
        targets: int64 (B,), labels.
        rows: int64 (B,), the samples' rows in the split.
        index: number of the global batch within the epoch.
    """

    images: Tensor
    targets: Tensor
    rows: Tensor
    index: int


class TrainBatches:
    """One rank's batches of the epochs of a training.

    Global step `s` takes the samples `order[s * B : (s + 1) * B]`, on any number of ranks; the rest of an epoch that
    fills no batch is left out. A sample's augmentation is keyed by (seed, epoch, row, how often it came before in the
    epoch).

    Args:
        split: what to read.
        model_input: size and kind of resize, e.g. `ModelInput.of(model)`.
        batch_size: samples of a step over all ranks.
        seed: of order, sampling and augmentation.
        augment: applied after the resize; None leaves pictures as they are.
        rank, world_size: which part of each batch is wanted; the parts are contiguous.
        threads: that read, decode and augment.
        prefetch: batches under way besides the one handed out.
        sampler: "shuffle" takes every row once an epoch; "balanced" draws as many rows, every class equally often.
        window_groups: row groups that are shuffled into each other; at most twice as many are in memory, as stored.
        cache_bytes: keep decoded pixels of a split that fits into so much memory; changes no result. 0 keeps none.

    Raises:
        ValueError: fewer rows than a batch, or fewer samples in a batch than ranks.
    """

    def __init__(
        self,
        split: ShardSplit,
        *,
        model_input: tuple[int, Resize],
        batch_size: int,
        seed: int,
        augment: Augmenter | None = None,
        rank: int = 0,
        world_size: int = 1,
        threads: int = 1,
        prefetch: int = 4,
        sampler: Literal["shuffle", "balanced"] = "shuffle",
        window_groups: int = 8,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        if split.rows < batch_size:
            raise ValueError(
                f"split {split.name!r} has {split.rows} rows, which fill no batch of {batch_size}: lower batch_size"
            )
        if batch_size < world_size:
            raise ValueError(f"a batch of {batch_size} cannot be dealt to {world_size} workers: raise batch_size")
        assert 0 <= rank < world_size
        self._split, self._batch_size, self._seed, self._augment = split, batch_size, seed, augment
        self._part = rank_slice(batch_size, rank, world_size)
        self._window_groups = window_groups
        self._weights = balanced_weights(split.labels()) if sampler == "balanced" else None
        self._maker = _Maker(split, ModelInput(*model_input), PixelCache(split.rows, cache_bytes))
        self._threads = _Threads(threads, prefetch)

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch; the same on every rank."""
        return self._split.rows // self._batch_size

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from `start_step` on: exactly the tail of the whole epoch.

        Its threads end when it is exhausted, closed or collected.

        Raises:
            SampleError, ShardError: from the iterator, at the step whose sample cannot be read.
        """
        assert epoch >= 0
        assert 0 <= start_step <= self.steps_per_epoch
        order = epoch_order(
            self._split.row_group_sizes,
            seed=self._seed,
            epoch=epoch,
            window_groups=self._window_groups,
            weights=self._weights,
        )
        repeats = occurrences(order)
        groups = RowGroups(self._split, 2 * self._window_groups)

        def make(step: int, stop: threading.Event) -> Batch:
            start = step * self._batch_size
            positions = slice(start + self._part.start, start + self._part.stop)
            augment = None if self._augment is None else (self._augment, self._keys(epoch, order, repeats, positions))
            return self._maker(step, order[positions], groups, stop, augment)

        return self._threads.in_order(make, range(start_step, self.steps_per_epoch))

    def _keys(
        self, epoch: int, order: npt.NDArray[np.int64], repeats: npt.NDArray[np.int64], positions: slice
    ) -> list[int]:
        pairs = zip(order[positions].tolist(), repeats[positions].tolist(), strict=True)
        return [stable_hash("fer.augment", self._seed, epoch, row, repeat, bits=32) for row, repeat in pairs]

    def close(self) -> None:
        """Ends the threads of every epoch that was begun; going on with its iterator is a RuntimeError."""
        self._threads.close()


class EvalBatches:
    """One rank's batches of a split: every row once over all ranks, in the order stored, nothing padded or left out.

    Global batch `i` holds rows `i * B` to `(i + 1) * B - 1` (the last may hold fewer), for rank `i % world_size`,
    so that what a model computes of it does not depend on the number of ranks. A rank may get no batch at all.

    Args: as `TrainBatches`. No augmentation.
    """

    def __init__(
        self,
        split: ShardSplit,
        *,
        model_input: tuple[int, Resize],
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        threads: int = 1,
        prefetch: int = 4,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        assert batch_size >= 1
        assert 0 <= rank < world_size
        self._split, self._batch_size = split, batch_size
        batches = -(-split.rows // batch_size)
        self._mine = range(rank, batches, world_size)
        self._maker = _Maker(split, ModelInput(*model_input), PixelCache(split.rows, cache_bytes))
        self._threads = _Threads(threads, prefetch)

    def __len__(self) -> int:
        """Batches of this rank."""
        return len(self._mine)

    def __iter__(self) -> Iterator[Batch]:
        """One pass; errors and threads as in `TrainBatches.epoch`."""
        groups = RowGroups(self._split, 4)

        def make(index: int, stop: threading.Event) -> Batch:
            first = index * self._batch_size
            rows = np.arange(first, min(first + self._batch_size, self._split.rows))
            return self._maker(index, rows, groups, stop, None)

        return self._threads.in_order(make, self._mine)

    def close(self) -> None:
        """Ends the threads of every pass that was begun."""
        self._threads.close()


class _Stopped(Exception):  # noqa: N818 - no error: tells a thread to leave its batch
    pass


class _Maker:
    """Makes a batch from row numbers."""

    def __init__(self, split: ShardSplit, target: ModelInput, cache: PixelCache) -> None:
        target.check()
        self._split, self._target, self._cache = split, target, cache
        self._labels = split.labels()

    def __call__(
        self,
        index: int,
        rows: npt.NDArray[np.int64],
        groups: RowGroups,
        stop: threading.Event,
        augment: tuple[Augmenter, list[int]] | None,
    ) -> Batch:
        size = self._target.size
        images = np.empty((len(rows), size, size, 3), np.uint8)
        for position, row in enumerate(rows.tolist()):
            if stop.is_set():
                raise _Stopped
            try:
                pixels = self._pixels(row, groups)
                images[position] = pixels if pixels.ndim == 3 else pixels[:, :, None]
                if augment is not None:
                    augmenter, keys = augment
                    images[position] = augmenter(images[position], keys[position])
            except ShardError:
                raise
            except Exception as error:
                file = self._split.file_of(self._split.place(row)[0])
                raise SampleError(self._split.sample_id(row), str(file), str(error)) from error
        return Batch(torch.from_numpy(images), torch.from_numpy(self._labels[rows]), torch.from_numpy(rows), index)

    def _pixels(self, row: int, groups: RowGroups) -> Pixels:
        """(size, size) or (size, size, 3), from the cache or the file."""
        kept = self._cache.get(row)
        if kept is not None:
            return resize(kept, self._target)
        group, offset = self._split.place(row)
        decoded = decode(groups[group][offset])
        resized = resize(decoded, self._target)
        self._cache.put(row, decoded, resized)
        return resized


class _Threads:
    """Runs calls on threads, a bounded number ahead, and hands out their results in order."""

    def __init__(self, threads: int, prefetch: int) -> None:
        assert threads >= 1
        assert prefetch >= 1
        self._count, self._prefetch = threads, prefetch
        self._running: dict[threading.Event, ThreadPoolExecutor] = {}

    def in_order(self, make: Callable[[int, threading.Event], Batch], indices: Iterable[int]) -> Iterator[Batch]:
        """make(index, stop) for each index, in order; it must leave soon once `stop` is set."""
        cv2.setNumThreads(1)  # the threads here are the parallelism; OpenCV's own would fight them for the cores
        stop = threading.Event()
        pool = self._running[stop] = ThreadPoolExecutor(self._count, thread_name_prefix="fer-reader")
        ahead: deque[Future[Batch]] = deque()
        try:
            for index in indices:
                ahead.append(pool.submit(make, index, stop))
                if len(ahead) > self._prefetch:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        except Exception as error:
            if stop.is_set():  # an epoch cut short must not look like a complete one
                raise RuntimeError("the batches were closed while they were being read") from error
            raise
        finally:
            self._end(stop)

    def close(self) -> None:
        """Ends the threads of every pass that is under way."""
        for stop in list(self._running):
            self._end(stop)

    def _end(self, stop: threading.Event) -> None:
        pool = self._running.pop(stop, None)
        stop.set()
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
