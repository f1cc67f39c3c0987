"""Queued experiments of DVC, which run in folders that are deleted: lasting files are in the project, none is lost."""

import json
import os
import shutil
import subprocess
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml_text
from builders.limits import patience
from builders.mlflow_runs import give_store, runs
from builders.projects import NANO, REPOSITORY, TOY, make_project, run_dvc
from builders.runs import child, run_child, run_stage
from builders.shards import LABELS
from builders.stopping import copy_code, wait_until

from fer import params
from fer.processes import lock
from fer.sources.folders import FoldersConfig
from fer.stages.download import download_dataset


def queue(project: Path, name: str) -> Path:
    """A copy of a project where DVC runs a queued experiment of its own."""
    copy = project / ".dvc" / "tmp" / "exps" / name
    for path in ("params.yaml", "data/shards"):
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (project / path).is_dir() else shutil.copy)(project / path, copy / path)
    (copy / ".dvc").mkdir()
    return copy


def statuses(project: Path) -> list[str]:
    """The status of each run in the project's MLflow store, which keeps its artifacts in the project."""
    assert all(run.info.artifact_uri.startswith((project / "mlartifacts").as_uri()) for run in runs(project))
    return [run.info.status for run in runs(project)]


def test_only_a_queued_experiment_has_another_home_than_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, other = make_project(tmp_path / "project"), make_project(tmp_path / "other")
    copy = queue(project, "one")
    for root, dvc_root, home in (
        (copy, project, project),
        (copy, other, copy),
        (project, project, project),
        (project, None, project),
    ):
        monkeypatch.delenv("DVC_ROOT", raising=False)
        if dvc_root is not None:
            monkeypatch.setenv("DVC_ROOT", str(dvc_root))
        found = params.load(root / "params.yaml")
        assert (found.root, found.home, found.queued) == (root, home, home != root)


def test_project_in_a_folder_of_the_repository_is_found_from_its_queued_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project(tmp_path / "repository" / "faces")
    copy = make_project(tmp_path / "repository" / ".dvc" / "tmp" / "exps" / "standalone" / "one" / "faces")
    (copy.parent / ".dvc").mkdir()
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "repository"))
    assert params.load(copy / "params.yaml").home == project


def test_recipe_that_git_ignores_is_found_in_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = make_project(tmp_path, recipe={"recipe": "tuned/mine.yaml"})
    copy = queue(project, "one")
    (project / "tuned").mkdir()
    (project / "tuned" / "mine.yaml").write_text(yaml_text.dump({**NANO, "batch_size": 20}))
    monkeypatch.setenv("DVC_ROOT", str(project))
    assert params.load(copy / "params.yaml").recipe("toy").batch_size == 20
    (copy / "tuned").mkdir()
    (copy / "tuned" / "mine.yaml").write_text(yaml_text.dump({**NANO, "batch_size": 24}))
    assert params.load(copy / "params.yaml").recipe("toy").batch_size == 24, "its own, where it has one"


def test_experiment_reads_the_data_of_the_project_and_keeps_its_outputs(tmp_path: Path) -> None:
    project, copy = tmp_path / "project", tmp_path / "project/.dvc/tmp/exps/one"
    make_photos(project / "photos")
    copy.mkdir(parents=True)
    config = FoldersConfig(source="folders", path="photos")
    raw = download_dataset("tiny", config, seed=0, root=copy, parent=project)
    assert raw == copy / "data" / "raw" / "tiny"
    assert (raw / "source.json").is_file()
    assert not (project / "data").exists()
    assert not (copy / ".work").exists()


def test_experiment_waits_for_another_with_the_same_download_and_both_are_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, copies = tmp_path / "project", [tmp_path / "project/.dvc/tmp/exps" / name for name in ("one", "two")]
    source, waits, threads = make_photos(tmp_path / "photos"), threading.Event(), []
    url, config = "http://example.org/photos.zip", FoldersConfig(source="folders", path="http://example.org/photos.zip")
    fetched = []

    def fetch(source_: str, target: Path, **_: object) -> None:
        if not target.exists():
            fetched.append(source_)
            shutil.make_archive(str(target.with_suffix("")), "zip", source)
            if not threads:
                threads.append(threading.Thread(target=bring, args=(copies[1],)))
                threads[0].start()
                assert waits.wait(60)

    def bring(copy: Path) -> None:
        download_dataset("tiny", config, seed=0, root=copy, parent=project)

    monkeypatch.setattr("fer.io.transfer.download", fetch)
    monkeypatch.setattr("fer.console.log.info", lambda line, *_: waits.set() if "waiting" in line else None)
    bring(copies[0])
    threads[0].join(60)
    assert fetched == [url, url], "one after the other"
    one, two = ((copy / "data/raw/tiny/source.json").read_bytes() for copy in copies)
    assert one == two
    assert not (project / ".work" / "download").exists()


