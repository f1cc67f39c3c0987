"""A clone of the repository with its own DVC project, as a newcomer has it."""

import shutil
import subprocess
import sys
from pathlib import Path

import yaml_text

REPOSITORY = Path(__file__).resolve().parents[2]


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
        return subprocess.run(
            [sys.executable, "-m", "dvc", *arguments],
            cwd=self.root,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )

    def set(self, dotted: str, value: object) -> None:
        yaml_text.edit(self.root / "params.yaml", dotted, value)

    def _environment(self) -> dict[str, str]:
        # As on a fresh machine without a home; `python` is that of the tests.
        folder = str(Path(sys.executable).parent)
        return {
            "PATH": f"{folder}:/usr/bin:/bin",
            "PYTHONPATH": str(self.root),
            "HOME": "/nonexistent",
            "DVC_NO_ANALYTICS": "1",
        }


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
