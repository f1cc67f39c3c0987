"""`fer bench loop`: training as a whole, beside the published code's loop, and the share of it that waits for data."""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.result import BenchResult, benchmark, options
from fer.config import nearest

_GOAL = 4.0
_MOST_WAITING = 5.0


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", nargs="+", metavar="NAME", help="networks to measure (all that classify)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument("--batch", type=int, default=32, help="images of one update (32)")
    parser.add_argument("--steps", type=int, default=50, help="updates of an epoch (50)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each loop; at least one epoch after one (20)")
    parser.add_argument("--workers", type=int, default=2, help="processes or threads that read, and torch's (2)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of ours (fp32)")
    parser.add_argument("--compile", action="store_true", help="ours by torch.compile")


@benchmark("loop", help="whole training steps, data included, beside the published code's loop", arguments=_arguments)
def run(args: argparse.Namespace) -> BenchResult:
    """One row for each network; unknown names or devices are a ValueError."""
    import torch

    from benchmarks.reference import REFERENCES

    known = [name for name, reference in REFERENCES.items() if reference.classifies]
    names = args.models or known
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"--models {unknown[0]}: {nearest(unknown[0], known) or 'unknown'}; known: {', '.join(known)}")
    if args.device != "cpu" and not (args.device == "cuda" and torch.cuda.is_available()):
        raise ValueError(f"--device {args.device}: cpu is allowed, and cuda on a machine that has it")
    if args.batch < 2 or args.steps < 1:
        raise ValueError(f"--batch {args.batch} --steps {args.steps}: at least 2 and 1 are needed")
    threads = torch.get_num_threads()
    torch.set_num_threads(args.workers)
    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        rows = [_measure(name, args) for name in names]
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
    return BenchResult(
        title=f"training at batch {args.batch} on {args.device}, ours in {args.precision}"
        + (", compiled" if args.compile else ""),
        rows=rows,
        notes=[
            "published: torch's DataLoader over a folder of JPEGs, albumentations, then a plain eager transcription of "
            "the published code in float32, channels first; ours: `fer.training.loop.train` over shards of the same "
            "images, which also looks for NaN at each step",
            "both: flip, rotation and erasing, AdamW, cross-entropy; ours with the losses of its model. Epochs of "
            f"{args.steps} updates, one loop after the other; medians of all but the first epoch",
            f"goals: {_GOAL:g} times the images/s; at most {_MOST_WAITING:g} % of the time spent waiting for data",
        ],
        settings=options(args, ("device", "batch", "steps", "seconds", "workers", "precision", "compile"))
        | {"models": names},
    )


def _measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.baselines import contender
    from benchmarks.data import made_up
    from benchmarks.reference import REFERENCES

    with tempfile.TemporaryDirectory(prefix="fer-bench-") as folder:
        root, samples = Path(folder), made_up(args.batch * args.steps, REFERENCES[name].size)
        contender("folder").prepare(samples, root)
        contender("ours").prepare(samples, root)
        published = _published_rate(name, root, args)
        found = _our_epochs(name, root, args)
    ours, waiting = (statistics.median(row[key] for row in found) for key in ("images_per_second", "waiting_for_data"))
    return {
        "model": name,
        "published img/s": round(published, 2),
        "ours img/s": round(ours, 2),
        "ratio": round(ours / published, 2),
        "goal met": "yes" if ours / published >= _GOAL else "no",
        "waiting for data %": round(100 * waiting, 1),
        "at most 5": "yes" if 100 * waiting <= _MOST_WAITING else "no",
    }


def _published_rate(name: str, root: Path, args: argparse.Namespace) -> float:
    """Images a second of the published loop, median over epochs."""
    import torch
    import torch.nn.functional as F

    from benchmarks.baselines import Job, contender
    from benchmarks.reference import REFERENCES, Published

    reference = REFERENCES[name]
    network = Published(names=reference.names, training=True)
    with torch.device(args.device), torch.no_grad():
        reference.forward(network, torch.randn(2, 3, reference.size, reference.size))  # makes the weights
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    epoch = contender("folder").epochs(Job(root, reference.size, args.batch, args.workers))

    def train(number: int) -> float:
        begun, images = time.perf_counter(), 0
        for batch, labels in epoch(number):
            loss = F.cross_entropy(reference.forward(network, batch.to(args.device)), labels.to(args.device))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss.item()
            images += len(labels)
        return images / (time.perf_counter() - begun)

    return _median(train, args.seconds)


def _median(epoch: Callable[[int], float], seconds: float) -> float:
    """Of epochs that take so long together, after one that is not counted."""
    epoch(0)
    until, rates = time.perf_counter() + seconds, [epoch(1)]
    while time.perf_counter() < until:
        rates.append(epoch(len(rates) + 1))
    return statistics.median(rates)


def _our_epochs(name: str, root: Path, args: argparse.Namespace) -> list[dict[str, float]]:
    """The timings of the engine's epochs, but for the first."""
    from benchmarks.baselines import AUGMENT
    from benchmarks.data import LABELS
    from benchmarks.reference import REFERENCES
    from benchmarks.steps import EnoughError
    from benchmarks.train import endless_job
    from fer.models import create_model
    from fer.training.loop import train
    from fer.training.recipe import Recipe
    from fer.weights.parts import WHOLE, locate
    from fer.weights.store import save_model

    reference = REFERENCES[name]
    shape: dict[str, Any] = {"model": reference.model, "options": dict(reference.options)}
    keys = {"epochs": 1, "batch_size": args.batch, "learning_rate": 1e-4, "augment": list(AUGMENT)}
    recipe = Recipe.model_validate({**shape, **keys})
    work, weights = root / "work", root / "weights.safetensors"
    work.mkdir()
    # As given weights, without which a frozen landmark network refuses to train.
    model = create_model(reference.model, len(LABELS), **reference.options)
    save_model(model, weights, LABELS, "basic7", name=reference.model, options=reference.options)
    job = endless_job(root, recipe, args.batch, args.workers)
    chosen = {"precision": args.precision, "compile": args.compile, "augment": recipe.augment}
    job = dataclasses.replace(
        job, recipe=job.recipe.model_copy(update=chosen), pretrained=locate({WHOLE: weights.name}, root)
    )
    found: list[dict[str, float]] = []
    until = float("inf")

    def on_epoch(record: dict[str, float]) -> None:
        nonlocal until
        if until == float("inf"):
            until = time.perf_counter() + args.seconds
            return
        found.append(record)
        if time.perf_counter() > until:
            raise EnoughError

    try:
        train(job, device="cuda:0" if args.device == "cuda" else "cpu", on_epoch=on_epoch)
    except EnoughError:
        return found
    raise AssertionError("the run ended by itself")