def test_experiment_waits_for_another_with_the_same_run_and_both_are_recorded(tmp_path: Path) -> None:
    project = make_project(give_store(tmp_path / "project"), epochs=1, recipe=TOY)
    output, waits = tmp_path / "output", tmp_path / "output of the one that waits"
    one, two = queue(project, "one"), queue(project, "two")
    inside = f"import os\nos.environ['DVC_ROOT'] = {str(project)!r}"
    assert run_child(run_stage, str(one), str(output), inside) == 0, output.read_text()
    facts = json.loads((one / "trained/tiny/toy/train.json").read_text())
    with lock(project / ".work" / facts["fingerprint"][:16] / "lock"):
        waits.touch()
        waiting = child(run_stage, str(two), str(waits), inside)
        wait_until(lambda: f"held by process {os.getpid()}; waiting for it to end" in waits.read_text(), waiting)
        assert run_child(run_stage, str(project), str(output)) == 1, "only an experiment waits"
        assert f"held by process {os.getpid()}; wait for it to end or stop it" in output.read_text()
    waiting.join(patience(100))
    assert waiting.exitcode == 0, waits.read_text()
    for name in ("model.safetensors", "history.csv", "val.json", "train.json"):
        assert (two / "trained/tiny/toy" / name).read_bytes() == (one / "trained/tiny/toy" / name).read_bytes()
    assert statuses(project).count("FINISHED") == 2
    assert [path.name for path in (project / ".work").iterdir()] == ["locks"]
    assert not [path for copy in (one, two) for path in copy.iterdir() if path.name.startswith("ml")]
    assert not (project / "trained").exists()


def make_photos(folder: Path) -> Path:
    """Noise in class folders."""
    random = np.random.default_rng(0)
    for split, number in (("train", 8), ("test", 2)):
        for label in LABELS:
            for index in range(number):
                path = folder / split / label / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(cv2.imencode(".png", random.integers(0, 255, (32, 32), np.uint8))[1].tobytes())
    return folder


def make_repository(root: Path) -> Path:
    """A git repository with the stages up to `evaluate`, on images that it ignores and params.yaml names."""
    make_project(root, epochs=1, recipe={**NANO, "batch_size": 8})
    shutil.rmtree(root / "data")
    make_photos(root / "photos")
    document = yaml_text.load((root / "params.yaml").read_text())
    document["datasets"] = {"tiny": {"source": "folders", "path": "photos"}}
    document["crop"] = {"size": 32}
    document["cluster"]["crop_workers"] = 0
    document["shard"] = {"folds": 4}
    (root / "params.yaml").write_text(yaml_text.dump(document))
    copy_code(root)
    (root / ".gitignore").write_text((REPOSITORY / ".gitignore").read_text() + "/photos/\n")
    for command in (["init", "-q"], ["config", "user.name", "T"], ["config", "user.email", "t@example.org"]):
        subprocess.run(["git", *command], cwd=root, check=True)
    run_dvc(root, "init", "--quiet")
    subprocess.run(["git", "add", "-A"], cwd=root, check=True)
    subprocess.run(["git", "commit", "-qm", "start"], cwd=root, check=True)
    return root


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_queued_experiments_at_once_lose_no_record_and_can_be_applied(tmp_path: Path) -> None:
    root = make_repository(tmp_path / "project")
    for name, epochs in (("one", 1), ("two", 2)):
        run_dvc(root, "exp", "run", "--queue", "--name", name, "-S", f"models.toy.epochs={epochs}")
    run_dvc(root, "exp", "run", "--run-all", "-j", "2")
    assert statuses(root) == ["FINISHED", "FINISHED"]
    assert sorted(path.name for path in (root / ".work").iterdir()) == ["locks", "plan", "raw"], "no unfinished work"
    assert len(list(root.glob("mlartifacts/*/artifacts/evaluation/test.json"))) == 2
    assert not (root / "trained").exists(), "an experiment's outputs stay its own"
    run_dvc(root, "exp", "apply", "two")
    history = (root / "trained/tiny/toy/history.csv").read_text().splitlines()
    assert len(history) == 3
    assert json.loads((root / "evaluated/tiny/toy/test.json").read_text())["rows"] == 14
