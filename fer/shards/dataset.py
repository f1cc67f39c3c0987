"""Opened shards: the splits of a dataset, their labels, and their row groups as they are read."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from fer.shards.manifest import Manifest, digest, repair
from fer.shards.remote import RemoteParts, is_remote
from fer.shards.schema import ShardError
from fer.shards.verify import verify as check

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]

_COLUMN_READS = 8  # columns that are read at the same time from a store


@dataclass(frozen=True)
class ShardSet:
    """A folder data/shards/<dataset>, here or in an object store: `manifest` and the splits it lists.

    Attributes:
        folder: where it is, or where parts that come from a store are kept.
        manifest: what is known of the dataset and its parts.
        digest: sha256 of manifest.json, which holds that of every part: the identity of the data.
        store: fetches the parts where they are elsewhere.
    """

    folder: Path
    manifest: Manifest
    digest: str
    store: RemoteParts | None = field(default=None, repr=False, compare=False)

    @classmethod
    def open(cls, location: Path | str, *, verify: bool = True, cache: Path | None = None) -> ShardSet:
        """Opens a folder of shards, after reading every byte of it once.

        Of a folder in a store the manifest is fetched, and the presence and size of every part checked; a part itself
        is fetched, and every byte of it checked, when it is needed.

        Args:
            location: data/shards/<dataset>, or its URL: s3://bucket/prefix/name or any other that fsspec or HTTP knows.
            verify: False skips the reading of local bytes, as where another process has just done it; presence, sizes,
                schema and counts are checked all the same.
            cache: folder in which parts from stores are kept, by the digest of their set; None is the one of the
                environment, `fer.io.cache.cache_folder()`.

        Raises:
            ShardError: something is missing, too much, truncated or altered, or of another schema version or label
                order; the message names the file and the command that repairs it.
        """
        if is_remote(location):
            store = RemoteParts(str(location), cache=cache, verify=verify)
            return cls(store.folder, store.manifest, store.digest, store)
        folder = Path(location)
        return cls(folder, check(folder, content=verify), digest(folder))

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes; a label is an index into them."""
        return self.manifest.labels

    @property
    def label_space(self) -> str:
        """Name of the label space, a key of `fer.labels.SPACES`."""
        return self.manifest.label_space

    def split(self, name: str, *, folds: int | None = None, fold: int = 0, repeat: int = 0) -> ShardSplit:
        """The rows of "train", "validation", "test" or "development": the manifest's own, or one fold's.

        Args:
            folds, fold, repeat: as in `fer.shards.manifest.Manifest.files`.

        Raises:
            ValueError: no such split, one without rows, or a cross-validation that these shards cannot give.
        """
        groups = {part.file: part.row_groups for part in self.manifest.parts}
        files = self.manifest.files(name, folds=folds, fold=fold, repeat=repeat)
        return ShardSplit(name, [(self.folder / file, groups[file]) for file in files], self.labels, self.store)


@dataclass(frozen=True)
class EncodedGroup:
    """The images of one row group, as stored."""

    data: npt.NDArray[np.uint8]
    offsets: Int64Array

    def __getitem__(self, row: int) -> npt.NDArray[np.uint8]:
        """Bytes (n,) of an image; a view."""
        return self.data[self.offsets[row] : self.offsets[row + 1]]


