"""The plan stage runs first: a refused name reaches no shell, nobody's folder is removed, changed data is noticed."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from dvc_project import Project, clone

CLASSES = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = clone(tmp_path / "around" / "project")
    for split in ("train", "test"):
        for index, name in enumerate(CLASSES):
            folder = made.root / "photos" / split / name
            folder.mkdir(parents=True)
            for number in range(2):
                image = np.full((48, 48, 3), 20 * index + number, np.uint8)
                cv2.imwrite(str(folder / f"{number}.png"), image)
    made.set("datasets", {"mine": {"source": "folders", "path": "photos", "label_space": "basic7"}})
    made.set("models", {"first": {"recipe": "ddamfn/nano"}})
    made.set("run", {"datasets": ["mine"], "models": ["first"]})
    return made


def files(folder: Path) -> dict[str, bytes]:
    """Every file around the project, but for what git, DVC and Python keep."""
    kept = (path for path in folder.rglob("*") if not {".git", ".dvc", "__pycache__", ".work"} & set(path.parts))
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept if path.is_file()}


def test_name_with_a_shell_command_reaches_no_shell(project: Project, tmp_path: Path) -> None:
    name = "a;touch PWNED;"
    project.set("datasets", {name: {"source": "synthetic", "scenes": 20}})
    project.set("run.datasets", [name])
    before = files(tmp_path)
    for arguments in (["repro", "--keep-going"], ["repro", "--single-item", f"download@{name}"]):
        done = project.try_dvc(*arguments)
        assert done.returncode != 0
        assert project.started(done.stdout) in ([], ["plan"])
    assert files(tmp_path) == before
    assert "Traceback" not in done.stdout + done.stderr


def test_folder_of_the_user_is_not_removed_for_an_output(project: Project, tmp_path: Path) -> None:
    own = project.root / "data" / "raw" / "mine"
    own.mkdir(parents=True)
    (own / "years of work.txt").write_text("mine")
    before = files(tmp_path)
    done = project.try_dvc("repro", "download@mine")
    assert done.returncode != 0
    assert project.started(done.stdout) == ["plan"]
    assert f"{own}: was not made by this project" in done.stdout
    assert files(tmp_path) == before


@pytest.mark.timeout(600)
def test_changed_data_is_downloaded_again_and_unchanged_data_is_not(project: Project) -> None:
    def repro() -> list[str]:
        return project.started(project.dvc("repro", "download@mine"))

    assert repro() == ["plan", "download@mine"]
    (project.root / "photos" / "train" / "sad" / "0.png").touch()
    assert repro() == ["plan"], "another time is no other data"
    shutil.rmtree(project.root / "photos" / "train" / "happy")
    assert repro() == ["plan", "download@mine"]
