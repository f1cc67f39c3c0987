"""A clone of the repository with its own DVC project, as a newcomer has it."""

import shutil
import subprocess
import sys
from pathlib import Path

import yaml_text
from builders.projects import REPOSITORY, run_in

SMALL = {
    "source": "synthetic", "scenes": 120, "scene_size": 96, "face_size": [50.0, 80.0], "test_fraction": 0.3,
    "train_subjects": 16, "test_subjects": 8,
}  # fmt: skip
"""A dataset that is drawn in a second."""

NANO = {"recipe": "ddamfn/nano", "epochs": 1, "batch_size": 16}


class Project:
    """A clone of the repository with small data, trained in this process."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def repro(self) -> list[str]:
        """Runs the pipeline; the stages that ran."""
        return self.started(self.dvc("repro"))

    @staticmethod
    def started(out: str) -> list[str]:
        """The stages that a command says it runs."""
        return [line.split("'")[1] for line in out.splitlines() if line.startswith("Running stage")]

    def dvc(self, *arguments: str) -> str:
        """What a command prints; it must end well."""
        done = self.try_dvc(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def try_dvc(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """As on a fresh machine without a home; `python` is that of the tests."""
        path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
        return run_in(self.root, "-m", "dvc", *arguments, PATH=path, HOME="/nonexistent")

    def set(self, dotted: str, value: object) -> None:
        yaml_text.edit(self.root / "params.yaml", dotted, value)


def small_clone(root: Path, datasets: object, models: object, run: object) -> Project:
    """The same with these datasets and models, in this process alone."""
    made = clone(root)
    settings = {"datasets": datasets, "models": models, "run": run, "train.workers": 0, "cluster.crop_workers": 0}
    for key, value in settings.items():
        made.set(key, value)
    return made


def clone(root: Path) -> Project:
    """The checkout's code and pipeline in `root`, under git and DVC."""
    for name in ("fer", "pipelines"):
        shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "params.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(REPOSITORY / name, root)
    made = Project(root)
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    made.dvc("init", "--quiet")
    return made