class ShardSplit:
    """Rows of some parts, numbered 0 .. rows - 1 through the parts as listed. Nothing is read before it is asked for.

    Args:
        name: of the split, for messages.
        parts: each part's file, and the rows of each of its row groups.
        label_names: a label is an index into them.
        store: fetches the parts where they are elsewhere.
    """

    def __init__(
        self,
        name: str,
        parts: Sequence[tuple[Path, Sequence[int]]],
        label_names: Sequence[str],
        store: RemoteParts | None = None,
    ) -> None:
        self.name = name
        self._store = store
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
        values = np.concatenate([column.to_numpy() for column in self._columns("label")]).astype(np.int64)
        if values.min() < 0 or values.max() >= len(self.label_names):
            raise ShardError(
                f"{self._files[0].parent}: split {self.name!r} has labels {values.min()} to {values.max()}, "
                f"but there are {len(self.label_names)} names: {', '.join(self.label_names)}"
            )
        return values

    def distributions(self) -> Float32Array:
        """float32 (rows, classes): class probabilities by several annotators where stored, else 1 for the label.

        Raises:
            ShardError: a row has another number of probabilities than there are classes.
        """
        probabilities = np.eye(len(self.label_names), dtype=np.float32)[self.labels()]
        stored = [one for column in self._columns("distribution") for one in column.to_pylist()]
        for row, given in enumerate(stored):
            if given is None:
                continue
            if len(given) != len(self.label_names):
                raise ShardError(
                    f"{self.file_of(self.place(row)[0])}: sample {self.sample_id(row)!r} has {len(given)} class "
                    f"probabilities, but there are {len(self.label_names)} labels: {', '.join(self.label_names)}"
                )
            probabilities[row] = given
        return probabilities

    def sample_ids(self) -> list[str]:
        """The id of each row."""
        return [sample for column in self._columns("sample_id") for sample in column.to_pylist()]

    @property
    def class_histogram(self) -> tuple[int, ...]:
        """Rows of each class."""
        return tuple(np.bincount(self.labels(), minlength=len(self.label_names)).tolist())

    def place(self, row: int) -> tuple[int, int]:
        """The row group that holds a row, and the row's number in it."""
        group = bisect_right(self._first_rows, row) - 1
        return group, row - self._first_rows[group]

    def groups_of(self, rows: Int64Array) -> list[int]:
        """The row groups that hold some rows, each once, in the order in which the rows first need them."""
        groups = np.searchsorted(np.asarray(self._first_rows), rows, side="right") - 1
        _, first = np.unique(groups, return_index=True)
        return [int(group) for group in groups[np.sort(first)]]

    def file_of(self, group: int) -> Path:
        """The part that holds a row group."""
        return self._groups[group][0]

    def expect(self, groups: Sequence[int]) -> None:
        """Announces the row groups that will be read: a store's parts are prefetched in that order.

        Replaces the earlier announcement. Reading others, or in another order, is only slower.
        """
        if self._store is not None:
            self._store.expect([self.file_of(group).name for group in groups])

    def sample_id(self, row: int) -> str:
        """The id of one row, read from its file; for messages."""
        group, offset = self.place(row)
        return str(self._read(group, "sample_id")[offset].as_py())

    def images(self, group: int) -> EncodedGroup:
        """The images of a row group, page checksums verified. Safe for many threads.

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

    def images_at(self, rows: Iterable[int]) -> dict[int, UInt8Array]:
        """The encoded image of each of some rows. Each row group is read once.

        Raises:
            ShardError: as `images`.
        """
        found: dict[int, UInt8Array] = {}
        places = sorted((*self.place(row), row) for row in rows)
        for group, members in groupby(places, key=itemgetter(0)):
            images = self.images(group)
            found |= {row: images[offset].copy() for _, offset, row in members}
        return found

    def _read(self, group: int, column: str) -> Any:
        file, index = self._groups[group]
        with self._opened(file) as parquet:
            return parquet.read_row_group(index, columns=[column], use_threads=False).column(0)

    def _columns(self, name: str) -> list[Any]:
        """A column of each part."""
        if self._store is None:
            return [self._column(file, name) for file in self._files]
        store = self._store
        with ThreadPoolExecutor(_COLUMN_READS) as pool:  # each waits for the store
            return list(pool.map(lambda file: store.column(file.name, name), self._files))

    def _column(self, file: Path, name: str) -> Any:
        with self._opened(file) as parquet:
            return parquet.read(columns=[name], use_threads=False).column(0)

    @contextmanager
    def _opened(self, file: Path) -> Iterator[pq.ParquetFile]:
        """A file object a read: pyarrow's are not thread-safe, and a footer is read in a fraction of a group."""
        part: AbstractContextManager[Any] = nullcontext(file) if self._store is None else self._store.opened(file.name)
        try:
            with part as source, pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=False) as parquet:
                yield parquet
        except (OSError, pa.ArrowException) as error:
            remedy = repair(file.parent) if self._store is None else self._store.remedy(file.name)
            raise ShardError(f"{file}: cannot be read as it was written ({error}); {remedy}") from error


class RowGroups:
    """The `capacity` row groups that were used last. Thread-safe: each group is read once for all threads."""

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
            except BaseException as error:  # noqa: BLE001 - re-raised to all waiting threads
                with self._lock:
                    self._groups.pop(group, None)  # a later request tries again
                future.set_exception(error)
        return future.result()

    def __len__(self) -> int:
        return len(self._groups)
