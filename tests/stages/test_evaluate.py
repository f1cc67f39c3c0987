"""The evaluate stage: every test row once, the same bits for any number of ranks, recorded with its training run."""

from __future__ import annotations

import csv
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders.mlflow_runs import client, give_store, runs, start
from builders.published import LABELS, make_project, publish_training, publish_training_chosen_on_test
from builders.shards import change_manifest

from fer.evaluation.predict import Predictions, PredictJob, merge, predict_share
from fer.evaluation.summary import tta_difference
from fer.io.files import FileError, read_json
from fer.params import Params
from fer.shards.manifest import load_manifest
from fer.shards.read import ShardSet
from fer.shards.table import read_table
from fer.stages.evaluate import predict
from fer.stages.evaluate import run as run_evaluation
from fer.stages.record import numbers
from fer.tracking import Run, TrackingConfig
from fer.training.phases import LABELS as LABELS_OF_PROTOCOLS
from fer.weights.store import load_model, save_model

ROWS = 45


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Params:
    params = make_project(tmp_path_factory.mktemp("project"), test_rows=ROWS)
    publish_training(params)
    return params


@pytest.fixture
def job(project: Params) -> PredictJob:
    return PredictJob(
        shards=str(project.root / "data/shards/toy"),
        weights=str(project.root / "trained/toy/nano/model.safetensors"),
        split="test",
        batch_size=8,
        threads=1,
    )


def test_any_world_size_predicts_every_row_once_with_the_same_bits(job: PredictJob) -> None:
    alone = merge([predict_share(job)], ROWS)
    assert alone.rows.tolist() == list(range(ROWS))
    for world_size in (2, 3, 7):  # 45 rows are 6 batches of at most 8: the seventh rank has none
        parts = [predict_share(job, rank, world_size) for rank in reversed(range(world_size))]
        together = merge(parts, ROWS)
        assert np.array_equal(together.logits, alone.logits)
        assert np.array_equal(together.labels, alone.labels)


def test_test_time_augmentation_is_reported_beside_unchanged_plain_metrics(project: Params, job: PredictJob) -> None:
    plain, flipped = predict_share(job), predict_share(replace(job, tta="flip"))
    assert np.array_equal(plain.logits, flipped.logits)
    assert np.array_equal(plain.tta, plain.logits)
    assert not np.array_equal(flipped.tta, flipped.logits)
    np.testing.assert_allclose(np.exp(flipped.tta).sum(axis=1), 1, rtol=1e-5)
    with_views = replace(project, evaluate=project.evaluate.model_copy(update={"tta": "flip"}))
    summary = read_json(run_evaluation(with_views, "toy", "nano") / "test.json")
    assert summary["tta"]["name"] == "flip"
    assert 0 <= summary["tta"]["accuracy"] <= 1
    assert numbers(summary)["tta_accuracy_low"] == summary["tta"]["intervals"][0]["low"]
    assert numbers(summary)["tta_accuracy_difference"] == summary["tta"]["difference"][0]["value"]
    assert "tta" not in read_json(run_evaluation(project, "toy", "nano") / "test.json")


def test_the_gain_of_augmentation_is_paired_row_by_row(project: Params) -> None:
    labels = np.arange(100) % 2
    correct, wrong = np.eye(2, dtype=np.float32)[labels], np.eye(2, dtype=np.float32)[1 - labels]
    plain, views = correct.copy(), correct.copy()
    plain[:9], views[9:12] = wrong[:9], wrong[9:12]  # 9 rows gained, 3 lost, 88 correct either way
    found = tta_difference(Predictions(np.arange(100), labels, plain, views), project.evaluate, project.seed)
    assert (found["gained"], found["lost"]) == (9, 3)
    assert found["value"] == pytest.approx(0.06)
    assert found["low"] == pytest.approx(0.0, abs=0.03), "0.06 - 1.96 * 0.034"
    assert found["high"] == pytest.approx(0.127, abs=0.03)


