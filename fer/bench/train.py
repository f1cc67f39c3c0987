"""`fer bench train`: what the engine adds to a bare loop, and what SAM, a second worker, checkpoints and bf16 cost."""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer.bench.result import BenchResult, benchmark

if TYPE_CHECKING:
    from fer.training.loop import TrainJob
    from fer.training.recipe import Recipe

PARTS = ("loop", "sam", "workers", "checkpoint", "bf16")
_EPOCH_SECONDS = 60.0
_FEWEST_STEPS = 6
_GOALS = {"loop": 1.03, "sam": 2.05, "workers": 1.7, "checkpoint": 0.02, "bf16": 1.5}


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="ddamfn_nano", help="a key of `models` in params.yaml (ddamfn_nano)")
    parser.add_argument("--batch", type=int, help="images of one update (the recipe's)")
    parser.add_argument(
        "--seconds", type=float, default=120.0, help=f"for all, but at least {_FEWEST_STEPS} steps of each (120)"
    )
    parser.add_argument("--threads", type=int, default=1, help="of a worker (1)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure (all)")
    parser.add_argument(
        "--convolutional",
        nargs="+",
        metavar="NAME",
        default=["ddamfn_nano", "lhc_net_nano"],
        help="registered models whose bf16 is measured (ddamfn_nano lhc_net_nano)",
    )


@benchmark("train", help="the engine's loop over a bare one; SAM, two workers, checkpoints, bf16", arguments=_arguments)
def run(args: argparse.Namespace) -> BenchResult:
    """One row a figure, each a ratio of steps that took turns in one process, or in the same two processes."""
    import torch

    from fer.bench.data import write_shards
    from fer.models import create_model
    from fer.params import load

    recipe = load().recipe(args.model).last
    batch = args.batch or recipe.batch_size
    if batch < 4 or batch % 2:
        raise ValueError(f"--batch {batch}: an even number from 4 on is needed, two workers share it")
    for name in args.convolutional if "bf16" in args.parts else ():
        with torch.device("meta"):
            create_model(name)  # a name that is not registered is told before anything is measured
    threads = torch.get_num_threads()
    budget = args.seconds / len(args.parts)
    rows: list[dict[str, Any]] = []
    try:
        with tempfile.TemporaryDirectory(prefix="fer-bench-") as folder:
            root = Path(folder)
            with torch.device("meta"):
                size = create_model(recipe.model, **recipe.options).input_size
            write_shards(root / "shards", rows=40 * batch, size=size, held_out=batch)
            job = _job(root, recipe, batch, args.threads)
            turns = {
                part: _take_turns(job, budget, sam=part == "sam") for part in ("loop", "sam") if part in args.parts
            }
            if "loop" in turns:
                rows.append(_loop_row(turns["loop"]))
            if "sam" in turns:
                rows.append(_sam_row(turns["sam"], turns.get("loop") or _take_turns(job, budget, sam=False)))
            if "workers" in args.parts:
                rows.extend(_worker_rows(job, budget))
            if "checkpoint" in args.parts:
                rows.append(_checkpoint_row(job, budget))
            if "bf16" in args.parts:
                for name in args.convolutional:
                    rows.extend(_bf16_rows(name, batch, args.threads, budget / len(args.convolutional)))
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
            "two processes: what two trainings that know nothing of each other do together, against one alone: the "
            "most that two workers could reach on this machine. Two hyperthreads of one core give about 1.25",
            f"checkpoints: of an epoch of {_EPOCH_SECONDS:g} s, with one at its end and one after each "
            f"{job.checkpoint_every_steps} steps",
            "bf16: whole steps, without a reader; accuracy: on held-out pictures of seven made-up patterns, after the "
            "same few steps from the same weights, mean over seeds",
        ],
        settings={name: getattr(args, name) for name in ("model", "seconds", "threads", "parts", "convolutional")}
        | {"batch": batch},
    )


def _row(
    what: str,
    figure: float,
    goal: float | None = None,
    *,
    rounds: int,
    detail: str = "",
    cpu: float | None = None,
    at_most: bool = True,
) -> dict[str, Any]:
    met = "" if goal is None else "yes" if (figure <= goal if at_most else figure >= goal) else "no"
    return {
        "what": what,
        "figure": round(figure, 4),
        "goal": "" if goal is None else f"{'<=' if at_most else '>='} {goal:g}",
        "met": met,
        "CPU": "" if cpu is None else f"{cpu:.4f}",
        "median of": rounds,
        "in full": detail,
    }


