"""`dvc repro`, stopped in the middle of the crop stage: nothing looks finished, and the next one goes on."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml_text
from tiny_crop import files
from tiny_training import REPOSITORY, environment, make_project, patience, run_dvc, still_alive

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STAGES = ("plan", "download", "crop")


def make_repository(root: Path, workers: int) -> Path:
    """A copy of the code with three blocks of drawn scenes to download and to crop."""
    make_project(root)
    shutil.rmtree(root / "data")
    for folder in ("fer", "pipelines"):
        shutil.copytree(REPOSITORY / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    params = yaml_text.load((root / "params.yaml").read_text())
    params["datasets"] = {"tiny": {"source": "synthetic", "scenes": 1300, "scene_size": 96, "face_size": [50.0, 80.0]}}
    params["cluster"]["crop_workers"] = workers
    (root / "params.yaml").write_text(yaml_text.dump(params))
    stages = {name: yaml_text.load((REPOSITORY / "dvc.yaml").read_text())["stages"][name] for name in STAGES}
    for stage in stages.values():
        stage["cmd"] = stage["cmd"].replace("python ", f"{sys.executable} ", 1)
    (root / "dvc.yaml").write_text(yaml_text.dump({"stages": stages}))
    run_dvc(root, "init", "--no-scm")
    run_dvc(root, "repro", "download@tiny")
    return root


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.ray)])
def test_a_stopped_repro_leaves_no_process_and_no_output_and_the_next_goes_on(workers: int, tmp_path: Path) -> None:
    whole, root = make_repository(tmp_path / "whole", workers), tmp_path / "stopped"
    shutil.copytree(whole, root)
    run_dvc(whole, "repro")
    for signum in (signal.SIGKILL, signal.SIGTERM):
        repro = subprocess.Popen(
            [sys.executable, "-m", "dvc", "repro"],
            cwd=root,
            env=environment() | {"PYTHONPATH": str(root)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        before = set(root.glob(".work/crop/*/faces-*.json"))
        deadline = time.monotonic() + patience(200)
        while not set(root.glob(".work/crop/*/faces-*.json")) - before:
            assert repro.poll() is None, "it ended before it could be stopped"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        children = psutil.Process(repro.pid).children(recursive=True)
        assert children
        repro.send_signal(signum)
        repro.wait(patience(30))
        assert not [name for name in still_alive(children, 10) if not name.endswith("Agent")]
        assert not list(root.glob("data/faces/tiny/*")), "something looks finished"
    assert "resuming after" in run_dvc(root, "repro")
    assert files(root / "data" / "faces" / "tiny") == files(whole / "data" / "faces" / "tiny")
    assert not (root / ".work" / "crop").exists()
    assert list(json.loads(run_dvc(root, "status", "--json"))) == ["plan"], "which looks for changed data each time"
