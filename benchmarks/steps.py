"""Steps of the engine and of a bare loop that take turns, and the rows that `fer bench train` makes of them."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.timing import ratio

if TYPE_CHECKING:
    from fer.training.job import TrainJob

FEWEST_STEPS = 6
"""That are measured of each, however little time there is."""


def row(
    what: str,
    figure: float,
    goal: float | None = None,
    *,
    rounds: int,
    detail: str = "",
    cpu: float | None = None,
    at_most: bool = True,
) -> dict[str, Any]:
    """A line of the table: a result beside its goal, which is the most or the least that it may be.

    Args:
        rounds: of which the result is the median. detail: what it was made of. cpu: the same by processor time.
    """
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


def against(ones: Sequence[float], others: Sequence[float]) -> str:
    """Median seconds of both, as milliseconds for people."""
    return f"{1000 * statistics.median(ones):.1f} / {1000 * statistics.median(others):.1f} ms"


class EnoughError(Exception):
    """Raised in `on_step` to end a run."""


@dataclasses.dataclass
class Turns:
    """Seconds of steps that took turns, and processor seconds of the same."""

    engine: list[float] = dataclasses.field(default_factory=list)
    bare: list[float] = dataclasses.field(default_factory=list)
    engine_cpu: list[float] = dataclasses.field(default_factory=list)
    bare_cpu: list[float] = dataclasses.field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Median of the ratios of neighbours."""
        return ratio(self.engine, self.bare)

    @property
    def error(self) -> float:
        """Standard error of that median, as of normal deviates."""
        ratios = [one / other for one, other in zip(self.engine, self.bare, strict=True)]
        return 1.2533 * statistics.stdev(ratios) / math.sqrt(len(ratios))

    @property
    def cpu(self) -> float:
        """The same by processor time."""
        return ratio(self.engine_cpu, self.bare_cpu)


def take_turns(job: TrainJob, budget: float, *, sam: bool) -> Turns:
    """A step of the engine, a step of the bare loop, and so on; the first steps of both are left out."""
    from fer.training.loop import train
    from fer.training.progress import Progress
    from fer.training.recipe import SamConfig

    recipe = job.recipe.model_copy(update={"sam": SamConfig() if sam else None})
    work = Path(job.work_dir, "sam" if sam else "plain")
    work.mkdir(parents=True, exist_ok=True)
    bare, turns, until = bare_loop(job), Turns(), 0.0
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
        if now > until and len(turns.engine) >= FEWEST_STEPS:
            raise EnoughError
        last = (time.perf_counter(), time.process_time())

    try:
        train(dataclasses.replace(job, recipe=recipe, work_dir=str(work)), on_step=on_step)
    except EnoughError:
        return turns
    raise AssertionError("the run ended by itself")


def bare_loop(job: TrainJob) -> Callable[[], None]:
    """A step of the shortest loop that trains the same model on the same batches."""
    from itertools import chain, count

    from fer.training.data import open_data
    from fer.training.distributed import Distributed
    from fer.training.loop import build_model, prepare
    from fer.training.optimizer import build_optimizer

    model = build_model(job)
    optimizer = build_optimizer(job.recipe, model)
    data = open_data(job.shards, job.recipe, model, seed=job.seed, distributed=Distributed(), threads=job.threads)
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
