"""The shard stage: faces dealt by hash into test parts and folds of training parts.

A row's part depends on its own group, id and the seed alone, so samples added later rewrite only the parts they fall
in. A group is a subject (a sample's own pixels where no subject is known), merged with every group that holds a
pixel-equal picture: nobody, and no picture that occurs twice, is in two folds. Folds are as even as the hash makes
them: over many groups each class falls alike on every fold, which the manifest's histograms show.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fer.console import log, progress
from fer.files import FileError, publish_directory, read_json, sha256
from fer.processes import stable_hash
from fer.shards.manifest import Manifest, Part
from fer.shards.schema import SCHEMA_VERSION, SPLITS, ShardConfig, ShardError, Split, shard_schema
from fer.shards.table import TableReader, write_table

_THREADS = 4
_LEVELS = np.arange(256, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class _Row:
    """What dealing needs to know of a face; its picture stays on disk."""

    sample_id: str
    label: int
    split: Split
    subject: str | None
    size: tuple[int, int]
    pixels: bytes  # digest of the decoded picture
    sums: tuple[int, ...]  # number of pixels, then sum and sum of squares of red, green, blue


def shard_dataset(name: str, config: ShardConfig, *, seed: int, root: Path) -> Path:
    """Deals `root`/data/faces/<name> into `root`/data/shards/<name>, complete or not at all; the same bytes every time.

    Returns:
        the folder: *.parquet, and manifest.json written last.

    Raises:
        ValueError: no or damaged faces, or a split without rows.
    """
    faces, final = root / "data" / "faces" / name, root / "data" / "shards" / name
    if not (faces / "faces.json").is_file():
        raise FileError(f"{faces}: no faces; run `dvc repro crop@{name}`")
    about = read_json(faces / "faces.json")
    files = [faces / entry["file"] for entry in about["files"]]
    rows = _survey(files, about["faces"], name)
    groups = _groups(rows)
    published = any(row.split == "validation" for row in rows)
    destination = [_destination(row, group, config, seed, published) for row, group in zip(rows, groups, strict=True)]
    metadata = {
        "fer.schema": str(SCHEMA_VERSION),
        "fer.dataset": name,
        "fer.label_space": about["label_space"],
        "fer.labels": json.dumps(about["labels"]),
        "fer.color": "RGB",
        "fer.generator": about["generator"],
    }
    with publish_directory(final) as out:
        members: dict[_Destination, list[int]] = {}
        for index, place in enumerate(destination):
            members.setdefault(place, []).append(index)
        spill = _Spill(out / ".spill.arrow", files)
        parts = []
        with progress(len(rows), f"shard {name}", "face") as bar:
            for place in sorted(members, key=lambda place: place.file):
                order = sorted(
                    members[place], key=lambda i: (stable_hash("order", seed, rows[i].sample_id), rows[i].sample_id)
                )
                write_table(
                    out / place.file,
                    spill.take(order),
                    shard_schema(),
                    metadata=metadata,
                    rows_per_group=config.rows_per_group,
                )
                labels = [rows[i].label for i in order]
                parts.append(describe_part(out / place.file, place.split, place.fold, labels, len(about["labels"])))
                bar.update(len(order))
        spill.remove()
        final_split = [place.split for place in destination]
        manifest = _manifest(name, about, rows, final_split, parts, config, seed, published)
        manifest.save(out)
    _report(final.relative_to(root), manifest)
    return final


# ------------------------------------------------------------------------------------------------ what is there


def _survey(files: Sequence[Path], total: int, name: str) -> list[_Row]:
    """One pass over every picture."""
    rows: list[_Row] = []
    columns = ["sample_id", "image", "label", "split", "subject"]
    with progress(total, f"read {name}", "face") as bar, ThreadPoolExecutor(_THREADS) as pool:
        for file in files:
            for batch in TableReader(file).batches(columns):
                rows += pool.map(_measure, batch.to_pylist())
                bar.update(batch.num_rows)
    if len(rows) != total:
        raise FileError(
            f"{files[0].parent}: {len(rows)} faces, faces.json says {total}; run `dvc repro -f crop@{name}`"
        )
    doubles = [sample for sample, count in Counter(row.sample_id for row in rows).items() if count > 1]
    if doubles:
        raise FileError(f"{files[0].parent}: sample id {doubles[0]!r} occurs twice; run `dvc repro -f crop@{name}`")
    return rows


def _measure(record: dict[str, Any]) -> _Row:
    # Our own crops: one channel or three, never turned by EXIF.
    image = cv2.imdecode(np.frombuffer(record["image"], np.uint8), cv2.IMREAD_ANYCOLOR)
    if image is None:
        raise ShardError(f"face {record['sample_id']!r}: its picture cannot be decoded; run `dvc repro -f crop`")
    channels = [image] if image.ndim == 2 else [image[:, :, channel] for channel in (2, 1, 0)]  # OpenCV decodes to BGR
    sums = [image.shape[0] * image.shape[1]]
    moments = []
    for channel in channels:
        histogram = np.bincount(channel.reshape(-1), minlength=256)
        moments.append((int(histogram @ _LEVELS), int(histogram @ _LEVELS**2)))
    for moment in moments * (3 // len(moments)):
        sums += moment
    digest = hashlib.blake2b(
        repr(image.shape).encode() + np.ascontiguousarray(image).tobytes(), digest_size=16
    ).digest()
    return _Row(
        record["sample_id"], record["label"], record["split"], record["subject"], image.shape[:2], digest, tuple(sums)
    )


def _groups(rows: Sequence[_Row]) -> list[str]:
    """A name for each row's group; equal for rows that must stay together.

    Subjects, and pictures without one, are joined wherever they share pixels; a joined group bears its smallest name.
    """
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    own = [f"subject {row.subject}" if row.subject is not None else f"pixels {row.pixels.hex()}" for row in rows]
    first_with: dict[bytes, str] = {}
    for row, name in zip(rows, own, strict=True):
        low, high = sorted((find(name), find(first_with.setdefault(row.pixels, name))))
        parent[high] = low
    return [find(name) for name in own]


# ------------------------------------------------------------------------------------------------ dealing


@dataclass(frozen=True)
class _Destination:
    file: str
    split: Split
    fold: int | None


def _destination(row: _Row, group: str, config: ShardConfig, seed: int, published: bool) -> _Destination:
    if row.split == "train":
        fold = stable_hash("fold", seed, group) % config.folds
        part = stable_hash("part", seed, row.sample_id) % config.parts_per_fold
        split: Split = "train" if published or fold else "validation"
        return _Destination(f"train-f{fold:02d}-{part:03d}.parquet", split, fold)
    part = stable_hash("part", seed, row.sample_id) % config.test_parts
    return _Destination(f"{row.split}-{part:03d}.parquet", row.split, None)


class _Spill:
    """All rows in one uncompressed Arrow file, mapped into memory: parts pick their rows without holding the others."""

    def __init__(self, path: Path, files: Iterable[Path]) -> None:
        self._path = path
        names = shard_schema().names
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, shard_schema()) as writer:
            for file in files:
                for batch in TableReader(file).batches(names):
                    writer.write_batch(
                        pa.RecordBatch.from_arrays([batch[name] for name in names], schema=shard_schema())
                    )
        self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
        batches = range(self._reader.num_record_batches)
        self._starts = np.cumsum([0, *(self._reader.get_batch(index).num_rows for index in batches)])

    def take(self, rows: Sequence[int]) -> pa.Table:
        """The given rows in the given order."""
        wanted = np.asarray(rows, dtype=np.int64)
        ascending = np.sort(wanted)
        picked = pa.Table.from_batches(list(self._pick(ascending)), schema=shard_schema()).combine_chunks()
        return picked.take(pa.array(np.searchsorted(ascending, wanted)))

    def _pick(self, ascending: npt.NDArray[np.int64]) -> Iterator[pa.RecordBatch]:
        for index in range(self._reader.num_record_batches):
            start, stop = self._starts[index], self._starts[index + 1]
            low, high = np.searchsorted(ascending, (start, stop))
            if low < high:
                yield self._reader.get_batch(index).take(pa.array(ascending[low:high] - start))

    def remove(self) -> None:
        """Deletes the file."""
        del self._reader
        self._path.unlink()


# ------------------------------------------------------------------------------------------------ the manifest


def describe_part(path: Path, split: Split, fold: int | None, labels: Sequence[int], classes: int) -> Part:
    """The manifest's entry of a written part; `labels` are those of its rows."""
    return Part(
        file=path.name,
        split=split,
        fold=fold,
        rows=len(labels),
        bytes=path.stat().st_size,
        sha256=sha256(path),
        row_groups=tuple(TableReader(path).row_groups),
        class_histogram=_histogram(labels, classes),
    )


