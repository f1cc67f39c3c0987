"""The train stage as a process: stopped in any way, nothing looks finished, and the same command goes on."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest
from tiny_training import finish, make_project, patience, published, start_training

# Slow enough to be hit in the middle, in a child that knows nothing of tests.
SLOWLY = "import fer.training.loop as loop, time\nstep = loop.set_learning_rate\n"
SLOWLY += "loop.set_learning_rate = lambda *args: (time.sleep(0.3), step(*args))\n"


def wait_for_checkpoint(root: Path, child: subprocess.Popen[str], timeout: float = 100) -> None:
    deadline = time.monotonic() + patience(timeout)
    while not list(root.glob(".work/*/state-*.pt")):
        assert child.poll() is None, child.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    root = make_project(tmp_path_factory.mktemp("undisturbed"), epochs=2)
    finish(start_training(root))
    assert [path.name for path in (root / ".work").iterdir()] == ["locks"]
    return published(root)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_the_same_command_goes_on_to_the_same_files(
    signum: signal.Signals, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    root = make_project(tmp_path, epochs=2)
    child = start_training(root, code=SLOWLY)
    wait_for_checkpoint(root, child)
    child.send_signal(signum)
    child.communicate(timeout=patience(30))
    assert child.returncode == (-signum if signum == signal.SIGKILL else 128 + signum)
    assert not (root / "trained").exists()
    assert "resuming after" in finish(start_training(root))
    assert published(root) == undisturbed
    assert [path.name for path in (root / ".work").iterdir()] == ["locks"]


def test_a_second_process_at_the_same_training_is_refused(tmp_path: Path) -> None:
    root = make_project(tmp_path, epochs=2)
    child = start_training(root, code=SLOWLY)
    try:
        wait_for_checkpoint(root, child)
        child.send_signal(signal.SIGSTOP)  # it holds the training for as long as this takes
        second = start_training(root)
        output, _ = second.communicate(timeout=patience(100))
        assert second.returncode == 1
        assert f"held by process {child.pid}" in output
    finally:
        child.kill()
        child.communicate()
