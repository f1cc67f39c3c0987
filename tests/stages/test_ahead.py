"""Models side by side below `fer repro`: trained ahead, published by their stages, the same bits as alone."""

import sqlite3
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml_text
from builders.mlflow_runs import give_store
from builders.projects import NANO, TOY, environment, finish, make_project, write_params
from builders.runs import still_alive
from builders.stopping import family, wait_until

from fer.cluster import nodes, session
from fer.commands import repro
from fer.outputs import BEGUN
from fer.params import load
from fer.stages import ahead
from fer.stages.train import run

_FIRST = """
import time
from pathlib import Path
from fer import processes
from fer.stages import train
from pipelines.train import main

def wait(self, record):
    while len(list(Path().glob(".work/*/begun"))) < 2:
        time.sleep(0.05)

train.Recorder.on_epoch = wait
processes.run(main)
"""
"""A stage that does not end its epoch before another model has begun."""

_STAGES = f"""
import os, subprocess, sys, time
from pathlib import Path
from fer import params
from fer.stages import ahead

ahead.start(params.load())
stage = {{**os.environ, "DVC_STAGE": "train"}}
for name in sys.argv[1:]:
    while name == "other stages" and not list(Path().glob(".work/*/begun")):
        time.sleep(0.05)
    if name == "other stages":
        continue
    start = ["-c", {_FIRST!r}] if name == "first" else ["-m", "pipelines.train"]
    subprocess.run([sys.executable, *start, "--dataset", "tiny", "--model", name], env=stage, check=True)
"""
"""As `fer repro` does it: one stage after another, and what runs beside them."""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    make_project(tmp_path)
    models = {"first": {**NANO, "epochs": 2}, "second": {**NANO, "epochs": 4}}
    sections = {"train": {"workers": 0}, "cluster": {"cpus": 2}, "tracking": {"enabled": False}}
    return write_params(tmp_path, "tiny", models, **sections)


def _start(root: Path, *names: str) -> subprocess.Popen[str]:
    output = subprocess.PIPE
    command = [sys.executable, "-c", _STAGES, *names]
    return subprocess.Popen(command, cwd=root, env=environment(), stdout=output, stderr=subprocess.STDOUT, text=True)


def _begun(root: Path) -> list[Path]:
    return [mark.parent for mark in root.glob(f".work/*/{BEGUN}")]


def test_the_next_model_is_trained_beside_the_first_and_its_stage_publishes_the_same_bits(project: Path) -> None:
    yaml_text.edit(give_store(project) / "params.yaml", "tracking.enabled", True)
    output = finish(_start(project, "first", "second"))
    assert output.count("epoch 1/4") == 1, "the stage tells what was trained ahead of it"
    with sqlite3.connect(project / "mlflow.db") as store:
        assert list(store.execute("select status from runs")) == [("FINISHED",)] * 2, "one run a model"
    yaml_text.edit(project / "params.yaml", "tracking.enabled", False)
    assert "error" not in output
    assert not _begun(project)
    side_by_side = (project / "trained/tiny/second/model.safetensors").read_bytes()
    (project / "trained/tiny/second").rename(project / "before")
    run(load(project / "params.yaml"), "tiny", "second")
    assert (project / "trained/tiny/second/model.safetensors").read_bytes() == side_by_side


def test_a_model_for_which_there_was_no_room_is_trained_while_dvc_is_at_other_stages(project: Path) -> None:
    models = {"one": {**NANO, "epochs": 1}, "two": {**NANO, "epochs": 1}}
    write_params(project, "tiny", models, train={"workers": 0}, cluster={"cpus": 1}, tracking={"enabled": False})
    finish(_start(project, "one", "other stages", "two"))
    assert (project / "trained/tiny/two/model.safetensors").is_file()


@pytest.mark.slow
def test_all_end_with_a_killed_command_and_the_next_one_resumes(project: Path) -> None:
    stages = _start(project, "first", "second")
    wait_until(lambda: len(_begun(project)) == 2, stages)
    processes = family(stages)
    stages.kill()
    assert not still_alive(processes, 60)
    assert len(_begun(project)) == 2
    assert "resuming after" in finish(_start(project, "second"))


def test_what_is_published_is_not_trained_ahead(project: Path) -> None:
    params = load(project / "params.yaml")
    run(params, "tiny", "second")
    run(params, "tiny", "second", ahead=True)
    assert not (project / ".work").exists()


_Section = dict[str, object]


def _params(root: Path, cpus: int, **trains: _Section) -> ahead.Params:
    models = {name: {**TOY, "train": train} for name, train in trains.items()}
    return load(write_params(root, "tiny", models, cluster={"cpus": cpus}) / "params.yaml")


@pytest.mark.parametrize(
    ("cpus", "one", "other", "room"),
    [
        (2, {"workers": 1}, {"workers": 1}, True),
        (2, {"workers": 0}, {"workers": 1}, True),
        (2, {"workers": 2}, {"workers": 1}, False),
        (2, {"workers": 0, "threads": 2}, {"workers": 0}, False),
        (3, {"workers": 1}, {"workers": {"min": 1, "max": 4}}, True),
        (3, {"workers": {"min": 1, "max": 4}}, {"workers": 1}, False),
        (9, {"workers": 1}, {"workers": 1, "gpu": True}, False),
    ],
)
def test_models_share_this_machine_as_far_as_its_processors_go(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cpus: int,
    one: dict[str, object],
    other: dict[str, object],
    room: bool,
) -> None:
    monkeypatch.setattr(ahead, "_gpus", lambda: 0)
    params = _params(tmp_path, cpus, one=one, other=other)
    assert ahead._is_room(params, ("tiny", "other"), [("tiny", "one")]) is room


@pytest.mark.parametrize(("free", "room"), [(1, False), (2, True)])
def test_a_named_cluster_is_asked_what_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, room: bool
) -> None:
    asked = []
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(session, "connect", lambda config: nullcontext("named"))
    monkeypatch.setattr(nodes, "free_workers", lambda **demand: asked.append(demand) or free)
    params = _params(tmp_path, 1, one={"workers": 8}, other={"workers": 2, "threads": 3, "gpu": True})
    assert ahead._is_room(params, ("tiny", "other"), [("tiny", "one")]) is room
    assert asked == [{"cpus": 3, "gpus": 1}]
    with ahead._connection(params) as connection:
        assert connection == "named"


@pytest.mark.parametrize(("arguments", "started"), [([], True), (["train@tiny-first"], False)])
def test_only_a_command_that_wants_all_models_trains_ahead(
    project: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], started: bool
) -> None:
    calls: list[object] = []
    monkeypatch.chdir(project)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(ahead, "_open", lambda: calls.append("ahead"))
    monkeypatch.setattr(repro.processes, "become", calls.append)
    repro.main(arguments)
    assert calls == ["ahead"] * started + [[sys.executable, "-m", "dvc", "repro", *arguments]]
