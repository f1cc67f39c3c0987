"""Small files in FER2013's public forms, and the samples that they must give."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from builders import layouts as brought

from fer.labels import DATASET_LABELS, SPACES
from fer.sources.base import RawSample, Reject
from fer.sources.fer2013 import Fer2013Config
from fer.sources.registry import get_source

USAGES = ("Training", "PublicTest", "PrivateTest")
SPLITS = ("train", "validation", "test")


def pixels(row: int) -> np.ndarray:
    return np.random.default_rng(row).integers(0, 256, (48, 48), dtype=np.uint8)


def text(row: int) -> str:
    return " ".join(map(str, pixels(row).ravel()))


def csv_file(path: Path, rows: int = 9, *, end: str = "\n", start: str = "") -> Path:
    lines = [f"{row % 7},{text(row)},{USAGES[row % 3]}" for row in range(rows)]
    return brought.text(path, start + end.join(["emotion,pixels,Usage", *lines]) + end)


def parquet_file(path: Path, rows: int | Sequence[int] = 9, *, wrapped: bool = False) -> Path:
    """`rows`: their number, or the published position of each, -1 where it is unknown."""
    numbers = range(rows) if isinstance(rows, int) else [max(row, 0) for row in rows]
    images = [cv2.imencode(".png", pixels(row))[1].tobytes() for row in numbers]
    columns: dict[str, Any] = {
        "image": [{"bytes": image, "path": None} for image in images] if wrapped else images,
        "label": [row % 7 for row in numbers],
        "usage": [USAGES[row % 3] for row in numbers],
    }
    positions = {} if isinstance(rows, int) else {"row": list(rows)}
    pq.write_table(pa.table(columns | positions), path, row_group_size=4)
    return path


def fetch(root: Path, path: Path | str | None, **options: object) -> Path:
    return brought.fetch(root, Fer2013Config, path, **options)  # type: ignore[arg-type]


def read(raw: Path) -> list[RawSample | Reject]:
    source = get_source(Fer2013Config(source="fer2013"), 0)
    return [sample for block in source.blocks(raw) for sample in source.read(raw, block)]


def assert_rows(raw: Path, rows: int) -> None:
    samples = read(raw)
    assert len(samples) == rows
    for row, sample in enumerate(samples):
        assert isinstance(sample, RawSample)
        assert sample.key == f"fer2013/{row:08d}"
        assert (sample.image == pixels(row)).all()
        assert SPACES["basic7"].labels[sample.faces[0].label] == DATASET_LABELS["fer2013"][row % 7]
        assert (sample.split, sample.is_crop) == (SPLITS[row % 3], True)