def _job(root: Path, recipe: Recipe, batch: int, threads: int) -> TrainJob:
    """A training of the model that never ends by itself, with nothing but what is measured."""
    from fer.bench.data import LABELS
    from fer.training.loop import TrainJob
    from fer.training.recipe import Schedule

    plain: dict[str, Any] = {
        "epochs": 10_000, "batch_size": batch, "eval_batch_size": batch, "schedule": Schedule(kind="constant"),
        "label_smoothing": 0.0, "class_weights": "none", "mix": None, "sam": None, "accumulate": 1,
        "gradient_clip": None, "ema_decay": None, "patience": None, "sampler": "shuffle", "precision": "fp32",
        "augment": [], "pretrained": {}, "protocol": "validation", "cross_validation": None, "stages": [],
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


class _EnoughError(Exception):
    """Raised in `on_step` to leave a training."""


@dataclasses.dataclass
class _Turns:
    """Seconds of steps that took turns, and processor seconds of the same."""

    engine: list[float] = dataclasses.field(default_factory=list)
    bare: list[float] = dataclasses.field(default_factory=list)
    engine_cpu: list[float] = dataclasses.field(default_factory=list)
    bare_cpu: list[float] = dataclasses.field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Median of the ratios of neighbours."""
        return statistics.median(one / other for one, other in zip(self.engine, self.bare, strict=True))

    @property
    def error(self) -> float:
        """Standard error of that median, as of normal deviates."""
        ratios = [one / other for one, other in zip(self.engine, self.bare, strict=True)]
        return 1.2533 * statistics.stdev(ratios) / math.sqrt(len(ratios))

    @property
    def cpu(self) -> float:
        """The same by processor time."""
        return statistics.median(one / other for one, other in zip(self.engine_cpu, self.bare_cpu, strict=True))


def _take_turns(job: TrainJob, budget: float, *, sam: bool) -> _Turns:
    """A step of the engine, a step of the bare loop, and so on; the first steps of both are left out."""
    from fer.training.loop import train
    from fer.training.progress import Progress
    from fer.training.recipe import SamConfig

    recipe = job.recipe.model_copy(update={"sam": SamConfig() if sam else None})
    work = Path(job.work_dir, "sam" if sam else "plain")
    work.mkdir(parents=True, exist_ok=True)
    bare, turns, until = _bare_loop(job), _Turns(), 0.0
    last = (0.0, 0.0)
    skip = 3

    def on_step(progress: Progress) -> None:
        nonlocal last, skip, until
        ended, cpu_ended = time.perf_counter(), time.process_time()
        bare()
        now, cpu_now = time.perf_counter(), time.process_time()
        if progress.step == 1:  # an epoch's end, and the reader's start
            skip = max(skip, 1)
        if skip:
            skip, until = skip - 1, until or now + budget
        else:
            turns.engine.append(ended - last[0])
            turns.bare.append(now - ended)
            turns.engine_cpu.append(cpu_ended - last[1])
            turns.bare_cpu.append(cpu_now - cpu_ended)
        if now > until and len(turns.engine) >= _FEWEST_STEPS:
            raise _EnoughError
        last = (time.perf_counter(), time.process_time())

    try:
        train(dataclasses.replace(job, recipe=recipe, work_dir=str(work)), on_step=on_step)
    except _EnoughError:
        return turns
    raise AssertionError("the training ended by itself")


def _bare_loop(job: TrainJob) -> Callable[[], None]:
    """A step of the shortest loop that trains the same model on the same batches."""
    from itertools import chain, count

    from fer.training.data import open_data
    from fer.training.loop import build_model, prepare
    from fer.training.optimizer import build_optimizer
    from fer.training.peers import Peers

    model = build_model(job)
    optimizer = build_optimizer(job.recipe, model)
    data = open_data(job.shards, job.recipe, model, seed=job.seed, peers=Peers(), threads=job.threads)
    batches = chain.from_iterable(data.train.epoch(epoch) for epoch in count())
    model.train()

    def step() -> None:
        batch = next(batches)
        loss = model.loss(model(prepare(batch.images, model, job.recipe, "cpu")), batch.targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


def _loop_row(turns: _Turns) -> dict[str, Any]:
    return _row(
        "engine's step / bare step",
        turns.ratio,
        _GOALS["loop"],
        cpu=turns.cpu,
        rounds=len(turns.engine),
        detail=f"{_against(turns.engine, turns.bare)}, ± {turns.error:.3f}",
    )


def _sam_row(sam: _Turns, plain: _Turns) -> dict[str, Any]:
    return _row(
        "SAM's step / plain step",
        sam.ratio / plain.ratio,
        _GOALS["sam"],
        cpu=sam.cpu / plain.cpu,
        rounds=len(sam.engine),
        detail=f"{_against(sam.engine, plain.engine)}, ± {sam.error / plain.ratio:.3f}",
    )


def _against(ones: Sequence[float], others: Sequence[float]) -> str:
    return f"{1000 * statistics.median(ones):.1f} / {1000 * statistics.median(others):.1f} ms"


# ------------------------------------------------------------------------------------------------ two workers


def _worker_rows(job: TrainJob, budget: float) -> list[dict[str, Any]]:
    """Two processes that train alone, beside each other, and together, round by round."""
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    meeting = Path(job.work_dir).with_name("meeting")
    children = [context.Process(target=_worker, args=(job, rank, str(meeting), budget, results)) for rank in (0, 1)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    if any(child.exitcode for child in children):
        raise RuntimeError("a worker of the benchmark ended with an error, told above")
    one, other = (results.get() for _ in children)
    rounds = [
        (alone + alone_, (beside + beside_), together or together_)
        for (alone, beside, together), (alone_, beside_, together_) in zip(one, other, strict=True)
    ]  # whoever does not take part in a measurement gives 0
    speedups = [together / alone for alone, _, together in rounds]
    ceilings = [beside / alone for alone, beside, _ in rounds]
    alone, beside, together = (statistics.median(column) for column in zip(*rounds, strict=True))
    return [
        _row(
            "two workers / one, same global batch",
            statistics.median(speedups),
            _GOALS["workers"],
            at_most=False,
            rounds=len(rounds),
            detail=f"{together:.0f} / {alone:.0f} images/s",
        ),
        _row(
            "two processes on their own / one",
            statistics.median(ceilings),
            rounds=len(rounds),
            detail=f"{beside:.0f} / {alone:.0f} images/s",
        ),
        _row(
            "two workers / two processes",
            statistics.median([two / most for two, most in zip(speedups, ceilings, strict=True)]),
            rounds=len(rounds),
            detail=f"{together:.0f} / {beside:.0f} images/s",
        ),
    ]


def _worker(job: TrainJob, rank: int, meeting: str, budget: float, results: Any) -> None:
    """One of two processes: [(rate alone, rate beside the other, rate together)], 0 where it has no part in it."""
    import torch
    import torch.distributed as dist

    from fer import processes

    processes.quiet_libraries()
    torch.set_num_threads(job.threads)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    steps, until = _FEWEST_STEPS, time.monotonic() + budget
    found: list[tuple[float, float, float]] = []
    go_on = torch.ones(1)
    while go_on:
        dist.barrier()
        alone = _rate(job, rank, 1, steps) if rank == 0 else 0.0
        dist.barrier()
        beside = _rate(job, rank, 1, steps)
        dist.barrier()
        together = _rate(job, rank, 2, steps)
        found.append((alone, beside, together if rank == 0 else 0.0))
        go_on.fill_(time.monotonic() < until)
        dist.broadcast(go_on, src=0)
    results.put(found)
    dist.barrier()
    dist.destroy_process_group()


def _rate(job: TrainJob, rank: int, world_size: int, steps: int) -> float:
    """Images a second of the global batch over so many steps, after two that are not counted."""
    from fer.training.loop import train
    from fer.training.progress import Progress

    times: list[float] = []

    def on_step(progress: Progress) -> None:
        times.append(time.perf_counter())
        if len(times) == steps + 2:
            raise _EnoughError

    with tempfile.TemporaryDirectory(dir=Path(job.shards).parent) as work:
        shared = Path(job.shards).parent / "together"
        shared.mkdir(exist_ok=True)
        own = dataclasses.replace(job, work_dir=work if world_size == 1 else str(shared))
        try:
            train(own, rank=rank if world_size > 1 else 0, world_size=world_size, on_step=on_step)
        except _EnoughError:
            return steps * job.recipe.batch_size / (times[-1] - times[1])
    raise AssertionError("the training ended by itself")


# ------------------------------------------------------------------------------------------------ checkpoints and bf16


def _checkpoint_row(job: TrainJob, budget: float) -> dict[str, Any]:
    """The share of an epoch of 60 s that its checkpoints take, from the time of one, and of a bare step."""
    from fer.training.learner import Learner
    from fer.training.loop import build_model
    from fer.training.state import TrainState

    folder = Path(job.work_dir, "checkpoints")
    folder.mkdir(parents=True, exist_ok=True)
    step = _bare_loop(job)
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
        path = state.save(folder)
        steps.append(middle - begun)
        saves.append(time.perf_counter() - middle)
    one, step_seconds = statistics.median(saves), statistics.median(steps)
    count = 1 + int(_EPOCH_SECONDS / step_seconds) // job.checkpoint_every_steps
    return _row(
        "checkpoints' share of an epoch",
        count * one / _EPOCH_SECONDS,
        _GOALS["checkpoint"],
        rounds=len(saves),
        detail=f"{count} of {1000 * one:.0f} ms, {path.stat().st_size / 1e6:.1f} MB",
    )


def _bf16_rows(name: str, batch: int, threads: int, budget: float) -> list[dict[str, Any]]:
    """Steps in bf16 against steps in fp32, in turn, and how well both have learnt after them."""
    import torch

    torch.set_num_threads(threads)
    trials = {
        (seed, precision): _Trial(name, batch, seed, precision) for seed in (0, 1, 2) for precision in ("fp32", "bf16")
    }
    for precision in ("fp32", "bf16"):
        trials[0, precision].step()
    seconds: dict[str, list[float]] = {"fp32": [], "bf16": []}
    until = time.perf_counter() + budget
    rounds = 0
    while rounds < _FEWEST_STEPS // 2 or time.perf_counter() < until:
        for (_, precision), trial in trials.items():
            begun = time.perf_counter()
            trial.step()
            seconds[precision].append(time.perf_counter() - begun)
        rounds += 1
    ratios = [slow / fast for slow, fast in zip(seconds["fp32"], seconds["bf16"], strict=True)]
    right = {key: trial.accuracy() for key, trial in trials.items()}
    gaps = [right[seed, "bf16"] - right[seed, "fp32"] for seed in (0, 1, 2)]
    means = [100 * statistics.fmean(right[seed, precision] for seed in (0, 1, 2)) for precision in ("bf16", "fp32")]
    return [
        _row(
            f"{name}: fp32 step / bf16 step",
            statistics.median(ratios),
            _GOALS["bf16"],
            at_most=False,
            rounds=len(ratios),
            detail=_against(seconds["fp32"], seconds["bf16"]),
        ),
        _row(
            f"{name}: accuracy in bf16 - in fp32",
            statistics.fmean(gaps),
            rounds=len(gaps),
            detail=f"{means[0]:.1f} - {means[1]:.1f} %, sd of pairs {100 * statistics.stdev(gaps):.1f}",
        ),
    ]


class _Trial:
    """A short training on pictures of seven patterns in noise, in memory."""

    def __init__(self, name: str, batch: int, seed: int, precision: str) -> None:
        import torch

        from fer.models import create_model
        from fer.training.recipe import Recipe

        self.recipe = Recipe.model_validate(
            {"model": name, "epochs": 1, "batch_size": batch, "learning_rate": 0.001, "precision": precision}
        )
        torch.manual_seed(seed)
        self.model = create_model(name, 7).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.001, fused=True)
        self.random = torch.Generator().manual_seed(seed)
        self.batch = batch

    def step(self) -> None:
        """One update."""
        from fer.training.passes import autocast

        self.model.train()
        images, labels = self._pictures(self.batch)
        with autocast(self.recipe, "cpu"):
            loss = self.model.loss(self.model(images), labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def accuracy(self) -> float:
        """On pictures that it was not trained on, the same ones for both precisions."""
        import torch

        from fer.training.passes import autocast

        self.model.eval()
        with torch.no_grad(), autocast(self.recipe, "cpu"):
            pairs = [self._pictures(64) for _ in range(4)]
            return statistics.fmean(
                (self.model(images).argmax(1) == labels).double().mean().item() for images, labels in pairs
            )

    def _pictures(self, count: int) -> Any:
        import torch

        side = self.model.input_size
        labels = torch.randint(7, (count,), generator=self.random)
        places = torch.linspace(0, 6.28, side)
        waves = torch.sin(places[None] * (labels[:, None] + 1))
        noise = torch.randn((count, 3, side, side), generator=self.random)
        images = (waves[:, None, :, None] * waves[:, None, None, :]) + noise
        return images.contiguous(memory_format=torch.channels_last), labels
