"""The identity of a run: other data or parameters under the same name are another run; other surroundings are not."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml_text
from builders.limits import patience
from builders.projects import TOY, environment, make_project, published
from builders.runs import child, run_child, run_stage
from builders.shards import make_shards
from builders.stopping import checkpoints, die_before_update, resumed

QUIET = {"recipe": TOY, "epochs": 2, "tracking": {"enabled": False}}


def changed_parameters(root: Path) -> None:
    make_project(root, **{**QUIET, "recipe": {**TOY, "learning_rate": 0.002}})


def changed_data(root: Path) -> None:
    shutil.rmtree(root / "data")
    make_shards(root / "data" / "shards" / "tiny", seed=1)


def test_killed_run_is_never_resumed_with_other_data_or_parameters(tmp_path: Path) -> None:
    root, fresh = make_project(tmp_path / "killed", **QUIET), make_project(tmp_path / "fresh", **QUIET)
    killed = child(run_stage, str(root), str(tmp_path / "output"), die_before_update(4))
    killed.join(patience(100))
    assert killed.exitcode == -signal.SIGKILL
    before = checkpoints(root)
    assert before
    for change in (changed_parameters, changed_data):
        for project in (root, fresh):
            change(project)
            assert run_child(run_stage, str(project), str(tmp_path / "output")) == 0
            assert not resumed((tmp_path / "output").read_text())
        assert published(root) == published(fresh)
        assert checkpoints(root) == before, "the killed run could still be resumed"


# ---------------------------------------------------------------------------------------------- surroundings

CHAIN = """
import sys
from fer import processes
from importlib import import_module
def main():
    for stage in ("download", "crop", "shard", "train"):
        sys.argv[1:] = ["--dataset", "small", *(["--model", "nano"] if stage == "train" else [])]
        import_module(f"pipelines.{stage}").main()
processes.run(main)
"""
PARAMS = {
    "seed": 1,
    "run": {"datasets": ["small"], "models": ["nano"]},
    "datasets": {
        "small": {
            "source": "synthetic", "scenes": 60, "scene_size": 96, "face_size": [40.0, 70.0], "train_subjects": 30,
        }
    },
    "models": {"nano": {"recipe": "ddamfn/nano", "epochs": 1, "batch_size": 16}},
    "crop": {"size": 48}, "shard": {"folds": 3}, "train": {"workers": 0}, "evaluate": {}, "report": {},
    "cluster": {"cpus": 2, "crop_workers": 0}, "tracking": {"enabled": False}, "tune": {},
}  # fmt: skip


def made(root: Path, below: str = ".", **variables: str) -> dict[str, bytes]:
    """Runs the stages in a project at `root`, from the folder `below` it; the bytes of shards and training."""
    (root / below).mkdir(parents=True)
    (root / "params.yaml").write_text(yaml_text.dump(PARAMS))
    done = subprocess.run(
        [sys.executable, "-c", CHAIN],
        cwd=root / below,
        env=environment() | variables,
        capture_output=True,
        text=True,
        timeout=patience(250),
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    files = [*(root / "data/shards").rglob("*.*"), *(root / "trained").rglob("*.*")]
    found = {str(path.relative_to(root)): path.read_bytes() for path in files if path.name != "run.json"}
    assert len(found) > 4
    return found


@pytest.mark.slow
def test_clock_language_hash_seed_path_and_folder_change_no_bit_of_shards_and_weights(tmp_path: Path) -> None:
    plain = made(tmp_path / "plain", TZ="UTC", LANG="C.UTF-8", PYTHONHASHSEED="0")
    odd = made(
        tmp_path / "größe mit raum" / "é#1",
        "notes/of mine",
        TZ="Asia/Kathmandu",
        LANG="C",
        LC_ALL="C",
        PYTHONHASHSEED="4242",
        HOME=os.devnull,
    )
    assert plain.keys() == odd.keys()
    assert [name for name in plain if plain[name] != odd[name]] == []
