"""Batches for training and evaluation, prefetched by threads, in an order that the seed alone decides.

Threads, not processes: reading, decoding and augmenting release the interpreter's lock, and nothing is copied between
address spaces. A batch is made by one thread; several are in progress at once, and are yielded in order. Each first
takes the encoded images that it needs, in the order of the batches, so that the row groups of one window are all that
is kept. Memory is bounded by them, the batches in progress and the pixel cache, whatever the dataset's size.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from fer.models.base import Resize
from fer.shards.dataset import Int64Array, RowGroups, ShardSet, ShardSplit
from fer.shards.order import balanced_weights, epoch_order, occurrences, rank_slice
from fer.shards.pixels import Levels, ModelInput, PixelCache, Pixels, decode, normalize, resize, rgb_levels
from fer.shards.prefetch import BufferPool, Prefetcher, Sequencer
from fer.shards.schema import ShardError
from fer.transforms.draws import sample_keys
from fer.transforms.reference import Apply, Augmenter

__all__ = [
    "Batch",
    "EvalBatches",
    "ModelInput",
    "SampleError",
    "ShardSet",
    "ShardSplit",
    "TrainBatches",
    "levels_at",
    "normalize",
]

CACHE_BYTES = 256 << 20


class SampleError(ShardError):
    """A sample that cannot be decoded; the message names it, its file and the reason."""

    def __init__(self, sample_id: str, file: str, why: str) -> None:
        super().__init__(f"sample {sample_id!r} in {file}: {why}")
        self.sample_id = sample_id
        self.file = file
        self.why = why

    def __reduce__(self) -> tuple[type[SampleError], tuple[str, str, str]]:
        """Pickled by its parts: the default keeps only the message."""
        return SampleError, (self.sample_id, self.file, self.why)


def levels_at(split: ShardSplit, rows: Int64Array, target: ModelInput) -> Levels:
    """Images of some rows in their order, as a model of this input is given them: (B, size, size, 3) RGB."""
    images = split.images_at(rows.tolist())
    return np.stack([rgb_levels(decode(images[row]), target) for row in rows.tolist()])


@dataclass(frozen=True)
class Batch:
    """Samples of one step, or of one rank's part of it.

    Attributes:
        images: uint8 (B, H, W, 3), RGB; float32 where they are not rounded (`ModelInput.truncate`).
        targets: int64 (B,), labels.
        rows: int64 (B,), the samples' rows in the split.
        index: number of the global batch within the epoch.
        distributions: float32 (B, classes), probabilities of the labels, where requested.
    """

    images: Tensor
    targets: Tensor
    rows: Tensor
    index: int
    distributions: Tensor | None = None


class TrainBatches:
    """One rank's batches of the epochs of a training run.

    Global step `s` takes the samples `order[s * B : (s + 1) * B]`, on any number of ranks; the rest of an epoch that
    fills no batch is left out. A sample's augmentation is keyed by (seed, epoch, row, how often it came before in the
    epoch).

    Args:
        split: what to read.
        model_input: size and kind of resize, e.g. `ModelInput.of(model)`.
        batch_size: samples of a step over all ranks.
        seed: of order, sampling and augmentation.
        augment: applied after the resize; None leaves images as they are.
        rank, world_size: which part of each batch is read; the parts are contiguous.
        threads: that read, decode and augment.
        prefetch: batches made ahead of the one in use; None: one more than threads.
        sampler: "shuffle" takes every row once an epoch; "balanced" draws as many rows, every class equally often.
        window_groups: row groups that are shuffled into each other; so many are in memory, as stored.
        cache_bytes: keep decoded pixels of a split that fits into so much memory; changes no result. 0 keeps none.
        soft_labels: batches have `distributions`; of a row that has none, all probability is the label's.

    Raises:
        ValueError: fewer rows than a batch, or fewer samples in a batch than ranks.
    """

    def __init__(
        self,
        split: ShardSplit,
        *,
        model_input: ModelInput | tuple[int, Resize],
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
            raise ValueError(f"a batch of {batch_size} cannot be split over {world_size} workers: raise batch_size")
        assert 0 <= rank < world_size
        self._split, self._batch_size, self._seed, self._augment = split, batch_size, seed, augment
        self._part = rank_slice(batch_size, rank, world_size)
        self._window_groups = window_groups
        self._weights = balanced_weights(split.labels()) if sampler == "balanced" else None
        target = ModelInput(*model_input)
        self._reader = _Reader(split, target, cache_bytes, threads, prefetch, soft_labels, training=True)

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
        steps, part = range(start_step, self.steps_per_epoch), self._part
        mine = [slice(step * self._batch_size + part.start, step * self._batch_size + part.stop) for step in steps]
        rows, repeats, augment = [order[positions] for positions in mine], occurrences(order), self._augment

        def plan(place: int) -> Apply | None:
            keys = sample_keys(self._seed, epoch, rows[place], repeats[mine[place]])
            return augment.plan(keys) if augment is not None else None

        return self._reader.batches(steps, rows, self._window_groups, plan)

    def close(self) -> None:
        """Ends the threads of every epoch that was begun; its iterator then raises RuntimeError."""
        self._reader.close()


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
        model_input: ModelInput | tuple[int, Resize],
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
        self._mine = range(rank, -(-split.rows // batch_size), world_size)
        self._reader = _Reader(split, ModelInput(*model_input), cache_bytes, threads, prefetch)

    def __len__(self) -> int:
        """Batches of this rank."""
        return len(self._mine)

    def __iter__(self) -> Iterator[Batch]:
        """One pass; errors and threads as in `TrainBatches.epoch`."""
        stored = np.arange(self._split.rows)
        rows = [stored[index * self._batch_size :][: self._batch_size] for index in self._mine]
        return self._reader.batches(self._mine, rows, window_groups=1)

    def close(self) -> None:
        """Ends the threads of every pass that was begun."""
        self._reader.close()


class _Stopped(Exception):  # noqa: N818 - no error: tells a thread to leave its batch
    pass


class _Stored(NamedTuple):
    """The bytes (n,) of a file, or pixels from the cache."""

    data: Pixels
    encoded: bool


class _Reader:
    """Makes batches from row numbers, ahead of their use."""

    def __init__(
        self,
        split: ShardSplit,
        target: ModelInput,
        cache_bytes: int,
        threads: int,
        prefetch: int | None,
        soft_labels: bool = False,
        *,
        training: bool = False,
    ) -> None:
        target.check()
        self._split, self._target, self._training = split, target, training
        self._cache = PixelCache(split.rows, cache_bytes)
        self._labels = split.labels()
        self._distributions = split.distributions() if soft_labels else None
        self._buffers = BufferPool(target.dtype(training=training))
        self._prefetcher = Prefetcher(threads, prefetch)
        self.close = self._prefetcher.close

    def batches(
        self,
        indices: Sequence[int],
        rows: Sequence[Int64Array],
        window_groups: int,
        plan: Callable[[int], Apply | None] = lambda _: None,
    ) -> Iterator[Batch]:
        """One batch of each element of `rows`, which gets the index of the same place.

        Args:
            window_groups: row groups that are kept, as stored.
            plan: place -> the augmentation of the batch.
        """
        self._split.expect(self._split.groups_of(np.concatenate([np.zeros(0, np.int64), *rows])))
        groups, sequencer = RowGroups(self._split, window_groups), Sequencer()

        def make(place: int, stop: threading.Event) -> Batch:
            with sequencer.turn(place):
                stored = self._fetch(rows[place], groups)
            return self._make(indices[place], rows[place], stored, stop, plan(place))

        return self._prefetcher.in_order(make, range(len(rows)))

    def _fetch(self, rows: Int64Array, groups: RowGroups) -> list[_Stored]:
        """The images of the rows, as they are stored: copies, which keep no row group in memory."""
        images = []
        for row in rows.tolist():
            kept = self._cache.get(row)
            if kept is None:
                group, offset = self._split.place(row)
                images.append(_Stored(groups[group][offset].copy(), encoded=True))
            else:
                images.append(_Stored(kept, encoded=False))
        return images

    def _make(
        self, index: int, rows: Int64Array, stored: list[_Stored], stop: threading.Event, apply: Apply | None
    ) -> Batch:
        size = self._target.size
        images = self._buffers.take((len(rows), size, size, 3))
        for position, (row, image) in enumerate(zip(rows.tolist(), stored, strict=True)):
            if stop.is_set():
                raise _Stopped
            try:
                pixels = self._pixels(row, image)
                if pixels.ndim == 2:
                    pixels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB).astype(images.dtype, copy=False)
                if apply is None:
                    images[position] = pixels
                else:
                    apply(position, pixels, images[position])
            except ShardError:
                raise
            except Exception as error:
                file = self._split.file_of(self._split.place(row)[0])
                raise SampleError(self._split.sample_id(row), str(file), str(error)) from error
        soft = None if self._distributions is None else torch.from_numpy(self._distributions[rows])
        return Batch(
            torch.from_numpy(images), torch.from_numpy(self._labels[rows]), torch.from_numpy(rows), index, soft
        )

    def _pixels(self, row: int, image: _Stored) -> Levels:
        """(size, size) or (size, size, 3)."""
        if not image.encoded:
            return resize(image.data, self._target, training=self._training)
        decoded = decode(image.data)
        resized = resize(decoded, self._target, training=self._training)
        # JPEG changes an image each time: what went through it is never kept.
        self._cache.put(row, decoded, decoded if self._target.truncate else resized)
        return resized
