"""Small files in FER2013's public forms, and what must come out of them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fer.labels import space
from fer.sources.base import RawSample, Reject
from fer.sources.fer2013 import Fer2013Config
from fer.sources.registry import get_source
from fer.stages.download import download_dataset

USAGES = ("Training", "PublicTest", "PrivateTest")


def pixels(row: int) -> np.ndarray:
    return np.random.default_rng(row).integers(0, 256, (48, 48), dtype=np.uint8)


def text(row: int) -> str:
    return " ".join(map(str, pixels(row).ravel()))


def csv_file(path: Path, rows: int = 9, *, end: str = "\n", start: str = "") -> Path:
    lines = [f"{row % 7},{text(row)},{USAGES[row % 3]}" for row in range(rows)]
    path.write_bytes((start + end.join(["emotion,pixels,Usage", *lines]) + end).encode())
    return path


def parquet_file(path: Path, rows: int = 9, *, wrapped: bool = False) -> Path:
    images = [cv2.imencode(".png", pixels(row))[1].tobytes() for row in range(rows)]
    columns = {
        "image": [{"bytes": image, "path": None} for image in images] if wrapped else images,
        "label": [row % 7 for row in range(rows)],
        "usage": [USAGES[row % 3] for row in range(rows)],
    }
    pq.write_table(pa.table(columns), path, row_group_size=4)
    return path


def fetch(root: Path, path: Path | str, **options: object) -> Path:
    config = Fer2013Config(source="fer2013", path=str(path), **{"subset": True, **options})
    return download_dataset("set", config, seed=0, root=root)


def read(raw: Path) -> list[RawSample | Reject]:
    source = get_source(Fer2013Config(source="fer2013"), 0)
    return [sample for block in source.blocks(raw) for sample in source.read(raw, block)]


def assert_rows(raw: Path, rows: int) -> None:
    basic = space("basic7")
    order = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
    samples = read(raw)
    assert [sample.key for sample in samples if isinstance(sample, RawSample)] == [
        f"fer2013/{row:08d}" for row in range(rows)
    ]
    for row, sample in enumerate(samples):
        assert isinstance(sample, RawSample)
        assert (sample.image == pixels(row)).all()
        assert sample.faces[0].label == basic.index(order[row % 7])
        assert sample.split == ("train", "validation", "test")[row % 3]
        assert sample.is_crop
