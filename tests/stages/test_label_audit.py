"""`fer audit`: every row is judged by a model that did not see it; a stopped audit resumes."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from builders.mlflow_runs import client, give_store, runs
from builders.projects import TOY, make_project
from builders.shards import LABELS, make_shards, write_manifest, write_people, write_rows
from builders.stopping import interrupted_after_a_cell

from fer.config import ConfigError
from fer.evaluation.metrics import log_softmax
from fer.io.files import read_json
from fer.params import Params, load
from fer.shards.manifest import load_manifest
from fer.shards.read import EvalBatches, ModelInput, ShardSet
from fer.shards.schema import Split
from fer.shards.table import read_table
from fer.stages import audit as audit_stage
from fer.stages.audit import run
from fer.training.loop import build_model, compute_logits
from fer.training.state import TrainState

RECIPE = {**TOY, "learning_rate": 0.01, "ema_decay": None, "label_smoothing": 0.0}


def project(root: Path, *, noise: float = 0.0) -> Params:
    """Learnable patches in two folds, some of which carry a wrong label."""
    make_project(root, recipe=RECIPE, epochs=4)
    _relabel(root / "data" / "shards" / "tiny", noise)
    return load(give_store(root) / "params.yaml")


def _relabel(folder: Path, noise: float) -> None:
    """The same images, a fraction of the training rows with another label than their clean one."""
    manifest, random, parts = load_manifest(folder), np.random.default_rng(1), []
    for part in manifest.parts:
        columns = read_table(folder / part.file)
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        for row in rows if part.split != "test" else []:
            if random.random() < noise:
                row["label"] = (row["clean_label"] + int(random.integers(1, 7))) % 7
        split: Split = part.split
        parts.append(write_rows(folder, part.file, split, rows, part.fold, group=32))
    write_manifest(folder, parts, 16, folds=2)


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as handle:
        return list(csv.DictReader(handle))


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_planted_errors_are_among_the_suspects_and_the_check_counts_them(tmp_path: Path) -> None:
    params = project(tmp_path, noise=0.15)
    folder = run(params, "tiny", "toy", folds=2, workers=0)
    assert folder == tmp_path / "reports" / "audited" / "tiny" / "toy"
    summary, suspects = read_json(folder / "audit.json"), table(folder / "suspects.csv")
    shards = ShardSet.open(tmp_path / "data" / "shards" / "tiny")
    rows = {
        sample: (LABELS[label], LABELS[clean])
        for file in shards.manifest.files("development")
        for sample, label, clean in zip(
            *read_table(shards.folder / file, ["sample_id", "label", "clean_label"]).values(), strict=True
        )
    }
    assert summary["rows"] == len(rows) == 120, "validation is a fold, the test split is not audited"
    wrong = {sample for sample, (label, clean) in rows.items() if label != clean}
    check = summary["check"]
    assert check["against"] == "clean labels"
    assert check["base_rate"]["value"] == len(wrong) / len(rows)
    for line in suspects:
        assert (line["given"], line["better"]) == rows[line["sample_id"]]
        assert line["suggested"] != line["given"]
    found = {line["sample_id"] for line in suspects}
    assert check["precision"]["value"] == len(found & wrong) / len(found) > 2 * check["base_rate"]["value"]
    assert check["recall"]["value"] == len(found & wrong) / len(wrong)
    margins = [float(line["margin"]) for line in suspects]
    assert margins == sorted(margins, reverse=True)
    joint = np.array([[float(line[name]) for name in LABELS] for line in table(folder / "joint.csv")])
    assert joint.sum() == pytest.approx(1, abs=1e-4)
    assert cv2.imread(str(folder / "suspects.png")) is not None
    assert not list(tmp_path.glob(".work/audit-*/*/state-*.pt")), "checkpoints of a finished audit are removed"

    parent, *cells = sorted(runs(tmp_path), key=lambda one: one.data.tags["fer.kind"])
    assert parent.data.metrics["precision"] == check["precision"]["value"]
    assert {one.data.tags["mlflow.parentRunId"] for one in cells} == {parent.info.run_id}
    assert {one.info.status for one in (parent, *cells)} == {"FINISHED"}
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    run(params, "tiny", "toy", folds=2, workers=0)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files, "read again, not trained again"
    assert len(runs(tmp_path)) == 3


def test_each_row_is_predicted_by_the_model_that_did_not_train_on_it(tmp_path: Path) -> None:
    params = project(tmp_path)
    kept: dict[int, Any] = {}
    read = audit_stage._held_out

    def keep(cell: Any, *given: Any) -> Any:
        model, state = build_model(cell.job), TrainState.load(Path(cell.job.work_dir))
        assert state is not None
        model.load_state_dict(state.best_model)
        kept[cell.fold] = model
        return read(cell, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audit_stage, "_held_out", keep)
        folder = run(params, "tiny", "toy", folds=2, workers=0)
    columns = read_table(folder / "out_of_fold.parquet")
    given = dict(zip(columns["sample_id"], columns["probabilities"], strict=True))
    shards = ShardSet.open(tmp_path / "data" / "shards" / "tiny")
    for fold, model in kept.items():
        split = shards.split("validation", folds=2, fold=fold)
        batches = EvalBatches(split, model_input=ModelInput.of(model), batch_size=16, threads=1)
        logits, _, _ = compute_logits(model, batches, params.recipe("toy"), "cpu")
        batches.close()
        expected = np.exp(log_softmax(logits.numpy()))
        np.testing.assert_allclose([given[one] for one in split.sample_ids()], expected, atol=1e-6)
    assert "check" not in read_json(folder / "audit.json"), "nothing better is known"


def test_a_stopped_audit_resumes_after_the_folds_that_are_done(tmp_path: Path) -> None:
    params = project(tmp_path)
    with interrupted_after_a_cell():
        run(params, "tiny", "toy", folds=2, workers=0)
    assert not (tmp_path / "reports").exists()
    (done,) = tmp_path.glob(".work/audit-*/*/result.json")
    written = done.stat().st_mtime_ns
    run(params, "tiny", "toy", folds=2, workers=0)
    assert done.stat().st_mtime_ns == written
    parents = [one for one in runs(tmp_path) if one.data.tags["fer.kind"] == "audit"]
    assert len(parents) == 1, "one run, from start to end"
    assert client(tmp_path).get_run(parents[0].info.run_id).info.status == "FINISHED"


def test_labels_of_another_dataset_are_joined_by_image(tmp_path: Path) -> None:
    params = project(tmp_path, noise=0.15)
    better = make_shards(tmp_path / "data" / "shards" / "better")  # the same images, with their clean labels
    params.datasets["better"] = params.datasets["tiny"]  # type: ignore[index]
    run(params, "tiny", "toy", folds=2, workers=0)
    clean = read_json(tmp_path / "reports/audited/tiny/toy/audit.json")["check"]
    run(params, "tiny", "toy", folds=2, workers=0, against="better")
    joined = read_json(tmp_path / "reports/audited/tiny/toy/audit.json")["check"]
    assert joined.pop("against") == "better"
    assert clean.pop("against") == "clean labels"
    assert joined == clean
    shutil.rmtree(better)
    make_shards(better, seed=5)
    shutil.rmtree(tmp_path / ".work")
    with pytest.raises(ValueError, match=r"better.*tiny"):
        run(params, "tiny", "toy", folds=2, workers=0, against="better")
    assert not list(tmp_path.glob(".work/audit-*/*")), "before anything is trained"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 3}, "folds = 3"),
        ({"folds": 1}, "folds = 1"),
        ({"folds": 0}, "folds = 0"),
        ({"against": "nothing"}, "nothing"),
    ],
)
def test_bad_input_is_named_before_anything_is_trained(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    params = project(tmp_path)
    with pytest.raises(ValueError, match=message):
        run(params, "tiny", "toy", workers=0, **{"folds": 2, **options})
    assert not list(tmp_path.glob(".work/audit-*/*"))


def test_unknown_keys_and_datasets_of_people_are_refused(tmp_path: Path) -> None:
    params = project(tmp_path)
    for dataset, model in (("tony", "toy"), ("tiny", "tay")):
        with pytest.raises(ConfigError, match=r"tony|tay"):
            run(params, dataset, model, workers=0)
    shutil.rmtree(tmp_path / "data" / "shards" / "tiny")
    people = {"label_space": "identities-7-0123456789abcdef", "labels": tuple("0123456")}
    write_people(tmp_path / "data" / "shards" / "tiny", test=9, **people)
    with pytest.raises(ValueError, match="people"):
        run(params, "tiny", "toy", workers=0)


def test_a_fold_that_fails_is_named(tmp_path: Path) -> None:
    params = project(tmp_path)
    params.recipes["toy"] = params.recipe("toy").model_copy(update={"options": {"norm": "x", "drop_rate": 3}})  # type: ignore[index]
    with pytest.raises(ValueError, match=r"2 of 2 folds failed(.|\n)*fold 0"):
        run(params, "tiny", "toy", folds=2, workers=0)
