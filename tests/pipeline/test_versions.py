"""A checkpoint of other library versions: no resume without a word, and a way on that DVC takes over."""

import json
from pathlib import Path

import pytest
from builders.projects import published, run_dvc, run_in, start_training
from builders.stopping import make_repository

pytestmark = pytest.mark.slow  # quick: tests/stages/test_train_stage.py

KILLED_UNDER_OTHER_VERSIONS = """
import os
import fer.training.job as job, fer.training.loop as loop
versions, save = job.versions, loop._save
job.versions = lambda: {**versions(), "torch": "1.0"}
loop._save = lambda *given: (save(*given), os._exit(9))
"""
COMMAND = "python -m pipelines.train --dataset tiny --model toy"


@pytest.mark.parametrize("choice", ["--accept-versions", "--restart"])
@pytest.mark.timeout(600)
def test_repro_refuses_a_checkpoint_of_other_versions_and_keeps_what_the_named_command_makes(
    choice: str, tmp_path: Path
) -> None:
    root = make_repository(tmp_path, epochs=2)
    child = start_training(root, code=KILLED_UNDER_OTHER_VERSIONS, PYTHONPATH=str(root))
    output, _ = child.communicate(timeout=200)
    assert child.returncode == 9, output
    (checkpoint,) = root.glob(".work/*/state-*.pt")
    before = checkpoint.read_bytes()

    refused = run_in(root, "-m", "dvc", "repro")
    assert refused.returncode != 0
    assert "torch 1.0 -> " in refused.stdout
    assert f"`{COMMAND} {choice}`" in refused.stdout
    assert checkpoint.read_bytes() == before
    assert not list(root.glob("trained/**/*.*"))

    done = run_in(root, *f"{COMMAND} {choice}".split()[1:])
    assert done.returncode == 0, done.stdout + done.stderr
    hint = "dvc commit --force train@tiny-toy"
    assert hint in done.stdout + done.stderr
    accepted = json.loads((root / "trained/tiny/toy/run.json").read_text())["accepted_versions"]
    assert [list(one["changed"]) for one in accepted] == ([["torch"]] if choice == "--accept-versions" else [])
    made = published(root)
    run_dvc(root, *hint.split()[1:])
    assert "Running stage 'train" not in run_dvc(root, "repro")
    assert published(root) == made
