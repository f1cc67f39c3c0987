"""A stopped rank is waited for; one that never moves again, or cannot read its sample, ends the run."""

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from builders.limits import patience
from builders.projects import NANO, TOY, make_project, start_training
from builders.runs import (
    assert_same_bits,
    child,
    elsewhere,
    final_state,
    make_job,
    run_child,
    run_ranks,
    run_stage,
    train_rank,
)
from builders.shards import make_shards
from builders.stopping import progress, run_facts, wait_until

from fer.training.distributed import LostRankError
from fer.training.job import TrainJob

HUNG = (1, 3)
"""Rank 1 stops itself after its third update."""
LOST = "rank 1 of 2, counted from 0, has ended or does not answer"


def reporting_rank(job: TrainJob, rank: int, meeting: str, timeout: float, kill: tuple[int, int] | None = HUNG) -> None:
    """`train_rank` of two that writes its error."""
    try:
        train_rank(job, rank, 2, meeting, kill, signal.SIGSTOP, timeout)
    except (LostRankError, ValueError) as error:
        (Path(job.work_dir) / f"error-{rank}").write_text(str(error))


def start_ranks(job: TrainJob, meeting: Path, seconds: float, *kill: None) -> list[Any]:
    return [child(reporting_rank, job, rank, str(meeting), patience(seconds), *kill) for rank in range(2)]


@pytest.mark.parametrize("seconds", [2, pytest.param(30, marks=pytest.mark.slow)])
def test_rank_that_is_stopped_for_a_while_costs_that_while_and_no_bits(seconds: float, tmp_path: Path) -> None:
    job = make_job(tmp_path, epochs=2)
    whole, held = elsewhere(job, tmp_path / "whole"), elsewhere(job, tmp_path / "held")
    assert run_ranks(whole, 2, tmp_path / "meeting-1") == [0, 0]
    ranks = start_ranks(held, tmp_path / "meeting-2", 60)
    wait_until(lambda: psutil.Process(ranks[1].pid).status() == psutil.STATUS_STOPPED, seconds=100)
    time.sleep(seconds)
    assert all(rank.is_alive() for rank in ranks)
    os.kill(ranks[1].pid, signal.SIGCONT)
    for rank in ranks:
        rank.join(patience(100))
    assert [rank.exitcode for rank in ranks] == [0, 0]
    assert not list(Path(held.work_dir).glob("error-*"))
    assert_same_bits(final_state(held), final_state(whole))


@pytest.mark.slow
def test_rank_that_never_moves_again_ends_the_run_by_a_timeout_that_names_it(tmp_path: Path) -> None:
    job = make_job(tmp_path, epochs=2)
    ranks = start_ranks(job, tmp_path / "meeting", 4)
    try:
        ranks[0].join(patience(100))
        assert ranks[0].exitcode == 0
        error = (Path(job.work_dir) / "error-0").read_text()
        assert re.match(LOST + r" \(.*([Tt]imed out|timeout)", error)
        assert ranks[1].is_alive()
    finally:
        for rank in ranks:
            rank.kill()


def test_unreadable_sample_is_named_by_the_stage_at_once(tmp_path: Path) -> None:
    make_shards(tmp_path / "data" / "shards" / "tiny", broken=70)
    root, output = make_project(tmp_path, recipe=TOY, tracking={"enabled": False}), tmp_path / "output.txt"
    started = time.monotonic()
    assert run_child(run_stage, str(root), str(output)) == 1
    assert time.monotonic() - started < patience(10)
    assert re.search(r"error: sample 'tiny/train-0070' in .*train-0\.parquet", output.read_text())
    assert "Traceback" not in output.read_text()
    assert not (root / "trained").exists()


def test_sample_that_one_rank_cannot_read_ends_the_others_too(tmp_path: Path) -> None:
    make_shards(tmp_path / "shards", broken=70)
    job = make_job(tmp_path)
    ranks = start_ranks(job, tmp_path / "meeting", 60, None)
    started = time.monotonic()
    try:
        for rank in ranks:
            rank.join(patience(100))
        assert time.monotonic() - started < patience(10)
        assert all(rank.exitcode is not None for rank in ranks)
    finally:
        for rank in ranks:
            rank.kill()
    errors = sorted(path.read_text() for path in Path(job.work_dir).glob("error-*"))
    assert len(errors) == 2
    assert "has ended or does not answer" in errors[0]
    assert "sample 'shards/train-0070'" in errors[1]


