"""Small shards on disk for the reader's tests: pictures that can be told apart, in parts of several row groups."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from fer.labels import SPACES
from fer.shards.dataset import ShardSplit
from fer.shards.manifest import FILE_NAME, Manifest, Part, manifest_text
from fer.shards.schema import SCHEMA_VERSION, SPLITS, Split, shard_schema
from fer.shards.table import write_table
from fer.shards.write import describe_part

LABELS = SPACES["basic7"].labels
ROWS_PER_GROUP = 16


def label_of(row: int) -> int:
    """Unbalanced: 0 for half the rows, 1 for a third, 2 for the rest."""
    return (0, 0, 0, 1, 1, 2)[row % 6]


def picture(row: int, size: int, *, grey: bool = False) -> npt.NDArray[np.uint8]:
    """(size, size) or (size, size, 3) RGB: noise that belongs to the row."""
    shape = (size, size) if grey else (size, size, 3)
    return np.random.default_rng(row).integers(0, 256, shape, dtype=np.uint8)


def png(image: npt.NDArray[np.uint8]) -> bytes:
    """A grey or RGB picture as PNG."""
    stored = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", stored, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


def write_part(folder: Path, name: str, split: Split, pictures: dict[int, bytes], fold: int | None = None) -> Part:
    """A part that holds the given rows, and its entry in the manifest."""
    records = [
        {"sample_id": f"small/{row:04d}", "image": data, "label": label_of(row), "clean_label": label_of(row)}
        for row, data in pictures.items()
    ]
    metadata = {"fer.schema": str(SCHEMA_VERSION), "fer.labels": json.dumps(LABELS), "fer.color": "RGB"}
    write_table(folder / name, records, shard_schema(), metadata=metadata, rows_per_group=ROWS_PER_GROUP)
    return describe_part(folder / name, split, fold, [label_of(row) for row in pictures], len(LABELS))


def write_split(
    folder: Path, *, rows: int = 100, size: int = 12, grey: bool = False, broken: dict[int, bytes] | None = None
) -> ShardSplit:
    """Rows 0 .. rows - 1 in two parts, without a manifest; row r holds `picture(r, size)` and has `label_of(r)`.

    broken: bytes to store in place of a row's picture.
    """
    pictures = {row: png(picture(row, size, grey=grey)) for row in range(rows)} | (broken or {})
    cut = rows * 2 // 3
    parts = [
        write_part(folder, "train-f0-0.parquet", "train", {row: pictures[row] for row in range(cut)}),
        write_part(folder, "train-f1-0.parquet", "train", {row: pictures[row] for row in range(cut, rows)}),
    ]
    return ShardSplit("train", [(folder / part.file, part.row_groups) for part in parts], LABELS)


def write_set(folder: Path, *, size: int = 12) -> Path:
    """A whole folder of shards with its manifest: folds of 20 (validation), 40 and 20 rows, test of 24."""
    plan: list[tuple[str, Split, int | None, range]] = [
        ("train-f1-0.parquet", "train", 1, range(40)),
        ("train-f2-0.parquet", "train", 2, range(40, 60)),
        ("train-f0-0.parquet", "validation", 0, range(60, 80)),
        ("test-0.parquet", "test", None, range(80, 104)),
    ]
    parts = [
        write_part(folder, file, split, {row: png(picture(row, size)) for row in rows}, fold)
        for file, split, fold, rows in plan
    ]
    sums = {s: np.sum([part.class_histogram for part in parts if part.split == s], axis=0).tolist() for s in SPLITS}
    Manifest(
        schema_version=SCHEMA_VERSION,
        dataset=folder.name,
        label_space="basic7",
        labels=LABELS,
        colour="RGB",
        image_size=(size, size),
        generator="tests",
        synthetic=True,
        source_digest="0" * 64,
        seed=0,
        folds=3,
        parts=tuple(parts),
        splits={s: tuple(part.file for part in parts if part.split == s) for s in SPLITS},
        class_histogram={s: tuple(counts) for s, counts in sums.items()},
        mean=(0.5, 0.5, 0.5),
        std=(0.3, 0.3, 0.3),
        rejects={},
        validation_source="fold 0",
        shared_pictures={},
    ).save(folder)
    return folder


def change_manifest(folder: Path, **values: object) -> None:
    """Other values in a manifest, written as if they had been meant."""
    path = folder / FILE_NAME
    data = json.loads(path.read_text())
    del data["digest"]
    path.write_text(manifest_text(data | values))
