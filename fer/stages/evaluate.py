"""The evaluate stage: opens the test split, once, with the weights that the training chose.

    evaluated/<dataset>/<model>/      appears complete, by rename
        test.json              all figures (fer.evaluation.metrics.summarise); with test-time augmentation `tta`; where
                               the training chose its epoch on the test split `protocols`
        predictions.parquet    one row a sample (fer.shards.schema)
        confusion.csv          actual, predicted: names, one row a sample
        figures/*.svg

Nothing before this stage reads the test split, and nothing after it chooses by what it finds; but for a recipe with
`protocol: published`, which chooses by it as the published code does, and is labelled so (fer.evaluation.protocols).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fer.cluster.predict import predict
from fer.config import parse
from fer.console import log
from fer.evaluation import figures, metrics
from fer.evaluation.predict import Predictions, PredictJob
from fer.evaluation.protocols import both_protocols
from fer.io.files import FileError, sha256, write_atomic, write_json
from fer.labels import is_identities
from fer.lineage import training_facts, training_history
from fer.outputs import EVALUATED
from fer.params import Params
from fer.processes import lock
from fer.shards.read import ShardSet
from fer.shards.schema import Split, prediction_schema
from fer.shards.table import read_table, write_table
from fer.tracking import Run, open_run
from fer.training.recipe import Recipe
from fer.weights.store import load_model, read_info

SPLIT: Split = "test"
_HEADLINE = ("accuracy", "balanced_accuracy", "macro_f1", "ece", "nll")


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
    final = EVALUATED.folder(params.root, dataset, model_key)
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
    protocols = _protocols(trained, facts, split.rows, params)
    with lock(params.root / ".work" / f"evaluate-{dataset}-{model_key}.lock"):
        found = predict(job, params.evaluate, params.cluster, split.rows)
        summary = _summarise(found, shards, params)
        if protocols:
            summary["protocols"] = protocols
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
        with EVALUATED.publish(final) as folder:
            write_json(folder / "test.json", summary)
            _write_tables(folder, found, split.sample_ids(), shards)
            _draw(
                folder / "figures",
                summary,
                training_history(trained),
                facts.get("best_epoch"),
                f"{model_key} on {dataset}",
            )
        record(params, dataset, model_key, facts, summary, shards, final, weights)
    low, high = summary["intervals"][0]["low"], summary["intervals"][0]["high"]
    beside = f"; with {summary['tta']['name']} views {summary['tta']['accuracy']:.4f}" if "tta" in summary else ""
    if protocols:
        beside += (
            f"; its epoch was chosen on the test split: {protocols['published']['accuracy']:.4f} there, "
            f"{protocols['validation']['accuracy']:.4f} at the epoch that validation would have chosen"
        )
    log.info(
        f"evaluate {model_key} on {dataset}: test accuracy {summary['accuracy']:.4f} "
        f"({100 * params.evaluate.confidence:g} % interval {low:.4f} to {high:.4f}, {split.rows} rows), "
        f"balanced {summary['balanced_accuracy']:.4f}, macro F1 {summary['macro_f1']:.4f}, ECE {summary['ece']:.4f}"
        f"{beside} -> {final.relative_to(params.root)}"
    )
    return final


def _training_facts(trained: Path, weights: Path, shards: ShardSet, item: str) -> dict[str, Any]:
    """What the training told, after checking that its weights were trained on this data and have its labels."""
    if not weights.is_file():
        raise FileError(f"{weights}: no such file; train it with `dvc repro train@{item}`")
    info = read_info(weights)
    if info.labels != tuple(shards.labels):
        raise ValueError(
            f"{weights}: trained on labels {', '.join(info.labels)}; the shards in {shards.folder} have "
            f"{', '.join(shards.labels)}, in this order. Train again with `dvc repro train@{item}`"
        )
    facts = training_facts(trained)
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
        difference = _tta_difference(found, params)
        summary["tta"] = {
            "name": params.evaluate.tta,
            **{name: augmented[name] for name in kept},
            "difference": [difference],
        }
    known = np.array([pose is not None for pose in poses])
    if known.any():
        yaw = np.array([abs(pose[0]) for pose in poses if pose is not None])
        right = predicted[known] == found.labels[known]
        summary["pose"] = metrics.accuracy_by_bin(yaw, right, params.evaluate.pose_bins)
    return summary


def _tta_difference(found: Predictions, params: Params) -> dict[str, Any]:
    """What the views change: accuracy with them minus without, on the same rows, and the rows turned either way."""
    plain, augmented = (answers.argmax(axis=1) == found.labels for answers in (found.logits, found.tta))
    turned = augmented.astype(np.int8) - plain.astype(np.int8)
    samples = params.evaluate.bootstrap_samples
    interval = metrics.paired_bootstrap(
        turned[None], samples=samples, confidence=params.evaluate.confidence, seed=params.seed, seeds=False
    )
    return {
        "metric": "accuracy",
        "value": float(turned.mean()),
        "gained": int((turned > 0).sum()),
        "lost": int((turned < 0).sum()),
        **vars(interval),
        "confidence": params.evaluate.confidence,
        "method": f"paired percentile bootstrap over rows, {samples} draws",
    }


def _protocols(trained: Path, facts: dict[str, Any], rows: int, params: Params) -> dict[str, Any] | None:
    """Both protocols' test figures where the training chose its epoch on the test split."""
    if facts.get("recipe", {}).get("protocol") != "published":
        return None
    recipe = parse(Recipe, facts["recipe"], str(trained / "train.json"), "recipe")
    columns = training_history(trained)
    history = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    try:
        return both_protocols(history, recipe, rows, params.evaluate.confidence)
    except ValueError as error:
        raise FileError(f"{trained / 'history.csv'}: {error}") from None


