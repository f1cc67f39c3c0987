"""`fer bench train`: what the engine adds to a bare loop, and what SAM, a second worker, checkpoints and bf16 cost."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.result import BenchResult, benchmark
from benchmarks.steps import FEWEST_STEPS, Turns, against, bare_loop, row, take_turns

if TYPE_CHECKING:
    from fer.training.job import TrainJob
    from fer.training.recipe import Recipe

PARTS = ("loop", "sam", "workers", "checkpoint", "bf16")
_EPOCH_SECONDS = 60.0
_SETTINGS = ("model", "seconds", "threads", "parts", "convolutional", "convolutional_batch", "accuracy_of")
_GOALS = {"loop": 1.03, "sam": 2.05, "workers": 1.7, "checkpoint": 0.02, "bf16": 1.5}


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="ddamfn_nano", help="a key of `models` in params.yaml (ddamfn_nano)")
    parser.add_argument("--batch", type=int, help="images of one update (the recipe's)")
    parser.add_argument(
        "--seconds", type=float, default=120.0, help=f"for all, but at least {FEWEST_STEPS} steps of each (120)"
    )
    parser.add_argument("--threads", type=int, default=1, help="of a worker (1)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure (all)")
    parser.add_argument(
        "--convolutional",
        nargs="+",
        metavar="NAME",
        default=["resnet34v2", "lhc_net", "ddamfn"],
        help="registered models whose steps in bf16 are measured (resnet34v2 lhc_net ddamfn)",
    )
    parser.add_argument("--convolutional-batch", type=int, default=8, help="images of their steps (8)")
    parser.add_argument(
        "--accuracy-of", metavar="NAME", default="lhc_net_nano", help="model trained in both precisions (lhc_net_nano)"
    )


@benchmark("train", help="the engine's loop over a bare one; SAM, two workers, checkpoints, bf16", arguments=_arguments)
def run(args: argparse.Namespace) -> BenchResult:
    """One row a result, each a ratio of steps that took turns in one process, or in the same two processes."""
    import torch

    from benchmarks.data import write_shards
    from benchmarks.half_precision import accuracy_row, speed_row
    from benchmarks.train_workers import worker_rows
    from fer.models import create_model
    from fer.params import load

    recipe = load().recipe(args.model).last
    batch = args.batch or recipe.batch_size
    if batch < 4 or batch % 2:
        raise ValueError(f"--batch {batch}: an even number from 4 on is needed, two workers share it")
    for name in (*args.convolutional, args.accuracy_of) if "bf16" in args.parts else ():
        with torch.device("meta"):
            create_model(name)  # an unknown name is reported before anything is measured
    threads = torch.get_num_threads()
    budget = args.seconds / len(args.parts)
    rows: list[dict[str, Any]] = []
    try:
        with tempfile.TemporaryDirectory(prefix="fer-bench-") as folder:
            root = Path(folder)
            with torch.device("meta"):
                size = create_model(recipe.model, **recipe.options).input_size
            write_shards(root / "shards", rows=40 * batch, size=size, held_out=batch)
            job = endless_job(root, recipe, batch, args.threads)
            turns = {part: take_turns(job, budget, sam=part == "sam") for part in ("loop", "sam") if part in args.parts}
            if "loop" in turns:
                rows.append(_loop_row(turns["loop"]))
            if "sam" in turns:
                rows.append(_sam_row(turns["sam"], turns.get("loop") or take_turns(job, budget, sam=False)))
            if "workers" in args.parts:
                rows.extend(worker_rows(job, budget, _GOALS["workers"]))
            if "checkpoint" in args.parts:
                rows.append(_checkpoint_row(job, budget))
            if "bf16" in args.parts:
                each = {"threads": args.threads, "budget": budget / len(args.convolutional), "goal": _GOALS["bf16"]}
                rows.extend(speed_row(name, batch=args.convolutional_batch, **each) for name in args.convolutional)
                rows.append(accuracy_row(args.accuracy_of, batch=batch, threads=args.threads))
    finally:
        torch.set_num_threads(threads)
    return BenchResult(
        title=f"{args.model}, {batch} images an update, {args.threads} threads a worker",
        rows=rows,
        notes=[
            "engine: `fer.training.loop.train`, whose step ends where it calls `on_step`; bare: batches of the same "
            "reader, forward, loss, backward, the same fused optimizer, `loss.item()`; in turn, in one process",
            "neither clips, smooths labels or augments; the engine looks at loss and gradient for NaN at each step",
            "CPU: the same ratio by the processor time of the process, reader included, which others disturb less; "
            "±: standard error",
            "two processes: what two independent runs do together, against one alone, of "
            "whole batches and of halves. Halves are the most that two workers could reach on this machine: they "
            "share a batch, and small ones are slower an image. Two hyperthreads of one core give about 1.25",
            f"checkpoints: of an epoch of {_EPOCH_SECONDS:g} s, with one at its end and one after each "
            f"{job.checkpoint_every_steps} steps",
            "bf16: whole steps, without a reader; accuracy: on held-out images of seven made-up patterns, after the "
            "same few steps from the same weights, mean over seeds",
        ],
        settings={name: getattr(args, name) for name in _SETTINGS} | {"batch": batch},
    )


def endless_job(root: Path, recipe: Recipe, batch: int, threads: int) -> TrainJob:
    """A run of the model that never ends by itself, with nothing but what is measured."""
    from benchmarks.data import LABELS
    from fer.training.job import TrainJob
    from fer.training.recipe import Schedule

    plain: dict[str, Any] = {
        "epochs": 10_000, "batch_size": batch, "eval_batch_size": batch, "schedule": Schedule(kind="constant"),
        "label_smoothing": 0.0, "class_weights": "none", "mix": None, "sam": None, "accumulate": 1,
        "gradient_clip": None, "ema_decay": None, "patience": None, "sampler": "shuffle", "precision": "fp32",
        "augment": [], "pretrained": {}, "start_from": None, "protocol": "validation", "cross_validation": None,
        "stages": [],
    }  # fmt: skip
    return TrainJob(
        shards=str(root / "shards"),
        work_dir=str(root / "work"),
        recipe=recipe.model_copy(update=plain),
        labels=tuple(LABELS),
        seed=0,
        threads=threads,
        checkpoint_every_steps=200,
        fingerprint="bench",
    )


def _loop_row(turns: Turns) -> dict[str, Any]:
    return row(
        "engine's step / bare step",
        turns.ratio,
        _GOALS["loop"],
        cpu=turns.cpu,
        rounds=len(turns.engine),
        detail=f"{against(turns.engine, turns.bare)}, ± {turns.error:.3f}",
    )


def _sam_row(sam: Turns, plain: Turns) -> dict[str, Any]:
    return row(
        "SAM's step / plain step",
        sam.ratio / plain.ratio,
        _GOALS["sam"],
        cpu=sam.cpu / plain.cpu,
        rounds=len(sam.engine),
        detail=f"{against(sam.engine, plain.engine)}, ± {sam.error / plain.ratio:.3f}",
    )


def _checkpoint_row(job: TrainJob, budget: float) -> dict[str, Any]:
    """The part of an epoch of 60 s that its checkpoints take, from the time of one, and of a bare step."""
    from fer.training.learner import Learner
    from fer.training.loop import build_model
    from fer.training.state import TrainState

    folder = Path(job.work_dir, "checkpoints")
    folder.mkdir(parents=True, exist_ok=True)
    step = bare_loop(job)
    step()
    learner = Learner.create(job.recipe, build_model(job), device="cpu", world_size=1)
    for parameter in learner.model.parameters():
        parameter.grad = parameter.detach().clone()
    learner.update()  # fills the optimizer's moments
    state = TrainState(fingerprint="bench", seed=0, world_size=1, threads=job.threads)
    state.best_model = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    steps: list[float] = []
    saves: list[float] = []
    until = time.perf_counter() + budget
    while len(saves) < 3 or (time.perf_counter() < until and len(saves) < 50):
        begun = time.perf_counter()
        step()
        middle = time.perf_counter()
        state.global_step += 1
        learner.keep(state)
        path = folder / state.save(folder)
        steps.append(middle - begun)
        saves.append(time.perf_counter() - middle)
    one, step_seconds = statistics.median(saves), statistics.median(steps)
    count = 1 + int(_EPOCH_SECONDS / step_seconds) // job.checkpoint_every_steps
    return row(
        "checkpoints' part of an epoch",
        count * one / _EPOCH_SECONDS,
        _GOALS["checkpoint"],
        rounds=len(saves),
        detail=f"{count} of {1000 * one:.0f} ms, {path.stat().st_size / 1e6:.1f} MB",
    )
