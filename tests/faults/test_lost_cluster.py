"""Ray's own processes die under a training: it says which, nothing looks finished, and the same command goes on."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from test_resume_ray import UNDER_SAM, assert_published, steps_in_mlflow, wait_for_worker
from tiny_training import (
    environment,
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

from fer.training.state import TrainState, saved_states

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

EPOCHS = 6


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> TrainState:
    """The same training by two plain processes: Ray adds nothing to the bits."""
    folder = tmp_path_factory.mktemp("undisturbed")
    make_shards(folder / "shards")
    job = make_job(folder, **{**UNDER_SAM, "epochs": EPOCHS})
    assert run_ranks(job, 2, folder / "meeting") == [0, 0]
    return final_state(job)


LOST = {
    "gcs_server": r"the local Ray cluster has lost its head, .*\(gcs_server\), process \d+, ended by SIGKILL",
    "raylet": r"the local Ray cluster has lost what starts and holds its workers \(raylet\), .*, ended by SIGKILL",
    "ray::TrainController": r"Ray Train's controller, which drives the workers, has died",
}


@pytest.mark.parametrize(
    "process", [pytest.param(one, marks=pytest.mark.slow) if one != "gcs_server" else one for one in LOST]
)
def test_a_process_of_rays_own_that_dies_ends_the_training_with_its_name_and_the_same_command_goes_on(
    process: str, undisturbed: TrainState, tmp_path: Path
) -> None:
    make_project(tmp_path, recipe=UNDER_SAM, epochs=EPOCHS, workers=2, max_failures=1)
    stage = start_training(tmp_path)
    wait_for_worker(tmp_path, stage, rank=0)
    family = psutil.Process(stage.pid).children(recursive=True)
    (victim,) = [one for one in family if one.name().startswith(process)]
    victim.kill()
    output, _ = stage.communicate(timeout=patience(100))
    assert stage.returncode == 1, output
    assert re.search(f"error: {LOST[process]}", output), output
    assert "the same command resumes" in output
    assert "Traceback" not in output
    assert not still_alive(family, 5), "workers train on"
    assert not (tmp_path / "trained").exists()
    (work,) = tmp_path.glob(".work/[0-9a-f]*")
    assert saved_states(work)
    assert "going on after" in finish(start_training(tmp_path), timeout=280)
    assert_published(tmp_path, undisturbed)
    points = steps_in_mlflow(tmp_path)
    assert len(points) == len(set(points)) == 3 * EPOCHS
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


def test_a_local_cluster_that_is_too_slow_for_rays_fixed_limit_is_started_again() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SLOW_START],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=patience(120),
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Ray has not started within its limit of 30 s, on a busy machine; retrying" in done.stdout
    assert len(set(re.findall(r"raylet (\d+)", done.stdout))) == 2
    assert "answer 42" in done.stdout
    assert "first -9" in done.stdout
