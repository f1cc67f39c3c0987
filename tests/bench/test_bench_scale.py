"""Promises of `fer bench scale`."""

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks import scale
from benchmarks.__main__ import parse
from benchmarks.result import REGISTRY
from fer.params import load
from fer.shards.duplicates import fingerprint, near_duplicates


def test_each_stage_is_measured_at_each_size_and_its_growth_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def measure(command: list[str], folder: Path) -> scale.Cost:
        params = load(folder / "params.yaml")
        images = len(list(Path(params.datasets["drawn"].path).rglob("*.jpg")))  # type: ignore[union-attr]
        measured.append((command[2], images))
        return scale.Cost(images**1.5, 100.0)

    monkeypatch.setattr(scale, "measure", measure)
    result = REGISTRY["scale"].run(
        parse(["scale", "--images", "40", "10", "--size", "32", "--stages", "shard", "crop"])
    )
    assert measured == [(f"pipelines.{stage}", images) for images in (10, 40) for stage in scale.STAGES]
    assert [(row["stage"], row["images"], row["exponent"]) for row in result.rows] == [
        ("shard", 10, ""), ("shard", 40, "1.50"), ("crop", 10, ""), ("crop", 40, "1.50"),
    ]  # fmt: skip
    assert "memory MB" in result.table()


def test_time_and_memory_are_those_of_the_child_and_its_failure_is_told(tmp_path: Path) -> None:
    work = "import time; data = bytearray(90_000_000)\nwhile time.process_time() < 0.3: pass"
    cost = scale.measure([sys.executable, "-c", work], tmp_path)
    assert 0.3 <= cost.seconds < 3
    assert cost.memory > 90
    with pytest.raises(ValueError, match="exit status 3: no such thing"):
        scale.measure([sys.executable, "-c", "import sys; print('no such thing'); sys.exit(3)"], tmp_path)


def test_images_are_alike_as_faces_are_and_their_copies_are_found() -> None:
    images = [scale.image(number, 112) for number in range(0, 40 * 64, 64)]  # of one kind
    coarse = np.stack([fingerprint(image).coarse for image in images]) / 2048
    assert 0.5 < np.median(coarse @ coarse.T) < 0.75
    some = [scale.image(number, 112) for number in range(64)]
    stored = [cv2.imdecode(cv2.imencode(".jpg", one)[1], cv2.IMREAD_GRAYSCALE) for one in some]
    found = near_duplicates([fingerprint(one) for one in stored])
    assert [pair[:3] for pair in found] == [(first, first + 1, "near") for first in (0, 20, 40, 60)]
