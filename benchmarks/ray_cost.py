"""`fer bench ray`: what Ray adds to a run: one Ray worker against the same loop in this process."""

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.result import BenchResult, benchmark
from fer.console import log

if TYPE_CHECKING:
    from fer.params import Params

_DATASET = "bench"
_CALIBRATION_ROWS = 2048


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="ddamfn_nano", help="a key of `models` in params.yaml (ddamfn_nano)")
    parser.add_argument("--threads", type=int, default=2, help="threads of the worker, and of this process (2)")
    parser.add_argument("--epochs", type=int, default=2, help="epochs of each run (2)")
    parser.add_argument("--epoch-seconds", type=float, default=60.0, help="how long an epoch shall take (60)")


@benchmark("ray", help="start-up seconds and per-epoch overhead of one Ray worker", arguments=_arguments)
def run(args: argparse.Namespace) -> BenchResult:
    """Trains the same thing twice through the train stage, in this process and in one Ray worker.

    A first short run finds how many rows make an epoch of the given length. Data and outputs are in a temporary
    folder; the recipe is that of params.yaml.
    """
    from benchmarks.data import write_shards
    from fer.params import load

    params = load()
    with tempfile.TemporaryDirectory(prefix="fer-bench-") as folder:
        root = Path(folder)
        size = _input_size(params, args.model)
        write_shards(root / "short/data/shards" / _DATASET, rows=_CALIBRATION_ROWS, size=size)
        _, epochs = _train(params, root / "short", args, workers=0, epochs=1)
        rows = max(_CALIBRATION_ROWS, round(1.1 * args.epoch_seconds * _CALIBRATION_ROWS / epochs))
        log.info(f"an epoch of {rows} rows should take {args.epoch_seconds:g} s")
        measured = {}
        for name, workers in (("in this process", 0), ("one Ray worker", 1)):
            write_shards(root / name / "data/shards" / _DATASET, rows=rows, size=size)
            measured[name] = _train(params, root / name, args, workers=workers, epochs=args.epochs)
    (own_wall, own), (ray_wall, ray) = measured.values()
    own_outside, ray_outside = own_wall - own, ray_wall - ray
    rows_out = [
        {
            "where": name,
            "whole run, s": round(wall, 2),
            "one epoch, s": round(inside / args.epochs, 2),
            "outside epochs, s": round(wall - inside, 2),
        }
        for name, (wall, inside) in measured.items()
    ]
    return BenchResult(
        title=f"{args.model}, {args.epochs} epochs of {rows} images of {size} px, {args.threads} threads",
        rows=rows_out,
        notes=[
            f"Ray's start-up: {ray_outside - own_outside:.1f} s (target: under 25 s)",
            f"Ray's overhead of an epoch: {100 * (ray / own - 1):+.1f} % (target: under 5 %)",
            "outside epochs: opening the data, tracking, publishing; with Ray also its start, its reports and its end",
        ],
        settings={
            "model": args.model,
            "threads": args.threads,
            "epochs": args.epochs,
            "epoch_seconds": args.epoch_seconds,
            "rows": rows,
            "startup_seconds": ray_outside - own_outside,
            "epoch_overhead": ray / own - 1,
        },
    )


def _train(params: "Params", root: Path, args: argparse.Namespace, *, workers: int, epochs: int) -> tuple[float, float]:
    """Seconds of a whole run, and of its epochs alone as the loop takes them."""
    from fer.io.files import read_json
    from fer.stages.train import run as run_training

    recipe = params.recipe(args.model)
    warmup = recipe.schedule.model_copy(update={"warmup_epochs": 0.0})
    short = recipe.model_copy(update={"epochs": epochs, "schedule": warmup})
    here: Any = dataclasses.replace(
        params,
        root=root,
        datasets={_DATASET: next(iter(params.datasets.values()))},
        recipes={args.model: short},
        train=params.train.model_copy(update={"workers": workers, "threads": args.threads, "gpu": False}),
        tracking=params.tracking.model_copy(update={"uri": None}),
    )
    started = time.perf_counter()
    published = run_training(here, _DATASET, args.model)
    wall = time.perf_counter() - started
    return wall, float(read_json(published / "run.json")["seconds"])


def _input_size(params: "Params", model: str) -> int:
    import torch

    from fer.models import create_model

    recipe = params.recipe(model)
    with torch.device("meta"):
        return create_model(recipe.model, **recipe.options).input_size