def _manifest(
    name: str,
    about: dict[str, Any],
    rows: Sequence[_Row],
    split_of: Sequence[Split],
    parts: Sequence[Part],
    config: ShardConfig,
    seed: int,
    published: bool,
) -> Manifest:
    splits = {split: tuple(part.file for part in parts if part.split == split) for split in SPLITS}
    if empty := [split for split in SPLITS if not splits[split]]:
        raise ShardError(
            f"data/faces/{name}: no rows for the {' and '.join(empty)} split ({len(rows)} faces in all): more data, or "
            "fewer shard.folds, is needed"
        )
    sizes = {row.size for row in rows}
    mean, std = _mean_std([row.sums for row, split in zip(rows, split_of, strict=True) if split == "train"])
    return Manifest(
        schema_version=SCHEMA_VERSION,
        dataset=name,
        label_space=about["label_space"],
        labels=tuple(about["labels"]),
        colour="RGB",
        image_size=sizes.pop() if len(sizes) == 1 else None,
        generator=about["generator"],
        synthetic=about["generator"].startswith("synthetic"),
        source_digest=about["source_digest"],
        seed=seed,
        folds=config.folds,
        parts=tuple(parts),
        splits=splits,
        class_histogram={
            split: _histogram(
                [r.label for r, s in zip(rows, split_of, strict=True) if s == split], len(about["labels"])
            )
            for split in SPLITS
        },
        mean=mean,
        std=std,
        rejects=about["rejects"],
        validation_source="published" if published else "fold 0",
        shared_pictures=_shared(rows, split_of),
    )


