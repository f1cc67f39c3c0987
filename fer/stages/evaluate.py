"""The evaluate stage: opens the test split, once, with the selected weights.

    evaluated/<dataset>/<model>/      appears complete, by rename
        test.json              all metrics (fer.evaluation.metrics.summarise); with test-time augmentation `tta`; where
                               the run chose its epoch on the test split `protocols`
        predictions.parquet    one row a sample (fer.shards.schema)
        confusion.csv          actual, predicted: names, one row a sample
        figures/*.svg

Nothing before this stage reads the test split, and nothing after it chooses by its results; except for a recipe with
`protocol: published`, which selects on the test split as the published code does, and is labeled so, as is one with
`selection: refit`, which also trains on all other rows (fer.training.phases, fer.evaluation.protocols).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fer.cluster.config import ClusterConfig
from fer.cluster.map import map_blocks
from fer.config import parse
from fer.console import log, progress
from fer.evaluation import figures, metrics
from fer.evaluation.config import EvaluateConfig
from fer.evaluation.predict import Predictions, PredictJob, merge, predict_share
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
from fer.training.phases import LABELS, protocol_name
from fer.training.recipe import Recipe
from fer.weights.store import load_model, read_info

SPLIT: Split = "test"
_HEADLINE = ("accuracy", "balanced_accuracy", "macro_f1", "ece", "nll")


def run(params: Params, dataset: str, model_key: str) -> Path:
    """Evaluates trained/<dataset>/<model_key>/ on the test split and publishes evaluated/<dataset>/<model_key>/.

    Returns:
        The published folder.

    Raises:
        ValueError: unknown keys, shards or weights that cannot be used, weights for other labels or trained on other
            data than the shards at hand.
    """
    params.dataset(dataset)
    params.recipe(model_key)
    config, trained = params.evaluate, params.root / "trained" / dataset / model_key
    final = EVALUATED.folder(params.root, dataset, model_key)
    shards = ShardSet.open((params.root / "data" / "shards" / dataset).resolve())
    if is_identities(shards.label_space):
        raise ValueError(
            f"{dataset}: its test split holds people who were never trained on, so that none of them can be named; "
            f"`fer verify trained/{dataset}/{model_key} {dataset}` measures whether they are distinguished"
        )
    weights = (trained / "model.safetensors").resolve()
    facts = _training_facts(trained, weights, shards, params.target("train", dataset, model_key))
    job = PredictJob(
        shards=str(shards.folder),
        weights=str(weights),
        split=SPLIT,
        batch_size=config.batch_size,
        threads=config.threads,
        tta=config.tta,
    )
    split = shards.split(SPLIT)
    name, protocols = _protocols(trained, facts, split.rows, config.confidence)
    with lock(params.root / ".work" / f"evaluate-{dataset}-{model_key}.lock"):
        predictions = predict(job, config, params.cluster, split.rows)
        summary = _summarise(predictions, shards, params)
        if protocols:
            summary["protocols"] = protocols
        assert int(np.sum(summary["confusion"])) == split.rows, "every row of the test split is counted once"
        about = {
            "dataset": dataset,
            "model": model_key,
            "split": SPLIT,
            "data_digest": shards.digest,
            "weights_sha256": sha256(weights),
            "fingerprint": facts.get("fingerprint"),
            "threads": config.threads,
            "device": "gpu" if config.gpu else "cpu",
        }
        if name != "validation":
            about["protocol"] = name
        summary["about"] = [{"key": key, "value": value} for key, value in about.items()]
        with EVALUATED.publish(final) as folder:
            write_json(folder / "test.json", summary)
            _write_tables(folder, predictions, split.sample_ids(), shards)
            history, title = training_history(trained), f"{model_key} on {dataset}"
            _draw(folder / "figures", summary, history, facts.get("best_epoch"), title)
        record(params, dataset, model_key, facts, summary, shards, final, weights, name)
    low, high = (summary["intervals"][0][end] for end in ("low", "high"))
    more = f"; with {summary['tta']['name']} views {summary['tta']['accuracy']:.4f}" if "tta" in summary else ""
    if name != "validation":
        more += f"; {LABELS[name]}"
    if protocols and protocols["validation"]:
        more += (
            f": {protocols['published']['accuracy']:.4f}, and {protocols['validation']['accuracy']:.4f} after as many "
            f"epochs as validation chose: {100 * protocols['difference']['accuracy']:+.2f} points"
        )
    log.info(
        f"evaluate {model_key} on {dataset}: test accuracy {summary['accuracy']:.4f} "
        f"({100 * config.confidence:g} % interval {low:.4f} to {high:.4f}, {split.rows} rows), "
        f"balanced {summary['balanced_accuracy']:.4f}, macro F1 {summary['macro_f1']:.4f}, ECE {summary['ece']:.4f}"
        f"{more} -> {final.relative_to(params.root)}"
    )
    return final


def predict(job: PredictJob, config: EvaluateConfig, cluster: ClusterConfig, rows: int) -> Predictions:
    """Predictions for all `rows` rows of the job's split, in its order: on Ray workers, or in this process without Ray.

    The result is the same bits.

    Raises:
        ValueError: labels that do not match, unreadable shards, a cluster that is too small or cannot be reached, or a
            GPU that is requested and not there.
    """
    ranks = range(max(config.workers, 1))
    parts = map_blocks(
        partial(_predict_part, job, len(ranks), config.gpu), ranks,
        workers=config.workers, cluster=cluster, cpus=config.threads, gpus=int(config.gpu), retries=2,
    )  # fmt: skip
    with progress(len(ranks), f"predict {job.split}", "worker") as bar:
        done = []
        for part in parts:
            done.append(part)
            bar.update(1)
    return merge(done, rows)


def _predict_part(job: PredictJob, world_size: int, gpu: bool, rank: int) -> Predictions:
    import torch

    if gpu and not torch.cuda.is_available():
        raise ValueError("evaluate.gpu is true, and torch finds no GPU: set it to false, or name a cluster with GPUs")
    return predict_share(job, rank, world_size, "cuda" if gpu else "cpu")


def _training_facts(trained: Path, weights: Path, shards: ShardSet, target: str) -> dict[str, Any]:
    """train.json and run.json, after checking that the weights were trained on this data and have its labels."""
    if not weights.is_file():
        raise FileError(f"{weights}: no such file; train it with `dvc repro {target}`")
    info = read_info(weights)
    if info.labels != tuple(shards.labels):
        raise ValueError(
            f"{weights}: trained on labels {', '.join(info.labels)}; the shards in {shards.folder} have "
            f"{', '.join(shards.labels)}, in this order. Train again with `dvc repro {target}`"
        )
    facts = training_facts(trained, target)
    if facts.get("data_digest") != shards.digest:
        raise ValueError(
            f"{trained / 'train.json'}: trained on other data than {shards.folder} holds now, so that a test row may "
            f"have been trained on. Train again with `dvc repro {target}`"
        )
    return facts


def _summarise(predictions: Predictions, shards: ShardSet, params: Params) -> dict[str, Any]:
    """All metrics; accuracy by pose and against the labels before noise where the data has them."""
    summary = metrics.summarise(predictions.labels, predictions.logits, shards.labels, params.evaluate, params.seed)
    predicted = predictions.logits.argmax(axis=1)
    files = [shards.folder / name for name in shards.manifest.splits[SPLIT]]
    columns = [read_table(file, ["clean_label", "pose"]) for file in files]
    poses = [pose for column in columns for pose in column["pose"]]
    clean = np.array([label for column in columns for label in column["clean_label"]])
    if (clean != predictions.labels).any():
        summary["clean_accuracy"] = float((predicted == clean).mean())
    if params.evaluate.tta != "none":
        augmented = metrics.summarise(predictions.labels, predictions.tta, shards.labels, params.evaluate, params.seed)
        kept = ("accuracy", "balanced_accuracy", "macro_f1", "ece", "nll", "intervals")
        difference = _tta_difference(predictions, params)
        summary["tta"] = {
            "name": params.evaluate.tta,
            **{name: augmented[name] for name in kept},
            "difference": [difference],
        }
    known = np.array([pose is not None for pose in poses])
    if known.any():
        yaw = np.array([abs(pose[0]) for pose in poses if pose is not None])
        right = predicted[known] == predictions.labels[known]
        summary["pose"] = metrics.accuracy_by_bin(yaw, right, params.evaluate.pose_bins)
    return summary


def _tta_difference(predictions: Predictions, params: Params) -> dict[str, Any]:
    """What the views change: accuracy with them minus without, on the same rows, and the rows changed either way."""
    plain, augmented = (scores.argmax(axis=1) == predictions.labels for scores in (predictions.logits, predictions.tta))
    changed = augmented.astype(np.int8) - plain.astype(np.int8)
    samples = params.evaluate.bootstrap_samples
    interval = metrics.paired_bootstrap(
        changed[None], samples=samples, confidence=params.evaluate.confidence, seed=params.seed, seeds=False
    )
    return {
        "metric": "accuracy",
        "value": float(changed.mean()),
        "gained": int((changed > 0).sum()),
        "lost": int((changed < 0).sum()),
        **vars(interval),
        "confidence": params.evaluate.confidence,
        "method": f"paired percentile bootstrap over rows, {samples} draws",
    }


def _protocols(trained: Path, facts: dict[str, Any], rows: int, confidence: float) -> tuple[str, dict[str, Any] | None]:
    """How the result came about, and both protocols' test metrics where the run chose its epoch on the test split."""
    if (name := protocol_name(facts["recipe"])) != "published":
        return name, None
    recipe = parse(Recipe, facts["recipe"], str(trained / "train.json"), "recipe")
    columns = training_history(trained)
    history = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    try:
        return name, both_protocols(history, recipe, rows, confidence)
    except ValueError as error:
        raise FileError(f"{trained / 'history.csv'}: {error}") from None


