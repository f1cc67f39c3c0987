"""SIGINT and SIGTERM, at five points of the train stage and of `dvc repro`: nothing looks finished, nobody runs on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from builders.limits import patience
from builders.projects import REPOSITORY, TOY, environment, make_project, published, run_dvc
from builders.runs import child, run_child, run_stage, still_alive
from test_resume_dvc import family, make_repository, start_repro

QUIET = {"recipe": TOY, "epochs": 2, "tracking": {"enabled": False}}

# Where the stage is when the signal comes: a module and its function, before which it waits; and which call of it.
POINTS = {
    "reading the shards": ("fer.stages.train.ShardSet.open", 1),
    "before the first update": ("fer.training.loop.set_learning_rate", 1),
    "in the second epoch": ("fer.training.loop.set_learning_rate", 7),
    "writing a checkpoint": ("fer.training.state.hashlib.sha256", 2),
    "publishing": ("fer.training.publish.save_model", 1),
}
MINE = """
import importlib, time
from pathlib import Path
from unittest.mock import patch
name, number, mark = {name!r}, {number}, Path({mark!r})
path = name.split(".")
owner = importlib.import_module(".".join(path[:3]))
for part in path[3:-1]:
    owner = getattr(owner, part)
whole, calls = getattr(owner, path[-1]), []
def slow(*arguments, **keywords):
    calls.append(1)
    if len(calls) == number:
        mark.touch()
        time.sleep(60)
    return whole(*arguments, **keywords)
setattr(owner, path[-1], slow)
"""


def wait_until(happened: Callable[[], object], still_going: Callable[[], bool], seconds: float = 200) -> None:
    deadline = time.monotonic() + patience(seconds)
    while not happened():
        assert still_going(), "it ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def nothing_looks_finished(root: Path) -> bool:
    left = [path for path in root.rglob(".*.tmp-*") if ".dvc" not in path.parts]
    return not left and not list(root.glob("trained/**/*.*"))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_stage_stopped_at_any_of_five_points_leaves_nothing_half_done_and_goes_on(
    signum: signal.Signals, tmp_path: Path
) -> None:
    whole, root = make_project(tmp_path / "whole", **QUIET), make_project(tmp_path / "stopped", **QUIET)
    for number, (name, call) in enumerate(POINTS.values()):
        mark, said = tmp_path / f"mark-{number}", tmp_path / f"said-{number}"
        stage = child(run_stage, str(root), str(said), MINE.format(name=name, number=call, mark=str(mark)))
        wait_until(mark.exists, stage.is_alive)
        assert stage.pid
        os.kill(stage.pid, signum)
        stage.join(patience(30))
        assert stage.exitcode == 128 + signum, said.read_text()
        assert f"stopped by {signum.name}" in said.read_text()
        assert nothing_looks_finished(root)
    for project in (whole, root):
        assert run_child(run_stage, str(project), str(tmp_path / "said")) == 0
    assert published(root) == published(whole)


def catches_signals(process: psutil.Process) -> bool:
    """Whether it has its handlers: Linux lists what a process catches."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except FileNotFoundError:
        return False
    caught = int(re.findall(r"SigCgt:\s*([0-9a-f]+)", status)[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize(
    "entry", ["fer.cli", *(f"pipelines.{path.stem}" for path in REPOSITORY.glob("pipelines/*.py"))]
)
def test_signals_are_in_our_hands_before_anything_slow_is_imported(entry: str) -> None:
    script = f"import sys, {entry}; print(sorted({{'pydantic', 'numpy', 'torch', 'ray'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_command_stopped_while_it_still_imports_ends_with_its_code_and_without_a_traceback(
    signum: signal.Signals, tmp_path: Path
) -> None:
    root = make_project(tmp_path)
    before = sorted(root.rglob("*"))
    for moment in (0.0, 0.02, 0.05, 0.1, 0.2):
        command = subprocess.Popen(
            [sys.executable, "-c", "from fer.cli import main\nmain(['check'])"],
            cwd=root,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        found = psutil.Process(command.pid)
        wait_until(lambda found=found: catches_signals(found), lambda command=command: command.poll() is None)
        time.sleep(moment)
        command.send_signal(signum)
        output, _ = command.communicate(timeout=patience(60))
        assert command.returncode == 128 + signum, output
        assert f"stopped by {signum.name}" in output
        assert "Traceback" not in output
    assert sorted(root.rglob("*")) == before


def moments(root: Path, repro: subprocess.Popen[bytes]) -> dict[str, Callable[[], object]]:
    """Five points of a repro, from the outside."""
    before = {path.name for path in root.glob(".work/*/state-*.pt")}
    return {
        "the stage has begun": lambda: any(catches_signals(process) for process in family(repro)),
        "it holds its lock": lambda: [path for path in root.glob(".work/locks/*") if path.read_text()],
        "a checkpoint is there": lambda: {path.name for path in root.glob(".work/*/state-*.pt")} - before,
        "a checkpoint is being written": lambda: list(root.glob(".work/*/.state-*.tmp-*")),
        "another checkpoint": lambda: len({path.name for path in root.glob(".work/*/state-*.pt")} - before) > 1,
    }


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.timeout(1800)
def test_a_repro_stopped_at_any_of_five_points_commits_nothing_and_the_next_succeeds(
    signum: signal.Signals, tmp_path: Path
) -> None:
    root = make_repository(tmp_path / "stopped", workers=0)
    for point in range(5):
        repro = start_repro(root)
        happened = list(moments(root, repro).values())[point]
        wait_until(happened, lambda repro=repro: repro.poll() is None)
        children = family(repro)
        for process in children if signum == signal.SIGINT else []:  # as a terminal does, to all of them
            process.send_signal(signum)
        repro.send_signal(signum)
        assert repro.wait(patience(100)) != 0
        assert not still_alive(children, 5), f"point {point}"
        assert nothing_looks_finished(root)
        assert not (root / "dvc.lock").exists(), "nothing is committed"
    run_dvc(root, "repro")
    whole = make_repository(tmp_path / "whole", workers=0)
    run_dvc(whole, "repro")
    assert published(root) == published(whole)
    assert not [process for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == str(root)]
