"""`make gpu` runs where torch, pyarrow and OpenCV are, without Ray, MLflow and DVC; each part is done once."""

import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from builders.limits import patience
from builders.projects import NANO, REPOSITORY, make_project

from fer import params

ABSENT = ("ray", "mlflow", "dvc", "optuna", "captum", "argcomplete", "openvino", "nncf", "s3fs")
"""What such a machine lacks, though it is installed here."""


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine that lacks them."""
    folder = tmp_path / "absent"
    folder.mkdir()
    for name in ABSENT:
        (folder / f"{name}.py").write_text(f"raise ModuleNotFoundError('{name} is absent here')\n")
    return {
        **os.environ,
        "PYTHONPATH": str(folder),
        "DEVICE": "cpu",
        "LIMIT": "3600",
        "RESULTS": str(tmp_path / "results"),
    }


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    script = str(REPOSITORY / "infra" / "gpu" / "run.sh")
    return subprocess.run(
        ["bash", script, *arguments], env=environment, capture_output=True, text=True, check=False,
        timeout=patience(250),
    )  # fmt: skip


def test_a_model_is_trained_and_evaluated_without_ray_mlflow_and_dvc(bare: dict[str, str], tmp_path: Path) -> None:
    project = make_project(tmp_path, epochs=1, recipe=NANO, tracking={"enabled": False})
    here = bare | {"PROJECT": str(project), "DATASET": "tiny", "OUT": str(tmp_path / "out")}
    done = run(here, "train", "toy")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"results.tgz", "toy.00"}
    with tarfile.open(tmp_path / "out" / "results.tgz") as results:
        assert {"./toy/history.csv", "./toy/test.json", "./done"} <= set(results.getnames())
    again = run(here, "train", "toy")
    assert (again.returncode, "==" in again.stdout) == (0, False), "what is done is not done again"


def test_the_project_that_it_trains_is_valid() -> None:
    loaded = params.load(REPOSITORY / "infra" / "gpu" / "params.yaml")
    assert set(loaded.run.models) == set(loaded.recipes)
    assert loaded.train.gpu
    assert (loaded.train.workers, loaded.evaluate.workers, loaded.tracking.enabled) == (0, 0, False)


def test_a_part_that_has_no_time_left_says_so(bare: dict[str, str]) -> None:
    done = run(bare | {"LIMIT": "1"}, "bench")
    assert done.returncode == 75
    assert "out of time before: passes ddamfn" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(patience(900))
@pytest.mark.parametrize("part", ["tests", "bench"])
def test_the_other_parts_run_without_them(part: str, bare: dict[str, str]) -> None:
    done = run(bare, part)
    assert done.returncode == 0, done.stdout + done.stderr