def _write_tables(folder: Path, found: Predictions, sample_ids: Sequence[str], shards: ShardSet) -> None:
    probabilities = np.exp(metrics.log_softmax(found.logits)).astype(np.float32)
    predicted: npt.NDArray[np.int64] = found.logits.argmax(axis=1)
    write_table(
        folder / "predictions.parquet",
        {
            "sample_id": sample_ids,
            "label": found.labels.astype(np.int8),
            "predicted": predicted.astype(np.int8),
            "probabilities": list(probabilities),
            "correct": predicted == found.labels,
        },
        prediction_schema(),
        metadata={"fer.labels": ",".join(shards.labels), "fer.data_digest": shards.digest, "fer.split": SPLIT},
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


def record(
    params: Params,
    dataset: str,
    model_key: str,
    facts: Mapping[str, Any],
    summary: Mapping[str, Any],
    shards: ShardSet,
    folder: Path,
    weights: Path,
) -> None:
    """Adds the evaluation to the training's own run: figures of merit, tables, figures, the data, and the model.

    Args:
        facts: of the training (fer.lineage.training_facts). summary: test.json.
        folder: evaluated/<dataset>/<model_key>.

    Raises:
        TrackingError: the store cannot be reached, and `tracking.required` is true.
    """
    key = str(facts.get("fingerprint") or sha256(weights))
    run_id = facts.get("mlflow_run_id")
    settings = {"evaluate": params.evaluate.model_dump(mode="json")}
    tags = {"dataset": dataset, "data_digest": shards.digest, "weights_sha256": sha256(weights)}
    if shards.manifest.synthetic:
        tags |= {"synthetic": "true", "mlflow.note.content": "SYNTHETIC: says nothing about accuracy on people."}
    with open_run(
        params.tracking, params.home, checkout=params.root,
        experiment=dataset, run_name=model_key, key=key, params=settings, tags=tags, run_id=run_id, join=True,
    ) as run:  # fmt: skip
        if not params.tracking.enabled:
            return
        run.log_metrics({f"test_{name}": value for name, value in numbers(summary).items()})
        _log_data(run, dataset, shards)
        lines = summary["per_class"]
        run.log_table({name: [line[name] for line in lines] for name in lines[0]}, "test_per_class.json")
        run.log_artifact(folder / "test.json", "evaluation")
        for figure in sorted((folder / "figures").iterdir()):
            run.log_artifact(figure, "figures")
        if params.tracking.log_model:
            model, _ = load_model(weights)
            size = model.input_size
            run.log_model(model, np.zeros((2, 3, size, size), np.float32), labels=shards.labels)


def numbers(summary: Mapping[str, Any]) -> dict[str, float]:
    """The figures of merit in test.json, by their names in MLflow less the `test_` before each.

    A training that chose its epoch on the test split has `accuracy_published_protocol`, the one of that epoch;
    `accuracy_validation_protocol`, of the epoch that validation would have chosen; and `accuracy_protocol_difference`,
    the former minus the latter; and the same of the balanced accuracy.
    """
    found = {name: summary[name] for name in _HEADLINE} | _ends("accuracy", summary["intervals"][0])
    if augmented := summary.get("tta"):
        (difference,) = augmented["difference"]
        found |= {f"tta_{name}": augmented[name] for name in _HEADLINE}
        found |= _ends("tta_accuracy", augmented["intervals"][0])
        found |= {"tta_accuracy_difference": difference["value"], **_ends("tta_accuracy_difference", difference)}
    if protocols := summary.get("protocols"):
        for name in ("accuracy", "balanced_accuracy"):
            for protocol in ("published", "validation"):
                found[f"{name}_{protocol}_protocol"] = protocols[protocol][name]
            found[f"{name}_protocol_difference"] = protocols["difference"][name]
    return found


def _ends(name: str, interval: Mapping[str, Any]) -> dict[str, float]:
    return {f"{name}_{end}": interval[end] for end in ("low", "high")}


def _log_data(run: Run, dataset: str, shards: ShardSet) -> None:
    """The splits as the run's data, each with its number of rows."""
    contexts: dict[Split, str] = {"train": "training", "validation": "validation", "test": "testing"}
    for split, context in contexts.items():
        profile = {"split": split, "rows": shards.manifest.rows(split)}
        source = str(shards.folder)
        run.log_dataset(f"{dataset}-{split}", shards.digest, source=source, context=context, profile=profile)