def test_an_epoch_selected_on_test_is_reported_beside_the_validation_selected_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fer.console.log.propagate", True)
    params = make_project(tmp_path)
    publish_training_chosen_on_test(params)
    with caplog.at_level("INFO", logger="fer"):
        summary = read_json(run_evaluation(params, "toy", "nano") / "test.json")
    assert summary["protocols"]["published"]["epoch"] == 15
    assert summary["protocols"]["validation"] == {
        "epoch": 16, "accuracy": 0.6, "balanced_accuracy": 0.5, "nll": 1.4
    }  # fmt: skip
    assert summary["protocols"]["difference"]["accuracy"] == pytest.approx(0.2)
    assert "0.8000, and 0.6000 after as many epochs as validation chose: +20.00 points" in caplog.text
    assert {"key": "protocol", "value": "published"} in summary["about"]
    logged = numbers(summary)
    assert logged["accuracy_published_protocol"] == 0.8
    assert logged["accuracy_validation_protocol"] == 0.6
    assert logged["accuracy_protocol_difference"] == pytest.approx(0.2)
    assert logged["balanced_accuracy_protocol_difference"] == pytest.approx(0.2)


def write_pairs(root: Path, *pairs: tuple[str, str]) -> None:
    """data/statistics/toy, where these rows of test and train show one photograph each."""
    folder = root / "data/statistics/toy"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{test},{train},test,train\n" for test, train in pairs]
    (folder / "duplicates.csv").write_text("first,second,first_split,second_split\n" + "".join(lines))
    (folder / "dropped.csv").write_text("sample_id,reason,kept\n")


def test_rows_without_a_duplicate_in_training_are_reported_beside_unchanged_metrics_of_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fer.console.log.propagate", True)
    params = make_project(tmp_path)
    change_manifest(tmp_path / "data/shards/toy", duplicates="report")
    publish_training(params)
    params = replace(params, evaluate=params.evaluate.model_copy(update={"tta": "flip"}))
    write_pairs(tmp_path)
    alone = read_json(run_evaluation(params, "toy", "nano") / "test.json")
    write_pairs(tmp_path, ("toy/0021", "toy/0001"), ("toy/0050", "toy/0002"))
    with caplog.at_level("INFO", logger="fer"):
        folder = run_evaluation(params, "toy", "nano")
    summary, table = read_json(folder / "test.json"), read_table(folder / "predictions.parquet")
    assert {key: value for key, value in summary.items() if key != "without_duplicates"} == {
        key: value for key, value in alone.items() if key != "without_duplicates"
    }
    assert {key: alone["without_duplicates"][key] for key in ("rows", "accuracy", "intervals")} == {
        key: alone[key] for key in ("rows", "accuracy", "intervals")
    }
    kept = [
        correct
        for row, correct in zip(table["sample_id"], table["correct"], strict=True)
        if row not in ("toy/0021", "toy/0050")
    ]
    unseen = summary["without_duplicates"]
    assert unseen["rows"] == len(kept) == ROWS - 2
    assert unseen["accuracy"] == pytest.approx(np.mean(kept))
    assert numbers(summary)["without_duplicates_rows"] == ROWS - 2
    assert numbers(summary)["without_duplicates_accuracy_low"] == unseen["intervals"][0]["low"]
    assert numbers(summary)["without_duplicates_tta_accuracy"] == unseen["tta"]["accuracy"]
    assert f"without duplicates in training and validation {unseen['accuracy']:.4f}" in caplog.text


@pytest.mark.parametrize(
    ("duplicates", "pairs", "note"),
    [
        ("off", [], r"not searched for \(shard\.duplicates: off\)"),
        ("report", None, "without data/statistics/toy"),
        ("report", [(f"toy/{row:04d}", "toy/0000") for row in range(21, 21 + ROWS)], "none: every test row"),
    ],
)
def test_where_rows_without_duplicates_are_not_known_the_reason_is_reported(
    duplicates: str, pairs: list[tuple[str, str]] | None, note: str, tmp_path: Path
) -> None:
    params = make_project(tmp_path)
    change_manifest(tmp_path / "data/shards/toy", duplicates=duplicates)
    publish_training(params)
    if pairs is not None:
        write_pairs(tmp_path, *pairs)
    summary = read_json(run_evaluation(params, "toy", "nano") / "test.json")
    assert re.search(note, summary["without_duplicates"]["note"])
    assert not [name for name in numbers(summary) if "duplicates" in name]


def test_an_epoch_selected_on_test_without_validation_has_one_result(tmp_path: Path) -> None:
    params = make_project(tmp_path)
    publish_training_chosen_on_test(params, selection="best")
    summary = read_json(run_evaluation(params, "toy", "nano") / "test.json")
    assert summary["protocols"]["published"]["epoch"] == 7
    assert summary["protocols"]["validation"] is summary["protocols"]["difference"] is None
    assert [name for name in numbers(summary) if "protocol" in name] == [
        "accuracy_published_protocol", "balanced_accuracy_published_protocol"
    ]  # fmt: skip


