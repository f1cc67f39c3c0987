"""Training runs in processes of their own: the loop alone, killed where a test wants, and their states compared."""

import json
import multiprocessing
import multiprocessing.process
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from datetime import timedelta
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import torch
import torch.distributed as dist
from builders.limits import patience
from builders.projects import PYTHONPATH, TOY
from builders.shards import LABELS, make_shards

from fer import processes
from fer.training.job import TrainJob
from fer.training.loop import train
from fer.training.recipe import Recipe
from fer.training.sam import Sam
from fer.training.state import TrainState, saved_states

_CHILDREN = multiprocessing.get_context("forkserver")


def child(target: Callable[..., None], *arguments: Any) -> multiprocessing.process.BaseProcess:
    """Starts a function in a process of its own, forked from a server that has this module and torch imported."""
    _CHILDREN.set_forkserver_preload(["builders.preload"])
    with mock.patch.dict(os.environ, PYTHONPATH=PYTHONPATH):  # for the server's preload
        forkserver.ensure_running()
    process = _CHILDREN.Process(target=target, args=arguments)
    process.start()
    return process


def make_job(folder: Path, **recipe: Any) -> TrainJob:
    """A training on `folder/shards` that keeps its states in `folder/work`; the keywords override keys of TOY."""
    shards = folder / "shards"
    if not shards.exists():
        make_shards(shards)
    (folder / "work").mkdir(exist_ok=True)
    return TrainJob(
        shards=str(shards),
        work_dir=str(folder / "work"),
        recipe=Recipe.model_validate_json(json.dumps({**TOY, **recipe})),
        labels=LABELS,
        seed=3,
        threads=1,
        checkpoint_every_steps=2,
        fingerprint="f" * 64,
    )


def elsewhere(job: TrainJob, work: Path) -> TrainJob:
    """The same training with another work folder."""
    work.mkdir(exist_ok=True)
    return replace(job, work_dir=str(work))


def kill_at_step(job: TrainJob, step: int, device: str = "cpu") -> None:
    """Trains, and is killed right after the update of that number, counted over the whole training from 1."""
    steps = 0
    first = state.global_step if (state := TrainState.load(Path(job.work_dir))) else 0

    def on_step(_: object) -> None:
        nonlocal steps
        steps += 1
        if first + steps == step:
            os.kill(os.getpid(), signal.SIGKILL)

    train(job, device=device, on_step=on_step)


def kill_between_passes(job: TrainJob, step: int) -> None:
    """Trains, and is killed at w + e of the update of that number, counted from 1."""
    perturb, calls = Sam.perturb, 0

    def deadly(sam: Sam) -> torch.Tensor:
        nonlocal calls
        norm, calls = perturb(sam), calls + 1
        if calls == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return norm

    Sam.perturb = deadly  # type: ignore[method-assign]
    train(job)


def kill_at_save(job: TrainJob, number: int, moment: str) -> None:
    """Trains, and is killed in the checkpoint of that number: "half" written, "before" or "after" its rename."""
    rename, sync, saves = os.replace, os.fsync, 0

    def replace_(source: Any, target: Any) -> None:
        nonlocal saves
        is_state = str(target).endswith(".pt")
        saves += is_state
        if is_state and saves == number and moment != "half":
            if moment == "after":
                rename(source, target)
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    def fsync(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if ".pt.tmp-" in name and saves + 1 == number and moment == "half":
            os.truncate(name, os.path.getsize(name) // 2)  # noqa: PTH202
            os.kill(os.getpid(), signal.SIGKILL)
        sync(descriptor)

    os.replace, os.fsync = replace_, fsync  # type: ignore[assignment]
    train(job)


def train_rank(
    job: TrainJob,
    rank: int,
    world_size: int,
    meeting: str,
    kill: tuple[int, int] | None = None,
    signum: int = signal.SIGKILL,
    timeout: float = 60,
    device: str = "cpu",
) -> None:
    """One of several ranks that meet through a file; `kill`: (rank, number of the update) that gets `signum` after it.

    timeout: seconds that the ranks wait for each other.
    """
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=world_size, timeout=timedelta(seconds=timeout)
    )
    steps = 0

    def on_step(_: object) -> None:
        nonlocal steps
        steps += 1
        if kill == (rank, steps):
            os.kill(os.getpid(), signum)

    train(job, rank=rank, world_size=world_size, device=device, on_step=on_step)
    dist.destroy_process_group()


def write_output_to(path: str) -> None:
    """Sends everything that this child prints, libraries included, to a file."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)


def run_stage(root: str, output: str, code: str = "") -> None:
    """The train stage without Ray, for `child`: it starts at once, and has the toy model. Its output goes to a file."""
    from fer import params
    from fer.stages.train import run as run_training

    write_output_to(output)
    exec(code, {})

    def main() -> None:
        run_training(params.load(Path(root) / "params.yaml"), "tiny", "toy")

    processes.run(main)


def run_child(target: Callable[..., None], *arguments: Any, timeout: float = 100) -> int | None:
    """Runs a function in a process of its own; its exit code, negative where a signal ended it."""
    process = child(target, *arguments)
    process.join(patience(timeout))
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"{target.__name__}{arguments[1:]} did not end within {timeout} s")
    return process.exitcode


def run_ranks(
    job: TrainJob, world_size: int, meeting: Path, kill: tuple[int, int] | None = None, device: str = "cpu"
) -> list[int | None]:
    """Runs `train_rank` in processes of their own; where one is killed, the others end with an error. Exit codes."""
    common = (world_size, str(meeting), kill, signal.SIGKILL, patience(60), device)
    return join_all([child(train_rank, job, rank, *common) for rank in range(world_size)])


def join_all(ranks: Sequence[multiprocessing.process.BaseProcess], timeout: float = 100) -> list[int | None]:
    """Exit codes of processes; what still runs after `timeout` is killed, and None in its place."""
    for rank in ranks:
        rank.join(patience(timeout))
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
    return codes


def final_state(job: TrainJob) -> TrainState:
    """The last state of a training."""
    state = TrainState.load(Path(job.work_dir))
    assert state is not None
    return state


def assert_same_bits(one: TrainState, other: TrainState) -> None:
    """Every field but the records of how long it took and how often it was resumed."""
    for field in fields(TrainState):
        if field.name not in ("timings", "resumes", "fallbacks"):
            assert_same(getattr(one, field.name), getattr(other, field.name), field.name)


def assert_same(one: Any, other: Any, where: str) -> None:
    """Equal to the last bit, through all nesting."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, Mapping):
        assert sorted(map(str, one)) == sorted(map(str, other)), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_same(left, right, f"{where}[{index}]")
    else:
        assert one == other, where


def still_alive(family: list[psutil.Process], seconds: float) -> list[str]:
    """Names of those that still run after so long. One that has ended and waits for its parent to notice does not."""
    deadline = time.monotonic() + patience(seconds)
    while True:
        names = [name for name in map(_name_if_running, family) if name]
        if not names or time.monotonic() > deadline:
            return names
        time.sleep(0.05)


def _name_if_running(process: psutil.Process) -> str | None:
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else process.name()
    except psutil.NoSuchProcess:
        return None


def no_leftovers(folder: Path) -> bool:
    """Whether nothing half-written lies in a work folder."""
    return not list(folder.glob(".*.tmp-*")) and len(saved_states(folder)) <= 2


processes.quiet_libraries()
