"""Shards on disk: images that can be told apart or learned, in parts of several row groups, with a manifest."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

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

Row = dict[str, Any]


def label_of(row: int) -> int:
    """Unbalanced: 0 for half the rows, 1 for a third, 2 for the rest."""
    return (0, 0, 0, 1, 1, 2)[row % 6]


def picture(row: int, size: int, *, gray: bool = False) -> npt.NDArray[np.uint8]:
    """(size, size) or (size, size, 3) RGB: noise that belongs to the row."""
    shape = (size, size) if gray else (size, size, 3)
    return np.random.default_rng(row).integers(0, 256, shape, dtype=np.uint8)


def png(image: npt.NDArray[np.uint8]) -> bytes:
    """A gray or RGB image as PNG."""
    stored = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", stored, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


def write_rows(
    folder: Path,
    name: str,
    split: Split,
    rows: Sequence[Row],
    fold: int | None = None,
    group: int = ROWS_PER_GROUP,
    labels: Sequence[str] = LABELS,
) -> Part:
    """A part that holds these rows, `group` in a row group; its entry in the manifest."""
    metadata = {"fer.schema": str(SCHEMA_VERSION), "fer.labels": json.dumps(labels), "fer.color": "RGB"}
    write_table(folder / name, rows, shard_schema(), metadata=metadata, rows_per_group=group)
    return describe_part(folder / name, split, fold, [row["label"] for row in rows], len(LABELS))


def write_part(folder: Path, name: str, split: Split, pictures: Mapping[int, bytes], fold: int | None = None) -> Part:
    """A part of the given images, each with `label_of` its number."""
    rows = [
        {"sample_id": f"small/{row:04d}", "image": data, "label": label_of(row), "clean_label": label_of(row)}
        for row, data in pictures.items()
    ]
    return write_rows(folder, name, split, rows, fold)


def write_manifest(folder: Path, parts: Sequence[Part], size: int, **values: Any) -> Path:
    """manifest.json over these parts of square images; `values` replace the fields of the same names."""
    members = {split: [part for part in parts if part.split == split] for split in SPLITS}
    counts = {
        split: tuple(np.sum([part.class_histogram for part in of], axis=0).tolist()) for split, of in members.items()
    }
    fields: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "dataset": folder.name,
        "label_space": "basic7",
        "labels": LABELS,
        "colour": "RGB",
        "image_size": (size, size),
        "generator": "tests",
        "synthetic": True,
        "source_digest": "0" * 64,
        "seed": 0,
        "folds": 3,
        "parts": tuple(parts),
        "splits": {split: tuple(part.file for part in of) for split, of in members.items()},
        "class_histogram": counts,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.2, 0.2, 0.2),
        "rejects": {},
        "validation_source": "fold 0",
        "shared_pictures": {},
    }
    Manifest(**fields | values).save(folder)
    return folder


def write_split(
    folder: Path, *, rows: int = 100, size: int = 12, gray: bool = False, broken: dict[int, bytes] | None = None
) -> ShardSplit:
    """Rows 0 .. rows - 1 in two parts, without a manifest; row r holds `picture(r, size)` and has `label_of(r)`.

    broken: bytes to store in place of a row's image.
    """
    pictures = {row: png(picture(row, size, gray=gray)) for row in range(rows)} | (broken or {})
    cut = rows * 2 // 3
    parts = [
        write_part(folder, "train-f0-0.parquet", "train", {row: pictures[row] for row in range(cut)}),
        write_part(folder, "train-f1-0.parquet", "train", {row: pictures[row] for row in range(cut, rows)}),
    ]
    return ShardSplit("train", [(folder / part.file, part.row_groups) for part in parts], LABELS)


def write_set(folder: Path, *, size: int = 12) -> Path:
    """A whole folder of noise with its manifest: folds of 20 (validation), 40 and 20 rows, test of 24."""
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
    return write_manifest(folder, parts, size)


def make_shards(
    folder: Path,
    *,
    train: int = 80,
    validation: int = 40,
    test: int = 8,
    size: int = 16,
    seed: int = 0,
    broken: int | None = None,
) -> Path:
    """A whole folder of gray patches that can be learned, one part a split. `broken`: a training row that is none."""
    plan: list[tuple[Split, int, int | None]] = [
        ("train", train, 1),
        ("validation", validation, 0),
        ("test", test, None),
    ]
    random = np.random.default_rng(seed)
    parts = []
    for split, count, fold in plan:
        rows = list(_patches(random, f"{folder.name}/{split}", count, size))
        if split == "train" and broken is not None:
            rows[broken]["image"] = b"not an image"
        parts.append(write_rows(folder, f"{split}-0.parquet", split, rows, fold, group=32))
    return write_manifest(folder, parts, size, seed=seed, folds=2)


def _patches(random: np.random.Generator, name: str, count: int, size: int) -> Iterator[Row]:
    """Rows whose pattern tells the class; a quarter of it is noise."""
    for index in range(count):
        label = int(random.integers(len(LABELS)))
        wave = np.sin(np.arange(size) * (label + 1) / 4)
        patch = 128 + 60 * np.outer(wave, wave) + random.normal(0, 30, (size, size))
        image = cv2.imencode(".png", np.clip(patch, 0, 255).astype(np.uint8))[1].tobytes()
        yield {"sample_id": f"{name}-{index:04d}", "image": image, "label": label, "clean_label": label}


def write_people(folder: Path, *, test: int, size: int = 20, **values: Any) -> Path:
    """A whole folder of noise with everything known of its faces: 14 train, 7 validation, `test` rows in two parts.

    Args:
        values: other fields of the manifest.
    """
    middle = 21 + test * 2 // 3
    plan: list[tuple[str, Split, Iterable[int]]] = [
        ("train-f1-0.parquet", "train", range(14)),
        ("train-f0-0.parquet", "validation", range(14, 21)),
        ("test-0.parquet", "test", range(21, middle)),
        ("test-1.parquet", "test", range(middle, 21 + test)),
    ]
    labels = values.get("labels", LABELS)
    parts = [
        write_rows(folder, file, split, [_person(row, size) for row in rows], labels=labels)
        for file, split, rows in plan
    ]
    return write_manifest(folder, parts, size, folds=10, **values)


def _person(row: int, size: int) -> Row:
    """Every tenth label is noise; five subjects; yaws of -25 to 24 degrees."""
    return {
        "sample_id": f"toy/{row:04d}",
        "image": png(picture(row, size)),
        "label": row % 7,
        "clean_label": row % 7 if row % 10 else (row + 1) % 7,
        "subject": f"s{row % 5}",
        "pose": [float(row % 50 - 25), 0.0, 0.0],
    }


def change_manifest(folder: Path, **values: object) -> None:
    """Replaces values of a manifest, with the digest that belongs to them."""
    path = folder / FILE_NAME
    data = json.loads(path.read_text())
    del data["digest"]
    path.write_text(manifest_text(data | values))