def _write_tables(folder: Path, predictions: Predictions, sample_ids: Sequence[str], shards: ShardSet) -> None:
    probabilities = np.exp(metrics.log_softmax(predictions.logits)).astype(np.float32)
    predicted: npt.NDArray[np.int64] = predictions.logits.argmax(axis=1)
    write_table(
        folder / "predictions.parquet",
        {
            "sample_id": sample_ids,
            "label": predictions.labels.astype(np.int8),
            "predicted": predicted.astype(np.int8),
            "probabilities": list(probabilities),
            "correct": predicted == predictions.labels,
        },
        prediction_schema(),
        metadata={"fer.labels": ",".join(shards.labels), "fer.data_digest": shards.digest, "fer.split": SPLIT},
    )
    names = shards.labels
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("actual", "predicted"))
    writer.writerows((names[actual], names[guess]) for actual, guess in zip(predictions.labels, predicted, strict=True))
    write_atomic(folder / "confusion.csv", table.getvalue())


def _draw(folder: Path, summary: dict[str, Any], history: dict[str, list[float]], best: int | None, title: str) -> None:
    matrix = np.array(summary["confusion"])
    names = [line["class"] for line in summary["per_class"]]
    drawn = {
        "confusion": figures.confusion(matrix, names, title, normalized=False),
        "confusion_normalized": figures.confusion(matrix, names, title, normalized=True),
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
    protocol: str = "validation",
) -> None:
    """Adds the evaluation to the training run in MLflow: metrics, tables, figures, the data, and the model.

    Args:
        facts: of the run (fer.lineage.training_facts). summary: test.json.
        folder: evaluated/<dataset>/<model_key>. protocol: a key of `fer.training.phases.LABELS`.

    Raises:
        TrackingError: the store cannot be reached, and `tracking.required` is true.
    """
    key = str(facts.get("fingerprint") or sha256(weights))
    run_id = facts.get("mlflow_run_id")
    settings = {"evaluate": params.evaluate.model_dump(mode="json")}
    tags = {"dataset": dataset, "data_digest": shards.digest, "weights_sha256": sha256(weights), "protocol": protocol}
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
    """The metrics in test.json, by their names in MLflow without the `test_` before each.

    A run that chose its epoch on the test split has `accuracy_published_protocol`, the one of that epoch; where
    validation chose a number of epochs too, `accuracy_validation_protocol`, after as many, and
    `accuracy_protocol_difference`, the former minus the latter; and the same of the balanced accuracy.
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
                if protocols[protocol]:
                    found[f"{name}_{protocol}_protocol"] = protocols[protocol][name]
            if protocols["difference"]:
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