def test_a_refit_run_is_labeled(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    monkeypatch.setattr("fer.console.log.propagate", True)
    params = make_project(tmp_path)
    publish_training(params, recipe=params.recipe("nano").model_dump(mode="json") | {"selection": "refit"})
    with caplog.at_level("INFO", logger="fer"):
        summary = read_json(run_evaluation(params, "toy", "nano") / "test.json")
    assert {"key": "protocol", "value": "refit"} in summary["about"]
    assert LABELS_OF_PROTOCOLS["refit"] in caplog.text
    assert "protocols" not in summary


def test_an_epoch_selected_on_validation_has_one_result(project: Params) -> None:
    summary = read_json(run_evaluation(project, "toy", "nano") / "test.json")
    assert "protocols" not in summary
    assert "protocol" not in [line["key"] for line in summary["about"]]
    assert not [name for name in numbers(summary) if "protocol" in name]


def test_a_history_without_the_test_split_is_rejected_before_anything_is_computed(tmp_path: Path) -> None:
    params = make_project(tmp_path)
    folder = publish_training_chosen_on_test(params)
    text = (folder / "history.csv").read_text().replace("test_accuracy", "accuracy_of_test")
    (folder / "history.csv").write_text(text)
    with pytest.raises(ValueError, match=r"history\.csv: no column test_accuracy, though .* protocol: published"):
        run_evaluation(params, "toy", "nano")
    assert not (tmp_path / "evaluated").exists()


def test_a_row_missing_or_twice_is_rejected(job: PredictJob) -> None:
    first, second = (predict_share(job, rank, 2) for rank in range(2))
    for parts in ([first], [first, second, second]):
        with pytest.raises(AssertionError, match="predictions for 45 rows"):
            merge(parts, ROWS)


@pytest.mark.ray
def test_ray_workers_predict_the_same_bits_as_one_process(project: Params, job: PredictJob) -> None:
    here = predict(job, project.evaluate, project.cluster, ROWS)
    config = project.evaluate.model_copy(update={"workers": 2})
    there = predict(job, config, project.cluster.model_copy(update={"cpus": 2}), ROWS)
    assert np.array_equal(here.logits, there.logits)
    assert np.array_equal(here.labels, there.labels)


def test_the_published_files_are_consistent_and_repeatable(project: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = run_evaluation(project, "toy", "nano")
    summary = read_json(folder / "test.json")
    assert summary["rows"] == np.sum(summary["confusion"]) == ROWS
    assert sum(line["rows"] for line in summary["pose"]) == ROWS
    assert "clean_accuracy" in summary
    table = read_table(folder / "predictions.parquet")
    split = ShardSet.open(project.root / "data/shards/toy").split("test")
    assert table["sample_id"] == split.sample_ids()
    assert table["label"] == split.labels().tolist()
    assert np.mean(table["correct"]) == pytest.approx(summary["accuracy"])
    assert np.allclose(np.sum(table["probabilities"], axis=1), 1, atol=1e-5)
    with open(folder / "confusion.csv", newline="") as handle:
        pairs = Counter((line["actual"], line["predicted"]) for line in csv.DictReader(handle))
    assert pairs == Counter(
        {
            (LABELS[row], LABELS[column]): count
            for (row, column), count in np.ndenumerate(np.array(summary["confusion"]))
            if count
        }
    )
    assert sorted(path.stem for path in (folder / "figures").iterdir()) == [
        "confusion", "confusion_normalized", "learning_curves", "recall", "reliability"
    ]  # fmt: skip

    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "run.json"}

    before = files()
    assert run_evaluation(project, "toy", "nano") == folder
    assert files() == before


def assert_recorded(client: Any, run: Any) -> None:
    paths = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert paths == {"evaluation", "figures", "test_per_class.json"}
    assert {item.dataset.name for item in run.inputs.dataset_inputs} == {"toy-test"}


@pytest.mark.parametrize("old", [False, True], ids=["run.json", "train.json alone, as in older projects"])
def test_the_evaluation_is_recorded_in_the_training_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bool
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    params = replace(make_project(give_store(tmp_path)), tracking=TrackingConfig(log_model=False))
    with start(tmp_path, "f" * 64, params.tracking) as training:
        training.log_metrics({"val_accuracy": 0.8}, step=1)
    publish_training(params, mlflow_run_id=training.run_id, old=old, fingerprint="another")
    folder = run_evaluation(params, "toy", "nano")
    (run,) = runs(tmp_path)
    assert run.info.run_id == training.run_id
    assert run.data.metrics["test_accuracy"] == read_json(folder / "test.json")["accuracy"]
    assert_recorded(client(tmp_path), run)


@pytest.mark.parametrize("trained", ["recorded", "waiting"])
def test_an_evaluation_waits_for_a_store_that_is_down_and_joins_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, trained: str
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("fer.console.log.propagate", True)
    up, down = TrackingConfig(log_model=False), TrackingConfig(uri="http://127.0.0.1:9")

    def record(config: TrackingConfig, key: str) -> Run:
        with start(tmp_path, key, config) as run:
            run.log_metrics({"val_accuracy": 0.8}, step=1)
        return run

    params = make_project(give_store(tmp_path))
    training = record(up if trained == "recorded" else down, "f" * 64)
    publish_training(params, mlflow_run_id=training.run_id)
    folder = run_evaluation(replace(params, tracking=down), "toy", "nano")
    assert "the model cannot wait for MLflow" in caplog.text

    record(up, "another")  # the store answers again: what waits is sent
    (run,) = runs(tmp_path, "f" * 64)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["val_accuracy"] == 0.8
    summary = read_json(folder / "test.json")
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "ece", "nll"):
        assert run.data.metrics[f"test_{name}"] == pytest.approx(summary[name])
    assert_recorded(client(tmp_path), run)
    kept = client(tmp_path).download_artifacts(run.info.run_id, "evaluation/test.json", str(tmp_path))
    assert read_json(Path(kept)) == summary


