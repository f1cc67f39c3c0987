"""The evaluate stage: opens the test split, once, with the weights that validation chose.

    evaluated/<dataset>/<model>/      appears complete, by rename
        test.json              all figures (fer.evaluation.metrics.summarise)
        predictions.parquet    one row a sample (fer.shards.predictions)
        confusion.csv          actual, predicted: names, one row a sample
        figures/*.svg

Nothing before this stage reads the test split, and nothing after it chooses by what it finds.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fer.cluster.predict import predict
from fer.console import log
from fer.evaluation import figures, metrics
from fer.evaluation.predict import Predictions, PredictJob
from fer.files import FileError, publish_directory, read_json, sha256, write_atomic, write_json
from fer.labels import is_identities
from fer.params import Params
from fer.processes import lock
from fer.shards.predictions import write_predictions
from fer.shards.read import ShardSet
from fer.shards.schema import Split
from fer.shards.table import read_table
from fer.tracking import Run, open_run
from fer.weights.store import load_model, read_info

SPLIT: Split = "test"


def run_evaluation(params: Params, dataset: str, model_key: str) -> Path:
    """Evaluates trained/<dataset>/<model_key>/ on the test split and publishes evaluated/<dataset>/<model_key>/.

    Returns:
        The published folder.

    Raises:
        ValueError: unknown keys, shards or weights that cannot be used, weights for other labels or trained on other
            data than the shards at hand.
    """
    params.dataset(dataset)
    params.recipe(model_key)
    trained = params.root / "trained" / dataset / model_key
    final = params.root / "evaluated" / dataset / model_key
    shards = ShardSet.open((params.root / "data" / "shards" / dataset).resolve())
    if is_identities(shards.label_space):
        raise ValueError(
            f"{dataset}: its test split holds people who were never trained on, so that none of them can be named; "
            f"`fer verify trained/{dataset}/{model_key} {dataset}` measures whether they are told apart"
        )
    weights = (trained / "model.safetensors").resolve()
    facts = _training_facts(trained, weights, shards, f"{dataset}-{model_key}")
    job = PredictJob(
        shards=str(shards.folder),
        weights=str(weights),
        split=SPLIT,
        batch_size=params.evaluate.batch_size,
        threads=params.evaluate.threads,
        tta=params.evaluate.tta,
    )
    split = shards.split(SPLIT)
    with lock(params.root / ".work" / f"evaluate-{dataset}-{model_key}.lock"):
        found = predict(job, params.evaluate, params.cluster, split.rows)
        summary = _summarise(found, shards, params)
        assert int(np.sum(summary["confusion"])) == split.rows, "every row of the test split is counted once"
        summary["about"] = [
            {"key": "dataset", "value": dataset},
            {"key": "model", "value": model_key},
            {"key": "split", "value": SPLIT},
            {"key": "data_digest", "value": shards.digest},
            {"key": "weights_sha256", "value": sha256(weights)},
            {"key": "fingerprint", "value": facts.get("fingerprint")},
            {"key": "threads", "value": params.evaluate.threads},
            {"key": "device", "value": "gpu" if params.evaluate.gpu else "cpu"},
        ]
        with publish_directory(final) as folder:
            write_json(folder / "test.json", summary)
            _write_tables(folder, found, split.sample_ids(), shards)
            _draw(folder / "figures", summary, _history(trained), facts.get("best_epoch"), f"{model_key} on {dataset}")
        _record(params, dataset, model_key, facts, summary, shards, final, weights)
    low, high = summary["intervals"][0]["low"], summary["intervals"][0]["high"]
    with_tta = f"; with {summary['tta']['name']} views {summary['tta']['accuracy']:.4f}" if "tta" in summary else ""
    log.info(
        f"evaluate {model_key} on {dataset}: test accuracy {summary['accuracy']:.4f} "
        f"({100 * params.evaluate.confidence:g} % interval {low:.4f} to {high:.4f}, {split.rows} rows), "
        f"balanced {summary['balanced_accuracy']:.4f}, macro F1 {summary['macro_f1']:.4f}, ECE {summary['ece']:.4f}"
        f"{with_tta} -> {final.relative_to(params.root)}"
    )
    return final


def _training_facts(trained: Path, weights: Path, shards: ShardSet, item: str) -> dict[str, Any]:
    """train.json, after checking that these weights were trained on this data and have its labels."""
    if not weights.is_file():
        raise FileError(f"{weights}: no such file; train it with `dvc repro train@{item}`")
    info = read_info(weights)
    if info.labels != tuple(shards.labels):
        raise ValueError(
            f"{weights}: trained on labels {', '.join(info.labels)}; the shards in {shards.folder} have "
            f"{', '.join(shards.labels)}, in this order. Train again with `dvc repro train@{item}`"
        )
    facts: dict[str, Any] = read_json(trained / "train.json")
    if facts.get("data_digest") != shards.digest:
        raise ValueError(
            f"{trained / 'train.json'}: trained on other data than {shards.folder} holds now, so that a test row may "
            f"have been trained on. Train again with `dvc repro train@{item}`"
        )
    return facts


def _summarise(found: Predictions, shards: ShardSet, params: Params) -> dict[str, Any]:
    """All figures; accuracy by pose and against the labels before noise where the data knows them."""
    summary = metrics.summarise(found.labels, found.logits, shards.labels, params.evaluate, params.seed)
    predicted = found.logits.argmax(axis=1)
    files = [shards.folder / name for name in shards.manifest.splits[SPLIT]]
    columns = [read_table(file, ["clean_label", "pose"]) for file in files]
    poses = [pose for column in columns for pose in column["pose"]]
    clean = np.array([label for column in columns for label in column["clean_label"]])
    if (clean != found.labels).any():
        summary["clean_accuracy"] = float((predicted == clean).mean())
    if params.evaluate.tta != "none":
        augmented = metrics.summarise(found.labels, found.tta, shards.labels, params.evaluate, params.seed)
        kept = ("accuracy", "balanced_accuracy", "macro_f1", "ece", "nll", "intervals")
        summary["tta"] = {"name": params.evaluate.tta, **{name: augmented[name] for name in kept}}
    known = np.array([pose is not None for pose in poses])
    if known.any():
        yaw = np.array([abs(pose[0]) for pose in poses if pose is not None])
        right = predicted[known] == found.labels[known]
        summary["pose"] = metrics.accuracy_by_bin(yaw, right, params.evaluate.pose_bins)
    return summary


def _write_tables(folder: Path, found: Predictions, sample_ids: Sequence[str], shards: ShardSet) -> None:
    probabilities = np.exp(metrics.log_softmax(found.logits)).astype(np.float32)
    predicted: npt.NDArray[np.int64] = found.logits.argmax(axis=1)
    write_predictions(
        folder / "predictions.parquet",
        {
            "sample_id": sample_ids,
            "label": found.labels.astype(np.int8),
            "predicted": predicted.astype(np.int8),
            "probabilities": list(probabilities),
            "correct": predicted == found.labels,
        },
        {"fer.labels": ",".join(shards.labels), "fer.data_digest": shards.digest, "fer.split": SPLIT},
    )
    names = shards.labels
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("actual", "predicted"))
    writer.writerows((names[actual], names[guess]) for actual, guess in zip(found.labels, predicted, strict=True))
    write_atomic(folder / "confusion.csv", table.getvalue())


def _draw(folder: Path, summary: dict[str, Any], history: dict[str, list[float]], best: int | None, title: str) -> None:
    matrix = np.array(summary["confusion"])
    names = [line["class"] for line in summary["per_class"]]
    drawn = {
        "confusion": figures.confusion(matrix, names, title, normalised=False),
        "confusion_normalised": figures.confusion(matrix, names, title, normalised=True),
        "reliability": figures.reliability(summary["calibration"], summary["ece"], title),
        "recall": figures.recalls(summary["per_class"], summary["balanced_accuracy"], title),
    }
    if history:
        drawn["learning_curves"] = figures.learning_curves(history, best, title)
    for name, figure in drawn.items():
        figures.save(figure, folder / f"{name}.svg")


def _history(trained: Path) -> dict[str, list[float]]:
    """history.csv as columns of numbers."""
    path = trained / "history.csv"
    if not path.is_file():
        return {}
    with open(path, encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    return {key: [float(row[key]) for row in rows] for key in rows[0]} if rows else {}


def _record(
    params: Params,
    dataset: str,
    model_key: str,
    facts: dict[str, Any],
    summary: dict[str, Any],
    shards: ShardSet,
    folder: Path,
    weights: Path,
) -> None:
    """Adds the evaluation to the training's own run: figures of merit, tables, figures, the data, and the model."""
    key = str(facts.get("fingerprint") or sha256(weights))
    run_id = facts.get("mlflow_run_id")
    settings = {"evaluate": params.evaluate.model_dump(mode="json")}
    tags = {"dataset": dataset, "data_digest": shards.digest, "weights_sha256": sha256(weights)}
    if shards.manifest.synthetic:
        tags |= {"synthetic": "true", "mlflow.note.content": "SYNTHETIC: says nothing about accuracy on people."}
    with open_run(
        params.tracking, params.root,
        experiment=dataset, run_name=model_key, key=key, params=settings, tags=tags, run_id=run_id,
    ) as run:  # fmt: skip
        if not run.active:
            return
        numbers = {name: summary[name] for name in ("accuracy", "balanced_accuracy", "macro_f1", "ece", "nll")}
        numbers |= {f"accuracy_{end}": summary["intervals"][0][end] for end in ("low", "high")}
        if "tta" in summary:
            numbers["tta_accuracy"] = summary["tta"]["accuracy"]
        run.log_metrics({f"test_{name}": value for name, value in numbers.items()})
        _log_data(run, dataset, shards)
        lines = summary["per_class"]
        run.log_table({name: [line[name] for line in lines] for name in lines[0]}, "test_per_class.json")
        run.log_artifact(folder / "test.json", "evaluation")
        for figure in sorted((folder / "figures").iterdir()):
            run.log_artifact(figure, "figures")
        model, _ = load_model(weights)
        size = model.input_size
        run.log_model(model, np.zeros((2, 3, size, size), np.float32), labels=shards.labels)


def _log_data(run: Run, dataset: str, shards: ShardSet) -> None:
    """The splits as the run's data, each with its number of rows."""
    contexts: dict[Split, str] = {"train": "training", "validation": "validation", "test": "testing"}
    for split, context in contexts.items():
        profile = {"split": split, "rows": shards.manifest.rows(split)}
        source = str(shards.folder)
        run.log_dataset(f"{dataset}-{split}", shards.digest, source=source, context=context, profile=profile)
