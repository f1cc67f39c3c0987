"""A dataset of small images in small blocks, and the crop stage over it, stopped where a test wants."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
from builders.places import contents
from builders.projects import PYTHONPATH, environment

from fer.cluster.config import ClusterConfig
from fer.faces.config import CropConfig
from fer.io.files import write_json
from fer.labels import space
from fer.sources.base import AnnotatedFace, Block, RawSample, Reject
from fer.stages.crop import crop_dataset

BLOCKS, ROWS = 6, 5
CONFIG = CropConfig(size=32, max_bad_fraction=0.5)


class TinySource:
    """Grain with one or two faces in it; every seventh image is broken, every eleventh has no face.

    `begun.txt` in the raw folder tells which blocks were read. A file `kill-<block>` there ends the process that reads
    the block, once; `poison-<block>` does so for ever, `raise-<block>` raises, and `wait-<block>` holds it up.
    """

    generator = "tiny"
    label_space = space("basic7")
    request: dict[str, Any] = {"source": "tiny"}  # noqa: RUF012

    def blocks(self, raw: Path) -> list[Block]:
        return [Block(index=i, file="tiny", start=i * ROWS, stop=(i + 1) * ROWS) for i in range(BLOCKS)]

    def read(self, raw: Path, block: Block) -> Iterator[RawSample | Reject]:
        with open(raw / "begun.txt", "a") as log:
            log.write(f"{block.index}\n")
        for index in range(block.start, block.stop):
            if index == block.start + 2:
                self._fail(raw, block)
            yield self.sample(index)

    def sample(self, index: int) -> RawSample:
        pixels = np.random.default_rng(index).integers(0, 256, (60, 70, 3), dtype=np.uint8)
        data = cv2.imencode(".jpg", cv2.blur(pixels, (5, 5)))[1].tobytes()
        faces = tuple(
            AnnotatedFace(box=(5.0 + 20 * n, 4.0, 41.0 + 20 * n, 44.0), landmarks=None, label=n, clean_label=n)
            for n in range(0 if index % 11 == 5 else 1 + index % 2)
        )
        data = data[:100] if index % 7 == 3 else data
        return RawSample(
            key=f"tiny/{index:04d}", image=data, split="train", faces=faces, is_crop=False, origin=f"tiny:{index}"
        )

    def _fail(self, raw: Path, block: Block) -> None:
        if (raw / f"raise-{block.index}").exists():
            raise ValueError(f"block {block.index} cannot be read")
        while (raw / f"wait-{block.index}").exists():
            time.sleep(0.05)
        once, always = raw / f"kill-{block.index}", raw / f"poison-{block.index}"
        if once.exists():
            once.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        if always.exists():
            os.kill(os.getpid(), signal.SIGKILL)


def make_raw(root: Path, name: str = "tiny") -> Path:
    """data/raw/<name> of a project folder."""
    raw = root / "data" / "raw" / name
    raw.mkdir(parents=True)
    write_json(raw / "source.json", {"request": TinySource.request, "files": []})
    return raw


def crop(root: Path, *, workers: int = 0, name: str = "tiny", config: CropConfig = CONFIG) -> dict[str, bytes]:
    """The stage; its files by name."""
    cluster = ClusterConfig(cpus=3, object_store_mb=100, crop_workers=workers)
    with mock.patch("fer.stages.crop.get_source", return_value=TinySource()):
        folder = crop_dataset(name, None, config, cluster, seed=0, root=root)  # type: ignore[arg-type]
    return contents(folder)


def start(root: Path, *, workers: int) -> subprocess.Popen[str]:
    """The stage in a process of its own, with Ray's workers below it."""
    return subprocess.Popen(
        [sys.executable, "-c", f"from builders.crops import Path, crop; crop(Path.cwd(), workers={workers})"],
        cwd=root,
        env={**environment(), "PYTHONPATH": PYTHONPATH},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def begun(root: Path) -> Counter[int]:
    """How often each block was read."""
    return Counter(map(int, (root / "data" / "raw" / "tiny" / "begun.txt").read_text().split()))


def crop_until(root: Path, number: int) -> None:
    """The stage, killed just before the file system's `number`-th change of a name, counted from 1."""
    changes = 0

    def watched(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal changes
            changes += 1
            if changes == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for name in ("replace", "link", "rename"):
        setattr(os, name, watched(getattr(os, name)))
    crop(root)


CHANGES = 2 * BLOCKS + BLOCKS + 2 + 1
"""Names changed by an undisturbed run: two files a block, a link for each, rejects and faces.json, the folder."""
