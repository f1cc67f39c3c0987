"""Two crops of one dataset and single combinations in one `dvc repro`: each is made once, and runs again by itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from dvc_project import Project, clone

SMALL = {
    "source": "synthetic", "scenes": 120, "scene_size": 96, "face_size": [50.0, 80.0], "test_fraction": 0.3,
    "train_subjects": 16, "test_subjects": 8,
}  # fmt: skip
NANO = {"recipe": "ddamfn/nano", "epochs": 1, "batch_size": 16}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = clone(tmp_path_factory.mktemp("pairs"))
    made.set("datasets", {"small": SMALL, "small_64": {**SMALL, "crop": {"size": 64}}})
    made.set("models", {"first": dict(NANO), "second": dict(NANO)})
    pairs = {"one": {"dataset": "small", "model": "first"}, "two": {"dataset": "small_64", "model": "second"}}
    made.set("run", {"datasets": ["small", "small_64"], "models": [], "pairs": pairs})
    made.set("train.workers", 0)
    made.set("cluster.crop_workers", 0)
    made.set("tracking.enabled", False)
    return made


OF_64 = ["crop@small_64", "evaluate_pair@two", "report", "shard@small_64", "train_pair@two"]


@pytest.mark.timeout(600)
def test_two_crops_and_their_pairs_run_once_and_an_edit_runs_its_own_crop_alone(project: Project) -> None:
    stages = [f"{stage}@{dataset}" for stage in ("download", "crop", "shard") for dataset in ("small", "small_64")]
    pairs = [f"{stage}_pair@{name}" for stage in ("train", "evaluate") for name in ("one", "two")]
    assert sorted(project.repro()) == sorted(["plan", *stages, *pairs, "report"])
    sizes = [json.loads((project.root / "data" / "faces" / name / "faces.json").read_text())["crop"]["size"]
             for name in ("small", "small_64")]  # fmt: skip
    assert sizes == [112, 64]
    assert (project.root / "evaluated" / "small_64" / "second" / "test.json").is_file()
    assert not (project.root / "evaluated" / "small" / "second").exists()
    project.set("datasets.small_64.crop", {"size": 48})
    assert sorted(project.repro()) == ["crop@small_64", "evaluate_pair@two", "plan", *OF_64[2:]]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("datasets.small.crop", {"jpeg_quality": 90}, ["crop@small"]),
        ("models.first.train", {"threads": 2}, ["train_pair@one"]),
        ("models.first.train", {"checkpoint_every_steps": 9}, []),
        ("models.second.tune", {"trials": 9}, []),
    ],
)
@pytest.mark.timeout(600)
def test_own_settings_make_only_their_own_stage_run_again(
    key: str, value: object, expected: list[str], project: Project
) -> None:
    path: Path = project.root / "params.yaml"
    text = path.read_text()
    try:
        project.set(key, value)
        project.dvc("repro", "plan")
        assert sorted(json.loads(project.dvc("status", "--json"))) == sorted(["plan", *expected])
    finally:
        path.write_text(text)