# ---------------------------------------------------------------------------------------------- through Ray


def through_ray(test: Any) -> Any:
    for mark in (pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)):
        test = mark(test)
    return test


def pid_of_rank_1(root: Path) -> int:
    wait_until(lambda: progress(root)["epoch"] >= 1, seconds=250)
    return int(progress(root)["pids"][1])


@through_ray
def test_ray_worker_that_hangs_is_named_and_replaced_and_one_too_many_ends_the_run(tmp_path: Path) -> None:
    silence = round(patience(10))
    root = make_project(
        tmp_path, recipe=NANO, epochs=400, workers=2, max_failures=1, collective_timeout_seconds=silence
    )
    stage = start_training(root)
    hung: list[int] = []

    def another() -> bool:
        return pid_of_rank_1(root) not in hung and psutil.pid_exists(pid_of_rank_1(root))

    try:
        for _ in range(2):
            wait_until(another, seconds=250)
            hung.append(pid_of_rank_1(root))
            os.kill(hung[-1], signal.SIGSTOP)
        output, _ = stage.communicate(timeout=patience(250))
    finally:
        stage.kill()
    assert stage.returncode == 1
    assert output.count(LOST) >= 2, output
    assert "resuming from the last checkpoint with 2" in output
    assert "train.max_failures" in output
    assert not [pid for pid in hung if psutil.pid_exists(pid)]


@through_ray
def test_ray_worker_that_is_stopped_for_30_seconds_is_waited_for(tmp_path: Path) -> None:
    root = make_project(tmp_path, recipe=NANO, epochs=60, workers=2, max_failures=0)
    stage = start_training(root)
    pid = pid_of_rank_1(root)
    os.kill(pid, signal.SIGSTOP)
    time.sleep(30)
    assert stage.poll() is None
    os.kill(pid, signal.SIGCONT)
    output, _ = stage.communicate(timeout=patience(400))
    assert stage.returncode == 0, output
    assert run_facts(root)["resumes"] == 0


@through_ray
def test_sample_that_a_ray_worker_cannot_read_is_reported_by_the_driver_and_not_retried(tmp_path: Path) -> None:
    make_shards(tmp_path / "data" / "shards" / "tiny", broken=70)
    root = make_project(tmp_path, recipe=NANO, workers=2, max_failures=2)
    stage = start_training(root)
    wait_until(lambda: list(root.glob(".work/*/ray")), stage)  # the cluster runs, the workers start
    started = time.monotonic()
    output, _ = stage.communicate(timeout=patience(200))
    took = time.monotonic() - started
    assert stage.returncode == 1
    assert "error: sample 'tiny/train-0070'" in output
    assert "resuming from the last checkpoint" not in output
    assert took < patience(30), f"{took:.0f} s, most of which the workers took to start"


@through_ray
@pytest.mark.parametrize(
    "demand", [{"workers": NANO["batch_size"]}, {"workers": 1, "threads": 200}, {"workers": 1, "gpu": True}]
)
def test_more_than_the_cluster_has_is_refused_in_seconds_with_demand_and_supply(
    demand: dict[str, object], tmp_path: Path
) -> None:
    if demand.get("gpu") and Path("/dev/nvidia0").exists():
        pytest.skip("there is a GPU")
    root = make_project(tmp_path, **demand)
    stamp = "import fer.cluster.fit as fit, time\nopen_ = fit.connect\n"
    stamp += "def stamped(*a, **k):\n    print('connecting', time.time(), flush=True)\n    return open_(*a, **k)\n"
    stamp += "fit.connect = stamped\n"
    stage = start_training(root, code=stamp)
    output, _ = stage.communicate(timeout=patience(200))
    took = time.time() - float(re.findall(r"connecting ([\d.]+)", output)[0])
    assert stage.returncode == 1
    assert re.search(r"too small: \d+ workers with \d+ CPU and [01] GPU each.* room for (0|2)\b", output), output
    assert "its 1 nodes: 2 CPU, 0 GPU" in output
    assert took < patience(10), f"{took:.1f} s"
