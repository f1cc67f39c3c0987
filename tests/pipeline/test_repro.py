"""`dvc repro` as a newcomer runs it, small: everything once, then nothing, then only what changed."""

import json
import re
import shutil
from pathlib import Path

import pytest
from dvc_project import NANO, SMALL, Project, small_clone

from fer.shards.verify import verify

STAGES = [
    "plan",
    "download@small",
    "crop@small",
    "shard@small",
    "train@small-first",
    "train@small-second",
    "evaluate@small-first",
    "evaluate@small-second",
    "explain@small-first",
    "explain@small-second",
    "report",
]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    # A space and a letter beyond ASCII: no stage may stumble over its own path.
    root = tmp_path_factory.mktemp("projet d'été")
    models = {"first": NANO, "second": {**NANO, "recipe": "btn/nano"}}
    made = small_clone(root, {"small": SMALL}, models, {"datasets": ["small"], "models": ["first", "second"]})
    made.set("tracking.log_model", False)
    return made


@pytest.mark.timeout(600)
def test_everything_runs_once_then_nothing_then_only_what_changed(project: Project) -> None:
    assert sorted(project.repro()) == sorted(STAGES)
    assert project.repro() == ["plan"]
    project.set("models.second.learning_rate", 0.002)
    project.dvc("repro", "plan")
    assert changed(project) == ["plan", "train@small-second"]
    model = project.root / "fer" / "models" / "btn.py"
    model.write_text(f"{model.read_text()}\nEDITED = 1\n")
    assert sorted(project.repro()) == sorted(
        ["plan", "train@small-second", "evaluate@small-second", "explain@small-second", "report"]
    )
    assert changed(project) == ["plan"]


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        ("fer/recipes/btn.yaml", "  weight_decay: 0.05\n", "  weight_decay: 0.04\n", {"train@small-second"}),
        (
            "fer/sources/synthetic.py",
            "import signal\n",
            "import signal\n\nEDITED = 1\n",
            {"download@small", "crop@small"},
        ),
    ],
)
@pytest.mark.timeout(600)
def test_an_edit_makes_only_what_depends_on_it_run_again(
    file: str, old: str, new: str, expected: set[str], project: Project
) -> None:
    path = project.root / file
    text = path.read_text()
    assert old in text
    try:
        path.write_text(text.replace(old, new, 1))
        project.dvc("repro", "plan")
        assert set(changed(project)) == {"plan"} | expected
    finally:
        path.write_text(text)


@pytest.mark.timeout(600)
def test_what_it_leaves_is_whole_and_fits_together(project: Project) -> None:
    root = project.root
    manifest = verify(root / "data" / "shards" / "small")
    test_rows = sum(part.rows for part in manifest.parts if part.split == "test")
    for model in ("first", "second"):
        result = json.loads((root / "evaluated" / "small" / model / "test.json").read_text())
        assert result["rows"] == test_rows
        trained = json.loads((root / "trained" / "small" / model / "train.json").read_text())
        assert trained["labels"] == list(manifest.labels)
        history = (root / "trained" / "small" / model / "history.csv").read_text().splitlines()
        assert len(history) == 2
    page = (root / "reports" / "index.html").read_text()
    assert "SYNTHETIC: says nothing about accuracy on people" in page
    assert not re.search(r"(src|@import|url\()\W*https?://", page), "it loads nothing"
    hidden = [path for path in root.rglob(".*.tmp-*") if ".dvc" not in path.parts]
    assert not hidden


@pytest.mark.timeout(600)
def test_dvc_shows_metrics_and_plots(project: Project) -> None:
    metrics = json.loads(project.dvc("metrics", "show", "--json"))[""]["data"]
    assert "accuracy" in metrics["evaluated/small/first/test.json"]["data"]
    assert "val_accuracy" in metrics["trained/small/first/val.json"]["data"]
    plots = json.loads(project.dvc("plots", "show", "--json"))["data"]
    assert any("confusion.csv" in name for name in plots)
    assert any("history.csv" in name for name in plots)


@pytest.mark.timeout(600)
def test_a_copy_of_the_checkout_at_another_path_is_up_to_date_and_makes_the_same_shards(
    project: Project, tmp_path: Path
) -> None:
    copy = Project(tmp_path / "elsewhere")
    project.dvc("repro", "plan")  # of the files as they are again
    shutil.copytree(project.root, copy.root, symlinks=True)
    for checkout in (project, copy):
        assert changed(checkout) == ["plan"], "which looks for changed data each time"
    copy.dvc("repro", "--force", "--single-item", "--quiet", "download@small", "crop@small", "shard@small")
    assert changed(copy) == ["plan"], "forced anew, the shards are the same bytes"


def changed(project: Project) -> list[str]:
    return sorted(json.loads(project.dvc("status", "--json")))
