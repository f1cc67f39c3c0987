"""A run whose end is announced: it saves after the update in progress, ends cleanly, and resumes to the same bits."""

import os
import signal
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from builders.limits import patience
from builders.projects import TOY, make_project, published
from builders.runs import (
    assert_same_bits,
    child,
    elsewhere,
    final_state,
    join_all,
    make_job,
    run_child,
    run_ranks,
    run_stage,
)
from builders.stopping import checkpoints

from fer.processes import sigterm_awaited
from fer.training import loop, progress
from fer.training.job import TrainJob
from fer.training.loop import StopRequested, train
from fer.training.progress import STOP
from fer.training.state import TrainState

SAVED = 7

TERMINATED = """
import os, signal
import fer.training.loop as loop
updates, rate = [], loop.set_learning_rate
def watched(*arguments):
    updates.append(1)
    if len(updates) == 3:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    rate(*arguments)
loop.set_learning_rate = watched
"""
"""For a child that trains: it gets SIGTERM in its third update; twice, as where its parent gets it too and ends."""


def noticed_rank(job: TrainJob, rank: int, world_size: int, meeting: str, noticed: int, update: int) -> None:
    """One of several ranks, of which `noticed` gets SIGTERM in the update of that number; ends with `SAVED`."""
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=patience(60)),
    )
    notices: list[str] = []
    signal.signal(signal.SIGTERM, lambda *_: notices.append(f"rank {rank} got SIGTERM"))
    steps = 0

    def stop() -> str:
        nonlocal steps
        steps += 1
        if (rank, steps) == (noticed, update):
            os.kill(os.getpid(), signal.SIGTERM)
        return "".join(notices)

    with pytest.raises(StopRequested, match=f"^rank {noticed} got SIGTERM$"):
        train(job, rank=rank, world_size=world_size, stop=stop)
    sys.exit(SAVED)


@pytest.mark.parametrize("under", [{}, {"sam": {"rho": 0.05}}], ids=["plain", "sam"])
@pytest.mark.parametrize("update", [3, 5], ids=["within an epoch", "at its end"])
def test_all_ranks_save_the_same_update_when_one_is_told_to_end(
    update: int, under: dict[str, object], tmp_path: Path
) -> None:
    job = make_job(tmp_path, epochs=2, **under)
    whole, stopped = elsewhere(job, tmp_path / "whole"), elsewhere(job, tmp_path / "stopped")
    assert run_ranks(whole, 2, tmp_path / "meeting-1") == [0, 0]
    meeting = str(tmp_path / "meeting-2")
    ranks = [child(noticed_rank, stopped, rank, 2, meeting, 1, update) for rank in range(2)]
    assert join_all(ranks) == [SAVED, SAVED]
    assert final_state(stopped).global_step == update
    assert run_ranks(stopped, 2, tmp_path / "meeting-3") == [0, 0]
    assert_same_bits(final_state(stopped), final_state(whole))


def test_a_request_of_the_driver_stops_the_run_and_the_record_says_what_each_epoch_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_WRITE_SECONDS", 0.0)  # it looks for the request after each update
    job = make_job(tmp_path, epochs=2)

    def ask(record: object) -> None:
        (Path(job.work_dir) / STOP).touch()

    with pytest.raises(StopRequested, match="driver"):
        train(job, on_epoch=ask)
    state = TrainState.load(job.work_dir)
    assert state is not None
    assert state.global_step > 5
    assert [timing["workers"] for timing in state.timings] == [1] * state.epoch


def test_a_run_that_is_told_to_end_while_it_validates_saves_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path, epochs=2, eval_batch_size=4)
    whole, stopped = elsewhere(job, tmp_path / "whole"), elsewhere(job, tmp_path / "stopped")
    train(whole)
    prepare, validated = loop.prepare, 0

    def ends(*arguments: Any) -> torch.Tensor:
        nonlocal validated
        validated += not torch.is_grad_enabled()
        if validated == 2:
            raise KeyboardInterrupt  # its time is over
        return prepare(*arguments)

    monkeypatch.setattr(loop, "prepare", ends)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, stop=lambda: "told to end" if validated else "")
    monkeypatch.undo()
    state = TrainState.load(stopped.work_dir)
    assert state is not None
    assert (state.epoch, state.step) == (0, final_state(whole).global_step // 2)
    train(stopped)
    assert_same_bits(final_state(stopped), final_state(whole))


def test_stage_that_gets_sigterm_saves_the_update_in_progress(tmp_path: Path) -> None:
    quiet = {"recipe": TOY, "epochs": 2, "tracking": {"enabled": False}, "checkpoint_every_steps": 1000}
    whole, root = make_project(tmp_path / "whole", **quiet), make_project(tmp_path / "stopped", **quiet)
    output = tmp_path / "output"
    code = f"import fer.stages.train\nfer.stages.train._LAST_SECONDS = {patience(10)}\n" + TERMINATED
    assert run_child(run_stage, str(root), str(output), code) == 128 + signal.SIGTERM, output.read_text()
    assert {path.name for path in checkpoints(root)} == {"state-00000003.pt"}
    for project in (whole, root):
        assert run_child(run_stage, str(project), str(output)) == 0
    assert published(root) == published(whole)


def test_without_our_handlers_or_outside_of_the_main_thread_sigterm_is_left_alone() -> None:
    before, said = signal.getsignal(signal.SIGTERM), []

    def enter() -> None:
        with sigterm_awaited(1.0) as stop:
            said.append((stop(), signal.getsignal(signal.SIGTERM) is before))

    enter()
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert said == [("", True)] * 2
