"""`fer bench scale`: processor time and memory of the data stages at growing numbers of images."""

import argparse
import math
import os
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from benchmarks.result import BenchResult, benchmark, options
from fer.console import log, progress
from fer.io import yaml12
from fer.io.files import write_atomic
from fer.labels import space

STAGES = ("download", "crop", "shard")
_LABELS = space("basic7").labels
_ALIKE = 64  # kinds of images
_COPY = 20  # one image of so many shows its predecessor again


class Cost(NamedTuple):
    """Of one stage: processor seconds, and the most memory that was mapped, files included, in MB."""

    seconds: float
    memory: float


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--images", type=int, nargs="+", default=[5_000, 20_000, 80_000, 320_000], help="(5000 20000 80000 320000)"
    )
    parser.add_argument("--size", type=int, default=112, help="side of the images in px (112)")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="that are shown (all)")
    parser.add_argument("--folder", type=Path, help="where some 30 kB an image are free ($TMPDIR)")


@benchmark("scale", help="processor time and memory of download, crop and shard by images", arguments=_arguments)
def run(args: argparse.Namespace) -> BenchResult:
    """A row for each stage and number of images; ValueError for a stage that fails."""
    sizes = sorted(set(args.images))
    costs: dict[str, dict[int, Cost]] = {stage: {} for stage in args.stages}
    with tempfile.TemporaryDirectory(prefix="fer-bench-", dir=args.folder) as name:
        folder, drawn = Path(name), 0
        for count in sizes:
            draw(folder / "images", drawn, count, args.size)
            drawn = count
            with tempfile.TemporaryDirectory(dir=folder) as project:
                _write_params(Path(project), folder / "images", args.size)
                last = max(map(STAGES.index, args.stages))
                for stage in STAGES[: last + 1]:
                    cost = measure([sys.executable, "-m", f"pipelines.{stage}", "--dataset", "drawn"], Path(project))
                    log.info(f"{count} images: {stage} {cost.seconds:.1f} s of a core, {cost.memory:.0f} MB")
                    if stage in costs:
                        costs[stage][count] = cost
    return BenchResult(
        title=f"Data stages at growing numbers of images of {args.size} px, one process each",
        rows=[row for stage, found in costs.items() for row in _rows(stage, found)],
        notes=[
            "seconds: processor time of the process and its threads, with about 3 s of imports",
            "exponent: e of time ~ images^e, from the row above; 1 is linear",
            "memory MB: the most that was resident, mapped files included",
            f"images: smooth shades with grain, of {_ALIKE} kinds that are alike; one of {_COPY} is a brighter copy",
        ],
        settings=options(args, ("images", "size", "stages")),
    )


def draw(folder: Path, start: int, stop: int, size: int) -> None:
    """Images start .. stop - 1 as class folders of train and test; drawing costs less than any stage."""
    with progress(stop - start, "draw", "image") as bar:
        for number in range(start, stop):
            split = "test" if number % 5 == 0 else "train"
            path = folder / split / _LABELS[number % len(_LABELS)] / f"{number:07}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(cv2.imencode(".jpg", image(number, size))[1].tobytes())
            bar.update()


def image(number: int, size: int) -> npt.NDArray[np.uint8]:
    """(size, size) gray, different for each number: coarsely like the others of its kind, as aligned faces are."""
    copy = number % _COPY == 1
    number -= copy
    kind, own = np.random.default_rng(number % _ALIKE), np.random.default_rng(_ALIKE + number)
    coarse = kind.normal(110, 40, (7, 7)) + own.normal(0, 30, (7, 7))
    shades = cv2.resize(coarse.astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    half = cv2.resize(
        own.standard_normal((size // 2, size // 2), np.float32), (size, size), interpolation=cv2.INTER_LINEAR
    )
    return np.asarray(np.clip(shades + 12 * half + 15 * copy, 0, 255), np.uint8)


def measure(command: list[str], folder: Path) -> Cost:
    """Runs a command in a folder.

    Raises:
        ValueError: it failed; the message is its last line.
    """
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(command, cwd=folder, stdout=said, stderr=said)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        if child.returncode:
            last = said.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise ValueError(f"{' '.join(command)}: exit status {child.returncode}: {last}")
    return Cost(used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e6)


def _write_params(project: Path, images: Path, size: int) -> None:
    params: dict[str, Any] = {
        "seed": 0,
        "run": {"datasets": ["drawn"], "models": ["any"]},
        "datasets": {"drawn": {"source": "folders", "path": str(images)}},
        "models": {"any": {"recipe": "ddamfn/nano"}},
        "crop": {"size": size},
        "cluster": {"crop_workers": 0},
        **{section: {} for section in ("shard", "train", "evaluate", "report", "tracking", "tune")},
    }
    write_atomic(project / "params.yaml", yaml12.dump(params).encode())


def _rows(stage: str, found: dict[int, Cost]) -> list[dict[str, Any]]:
    exponents = ["", *(f"{_exponent(one, other):.2f}" for one, other in pairwise(found.items()))]
    return [
        {
            "stage": stage,
            "images": count,
            "seconds": round(cost.seconds, 1),
            "exponent": exponent,
            "memory MB": round(cost.memory),
        }
        for (count, cost), exponent in zip(found.items(), exponents, strict=True)
    ]


def _exponent(one: tuple[int, Cost], other: tuple[int, Cost]) -> float:
    return math.log(other[1].seconds / one[1].seconds) / math.log(other[0] / one[0])