def test_without_tracking_nothing_is_recorded(project: Params) -> None:
    assert not project.tracking.enabled
    run_evaluation(project, "toy", "nano")
    assert not (project.root / ".work" / "unsent").exists()
    assert not (project.root / "mlflow.db").exists()


def test_weights_for_another_label_order_or_other_data_are_rejected(tmp_path: Path) -> None:
    params = make_project(tmp_path)
    publish_training(params)
    folder = tmp_path / "data/shards/toy"
    manifest = load_manifest(folder)
    replace(manifest, labels=(manifest.labels[-1], *manifest.labels[1:-1], manifest.labels[0])).save(folder)
    with pytest.raises(ValueError, match=r"label"):
        run_evaluation(params, "toy", "nano")
    replace(manifest, seed=1).save(folder)
    with pytest.raises(ValueError, match=r"train\.json: .*dvc repro train@toy-nano"):
        run_evaluation(params, "toy", "nano")
    assert not (tmp_path / "evaluated").exists()


@pytest.mark.parametrize("text", ["[]", "null", "{", "{}", '{"data_digest": 5, "recipe": {}}', '{"data_digest": "x"}'])
def test_a_train_json_that_no_stage_wrote_is_rejected_with_the_remedy(text: str, tmp_path: Path) -> None:
    params = make_project(tmp_path)
    (publish_training(params) / "train.json").write_text(text)
    with pytest.raises(FileError, match=r"train\.json: .*: dvc repro -sf train@toy-nano"):
        run_evaluation(params, "toy", "nano")
    assert not (tmp_path / "evaluated").exists()


def test_non_finite_weights_are_rejected_by_file_and_tensor(tmp_path: Path) -> None:
    params = make_project(tmp_path)
    path = publish_training(params) / "model.safetensors"
    model, info = load_model(path)
    model.fc.bias.data[3] = float("nan")
    save_model(model, path, info.labels, info.label_space, info.extra, name=info.model, options=info.options)
    with pytest.raises(
        FileError, match=rf"{path}: 1 of .* NaN or infinity: fc\.bias; restore the file, or .* train again"
    ):
        run_evaluation(params, "toy", "nano")
    assert not (tmp_path / "evaluated").exists()


def test_missing_weights_and_unknown_keys_name_the_remedy(project: Params) -> None:
    with pytest.raises(ValueError, match=r"dvc repro train@toy-other"):
        run_evaluation(project, "toy", "other")
    with pytest.raises(ValueError, match=r"did you mean 'nano'"):
        run_evaluation(project, "toy", "nanno")


def test_a_missing_gpu_is_an_error(project: Params, job: PredictJob) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError, match=r"evaluate\.gpu"):
        predict(job, project.evaluate.model_copy(update={"gpu": True}), project.cluster, ROWS)
