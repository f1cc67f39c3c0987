"""`dvc repro`, stopped in the middle of the training: nothing looks finished, nobody runs on, the next one goes on."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tiny_training import environment, make_repository, patience, published, run_dvc, still_alive

pytestmark = pytest.mark.slow


def start_repro(root: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro"],
        cwd=root,
        env=environment() | {"PYTHONPATH": str(root)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.ray)])
@pytest.mark.timeout(900)
def test_a_stopped_repro_leaves_no_process_and_no_output_and_the_next_goes_on(workers: int, tmp_path: Path) -> None:
    whole = make_repository(tmp_path / "whole", workers=workers)
    run_dvc(whole, "repro")
    root = make_repository(tmp_path / "stopped", workers=workers)
    for signum in (signal.SIGKILL, signal.SIGTERM):
        repro = start_repro(root)
        deadline, seen = time.monotonic() + patience(200), {path.name for path in root.glob(".work/*/state-*.pt")}
        while not {path.name for path in root.glob(".work/*/state-*.pt")} - seen:
            assert repro.poll() is None, "it ended before it could be stopped"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        children = family(repro)
        assert children
        repro.send_signal(signum)
        repro.wait(patience(30))
        assert not still_alive(children, 5)
        assert not list(root.glob("trained/**/*.*")), "something looks finished"
    run_dvc(root, "repro")
    assert published(root) == published(whole)
    assert [path.name for path in (root / ".work").iterdir()] == ["locks"]
    run_dvc(root, "repro")  # nothing has changed
