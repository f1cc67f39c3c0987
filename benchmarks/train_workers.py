"""What two data-parallel workers reach of what two independent processes do: `fer bench train`."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.steps import FEWEST_STEPS, EnoughError, row
from benchmarks.timing import ratio

if TYPE_CHECKING:
    from fer.training.job import TrainJob


def worker_rows(job: TrainJob, budget: float, goal: float) -> list[dict[str, Any]]:
    """Two processes that train alone, beside each other, and together, round by round."""
    one, other = in_two_processes(_worker, job, str(Path(job.work_dir).with_name("meeting")), budget)
    rounds = [
        tuple(mine + theirs for mine, theirs in zip(*parts, strict=True)) for parts in zip(one, other, strict=True)
    ]  # whoever does not take part in a measurement gives 0
    columns = ("alone", "beside", "halves", "together")
    measured = {name: [round_[column] for round_ in rounds] for column, name in enumerate(columns)}
    return [
        row(
            what,
            ratio(measured[ones], measured[others]),
            goal if ones == "together" and others == "alone" else None,
            at_most=False,
            rounds=len(rounds),
            detail=f"{statistics.median(measured[ones]):.0f} / {statistics.median(measured[others]):.0f} images/s",
        )
        for what, ones, others in (
            ("two workers / one, same global batch", "together", "alone"),
            ("two processes, whole batches / one", "beside", "alone"),
            ("two processes, half batches / one", "halves", "alone"),
            ("two workers / two processes, half batches", "together", "halves"),
        )
    ]


def in_two_processes(worker: Callable[..., None], job: TrainJob, *arguments: Any) -> tuple[Any, Any]:
    """What `worker(job, rank, *arguments, results)` puts into `results` in each of two processes, in any order.

    Raises:
        RuntimeError: one of them ended with an error.
    """
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    children = [context.Process(target=worker, args=(job, rank, *arguments, results)) for rank in (0, 1)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    if any(child.exitcode for child in children):
        raise RuntimeError("a worker of the benchmark ended with an error, told above")
    return results.get(), results.get()


def _worker(job: TrainJob, rank: int, meeting: str, budget: float, results: Any) -> None:
    """One of two processes: [rates alone, beside the other, so with half batches, together], 0 without a part in it."""
    import torch
    import torch.distributed as dist

    from fer import processes

    processes.quiet_libraries()
    torch.set_num_threads(job.threads)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    steps, until = FEWEST_STEPS, time.monotonic() + budget
    found: list[tuple[float, ...]] = []
    half = dataclasses.replace(job, recipe=job.recipe.model_copy(update={"batch_size": job.recipe.batch_size // 2}))
    more = torch.ones(1)
    while more:
        dist.barrier()
        alone = _rate(job, rank, 1, steps) if rank == 0 else 0.0
        dist.barrier()
        beside = _rate(job, rank, 1, steps)
        dist.barrier()
        halves = _rate(half, rank, 1, steps)
        dist.barrier()
        together = _rate(job, rank, 2, steps)
        found.append((alone, beside, halves, together if rank == 0 else 0.0))
        more.fill_(time.monotonic() < until)
        dist.broadcast(more, src=0)
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
            raise EnoughError

    with tempfile.TemporaryDirectory(dir=Path(job.shards).parent) as work:
        shared = Path(job.shards).parent / "together"
        shared.mkdir(exist_ok=True)
        own = dataclasses.replace(job, work_dir=work if world_size == 1 else str(shared))
        try:
            train(own, rank=rank if world_size > 1 else 0, world_size=world_size, on_step=on_step)
        except EnoughError:
            return steps * job.recipe.batch_size / (times[-1] - times[1])
    raise AssertionError("the run ended by itself")