def _histogram(labels: Iterable[int], classes: int) -> tuple[int, ...]:
    counts = Counter(labels)
    return tuple(counts[label] for label in range(classes))


def _mean_std(sums: Sequence[Sequence[int]]) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Of red, green and blue over all pixels, 0 .. 1. Exact sums, so that the order of rows does not matter."""
    count, *moments = (sum(column) for column in zip(*sums, strict=True))
    mean, std = [], []
    for total, squares in zip(moments[::2], moments[1::2], strict=True):
        mean.append(total / (count * 255))
        std.append(math.sqrt((count * squares - total * total) / (count * count)) / 255)
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def _shared(rows: Sequence[_Row], split_of: Sequence[Split]) -> dict[str, int]:
    """Rows of one split whose very pixels stand in another: the published sets have such leaks."""
    pictures = {split: {r.pixels for r, s in zip(rows, split_of, strict=True) if s == split} for split in SPLITS}
    pairs: tuple[tuple[Split, Split], ...] = (("validation", "train"), ("test", "train"), ("test", "validation"))
    return {
        f"{one}~{other}": sum(s == one and r.pixels in pictures[other] for r, s in zip(rows, split_of, strict=True))
        for one, other in pairs
    }


def _report(folder: Path, manifest: Manifest) -> None:
    for split in SPLITS:
        histogram = dict(zip(manifest.labels, manifest.class_histogram[split], strict=True))
        log.info(
            "%s: %s %d (%s)", folder, split, manifest.rows(split), ", ".join(f"{k} {v}" for k, v in histogram.items())
        )
        if missing := [label for label, count in histogram.items() if count == 0]:
            log.warning("%s: the %s split has no sample of %s", folder, split, ", ".join(missing))
    for pair, count in manifest.shared_pictures.items():
        if count:
            one, other = pair.split("~")
            log.warning("%s: %d %s pictures are pixel-equal to %s pictures", folder, count, one, other)
