"""Two Ray workers: a lost one is replaced, a lost driver is run again, and the bits stay the same."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file
from tiny_training import (
    NANO,
    assert_same,
    final_state,
    finish,
    make_job,
    make_project,
    make_shards,
    patience,
    run_ranks,
    start_training,
    still_alive,
)

from fer.training.state import TrainState

UNDER_SAM = {**NANO, "sam": {"rho": 0.05}}

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> TrainState:
    """The same training by two plain processes: Ray adds nothing to the bits."""
    folder = tmp_path_factory.mktemp("undisturbed")
    make_shards(folder / "shards")
    job = make_job(folder, **UNDER_SAM)
    assert run_ranks(job, 2, folder / "meeting") == [0, 0]
    return final_state(job)


def assert_published(root: Path, state: TrainState) -> None:
    """The published files hold that state's best weights and its history, to the last bit."""
    folder = root / "trained" / "tiny" / "toy"
    assert_same(load_file(folder / "model.safetensors"), dict(sorted(state.best_model.items())), "model")
    with (folder / "history.csv").open(newline="") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert rows == state.history


def wait_for_worker(root: Path, child: subprocess.Popen[str], rank: int, timeout: float = 200) -> int:
    """The process of a rank that has trained for at least one epoch."""
    deadline = time.monotonic() + patience(timeout)
    while time.monotonic() < deadline:
        assert child.poll() is None, child.communicate()[0]
        for path in root.glob(".work/*/progress.json"):
            progress = json.loads(path.read_text())
            if progress["epoch"] >= 1:
                return int(progress["pids"][rank])
        time.sleep(0.02)
    raise AssertionError("no epoch was finished in time")


def assert_gone(family: list[psutil.Process]) -> None:
    """Nothing that trains, stores or serves is alive after 5 s.

    Of a driver that had no chance to shut Ray down, Ray's two agents stay for a minute or two, idle, asking for the
    head they have lost.
    """
    assert not [name for name in still_alive(family, 5) if not name.endswith("Agent")]


def steps_in_mlflow(root: Path) -> list[tuple[str, int]]:
    with sqlite3.connect(root / "mlflow.db") as database:
        runs = database.execute("select status from runs").fetchall()
        assert runs == [("FINISHED",)]
        return sorted(database.execute("select key, step from metrics where key like 'val_%'").fetchall())


def test_a_killed_worker_is_replaced_and_the_files_are_the_same(undisturbed: TrainState, tmp_path: Path) -> None:
    root, rank = make_project(tmp_path, recipe=UNDER_SAM, workers=2, max_failures=1), random.Random(7).randrange(2)
    child = start_training(root)
    os.kill(wait_for_worker(root, child, rank), signal.SIGKILL)
    assert "resuming from the last checkpoint with 2" in finish(child, timeout=280)
    assert_published(root, undisturbed)
    facts = json.loads((root / "trained/tiny/toy/run.json").read_text())
    assert facts["resumes"] == 1


@pytest.mark.slow
def test_a_killed_driver_leaves_nothing_running_and_goes_on_when_run_again(
    undisturbed: TrainState, tmp_path: Path
) -> None:
    root = make_project(tmp_path, recipe=UNDER_SAM, workers=2)
    child = start_training(root)
    wait_for_worker(root, child, rank=0)
    family = psutil.Process(child.pid).children(recursive=True)
    assert len(family) > 3
    child.kill()
    child.communicate()
    assert_gone(family)
    assert not (root / "trained").exists()
    assert "going on after" in finish(start_training(root), timeout=280)
    assert_published(root, undisturbed)
    points = steps_in_mlflow(root)
    assert len(points) == len(set(points)) == 9  # three metrics, three epochs, each once
