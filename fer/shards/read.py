"""Batches for training and evaluation, made ahead by threads, in an order that nothing but the seed decides.

Threads, not processes: reading, decoding and augmenting release the interpreter's lock, and nothing is copied between
address spaces. A batch is made by one thread; some batches are under way at once, and are handed out in order. Each
first takes the encoded pictures that it needs, in the order of the batches, so that the row groups of one window are
all that is kept. Memory is bounded by them, the batches under way and the pixel cache, whatever the dataset's size.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fer.models.base import Resize
from fer.shards.ahead import Buffers, Threads, Turns
from fer.shards.dataset import RowGroups, ShardSet, ShardSplit
from fer.shards.order import balanced_weights, epoch_order, occurrences, rank_slice
from fer.shards.pixels import ModelInput, PixelCache, Pixels, decode, normalise, resize
from fer.shards.schema import ShardError
from fer.transforms.draws import sample_keys
from fer.transforms.reference import Apply, Augmenter

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
        distributions: float32 (B, classes), shares of the labels, where they were asked for.
    """

    images: Tensor
    targets: Tensor
    rows: Tensor
    index: int
    distributions: Tensor | None = None


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
        prefetch: batches under way besides the one handed out; None: one more than threads.
        sampler: "shuffle" takes every row once an epoch; "balanced" draws as many rows, every class equally often.
        window_groups: row groups that are shuffled into each other; so many are in memory, as stored.
        cache_bytes: keep decoded pixels of a split that fits into so much memory; changes no result. 0 keeps none.
        soft_labels: batches have `distributions`; of a row that comes without one, all of it is the label's.

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
        prefetch: int | None = None,
        sampler: Literal["shuffle", "balanced"] = "shuffle",
        window_groups: int = 8,
        cache_bytes: int = CACHE_BYTES,
        soft_labels: bool = False,
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
        self._maker = _Maker(split, ModelInput(*model_input), PixelCache(split.rows, cache_bytes), soft_labels)
        self._threads = Threads(threads, prefetch)

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
        self._split.expect(self._split.groups_of(order[start_step * self._batch_size :]))
        groups = RowGroups(self._split, self._window_groups)
        turns = Turns()

        def make(step: int, stop: threading.Event) -> Batch:
            start = step * self._batch_size
            positions = slice(start + self._part.start, start + self._part.stop)
            rows, apply = order[positions], None
            with turns.of(step - start_step):
                pictures = self._maker.fetch(rows, groups)
            if self._augment is not None:
                apply = self._augment.plan(sample_keys(self._seed, epoch, rows, repeats[positions]))
            return self._maker(step, rows, pictures, stop, apply)

        return self._threads.in_order(make, range(start_step, self.steps_per_epoch))

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
        prefetch: int | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        assert batch_size >= 1
        assert 0 <= rank < world_size
        self._split, self._batch_size = split, batch_size
        batches = -(-split.rows // batch_size)
        self._mine = range(rank, batches, world_size)
        self._maker = _Maker(split, ModelInput(*model_input), PixelCache(split.rows, cache_bytes))
        self._threads = Threads(threads, prefetch)

    def __len__(self) -> int:
        """Batches of this rank."""
        return len(self._mine)

    def __iter__(self) -> Iterator[Batch]:
        """One pass; errors and threads as in `TrainBatches.epoch`."""
        self._split.expect(self._split.groups_of(np.concatenate([self._rows(0)[:0], *map(self._rows, self._mine)])))
        groups = RowGroups(self._split, 1)
        turns = Turns()

        def make(index: int, stop: threading.Event) -> Batch:
            rows = self._rows(index)
            with turns.of(self._mine.index(index)):
                pictures = self._maker.fetch(rows, groups)
            return self._maker(index, rows, pictures, stop, None)

        return self._threads.in_order(make, self._mine)

    def _rows(self, index: int) -> npt.NDArray[np.int64]:
        first = index * self._batch_size
        return np.arange(first, min(first + self._batch_size, self._split.rows))

    def close(self) -> None:
        """Ends the threads of every pass that was begun."""
        self._threads.close()


class _Stopped(Exception):  # noqa: N818 - no error: tells a thread to leave its batch
    pass


class _Picture(NamedTuple):
    """The bytes (n,) of a file, or pixels from the cache."""

    data: Pixels
    encoded: bool


class _Maker:
    """Makes a batch from row numbers."""

    def __init__(self, split: ShardSplit, target: ModelInput, cache: PixelCache, soft_labels: bool = False) -> None:
        target.check()
        self._split, self._target, self._cache = split, target, cache
        self._labels = split.labels()
        self._buffers = Buffers()
        self._distributions = split.distributions() if soft_labels else None

    def fetch(self, rows: npt.NDArray[np.int64], groups: RowGroups) -> "list[_Picture]":
        """The pictures of the rows, as they are found: copies, which keep no row group in memory."""
        pictures = []
        for row in rows.tolist():
            kept = self._cache.get(row)
            if kept is None:
                group, offset = self._split.place(row)
                pictures.append(_Picture(groups[group][offset].copy(), encoded=True))
            else:
                pictures.append(_Picture(kept, encoded=False))
        return pictures

    def __call__(
        self,
        index: int,
        rows: npt.NDArray[np.int64],
        pictures: "list[_Picture]",
        stop: threading.Event,
        apply: Apply | None,
    ) -> Batch:
        size = self._target.size
        images = self._buffers.take((len(rows), size, size, 3))
        for position, (row, picture) in enumerate(zip(rows.tolist(), pictures, strict=True)):
            if stop.is_set():
                raise _Stopped
            try:
                pixels = self._pixels(row, picture)
                if pixels.ndim == 2:
                    pixels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB).astype(np.uint8, copy=False)
                if apply is None:
                    images[position] = pixels
                else:
                    apply(position, pixels, images[position])
            except ShardError:
                raise
            except Exception as error:
                file = self._split.file_of(self._split.place(row)[0])
                raise SampleError(self._split.sample_id(row), str(file), str(error)) from error
        shares = None if self._distributions is None else torch.from_numpy(self._distributions[rows])
        return Batch(
            torch.from_numpy(images), torch.from_numpy(self._labels[rows]), torch.from_numpy(rows), index, shares
        )

    def _pixels(self, row: int, picture: "_Picture") -> Pixels:
        """(size, size) or (size, size, 3)."""
        if not picture.encoded:
            return resize(picture.data, self._target)
        decoded = decode(picture.data)
        resized = resize(decoded, self._target)
        self._cache.put(row, decoded, resized)
        return resized
