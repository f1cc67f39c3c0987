"""SIGINT and SIGTERM, at five points of the train stage and of `dvc repro`: nothing looks finished, nobody survives."""

import os
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
from builders.stopping import catches_signals, checkpoints, copy_code, family, start_repro, wait_until

QUIET = {"recipe": TOY, "epochs": 2, "tracking": {"enabled": False}}
BOTH = pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])

# Where the stage is when the signal arrives: a module and its function, before which it waits; and which call of it.
POINTS = {
    "reading the shards": ("fer.stages.train.ShardSet.open", 1),
    "before the first update": ("fer.training.loop.set_learning_rate", 1),
    "in the second epoch": ("fer.training.loop.set_learning_rate", 7),
    "writing a checkpoint": ("fer.training.state.hashlib.sha256", 2),
    "publishing": ("fer.training.publish.save_model", 1),
}
WAIT_THERE = """
import importlib, time
from pathlib import Path
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


def nothing_looks_finished(root: Path) -> bool:
    left = [path for path in root.rglob(".*.tmp-*") if ".dvc" not in path.parts]
    return not left and not list(root.glob("trained/**/*.*"))


@BOTH
def test_stage_stopped_at_any_of_five_points_leaves_nothing_half_done_and_resumes(
    signum: signal.Signals, tmp_path: Path
) -> None:
    whole, root = make_project(tmp_path / "whole", **QUIET), make_project(tmp_path / "stopped", **QUIET)
    for number, (name, call) in enumerate(POINTS.values()):
        mark, output = tmp_path / f"mark-{number}", tmp_path / f"output-{number}"
        stage = child(run_stage, str(root), str(output), WAIT_THERE.format(name=name, number=call, mark=str(mark)))
        wait_until(mark.exists, stage)
        assert stage.pid
        os.kill(stage.pid, signum)
        stage.join(patience(30))
        assert stage.exitcode == 128 + signum, output.read_text()
        assert f"stopped by {signum.name}" in output.read_text()
        assert nothing_looks_finished(root)
    for project in (whole, root):
        assert run_child(run_stage, str(project), str(tmp_path / "output")) == 0
    assert published(root) == published(whole)


@pytest.mark.parametrize(
    "entry", ["fer.cli", *(f"pipelines.{path.stem}" for path in REPOSITORY.glob("pipelines/*.py"))]
)
def test_handlers_are_installed_before_anything_slow_is_imported(entry: str) -> None:
    script = f"import sys, {entry}; print(sorted({{'pydantic', 'numpy', 'torch', 'ray'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def stop_while_it_imports(root: Path, signum: signal.Signals, moment: float) -> None:
    """Stops `fer check` so many seconds after it has its handlers."""
    command = subprocess.Popen(
        [sys.executable, "-c", "from fer.cli import main\nmain(['check'])"],
        cwd=root,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_until(lambda: catches_signals(command.pid), command)
    time.sleep(moment)
    command.send_signal(signum)
    output, _ = command.communicate(timeout=patience(60))
    assert command.returncode == 128 + signum, output
    assert f"stopped by {signum.name}" in output
    assert "Traceback" not in output


@BOTH
def test_command_stopped_while_it_imports_ends_with_its_code_and_without_a_traceback(
    signum: signal.Signals, tmp_path: Path
) -> None:
    root = make_project(tmp_path)
    before = sorted(root.rglob("*"))
    for moment in (0.0, 0.02, 0.05, 0.1, 0.2):
        stop_while_it_imports(root, signum, moment)
    assert sorted(root.rglob("*")) == before


def moments(root: Path, repro: subprocess.Popen[bytes]) -> list[Callable[[], object]]:
    """Five points of a repro, from the outside: the stage starts, holds its lock, has written a checkpoint, ..."""
    before = checkpoints(root)
    return [
        lambda: any(catches_signals(process.pid) for process in family(repro)),
        lambda: [path for path in root.glob(".work/locks/*") if path.read_text()],
        lambda: checkpoints(root) - before,
        lambda: list(root.glob(".work/*/.state-*.tmp-*")),
        lambda: len(checkpoints(root) - before) > 1,
    ]


@pytest.mark.slow
@BOTH
@pytest.mark.timeout(1800)
def test_repro_stopped_at_any_of_five_points_commits_nothing_and_the_next_succeeds(
    signum: signal.Signals, tmp_path: Path
) -> None:
    root, whole = make_project(tmp_path / "stopped", epochs=6), make_project(tmp_path / "whole", epochs=6)
    for project in (root, whole):
        copy_code(project, "plan", "train")
    for point in range(5):
        repro = start_repro(root)
        wait_until(moments(root, repro)[point], repro)
        children = family(repro)
        for process in children if signum == signal.SIGINT else []:  # as a terminal does, to all of them
            process.send_signal(signum)
        repro.send_signal(signum)
        assert repro.wait(patience(100)) != 0
        assert not still_alive(children, 5), f"point {point}"
        assert nothing_looks_finished(root)
        lock = root / "dvc.lock"
        assert not lock.exists() or "train@" not in lock.read_text(), "the stopped stage is committed"
    for project in (root, whole):
        run_dvc(project, "repro")
    assert published(root) == published(whole)
    assert not [process for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == str(root)]
