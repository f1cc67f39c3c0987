"""Two Ray workers under a driver: whichever process dies, nothing looks finished, and the bits stay the same."""

import csv
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from builders.limits import patience
from builders.mlflow_runs import give_store, recorded
from builders.projects import NANO, environment, finish, make_project, start_training
from builders.runs import assert_same, final_state, make_job, run_ranks, still_alive
from builders.shards import make_shards
from builders.stopping import checkpoints, family, progress, resumed, run_facts, wait_until
from safetensors.torch import load_file

from fer.training.state import TrainState

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

EPOCHS = 4
UNDER_SAM = {**NANO, "sam": {"rho": 0.05}}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> TrainState:
    """The same training by two plain processes: Ray adds nothing to the bits."""
    folder = tmp_path_factory.mktemp("undisturbed")
    make_shards(folder / "shards")
    job = make_job(folder, **{**UNDER_SAM, "epochs": EPOCHS})
    assert run_ranks(job, 2, folder / "meeting") == [0, 0]
    return final_state(job)


def start(root: Path, **train: Any) -> tuple[subprocess.Popen[str], list[int]]:
    """The stage with two workers, which have trained for at least one epoch; their processes."""
    stage = start_training(make_project(give_store(root), recipe=UNDER_SAM, epochs=EPOCHS, workers=2, **train))
    wait_until(lambda: progress(root)["epoch"] >= 1, stage)
    return stage, progress(root)["pids"]


def assert_published(root: Path, state: TrainState) -> None:
    """The published files hold that state's best weights and its history, to the last bit."""
    folder = root / "trained" / "tiny" / "toy"
    assert_same(load_file(folder / "model.safetensors"), dict(sorted(state.best_model.items())), "model")
    with (folder / "history.csv").open(newline="") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert rows == state.history


def assert_resumes(root: Path, state: TrainState) -> None:
    """The same command continues to the undisturbed bits, in one MLflow run that has each point once."""
    assert not (root / "trained").exists()
    assert checkpoints(root)
    assert resumed(finish(start_training(root), timeout=280))
    assert_published(root, state)
    ((status, curves),) = recorded(root)
    assert status == "FINISHED"
    for name in (name for name in curves if name.startswith("val_")):
        assert [step for step, _ in curves[name]] == list(range(1, EPOCHS + 1)), name


@pytest.mark.slow
def test_killed_worker_is_replaced_and_the_files_are_the_same(undisturbed: TrainState, tmp_path: Path) -> None:
    stage, pids = start(tmp_path, max_failures=1)
    os.kill(pids[random.Random(7).randrange(2)], signal.SIGKILL)
    assert re.search(r"resuming from the last checkpoint with 2", finish(stage, timeout=280))
    assert_published(tmp_path, undisturbed)
    assert run_facts(tmp_path)["resumes"] == 1
    ((_, curves),) = recorded(tmp_path)
    assert {value for _, value in curves["workers"]} == {2}
    assert {value for _, value in curves["worker_changes"]} == {1}


@pytest.mark.slow
def test_killed_driver_leaves_no_process_and_the_same_command_resumes(undisturbed: TrainState, tmp_path: Path) -> None:
    stage, _ = start(tmp_path)
    processes = family(stage)
    assert len(processes) > 3
    stage.kill()
    stage.communicate()
    # Of a driver that could not shut Ray down, two agents stay for a minute or two, asking for the head they have lost.
    assert not [name for name in still_alive(processes, 5) if not name.endswith("Agent")]
    assert_resumes(tmp_path, undisturbed)


LOST = {
    "gcs_server": r"the local Ray cluster has lost its head, .*\(gcs_server\), process \d+, ended by SIGKILL",
    "raylet": r"the local Ray cluster has lost .*\(raylet\), .*, ended by SIGKILL",
    "ray::TrainController": r"Ray Train's controller, .*, has died",
}


@pytest.mark.slow  # quick: tests/cluster/test_session.py
@pytest.mark.parametrize("process", LOST)
def test_lost_process_of_ray_ends_the_stage_with_its_name_and_the_same_command_resumes(
    process: str, undisturbed: TrainState, tmp_path: Path
) -> None:
    stage, _ = start(tmp_path, max_failures=1)
    processes = family(stage)
    (victim,) = [one for one in processes if one.name().startswith(process)]
    victim.kill()
    output, _ = stage.communicate(timeout=patience(100))
    assert stage.returncode == 1, output
    assert re.search(f"error: {LOST[process]}", output), output
    assert "the same command" in output
    assert "Traceback" not in output
    assert not still_alive(processes, 5), "workers train on"
    assert [status for status, _ in recorded(tmp_path)] == ["FAILED"]
    assert_resumes(tmp_path, undisturbed)
    for folder in re.findall(r"logs of the local Ray cluster are kept in (\S+)", output):
        shutil.rmtree(folder, ignore_errors=True)  # where the second run has not


SLOW_START = """
import ray._private.node
from fer import processes
from fer.cluster.config import ClusterConfig
from fer.cluster.session import connect
Node = ray._private.node.Node
begin, nodes = Node.__init__, []
def slow(self, *arguments, **keywords):
    begin(self, *arguments, **keywords)
    nodes.append(self)
    print("raylet", self.all_processes["raylet"][0].process.pid, flush=True)
    if len(nodes) == 1:
        raise Exception("The current node timed out during startup. This could happen because ...")
Node.__init__ = slow
def main():
    import ray
    with connect(ClusterConfig(cpus=1)):
        print("answer", ray.get(ray.remote(lambda: 42).remote()))
        print("first", nodes[0].all_processes["raylet"][0].process.wait(60))
processes.run(main)
"""


@pytest.mark.slow  # quick: tests/cluster/test_session.py
def test_local_cluster_that_is_too_slow_for_the_limit_of_ray_is_started_again() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SLOW_START],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=patience(120),
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "30 s" in done.stdout
    assert len(set(re.findall(r"raylet (\d+)", done.stdout))) == 2
    assert "answer 42" in done.stdout
    assert "first -9" in done.stdout
