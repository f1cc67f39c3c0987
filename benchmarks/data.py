"""Shards of synthetic noise for benchmarks: as large on disk, and as slow to decode, as photographs."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from fer.labels import SPACES
from fer.shards.manifest import Manifest
from fer.shards.schema import SCHEMA_VERSION, SPLITS, Split, shard_schema

LABELS = SPACES["basic7"].labels
ROWS_PER_GROUP = 512


def images(size: int, *, gray: bool, seed: int = 0) -> Iterator[bytes]:
    """Endlessly: smooth shades with some grain, as skin. Color as JPEG q95 4:4:4 (9 KB at 112 px), gray as PNG."""
    random = np.random.default_rng(seed)
    yy, xx = np.mgrid[0:size, 0:size].astype(np.float32) / size
    shape = (size, size) if gray else (size, size, 3)
    while True:
        coarse = random.normal(128, 50, (7, 7) if gray else (7, 7, 3)).astype(np.float32)
        image = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
        oval = ((xx - 0.5) ** 2 / 0.16 + (yy - 0.5) ** 2 / 0.22 < 1).astype(np.float32) * 40
        image = image + (oval if gray else oval[..., None]) + random.normal(0, 4, shape)
        pixels = np.clip(image, 0, 255).astype(np.uint8)
        if gray:
            yield cv2.imencode(".png", pixels)[1].tobytes()
        else:
            quality = [
                cv2.IMWRITE_JPEG_QUALITY,
                95,
                cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
                cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
            ]
            yield cv2.imencode(".jpg", pixels, quality)[1].tobytes()


def made_up(rows: int, size: int, *, gray: bool = False) -> list[tuple[bytes, int]]:
    """Images with random labels; a thousand different images are repeated."""
    pool = list(islice(images(size, gray=gray), min(rows, 1000)))
    labels = np.random.default_rng(1).integers(0, len(LABELS), rows).tolist()
    return [(pool[row % len(pool)], label) for row, label in enumerate(labels)]


def write_shards(
    folder: Path, *, rows: int, size: int, gray: bool = False, held_out: int = 512, parts: int = 2
) -> Path:
    """A folder of shards with `rows` training rows in `parts`, and `held_out` rows each of validation and test.

    Returns:
        The folder.
    """
    samples = made_up(rows + 2 * held_out, size, gray=gray)
    return write_samples(folder, samples, size=size, held_out=held_out, train_parts=parts)


def write_samples(
    folder: Path,
    samples: Sequence[tuple[bytes, int]],
    *,
    size: int,
    held_out: int,
    train_parts: int = 2,
    rows_per_group: int = ROWS_PER_GROUP,
) -> Path:
    """A folder of shards of given images and labels; the last `held_out` are the test set, as many the validation."""
    from fer.shards.table import write_table
    from fer.shards.write import describe_part

    folder.mkdir(parents=True)
    labels = np.array([label for _, label in samples])
    rows = len(samples) - 2 * held_out
    cuts = [rows * index // train_parts for index in range(train_parts + 1)]
    plan: list[tuple[str, Split, range]] = [
        *((f"train-f{index}-0.parquet", "train", range(*cuts[index - 1 : index + 1])) for index in range(1, len(cuts))),
        ("train-f0-0.parquet", "validation", range(rows, rows + held_out)),
        ("test-0.parquet", "test", range(rows + held_out, rows + 2 * held_out)),
    ]
    metadata = {"fer.schema": str(SCHEMA_VERSION), "fer.labels": json.dumps(LABELS), "fer.color": "RGB"}
    parts = []
    for file, split, numbers in plan:
        records = [
            {
                "sample_id": f"bench/{row:06d}",
                "image": samples[row][0],
                "label": samples[row][1],
                "clean_label": samples[row][1],
            }
            for row in numbers
        ]
        path = folder / file
        write_table(path, records, shard_schema(), metadata=metadata, rows_per_group=rows_per_group)
        parts.append(describe_part(path, split, None, labels[list(numbers)].tolist(), len(LABELS)))
    by_split = {split: [part for part in parts if part.split == split] for split in SPLITS}
    Manifest(
        schema_version=SCHEMA_VERSION,
        dataset=folder.name,
        label_space="basic7",
        labels=LABELS,
        colour="RGB",
        image_size=(size, size),
        generator="bench",
        synthetic=True,
        source_digest=hashlib.sha256(b"bench").hexdigest(),
        seed=0,
        folds=3,
        parts=tuple(parts),
        splits={split: tuple(part.file for part in found) for split, found in by_split.items()},
        class_histogram={
            split: tuple(np.sum([part.class_histogram for part in found], axis=0).tolist())
            for split, found in by_split.items()
        },
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        rejects={},
        validation_source="fold 0",
        shared_pictures={},
    ).save(folder)
    return folder
