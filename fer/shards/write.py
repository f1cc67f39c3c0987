"""The shard stage: faces dealt by hash into test parts and folds of training parts, and what there is to know of them.

A row's part depends on its own group, id and the seed alone (`fer.shards.deal`), so samples added later rewrite only
the parts they fall in.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fer.console import log, progress
from fer.io.files import FileError, naming, read_object, sha256
from fer.labels import is_identities
from fer.outputs import SHARDS, STATISTICS
from fer.shards.deal import Destination, deal, has_published_validation, in_order
from fer.shards.leakage import (
    Dropped,
    Duplicates,
    find_duplicates,
    label_conflicts,
    rows_near,
    rows_shared,
    rows_to_drop,
)
from fer.shards.manifest import Manifest, Part
from fer.shards.schema import SCHEMA_VERSION, SPLITS, ShardConfig, ShardError, Split, shard_schema
from fer.shards.statistics import write_statistics
from fer.shards.survey import Face, mean_std, survey
from fer.shards.table import TableReader, write_table

_FACES = {
    "faces": int, "files": list, "generator": str, "label_space": str, "labels": list, "rejects": dict,
    "source_digest": str,
}  # fmt: skip


def shard_dataset(name: str, config: ShardConfig, *, seed: int, root: Path) -> Path:
    """Deals `root`/data/faces/<name> into `root`/data/shards/<name>, and writes `root`/data/statistics/<name>.

    Both are complete or not there at all, and the same bytes every time.

    Returns:
        the folder of shards: *.parquet, and manifest.json written last.

    Raises:
        ValueError: no or damaged faces, or a split without rows.
    """
    source, final = root / "data" / "faces" / name, SHARDS.folder(root, name)
    statistics = STATISTICS.folder(root, name)
    if not (source / "faces.json").is_file():
        raise FileError(f"{source}: no faces; run `dvc repro crop@{name}`")
    about = read_object(source / "faces.json", _FACES, f"run `dvc repro -f crop@{name}`")
    files = [source / entry["file"] for entry in about["files"]]
    faces = survey(files, about["faces"], name)
    duplicates = find_duplicates(faces, near=config.duplicates != "off")
    dropped = rows_to_drop(faces, duplicates) if config.duplicates == "drop" else {}
    together = [pair[:2] for pair in duplicates.near] if config.duplicates == "group" else []
    places = {
        row: place for row, place in enumerate(deal(faces, config, seed=seed, together=together)) if row not in dropped
    }
    with SHARDS.publish(final) as out, STATISTICS.publish(statistics) as told:
        spill = _Spill(out / ".spill.arrow", files)
        parts = _write_parts(out, name, about, faces, places, spill, config, seed)
        manifest = _manifest(name, about, faces, places, parts, duplicates, dropped, config, seed)
        split_of = {row: place.split for row, place in places.items()}
        write_statistics(told, manifest, faces, split_of, duplicates, dropped, spill.pictures)
        spill.remove()
        manifest.save(out)
    _report(final.relative_to(root), manifest)
    return final


def _write_parts(
    out: Path,
    name: str,
    about: Mapping[str, Any],
    faces: Sequence[Face],
    places: Mapping[int, Destination],
    spill: _Spill,
    config: ShardConfig,
    seed: int,
) -> list[Part]:
    metadata = {
        "fer.schema": str(SCHEMA_VERSION),
        "fer.dataset": name,
        "fer.label_space": about["label_space"],
        "fer.labels": json.dumps(about["labels"]),
        "fer.color": "RGB",
        "fer.generator": about["generator"],
    }
    members: dict[Destination, list[int]] = {}
    for row, place in places.items():
        members.setdefault(place, []).append(row)
    parts = []
    with progress(len(places), f"shard {name}", "face") as bar:
        for place in sorted(members, key=lambda place: place.file):
            order = in_order(members[place], faces, seed)
            path, table = out / place.file, spill.take(order)
            write_table(path, table, shard_schema(), metadata=metadata, rows_per_group=config.rows_per_group)
            labels = [faces[row].label for row in order]
            parts.append(describe_part(path, place.split, place.fold, labels, len(about["labels"])))
            bar.update(len(order))
    return parts


class _Spill:
    """All rows in one uncompressed Arrow file, mapped into memory: parts pick their rows without holding the others."""

    def __init__(self, path: Path, files: Iterable[Path]) -> None:
        self._path = path
        names = shard_schema().names
        with naming(path), pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, shard_schema()) as writer:
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

    def pictures(self, rows: Sequence[int]) -> list[bytes]:
        """The encoded pictures of the given rows."""
        images: list[bytes] = self.take(rows)["image"].to_pylist()
        return images

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
    about: Mapping[str, Any],
    faces: Sequence[Face],
    places: Mapping[int, Destination],
    parts: Sequence[Part],
    duplicates: Duplicates,
    dropped: Mapping[int, Dropped],
    config: ShardConfig,
    seed: int,
) -> Manifest:
    splits = {split: tuple(part.file for part in parts if part.split == split) for split in SPLITS}
    if empty := [split for split in SPLITS if not splits[split]]:
        raise ShardError(
            f"data/faces/{name}: no rows for the {' and '.join(empty)} split ({len(places)} faces in all): more data, "
            "or fewer shard.folds, is needed"
        )
    split_of = {row: place.split for row, place in places.items()}
    sizes = {faces[row].size for row in places}
    mean, std = mean_std([faces[row] for row in places if split_of[row] == "train"])
    reasons = Counter(about["rejects"])
    reasons.update(why.reason for why in dropped.values())
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
            split: _histogram([faces[row].label for row in places if split_of[row] == split], len(about["labels"]))
            for split in SPLITS
        },
        mean=mean,
        std=std,
        rejects=dict(sorted(reasons.items())),
        validation_source="published" if has_published_validation(faces) else "fold 0",
        shared_pictures=rows_shared(split_of, duplicates),
        near_pictures=rows_near(split_of, duplicates),
        label_conflicts=label_conflicts(faces, split_of, duplicates),
        duplicates=config.duplicates,
        crop=about.get("crop", {}),
    )


def _histogram(labels: Iterable[int], classes: int) -> tuple[int, ...]:
    counts = Counter(labels)
    return tuple(counts[label] for label in range(classes))


def _report(folder: Path, manifest: Manifest) -> None:
    for split in SPLITS:
        histogram = dict(zip(manifest.labels, manifest.class_histogram[split], strict=True))
        if is_identities(manifest.label_space):
            log.info("%s: %s %d of %d people", folder, split, manifest.rows(split), sum(map(bool, histogram.values())))
            continue
        log.info(
            "%s: %s %d (%s)", folder, split, manifest.rows(split), ", ".join(f"{k} {v}" for k, v in histogram.items())
        )
        if missing := [label for label, count in histogram.items() if count == 0]:
            log.warning("%s: the %s split has no sample of %s", folder, split, ", ".join(missing))
    for found, what in ((manifest.shared_pictures, "pixel-equal to"), (manifest.near_pictures, "near duplicates of")):
        for pair, count in found.items():
            one, other = pair.split("~")
            if count and one != other:
                log.warning("%s: %d %s pictures are %s %s pictures", folder, count, one, what, other)
    for where, count in manifest.label_conflicts.items():
        if count:
            log.warning("%s: %d pictures occur with several labels: %s", folder, count, where)
    for reason in ("duplicate_of_test", "duplicate_of_validation", "duplicate"):
        if count := manifest.rejects.get(reason, 0):
            log.info("%s: %d rows left out: %s", folder, count, reason)
