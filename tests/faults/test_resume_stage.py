"""The train stage as a process: killed, nothing looks finished, and the same command resumes; twice, it refuses.

SIGINT and SIGTERM are in test_signals.py.
"""

import os
import signal
from pathlib import Path

from builders.projects import TOY, make_project, published
from builders.runs import child, run_child, run_stage
from builders.stopping import checkpoints, resumed, run_facts, slow_updates, wait_until

QUIET = {"recipe": TOY, "epochs": 2, "tracking": {"enabled": False}}


def test_killed_stage_publishes_nothing_and_the_same_command_resumes_to_the_same_files(tmp_path: Path) -> None:
    root, whole = make_project(tmp_path / "killed", **QUIET), make_project(tmp_path / "whole", **QUIET)
    output = tmp_path / "output"
    assert run_child(run_stage, str(whole), str(output)) == 0
    stage = child(run_stage, str(root), str(output), slow_updates(0.3))
    wait_until(lambda: checkpoints(root), stage)
    stage.kill()
    stage.join()
    assert stage.exitcode == -signal.SIGKILL
    assert not (root / "trained").exists()
    assert run_child(run_stage, str(root), str(output)) == 0
    assert resumed(output.read_text())
    assert run_facts(root)["resumes"] == 1
    assert published(root) == published(whole)
    assert not (root / ".work").exists()


def test_second_process_at_the_same_training_is_refused(tmp_path: Path) -> None:
    root = make_project(tmp_path, **QUIET)
    stage = child(run_stage, str(root), str(tmp_path / "first"), slow_updates(0.3))
    try:
        wait_until(lambda: checkpoints(root), stage)
        assert stage.pid
        os.kill(stage.pid, signal.SIGSTOP)  # it holds the lock for as long as this takes
        assert run_child(run_stage, str(root), str(tmp_path / "second")) == 1
        assert f"held by process {stage.pid}" in (tmp_path / "second").read_text()
    finally:
        stage.kill()
        stage.join()
