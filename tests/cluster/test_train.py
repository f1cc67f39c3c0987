"""What a training is, where it may run, and what it leaves."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from builders.projects import NANO, TOY, make_project, start_training
from builders.runs import run_child, run_stage
from builders.shards import LABELS

from fer.cluster.config import ClusterConfig
from fer.cluster.fit import _explained
from fer.cluster.shared import missing_paths
from fer.params import load
from fer.processes import LostError
from fer.stages import train
from fer.training.recipe import Recipe, TrainStageConfig


def recipe(**changes: object) -> Recipe:
    return Recipe.model_validate_json(json.dumps({**NANO, **changes}))


def test_missing_paths_are_those_that_are_not_there(tmp_path: Path) -> None:
    assert missing_paths([str(tmp_path), str(tmp_path / "no")]) == [str(tmp_path / "no")]


def test_a_workers_own_mistake_is_told_without_rays_wrapping() -> None:
    from ray.train import WorkerGroupError
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

    def failed(**errors: Exception) -> str:
        failures = {
            rank: UserExceptionWithTraceback(error, "a traceback") for rank, error in enumerate(errors.values())
        }
        return str(_explained(WorkerGroupError("two failed", failures)))

    assert failed(one=RuntimeError("connection reset"), two=ValueError("sample x: broken")) == "sample x: broken"
    assert failed(one=RuntimeError("connection reset")) == "worker 0: a traceback"  # its last line
    full = OSError(28, "No space left on device", "state.pt")
    assert failed(one=pickle.loads(pickle.dumps(full))) == str(full), (
        "no worker is lost: the next one's disk is as full"
    )


@pytest.mark.parametrize(
    ("asked", "room", "batch", "expected"), [(4, 9, 16, 4), (4, 3, 16, 2), (4, 3, 12, 3), (2, 1, 16, 1), (2, 0, 16, 2)]
)
def test_after_a_loss_as_many_workers_go_on_as_fit_and_share_a_batch_evenly(
    asked: int, room: int, batch: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [{"Resources": {"CPU": 1.0}}] * room
    monkeypatch.setattr(train, "answering_nodes", lambda address: nodes)
    assert train._as_many_as_fit(recipe(batch_size=batch), TrainStageConfig(workers=asked), None) == expected


def test_workers_that_find_no_place_are_no_failure_once_after_a_loss_and_do_not_wait_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.train import ControllerError, WorkerGroupError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    monkeypatch.setenv(train._START_LIMIT, "300")
    params, waited = load(make_project(tmp_path, workers=2, max_failures=2) / "params.yaml"), []
    lost, unplaced = WorkerGroupError("gone", {0: RuntimeError("gone")}), WorkerGroupStartupTimeoutError(2)
    ends = iter([lost, ControllerError(unplaced), lost, ControllerError(unplaced), ControllerError(unplaced)])

    def fit(trainer: object, follower: object) -> None:
        waited.append(os.environ[train._START_LIMIT])
        raise _explained(next(ends))

    @contextmanager
    def connect(config: object) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(address=None)

    for name, stand_in in {"connect": connect, "_fit": fit}.items():
        monkeypatch.setattr(train, name, stand_in)
    for name in ("require", "require_paths", "_trainer", "_as_many_as_fit"):
        monkeypatch.setattr(train, name, lambda *_, **__: 1)
    job = SimpleNamespace(shards="", work_dir="", pretrained=(), recipe=recipe())
    with pytest.raises(LostError, match=r"timed out after 300.0 seconds waiting for 2 workers\.\n"):
        train._train_on_ray(params, job, None)  # type: ignore[arg-type]
    assert waited == ["300", "30", "300", "30", "300"], "two losses, of which each is allowed one try in haste"
    assert os.environ[train._START_LIMIT] == "300"


def test_the_published_folder_says_how_it_came_to_be(tmp_path: Path) -> None:
    from fer.weights.store import load_model

    root = make_project(tmp_path, epochs=1)
    stale = root / "trained" / "tiny" / "toy"
    stale.mkdir(parents=True)
    (stale / "train.json").write_text("of an earlier version")
    child = start_training(root)
    output, _ = child.communicate(timeout=200)
    assert child.returncode == 0, output
    assert sorted(path.name for path in stale.iterdir()) == [
        "history.csv",
        "model.safetensors",
        "run.json",
        "train.json",
        "val.json",
    ]
    _, info = load_model(stale / "model.safetensors", labels=LABELS)
    facts = json.loads((stale / "train.json").read_text())
    assert info.extra["fingerprint"] == facts["fingerprint"]
    assert facts["recipe"] == recipe(epochs=1).model_dump(mode="json")
    circumstances = json.loads((stale / "run.json").read_text())
    assert circumstances["versions"]["torch"]
    assert circumstances["mlflow_run_id"]
    assert circumstances["train"]["workers"] == 0
    assert not facts.keys() & circumstances.keys()
    assert "epoch 1/1: loss" in output


def test_a_run_is_ranked_by_its_published_epoch_and_not_by_its_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = make_project(tmp_path, epochs=3, recipe={**TOY, "learning_rate": 0.05})
    assert run_child(run_stage, str(root), str(tmp_path / "output.txt")) == 0, (tmp_path / "output.txt").read_text()
    published = root / "trained" / "tiny" / "toy"
    best = json.loads((published / "val.json").read_text())
    assert best["best_epoch"] < 3
    run_id = json.loads((published / "run.json").read_text())["mlflow_run_id"]
    metrics = MlflowClient(tracking_uri=f"sqlite:///{root / 'mlflow.db'}").get_run(run_id).data.metrics
    for name in ("val_accuracy", "val_balanced_accuracy", "val_loss"):
        assert metrics[f"best_{name}"] == best[name]
    assert metrics["best_epoch"] == best["best_epoch"]
    assert metrics["val_loss"] != best["val_loss"]


def test_a_flipped_byte_in_a_shard_stops_before_the_first_step(tmp_path: Path) -> None:
    root = make_project(tmp_path)
    part = root / "data" / "shards" / "tiny" / "train-0.parquet"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    child = start_training(root)
    output, _ = child.communicate(timeout=100)
    assert child.returncode == 1
    assert "train-0.parquet" in output
    assert "dvc repro -f shard@tiny" in output
    assert "Traceback" not in output


@pytest.mark.ray
def test_more_workers_than_the_cluster_holds_is_told_at_once(tmp_path: Path) -> None:
    from fer.cluster.session import connect, require

    with connect(ClusterConfig(cpus=1)), pytest.raises(ValueError, match="3 workers"):
        require(workers=3, cpus=1)
