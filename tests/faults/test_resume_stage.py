"""The train stage as a process: killed, nothing looks finished, and the same command resumes; twice, it refuses."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from builders.limits import patience
from builders.projects import finish, make_project, published, start_training
from builders.stopping import checkpoints, resumed, run_facts, slow_updates, wait_until


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    root = make_project(tmp_path_factory.mktemp("undisturbed"), epochs=2)
    finish(start_training(root))
    assert [path.name for path in (root / ".work").iterdir()] == ["locks"]
    return published(root)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_same_command_resumes_to_the_same_files(
    signum: signal.Signals, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    root = make_project(tmp_path, epochs=2)
    stage = start_training(root, code=slow_updates(0.3))
    wait_until(lambda: checkpoints(root), stage)
    stage.send_signal(signum)
    stage.communicate(timeout=patience(30))
    assert stage.returncode == (-signum if signum == signal.SIGKILL else 128 + signum)
    assert not (root / "trained").exists()
    assert resumed(finish(start_training(root)))
    assert run_facts(root)["resumes"] == 1
    assert published(root) == undisturbed
    assert [path.name for path in (root / ".work").iterdir()] == ["locks"]


def test_second_process_at_the_same_training_is_refused(tmp_path: Path) -> None:
    root = make_project(tmp_path, epochs=2)
    stage = start_training(root, code=slow_updates(0.3))
    try:
        wait_until(lambda: checkpoints(root), stage)
        stage.send_signal(signal.SIGSTOP)  # it holds the lock for as long as this takes
        second = start_training(root)
        output, _ = second.communicate(timeout=patience(100))
        assert second.returncode == 1
        assert f"held by process {stage.pid}" in output
    finally:
        stage.kill()
        stage.communicate()
