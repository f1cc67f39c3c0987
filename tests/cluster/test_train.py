"""What a training is, where it may run, and what it leaves."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from tiny_training import LABELS, NANO, make_project, start_training

from fer.cluster import train
from fer.cluster.config import ClusterConfig
from fer.cluster.shared import missing_paths
from fer.cluster.train import _explained, code_digest, fingerprint
from fer.training.recipe import Recipe, TrainStageConfig


def recipe(**changes: object) -> Recipe:
    return Recipe.model_validate_json(json.dumps({**NANO, **changes}))


def test_the_fingerprint_is_of_data_recipe_seed_and_code() -> None:
    prints = {
        fingerprint("data", recipe(), 1, "code"),
        fingerprint("other", recipe(), 1, "code"),
        fingerprint("data", recipe(epochs=4), 1, "code"),
        fingerprint("data", recipe(), 2, "code"),
        fingerprint("data", recipe(), 1, "other"),
    }
    assert len(prints) == 5
    assert fingerprint("data", recipe(), 1, "code") in prints


def test_the_code_digest_is_the_same_twice() -> None:
    assert code_digest() == code_digest()


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
    monkeypatch.setattr(train, "room", lambda **_: room)
    assert train._as_many_as_fit(recipe(batch_size=batch), TrainStageConfig(workers=asked)) == expected


def test_the_published_folder_says_how_it_came_to_be(tmp_path: Path) -> None:
    from fer.weights.store import load_model

    root = make_project(tmp_path, epochs=1)
    stale = root / "trained" / "tiny" / "toy"
    stale.mkdir(parents=True)
    (stale / "stale.txt").write_text("of an earlier version")
    child = start_training(root)
    output, _ = child.communicate(timeout=200)
    assert child.returncode == 0, output
    assert sorted(path.name for path in stale.iterdir()) == [
        "history.csv",
        "model.safetensors",
        "train.json",
        "val.json",
    ]
    _, info = load_model(stale / "model.safetensors", labels=LABELS)
    facts = json.loads((stale / "train.json").read_text())
    assert info.extra["fingerprint"] == facts["fingerprint"]
    assert facts["recipe"] == recipe(epochs=1).model_dump(mode="json")
    assert facts["versions"]["torch"]
    assert facts["mlflow_run_id"]
    assert "epoch 1/1: loss" in output


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
