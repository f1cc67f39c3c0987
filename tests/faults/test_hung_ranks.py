"""A rank that stands still is waited for; one that never moves again, or cannot read its sample, ends the training."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import psutil
import pytest
from tiny_training import (
    NANO,
    TOY,
    assert_same_bits,
    child,
    elsewhere,
    final_state,
    make_job,
    make_project,
    make_shards,
    patience,
    run_child,
    run_ranks,
    run_stage,
    start_training,
    train_rank,
)

from fer.training.loop import TrainJob
from fer.training.peers import PeerLostError

HUNG = (1, 3)
"""Rank 1 stops itself after its third update."""


def telling_rank(job: TrainJob, rank: int, meeting: str, timeout: float, kill: tuple[int, int] | None = HUNG) -> None:
    """`train_rank` of two that writes what went wrong."""
    try:
        train_rank(job, rank, 2, meeting, kill, signal.SIGSTOP, timeout)
    except (PeerLostError, ValueError) as error:
        (Path(job.work_dir) / f"told-{rank}").write_text(str(error))


def wait_until_stopped(pid: int | None, timeout: float = 100) -> None:
    deadline = time.monotonic() + patience(timeout)
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("seconds", [2, pytest.param(30, marks=pytest.mark.slow)])
def test_a_rank_that_stands_still_for_a_while_costs_that_while_and_no_bits(seconds: float, tmp_path: Path) -> None:
    job = make_job(tmp_path, epochs=2)
    whole, held = elsewhere(job, tmp_path / "whole"), elsewhere(job, tmp_path / "held")
    assert run_ranks(whole, 2, tmp_path / "meeting-1") == [0, 0]
    ranks = [child(telling_rank, held, rank, str(tmp_path / "meeting-2"), patience(60)) for rank in range(2)]
    wait_until_stopped(ranks[1].pid)
    time.sleep(seconds)
    assert all(rank.is_alive() for rank in ranks)
    assert ranks[1].pid
    os.kill(ranks[1].pid, signal.SIGCONT)
    for rank in ranks:
        rank.join(patience(100))
    assert [rank.exitcode for rank in ranks] == [0, 0]
    assert not list(Path(held.work_dir).glob("told-*"))
    assert_same_bits(final_state(held), final_state(whole))


def test_a_rank_that_never_moves_again_ends_the_training_by_a_time_out_that_names_it(tmp_path: Path) -> None:
    job = make_job(tmp_path, epochs=2)
    ranks = [child(telling_rank, job, rank, str(tmp_path / "meeting"), patience(4)) for rank in range(2)]
    try:
        ranks[0].join(patience(100))
        assert ranks[0].exitcode == 0
        told = (Path(job.work_dir) / "told-0").read_text()
        assert re.match(r"rank 1 of 2, counted from 0, has ended or does not answer \(.*([Tt]imed out|timeout)", told)
        assert ranks[1].is_alive()
    finally:
        for rank in ranks:
            rank.kill()


def test_a_sample_that_cannot_be_read_is_named_by_the_stage_at_once(tmp_path: Path) -> None:
    make_shards(tmp_path / "data" / "shards" / "tiny", broken=70)
    root, said = make_project(tmp_path, recipe=TOY, tracking={"enabled": False}), tmp_path / "said.txt"
    started = time.monotonic()
    assert run_child(run_stage, str(root), str(said)) == 1
    assert time.monotonic() - started < patience(10)
    assert re.search(r"error: sample 'tiny/train-0070' in .*train-0\.parquet: .*no readable picture", said.read_text())
    assert "Traceback" not in said.read_text()
    assert not (root / "trained").exists()


def test_a_sample_that_one_rank_cannot_read_ends_the_others_too(tmp_path: Path) -> None:
    make_shards(tmp_path / "shards", broken=70)
    job = make_job(tmp_path)
    ranks = [child(telling_rank, job, rank, str(tmp_path / "meeting"), patience(60), None) for rank in range(2)]
    started = time.monotonic()
    try:
        for rank in ranks:
            rank.join(patience(100))
        assert time.monotonic() - started < patience(10)
        assert all(rank.exitcode is not None for rank in ranks)
    finally:
        for rank in ranks:
            rank.kill()
    told = sorted(path.read_text() for path in Path(job.work_dir).glob("told-*"))
    assert len(told) == 2
    assert "has ended or does not answer" in told[0]
    assert "sample 'shards/train-0070'" in told[1]


# ---------------------------------------------------------------------------------------------- through Ray


def pid_of_rank_1(root: Path, timeout: float = 250) -> int:
    deadline = time.monotonic() + patience(timeout)
    while time.monotonic() < deadline:
        for path in root.glob(".work/*/progress.json"):
            progress = json.loads(path.read_text())
            if progress["epoch"] >= 1:
                return int(progress["pids"][1])
        time.sleep(0.02)
    raise AssertionError("no epoch was finished in time")


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_ray_worker_that_hangs_is_named_and_replaced_and_one_too_many_ends_the_training(tmp_path: Path) -> None:
    silence = round(patience(10))
    root = make_project(
        tmp_path, recipe=NANO, epochs=400, workers=2, max_failures=1, collective_timeout_seconds=silence
    )
    stage = start_training(root)
    hung = []
    try:
        for _ in range(2):
            deadline = time.monotonic() + patience(250)
            while (pid := pid_of_rank_1(root)) in hung or not psutil.pid_exists(pid):
                assert time.monotonic() < deadline
                time.sleep(0.1)
            hung.append(pid)
            os.kill(pid, signal.SIGSTOP)
        output, _ = stage.communicate(timeout=patience(250))
    finally:
        stage.kill()
    assert stage.returncode == 1
    assert len(re.findall("rank 1 of 2, counted from 0, has ended or does not answer", output)) >= 2, output
    assert "resuming from the last checkpoint with 2" in output
    assert "more workers than train.max_failures allows" in output
    assert not [pid for pid in hung if psutil.pid_exists(pid)]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_ray_worker_held_for_30_seconds_is_waited_for(tmp_path: Path) -> None:
    root = make_project(tmp_path, recipe=NANO, epochs=60, workers=2, max_failures=0)
    stage = start_training(root)
    pid = pid_of_rank_1(root)
    os.kill(pid, signal.SIGSTOP)
    time.sleep(30)
    assert stage.poll() is None
    os.kill(pid, signal.SIGCONT)
    output, _ = stage.communicate(timeout=patience(400))
    assert stage.returncode == 0, output
    assert json.loads((root / "trained/tiny/toy/run.json").read_text())["resumes"] == 0


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_sample_that_a_ray_worker_cannot_read_is_told_by_the_driver_and_not_tried_again(tmp_path: Path) -> None:
    make_shards(tmp_path / "data" / "shards" / "tiny", broken=70)
    root = make_project(tmp_path, recipe=NANO, workers=2, max_failures=2)
    stage = start_training(root)
    while not list(root.glob(".work/*/ray")):  # the cluster runs, the workers start
        assert stage.poll() is None, stage.communicate()[0]
        time.sleep(0.05)
    started = time.monotonic()
    output, _ = stage.communicate(timeout=patience(200))
    took = time.monotonic() - started
    assert stage.returncode == 1
    assert "error: sample 'tiny/train-0070'" in output
    assert "resuming from the last checkpoint" not in output
    assert took < patience(30), f"{took:.0f} s, most of which the workers took to start"


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize(
    "demand", [{"workers": NANO["batch_size"]}, {"workers": 1, "threads": 200}, {"workers": 1, "gpu": True}]
)
def test_more_than_the_cluster_has_is_refused_in_seconds_with_demand_and_supply(
    demand: dict[str, object], tmp_path: Path
) -> None:
    if demand.get("gpu") and Path("/dev/nvidia0").exists():
        pytest.skip("there is a GPU")
    root = make_project(tmp_path, **demand)
    stamp = "import fer.stages.train as train, time\nopen_, begun = train.connect, []\n"
    stamp += "def told(*a, **k):\n    print('connecting', time.time(), flush=True)\n    return open_(*a, **k)\n"
    stamp += "train.connect = told\n"
    stage = start_training(root, code=stamp)
    output, _ = stage.communicate(timeout=patience(200))
    took = time.time() - float(re.findall(r"connecting ([\d.]+)", output)[0])
    assert stage.returncode == 1
    assert re.search(
        r"too small: \d+ workers with \d+ CPU and [01] GPU each were asked for, it has room for 0|2", output
    )
    assert "its 1 nodes: 2 CPU, 0 GPU" in output
    assert took < patience(10), f"{took:.1f} s"
