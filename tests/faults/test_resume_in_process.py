"""A killed run, of one process or of several ranks, resumes to the same bits."""

import random
import signal
import time
from pathlib import Path

import pytest
from builders.limits import patience
from builders.runs import (
    assert_same_bits,
    child,
    elsewhere,
    final_state,
    kill_at_save,
    kill_at_step,
    make_job,
    no_leftovers,
    run_child,
    run_ranks,
)

from fer.training.job import TrainJob
from fer.training.loop import train
from fer.training.state import TrainState

KILLED = -signal.SIGKILL
UPDATES = 15  # 3 epochs of 5 updates, a checkpoint after every second


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    return make_job(tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(scope="module")
def undisturbed(job: TrainJob) -> TrainState:
    assert run_child(train, job) == 0
    return final_state(job)


def test_two_undisturbed_runs_are_the_same_bits(job: TrainJob, undisturbed: TrainState, tmp_path: Path) -> None:
    again = elsewhere(job, tmp_path / "work")
    assert run_child(train, again) == 0
    assert_same_bits(final_state(again), undisturbed)
    assert undisturbed.global_step == UPDATES


@pytest.mark.parametrize("step", [1, *random.Random(1).sample(range(2, UPDATES), 4), UPDATES])
def test_killed_after_any_step_resumes_to_the_same_bits(
    step: int, job: TrainJob, undisturbed: TrainState, tmp_path: Path
) -> None:
    killed = elsewhere(job, tmp_path / "work")
    assert run_child(kill_at_step, killed, step) == KILLED
    assert run_child(train, killed) == 0
    assert_same_bits(final_state(killed), undisturbed)


def test_killed_again_and_again_at_any_moment_resumes_to_the_same_bits(
    job: TrainJob, undisturbed: TrainState, tmp_path: Path
) -> None:
    killed, draws, kills = elsewhere(job, tmp_path / "work"), random.Random(2), 0
    while True:
        process = child(train, killed)
        process.join(0.02 + 0.06 * kills + 0.1 * draws.random())  # longer each time, so that it comes to an end
        if process.exitcode is not None:
            break
        process.kill()
        process.join()
        kills += 1
    assert process.exitcode == 0
    assert kills >= 1
    assert_same_bits(final_state(killed), undisturbed)
    assert no_leftovers(Path(killed.work_dir))


@pytest.mark.parametrize("moment", ["half", "before", "after"])
@pytest.mark.parametrize("number", [1, 4])
def test_killed_while_a_checkpoint_is_written_resumes_to_the_same_bits(
    number: int, moment: str, job: TrainJob, undisturbed: TrainState, tmp_path: Path
) -> None:
    killed = elsewhere(job, tmp_path / "work")
    assert run_child(kill_at_save, killed, number, moment) == KILLED
    assert run_child(train, killed) == 0
    assert_same_bits(final_state(killed), undisturbed)
    assert no_leftovers(Path(killed.work_dir))


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_killed_rank_ends_all_and_all_resume_to_the_same_bits(world_size: int, tmp_path: Path) -> None:
    job = make_job(tmp_path, epochs=2, batch_size=12)
    whole, killed = elsewhere(job, tmp_path / "whole"), elsewhere(job, tmp_path / "killed")
    assert run_ranks(whole, world_size, tmp_path / "meeting-1") == [0] * world_size
    started = time.monotonic()
    codes = run_ranks(killed, world_size, tmp_path / "meeting-2", kill=(world_size - 1, 5))
    assert codes[-1] == KILLED
    assert all(code not in (0, None) for code in codes)
    assert time.monotonic() - started < patience(60)
    assert run_ranks(killed, world_size, tmp_path / "meeting-3") == [0] * world_size
    assert_same_bits(final_state(killed), final_state(whole))
