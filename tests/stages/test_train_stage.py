"""The train stage: what identifies a run, and what it leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_training import LABELS, NANO, TOY, make_project, run_child, run_stage, start_training

from fer.stages.train import code_digest, fingerprint
from fer.training.recipe import Recipe, load_recipe


def recipe(**changes: object) -> Recipe:
    return load_recipe({**NANO, **changes}, Path(), "test")


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
    assert code_digest() == code_digest()


def test_the_published_folder_describes_its_run(tmp_path: Path) -> None:
    from fer.weights.store import load_model

    root = make_project(tmp_path, epochs=1)
    stale = root / "trained" / "tiny" / "toy"
    stale.mkdir(parents=True)
    (stale / "train.json").write_text("of an earlier version")
    child = start_training(root)
    output, _ = child.communicate(timeout=200)
    assert child.returncode == 0, output
    names = {path.name for path in stale.iterdir()}
    assert names == {"history.csv", "model.safetensors", "run.json", "train.json", "val.json"}
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


def test_a_run_is_ranked_by_its_selected_epoch_and_not_by_its_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = make_project(tmp_path, epochs=3, recipe={**TOY, "learning_rate": 0.1})
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
