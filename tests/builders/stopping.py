"""Children that a fault test delays, kills or stops at a known place, and what they leave."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
import yaml_text
from builders.limits import patience
from builders.projects import REPOSITORY, environment, make_project, run_dvc

from fer.io.files import temporary_path
from fer.stages.study import CellLog

T = TypeVar("T")

_BEFORE_UPDATES = """
import os, signal, time
import fer.training.loop as loop
updates, rate = [], loop.set_learning_rate
def watched(*args):
    updates.append(1)
    {action}
    rate(*args)
loop.set_learning_rate = watched
"""


def die_before_update(number: int) -> str:
    """Code for a child that trains: it is killed before the update of that number."""
    return _BEFORE_UPDATES.format(action=f"len(updates) == {number} and os.kill(os.getpid(), signal.SIGKILL)")


def slow_updates(seconds: float) -> str:
    """Code for a child that trains: it waits before each update, so that it can be stopped in between."""
    return _BEFORE_UPDATES.format(action=f"time.sleep({seconds})")


def wait_until(
    happened: Callable[[], T], process: subprocess.Popen[Any] | BaseProcess | None = None, seconds: float = 200
) -> T:
    """What `happened` returns once it is true; fails where the process ends before. `seconds` of an idle machine."""
    deadline = time.monotonic() + patience(seconds)
    while not (found := happened()):
        if isinstance(process, subprocess.Popen):
            assert process.poll() is None, process.communicate()[0] or "it ended too early"
        elif process is not None:
            assert process.is_alive(), "it ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def catches_signals(pid: int) -> bool:
    """Whether a process has its handlers of SIGINT and SIGTERM: Linux lists the signals that it catches."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
    caught = int(re.findall(r"SigCgt:\s*([0-9a-f]+)", status)[0], 16)
    return all(caught >> (number - 1) & 1 for number in (signal.SIGINT, signal.SIGTERM))


def resumed(output: str) -> bool:
    """Whether a stage says that it continues from earlier work."""
    return "resuming after" in output


def run_facts(root: Path) -> dict[str, Any]:
    """run.json of the finished training."""
    facts: dict[str, Any] = json.loads((root / "trained/tiny/toy/run.json").read_text())
    return facts


def checkpoints(root: Path) -> set[Path]:
    """The checkpoints in a project's work folders."""
    return set(root.glob(".work/*/state-*.pt"))


def progress(root: Path) -> dict[str, Any]:
    """The newest progress.json of a training: its epoch, and the processes of its ranks."""
    for path in root.glob(".work/*/progress.json"):
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    return {"epoch": 0, "pids": []}


def family(process: subprocess.Popen[Any]) -> list[psutil.Process]:
    """All descendants of a process."""
    return psutil.Process(process.pid).children(recursive=True)


# ------------------------------------------------------------------------------------------------ dvc


def copy_code(root: Path, *stages: str) -> None:
    """A copy of the code in a project, and dvc.yaml with these stages, or all but the report, run by this Python."""
    for folder in ("fer", "pipelines"):
        shutil.copytree(REPOSITORY / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    text = (REPOSITORY / "dvc.yaml").read_text().replace("cmd: python ", f"cmd: {sys.executable} ")
    document = yaml_text.load(text)
    named = {name: stage for name, stage in document["stages"].items() if name in stages or not stages}
    document["stages"] = {name: stage for name, stage in named.items() if name != "report"}
    (root / "dvc.yaml").write_text(yaml_text.dump(document))
    if stages:
        run_dvc(root, "init", "--no-scm")


def make_repository(root: Path, *, epochs: int = 6, **train: object) -> Path:
    """A tiny dataset, with plan and train in dvc.yaml; it trains for some seconds."""
    make_project(root, epochs=epochs, **train)
    copy_code(root, "plan", "train")
    return root


def start_repro(root: Path, tool: str = "dvc") -> subprocess.Popen[bytes]:
    """`dvc repro`, or `fer repro`, in a project, as a child."""
    return subprocess.Popen(
        [sys.executable, "-m", tool, "repro"],
        cwd=root,
        env=environment() | {"PYTHONPATH": str(root)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@contextmanager
def interrupted_after_a_cell() -> Iterator[None]:
    """The first cell of a study ends, and this process is interrupted while the second runs or is about to."""
    finish = CellLog._finish

    def stopped(*arguments: Any) -> None:
        finish(*arguments)
        os.kill(os.getpid(), signal.SIGINT)

    # A process that a shell started in the background ignores SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(CellLog, "_finish", stopped)
            with pytest.raises(KeyboardInterrupt):
                yield
    finally:
        signal.signal(signal.SIGINT, before)


def left_part(path: Path) -> Path:
    """The temporary name of a killed writer of `path` on this machine."""
    mine = temporary_path(path)
    return mine.with_name(mine.name.replace(f".tmp-{os.getpid()}-", ".tmp-999999999-"))
