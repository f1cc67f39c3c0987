"""`fer bench ingest`: our reader against what people would use in its place, and against its own decode limit."""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.baselines import CONTENDERS
from benchmarks.result import BenchResult, benchmark, options
from fer.console import log

_OURS = ("ours", "ours, cached")
_TUNED = ("folder, tuned",)
_PACKAGES = {
    "webdataset": "webdataset",
    "streaming": "mosaicml-streaming",
    "litdata": "litdata",
    "datasets": "datasets",
    "ray": "ray",
}
_BATCH = 128
_SECONDS_ALLOWED = 900


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=int, nargs="+", default=[112, 224], help="sides of the images in px (112 224)")
    parser.add_argument("--rows", type=int, default=8192, help="images (8192)")
    parser.add_argument("--workers", type=int, default=2, help="processes or threads that read (2)")
    parser.add_argument("--epochs", type=int, default=1, help="epochs timed, after one that is not (1)")
    parser.add_argument("--rounds", type=int, default=5, help="times that each is measured, in turn (5)")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), help="contenders (all)")


@benchmark(
    "ingest", help="images/s of the reader beside other libraries, with the same augmentation", arguments=_arguments
)
def run(args: argparse.Namespace) -> BenchResult:
    """Writes the same images for each contender into a temporary folder, then measures them in turn, each in a
    process of its own. What cannot run is named with the reason.
    """
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for size in args.size:
        with tempfile.TemporaryDirectory(prefix="fer-bench-") as folder:
            found_by, failures = _measure(args, size, Path(folder))
        rows += _table(size, found_by)
        notes += [f"{size} px: {line}" for line in [*_verdict(found_by), *failures]]
    return BenchResult(
        title=f"{args.rows} images (JPEG q95), batches of {_BATCH}, {args.workers} workers, "
        f"median of {args.rounds} rounds",
        rows=rows,
        notes=[
            *notes,
            "the same for all: horizontal flip p=0.5, rotation of up to 10 degrees, erasing p=0.5, float32 normalized",
            "first batch and memory: above the imported libraries; memory of all processes, shared pages once",
            "CPU us: processor time of an image, which others on the machine disturb less than the clock",
        ],
        settings=options(args, ("size", "rows", "workers", "rounds"))
        | {"packages": {name: _version(package) for name, package in _PACKAGES.items()}},
    )


def _measure(args: argparse.Namespace, size: int, root: Path) -> tuple[dict[str, list[dict[str, float]]], list[str]]:
    """Figures of each contender, one mapping a round, and the reasons of those that cannot run."""
    found_by: dict[str, list[dict[str, float]]] = {}
    failures: list[str] = []
    for name in args.only:
        log.info(f"{size} px: writing images for {name}")
        error = _call("prepare", name, root / name, size, args.rows)
        if isinstance(error, str):
            failures.append(f"{name} is left out: {error}")
        else:
            found_by[name] = []
    for turn in range(args.rounds):
        for name in list(found_by):
            found = _call("read", name, root / name, size, _BATCH, args.workers, args.epochs)
            if isinstance(found, str):
                failures.append(f"{name} is left out: {found}")
                del found_by[name]
                continue
            found_by[name].append(found)
            log.info(f"{size} px, round {turn + 1}: {name} {found['images_per_second']:.0f} images/s")
    return found_by, failures


def _call(verb: str, name: str, folder: Path, *numbers: int) -> dict[str, float] | str:
    """What a contender's process tells, or why it could not."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.baselines", verb, name, str(folder), *map(str, numbers)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS_ALLOWED)
    except subprocess.TimeoutExpired:
        return f"not done after {_SECONDS_ALLOWED} s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _table(size: int, found_by: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    folder = _rate(found_by.get("folder", []))
    return [
        {
            "px": size,
            "reader": name,
            "images/s": round(_rate(found)),
            "slowest": round(min(one["images_per_second"] for one in found)),
            "fastest": round(max(one["images_per_second"] for one in found)),
            "CPU us": round(_median(found, "cpu_us")),
            "first batch s": round(_median(found, "first_batch_s"), 2),
            "memory MB": round(max(one["memory_mb"] for one in found)),
            "of folder": round(_rate(found) / folder, 2) if folder else "",
        }
        for name, found in found_by.items()
        if found
    ]


def _verdict(found_by: dict[str, list[dict[str, float]]]) -> list[str]:
    """Ours against the best of the others: as documented, and with those that go beyond."""
    rates = {name: _rate(found) for name, found in found_by.items() if found}
    lines = []
    for what, left_out in (
        ("as documented", (*_OURS, *_TUNED)),
        ("tuned beyond", _OURS),
    ):
        others = {name: rate for name, rate in rates.items() if name not in left_out}
        if "ours" in rates and others:
            best = max(others, key=lambda name: others[name])
            lines.append(f"ours is {rates['ours'] / others[best]:.2f} x the best baseline {what}, {best} (goal: 2)")
    return lines


def _rate(found: list[dict[str, float]]) -> float:
    return _median(found, "images_per_second")


def _median(found: list[dict[str, float]], key: str) -> float:
    return statistics.median(one[key] for one in found) if found else 0.0


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
