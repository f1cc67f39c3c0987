"""Opened shards: the splits of a dataset, their labels, and their row groups as they are read."""

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from fer.shards.manifest import Manifest, digest, repair
from fer.shards.schema import SPLITS, ShardError
from fer.shards.verify import verify as check

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ShardSet:
    """A folder data/shards/<dataset>: `manifest` and the splits it lists.

    Attributes:
        folder: where it is.
        manifest: what is known of the dataset and its parts.
        digest: sha256 of manifest.json, which holds that of every part: the identity of the data.
    """

    folder: Path
    manifest: Manifest
    digest: str

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True) -> "ShardSet":
        """Opens a folder of shards, after reading every byte of it once.

        Args:
            folder: data/shards/<dataset>.
            verify: False leaves out the reading, as where another process has just done it; presence, sizes, schema
                and counts are checked all the same.

        Raises:
            ShardError: something is missing, too much, truncated or altered, or of another schema version or label
                order; the message names the file and the command that repairs it.
        """
        folder = Path(folder)
        return cls(folder, check(folder, content=verify), digest(folder))

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes; a label is an index into them."""
        return self.manifest.labels

    @property
    def label_space(self) -> str:
        """Name of the label space, a key of `fer.labels.SPACES`."""
        return self.manifest.label_space

    def split(self, name: str) -> "ShardSplit":
        """The rows of "train", "validation" or "test".

        Raises:
            ValueError: no such split, or one without rows.
        """
        by_name = {str(split): self.manifest.splits[split] for split in SPLITS if self.manifest.splits.get(split)}
        if name not in by_name:
            raise ValueError(f"{self.folder}: there is no split {name!r}; there are: {', '.join(by_name)}")
        groups = {part.file: part.row_groups for part in self.manifest.parts}
        return ShardSplit(name, [(self.folder / file, groups[file]) for file in by_name[name]], self.labels)


@dataclass(frozen=True)
class EncodedGroup:
    """The pictures of one row group, as stored."""

    data: npt.NDArray[np.uint8]
    offsets: Int64Array

    def __getitem__(self, row: int) -> npt.NDArray[np.uint8]:
        """Bytes (n,) of a picture; a view."""
        return self.data[self.offsets[row] : self.offsets[row + 1]]


class ShardSplit:
    """Rows of some parts, numbered 0 .. rows - 1 through the parts as listed. Nothing is read before it is asked for.

    Args:
        name: of the split, for messages.
        parts: each part's file, and the rows of each of its row groups.
        label_names: a label is an index into them.
    """

    def __init__(self, name: str, parts: Sequence[tuple[Path, Sequence[int]]], label_names: Sequence[str]) -> None:
        self.name = name
        self.label_names = tuple(label_names)
        self._files = [file for file, _ in parts]
        self._groups = [(file, index) for file, sizes in parts for index in range(len(sizes))]
        self.row_group_sizes: tuple[int, ...] = tuple(size for _, sizes in parts for size in sizes)
        self._first_rows = [0, *accumulate(self.row_group_sizes)]

    @property
    def rows(self) -> int:
        """Number of samples."""
        return self._first_rows[-1]

    def labels(self) -> Int64Array:
        """int64 (rows,): the label of each row. Not to be written to."""
        return self._labels

    @cached_property
    def _labels(self) -> Int64Array:
        values = np.concatenate([self._column(file, "label").to_numpy() for file in self._files]).astype(np.int64)
        if values.min() < 0 or values.max() >= len(self.label_names):
            raise ShardError(
                f"{self._files[0].parent}: split {self.name!r} has labels {values.min()} to {values.max()}, "
                f"but there are {len(self.label_names)} names: {', '.join(self.label_names)}"
            )
        return values

    def clean_labels(self) -> Int64Array:
        """int64 (rows,): the true labels, where noise was added to them; else the labels."""
        return np.concatenate([self._column(file, "clean_label").to_numpy() for file in self._files]).astype(np.int64)

    def sample_ids(self) -> list[str]:
        """The id of each row."""
        return [sample for file in self._files for sample in self._column(file, "sample_id").to_pylist()]

    @property
    def class_histogram(self) -> tuple[int, ...]:
        """Rows of each class."""
        return tuple(np.bincount(self.labels(), minlength=len(self.label_names)).tolist())

    def place(self, row: int) -> tuple[int, int]:
        """The row group that holds a row, and the row's number in it."""
        group = bisect_right(self._first_rows, row) - 1
        return group, row - self._first_rows[group]

    def file_of(self, group: int) -> Path:
        """The part that holds a row group."""
        return self._groups[group][0]

    def sample_id(self, row: int) -> str:
        """The id of one row, read from its file; for messages."""
        group, offset = self.place(row)
        return str(self._read(group, "sample_id")[offset].as_py())

    def images(self, group: int) -> EncodedGroup:
        """The pictures of a row group, page checksums verified. Safe for many threads.

        Raises:
            ShardError: the file cannot be read any more as it was written.
        """
        column = self._read(group, "image")
        if column.type != pa.large_binary():
            column = column.cast(pa.large_binary())
        array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        _, offsets, data = array.buffers()
        first = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
        return EncodedGroup(np.frombuffer(data, np.uint8), first)

    def _read(self, group: int, column: str) -> Any:
        file, index = self._groups[group]
        try:
            # A file object a read: pyarrow's are not for many threads, and a footer is read in a fraction of a group.
            with pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=False) as parquet:
                return parquet.read_row_group(index, columns=[column], use_threads=False).column(0)
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(file, f"row group {index}: {error}") from error

    def _column(self, file: Path, name: str) -> Any:
        try:
            with pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=False) as parquet:
                return parquet.read(columns=[name], use_threads=False).column(0)
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(file, str(error)) from error


class RowGroups:
    """The row groups in use: the `capacity` that were asked for last. Safe for many threads; each reads for all."""

    def __init__(self, split: ShardSplit, capacity: int) -> None:
        self._split = split
        self._capacity = capacity
        self._lock = threading.Lock()
        self._groups: OrderedDict[int, Future[EncodedGroup]] = OrderedDict()

    def __getitem__(self, group: int) -> EncodedGroup:
        with self._lock:
            future = self._groups.get(group)
            mine = future is None
            if future is None:
                future = self._groups[group] = Future()
                while len(self._groups) > self._capacity:
                    self._groups.popitem(last=False)
            else:
                self._groups.move_to_end(group)
        if mine:
            try:
                future.set_result(self._split.images(group))
            except BaseException as error:  # noqa: BLE001 - handed on to whoever waits for it
                with self._lock:
                    self._groups.pop(group, None)  # a later request tries again
                future.set_exception(error)
        return future.result()

    def __len__(self) -> int:
        return len(self._groups)


def _unreadable(file: Path, why: str) -> ShardError:
    return ShardError(f"{file}: cannot be read as it was written ({why}); {repair(file.parent)}")
