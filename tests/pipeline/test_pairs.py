"""Two crops of one dataset and single combinations in one `dvc repro`: each is made once, and runs again by itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from dvc_project import NANO, SMALL, Project, small_clone


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    datasets = {"small": SMALL, "small_64": {**SMALL, "crop": {"size": 64}}}
    models = {"first": dict(NANO), "second": dict(NANO)}
    pairs = {"one": {"dataset": "small", "model": "first"}, "two": {"dataset": "small_64", "model": "second"}}
    run = {"datasets": ["small", "small_64"], "models": [], "pairs": pairs}
    made = small_clone(tmp_path_factory.mktemp("pairs"), datasets, models, run)
    made.set("tracking.enabled", False)
    return made


@pytest.fixture(scope="module")
def ran(project: Project) -> tuple[list[str], list[str]]:
    """The stages that ran for one pair, and those that ran for the other crop after it."""
    pair = project.started(project.dvc("repro", "evaluate_pair@two"))
    return pair, project.started(project.dvc("repro", "crop@small"))


@pytest.mark.timeout(600)
def test_a_pair_runs_on_its_own_crop_and_no_other_is_made(project: Project, ran: tuple[list[str], list[str]]) -> None:
    made = [f"{stage}@small_64" for stage in ("download", "crop", "shard")]
    assert ran[0] == ["plan", *made, "train_pair@two", "evaluate_pair@two"]
    assert ran[1] == ["plan", "download@small", "crop@small"]
    faces = (project.root / "data" / "faces" / name / "faces.json" for name in ("small", "small_64"))
    assert [json.loads(path.read_text())["crop"]["size"] for path in faces] == [112, 64]
    assert (project.root / "evaluated" / "small_64" / "second" / "test.json").is_file()


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("datasets.small_64.crop", {"size": 48}, ["crop@small_64"]),
        ("datasets.small.crop", {"jpeg_quality": 90}, ["crop@small"]),
        ("models.second.train", {"threads": 2}, ["train_pair@two"]),
        ("models.second", {**NANO, "tune": {"trials": 9}, "train": {"checkpoint_every_steps": 9}}, []),
    ],
)
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ran")
def test_own_settings_make_only_their_own_stage_run_again(
    key: str, value: object, expected: list[str], project: Project
) -> None:
    path: Path = project.root / "params.yaml"
    text = path.read_text()
    try:
        project.set(key, value)
        project.dvc("repro", "plan")
        done = [
            "download@small",
            "crop@small",
            "crop@small_64",
            "shard@small_64",
            "train_pair@two",
            "evaluate_pair@two",
        ]
        assert sorted(json.loads(project.dvc("status", "--json", *done))) == expected
    finally:
        path.write_text(text)
