"""Parts of shards as files: rows picked from all faces without holding them in memory, and what the manifest says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fer.io.files import name_in_errors, sha256
from fer.shards.manifest import Part
from fer.shards.schema import Split, shard_schema
from fer.shards.table import TableReader

_MAPPED = 64  # batches of 512 rows: some 100 MB of faces


class RowStore:
    """All rows of data/faces in one uncompressed Arrow file, mapped piecewise, from which parts pick their rows."""

    def __init__(self, path: Path, files: Iterable[Path]) -> None:
        self._path = path
        names, starts = shard_schema().names, [0]
        with name_in_errors(path), pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, shard_schema()) as writer:
            for file in files:
                for batch in TableReader(file).batches(names):
                    columns = [batch[name] for name in names]
                    writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=shard_schema()))
                    starts.append(starts[-1] + batch.num_rows)
        self._starts = np.array(starts)

    def take(self, rows: Sequence[int], at_once: int) -> Iterator[pa.Table]:
        """The given rows in the given order, so many in a table."""
        for start in range(0, len(rows), at_once):
            yield self._take(rows[start : start + at_once])

    def _take(self, rows: Sequence[int]) -> pa.Table:
        numbers = np.asarray(rows, dtype=np.int64)
        ascending = np.sort(numbers)
        picked = pa.Table.from_batches(list(self._pick(ascending)), schema=shard_schema()).combine_chunks()
        return picked.take(pa.array(np.searchsorted(ascending, numbers)))

    def _pick(self, ascending: npt.NDArray[np.int64]) -> Iterator[pa.RecordBatch]:
        ends = np.searchsorted(ascending, self._starts)
        for index, (low, high) in enumerate(pairwise(ends.tolist())):
            if index % _MAPPED == 0:  # again, so that what was read leaves memory
                reader = pa.ipc.open_file(pa.memory_map(str(self._path)))
            if low < high:
                yield reader.get_batch(index).take(pa.array(ascending[low:high] - self._starts[index]))

    def images(self, rows: Sequence[int]) -> list[bytes]:
        """The encoded images of the given rows."""
        images: list[bytes] = self._take(rows)["image"].to_pylist()
        return images

    def remove(self) -> None:
        """Deletes the file."""
        self._path.unlink()


def describe_part(path: Path, split: Split, fold: int | None, labels: Sequence[int], classes: int) -> Part:
    """The manifest's entry of a written part; `labels` are those of its rows."""
    counts = Counter(labels)
    return Part(
        file=path.name,
        split=split,
        fold=fold,
        rows=len(labels),
        bytes=path.stat().st_size,
        sha256=sha256(path),
        row_groups=tuple(TableReader(path).row_groups),
        class_histogram=tuple(counts[label] for label in range(classes)),
    )
