"""The tutorial works as it is printed: its blocks run in order, in a clone of the repository."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from builders.limits import patience
from builders.projects import REPOSITORY
from dvc_project import clone


def blocks() -> list[str]:
    text = (REPOSITORY / "docs" / "tutorial.md").read_text("utf-8")
    return re.findall(r"^```sh\n# run\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def replay(root: Path) -> str:
    """All blocks in one shell, as a reader types them; what they print."""
    project = clone(root)
    git = ["git", "-C", str(root), "-c", "user.name=reader", "-c", "user.email=reader@localhost"]
    subprocess.run([*git, "add", "--all"], check=True)
    subprocess.run([*git, "commit", "--quiet", "-m", "clone"], check=True)
    tools = root.parent / "bin"
    tools.mkdir()
    (tools / "fer").write_text(f'#!/bin/sh\nexec {sys.executable} -m fer "$@"\n')
    (tools / "fer").chmod(0o755)
    kept = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
    path = os.pathsep.join([str(tools), str(Path(sys.executable).parent), kept["PATH"]])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(blocks())],
        cwd=project.root,
        env={**kept, "PATH": path, "PYTHONPATH": str(root), "DVC_NO_ANALYTICS": "1", "GIT_AUTHOR_NAME": "reader",
             "GIT_AUTHOR_EMAIL": "reader@localhost", "GIT_COMMITTER_NAME": "reader",
             "GIT_COMMITTER_EMAIL": "reader@localhost"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=patience(2000),
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_tutorial_works_as_it_is_printed_and_the_model_learns(tmp_path: Path) -> None:
    root = tmp_path / "fer"
    out = replay(root)
    for dataset, model in (("synthetic", "ddamfn_nano"), ("my_folders", "ddamfn_nano"), ("my_folders", "my_net")):
        assert json.loads((root / "evaluated" / dataset / model / "test.json").read_text())["rows"] > 0
    started = [line.split("'")[1] for line in out.splitlines() if line.startswith("Running stage")]
    assert started.count("train@my_folders-ddamfn_nano") == 1
    assert started.count("train@my_folders-my_net") == 1
    assert re.search(r"photo\.png  face 1  .*[a-z]+ 0\.\d+", out)
    result = json.loads((root / "evaluated/synthetic/ddamfn_nano/test.json").read_text())
    assert result["accuracy"] > 0.3, "seven classes; chance is 0.14"


def test_what_needs_a_network_or_people_is_not_run() -> None:
    assert len(blocks()) == 5
    assert not [one for one in blocks() if "weights pull" in one or "git clone" in one]
    assert shutil.which("bash")
