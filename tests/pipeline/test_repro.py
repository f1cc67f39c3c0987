"""`dvc repro` as a newcomer runs it, small: everything once, then nothing, then only what changed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml_text

from fer.shards.verify import verify

STAGES = [
    "download@small",
    "crop@small",
    "shard@small",
    "train@small-first",
    "train@small-second",
    "evaluate@small-first",
    "evaluate@small-second",
    "report",
]


class Project:
    """A clone of the repository with small data, trained in this process."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def repro(self) -> list[str]:
        """Runs the pipeline; the stages that ran."""
        out = self.dvc("repro")
        return [line.split("'")[1] for line in out.splitlines() if line.startswith("Running stage")]

    def dvc(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *arguments],
            cwd=self.root,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def set(self, dotted: str, value: object) -> None:
        path = self.root / "params.yaml"
        document = yaml_text.load(path.read_text())
        *parents, last = dotted.split(".")
        place = document
        for key in parents:
            place = place[key]
        place[last] = value
        path.write_text(yaml_text.dump(document))

    def _environment(self) -> dict[str, str]:
        # As on a fresh machine without a home; `python` is that of the tests.
        folder = str(Path(sys.executable).parent)
        return {
            "PATH": f"{folder}:/usr/bin:/bin",
            "PYTHONPATH": str(self.root),
            "HOME": "/nonexistent",
            "DVC_NO_ANALYTICS": "1",
        }


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, repo_root: Path) -> Project:
    # A space and a letter beyond ASCII: no stage may stumble over its own path.
    root = tmp_path_factory.mktemp("projet d'été")
    for name in ("fer", "pipelines"):
        shutil.copytree(repo_root / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "params.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(repo_root / name, root)
    made = Project(root)
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    made.dvc("init", "--quiet")
    small = {
        "source": "synthetic", "scenes": 150, "scene_size": 96, "face_size": [50.0, 80.0], "test_fraction": 0.3,
        "train_subjects": 20, "test_subjects": 10,
    }  # fmt: skip
    nano = {"recipe": "ddamfn/nano", "epochs": 2, "batch_size": 16}
    made.set("datasets", {"small": small})
    made.set("models", {"first": nano, "second": {**nano, "learning_rate": 0.001}})
    made.set("run", {"datasets": ["small"], "models": ["first", "second"]})
    made.set("train.workers", 0)
    made.set("cluster.crop_workers", 0)
    made.set("tracking.log_model", False)
    return made


@pytest.mark.timeout(600)
def test_everything_runs_once_then_nothing_then_only_what_changed(project: Project) -> None:
    assert sorted(project.repro()) == sorted(STAGES)
    assert project.repro() == []
    project.set("models.second.learning_rate", 0.002)
    assert project.repro() == ["train@small-second", "evaluate@small-second", "report"]


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
        assert len(history) == 3
    page = (root / "reports" / "index.html").read_text()
    assert "SYNTHETIC: says nothing about accuracy on people" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
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
    shutil.copytree(project.root, copy.root, symlinks=True)
    for checkout in (project, copy):
        assert "Data and pipelines are up to date." in checkout.dvc("status")
    for stage in ("download@small", "crop@small", "shard@small"):
        copy.dvc("repro", "--force", "--single-item", "--quiet", stage)
    assert "Data and pipelines are up to date." in copy.dvc("status"), "forced anew, the shards are the same bytes"
