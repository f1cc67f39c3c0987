"""The evaluate stage: opens the test split, once, with the selected weights.

    evaluated/<dataset>/<model>/      appears complete, by rename
        test.json              all metrics (fer.evaluation.metrics.summarise); `without_duplicates`, of the rows whose
                               photograph is in no row of training or validation; with test-time augmentation `tta`;
                               where the run chose its epoch on the test split `protocols`
        predictions.parquet    one row a sample (fer.shards.schema)
        confusion.csv          actual, predicted: names, one row a sample
        run.json               parameters, GMACs and time of a forward pass (fer.evaluation.speed); alone differs
                               between equal evaluations
        figures/*.svg

Nothing before this stage reads the test split, and nothing after it chooses by its results; except for a recipe with
`protocol: published`, which selects on the test split as the published code does, and is labeled so, as is one with
`selection: refit`, which also trains on all other rows (fer.training.phases, fer.evaluation.protocols).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fer.cluster.config import ClusterConfig
from fer.cluster.map import map_blocks
from fer.config import parse
from fer.console import log, progress
from fer.evaluation.classes import ClassMap
from fer.evaluation.config import EvaluateConfig
from fer.evaluation.output import entries, write
from fer.evaluation.predict import Predictions, PredictJob, merge, predict_share
from fer.evaluation.protocols import both_protocols
from fer.evaluation.speed import cost
from fer.evaluation.summary import SPLIT, summary_of, unseen_or_why_not
from fer.io.files import FileError, sha256, write_json
from fer.labels import is_identities
from fer.lineage import training_facts, training_history
from fer.outputs import EVALUATED
from fer.params import Params
from fer.processes import lock
from fer.shards.read import ShardSet
from fer.stages.record import record
from fer.training.phases import LABELS, protocol_name
from fer.training.recipe import Recipe
from fer.weights.store import read_info


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
    trained, final = params.root / "trained" / dataset / model_key, EVALUATED.folder(params.root, dataset, model_key)
    shards = open_shards(params, dataset, f"trained/{dataset}/{model_key}")
    weights = (trained / "model.safetensors").resolve()
    facts = check_training(trained, weights, shards, params.target("train", dataset, model_key))
    name, protocols = _protocols(trained, facts, shards.manifest.rows(SPLIT), params.evaluate.confidence)
    with lock(params.root / ".work" / f"evaluate-{dataset}-{model_key}.lock"):
        classes = ClassMap(of_model=shards.labels, of_dataset=shards.labels)
        predictions, summary = evaluate(params, dataset, shards, weights, classes)
        if protocols:
            summary["protocols"] = protocols
        identity = {"dataset": dataset, "model": model_key, "fingerprint": facts.get("fingerprint")}
        label = {} if name == "validation" else {"protocol": name}
        summary["about"] = entries(identity | facts_of(shards, weights, params.evaluate) | label)
        with EVALUATED.publish(final) as folder:
            title = f"{model_key} on {dataset}"
            write(folder, predictions, summary, shards, title, training_history(trained), facts.get("best_epoch"))
            write_json(folder / "run.json", costs := cost(weights))
        record(
            params, dataset, params.run_name(model_key), summary, shards, final,
            key=str(facts.get("fingerprint") or sha256(weights)), run_id=facts.get("mlflow_run_id"),
            tags={"protocol": name, "model": read_info(weights).model, "recipe": params.recipe_names.get(model_key)},
            model=weights, cost=costs, validation=_validation(trained, facts) if name == "validation" else None,
        )  # fmt: skip
    more = "" if name == "validation" else f"; {LABELS[name]}"
    if protocols and protocols["validation"]:
        more += (
            f": {protocols['published']['accuracy']:.4f}, and {protocols['validation']['accuracy']:.4f} after as many "
            f"epochs as validation chose: {100 * protocols['difference']['accuracy']:+.2f} points"
        )
    log.info(f"evaluate {model_key} on {dataset}: {described(summary)}{more} -> {final.relative_to(params.root)}")
    return final


def open_shards(params: Params, dataset: str, weights: str) -> ShardSet:
    """The shards of a dataset of expressions, every byte verified; ValueError for one of people."""
    shards = ShardSet.open((params.root / "data" / "shards" / dataset).resolve())
    if is_identities(shards.label_space):
        raise ValueError(
            f"{dataset}: its test split holds people who were never trained on, so that none of them can be named; "
            f"`fer verify {weights} {dataset}` measures whether they are distinguished"
        )
    return shards


def evaluate(
    params: Params, dataset: str, shards: ShardSet, weights: Path, classes: ClassMap
) -> tuple[Predictions, dict[str, Any]]:
    """The test split through a model: predictions of the rows whose class the model has, and their test.json.

    Args:
        weights: a file of this project, with the labels `classes.of_model`.

    Raises:
        ValueError: as `predict`; no test row has a class of the model; or data/statistics/<dataset> is of other data.
    """
    config, rows = params.evaluate, shards.manifest.rows(SPLIT)
    job = PredictJob(
        shards=str(shards.folder),
        weights=str(weights),
        split=SPLIT,
        batch_size=config.batch_size,
        threads=config.threads,
        tta=config.tta,
        labels=classes.of_model,
    )
    unseen = unseen_or_why_not(shards, params.root / "data" / "statistics" / dataset)
    predictions = classes.scored(predict(job, config, params.cluster, rows, params.storage))
    if not len(predictions.rows):
        raise ValueError(f"{dataset}: no test row has one of the classes {', '.join(classes.shared)}")
    summary = summary_of(predictions, classes, shards, unseen, config, params.seed)
    assert int(np.sum(summary["confusion"])) == len(predictions.rows), "every row that is scored is counted once"
    return predictions, summary


def facts_of(shards: ShardSet, weights: Path, config: EvaluateConfig) -> dict[str, Any]:
    """What identifies the data, the weights and the arithmetic of an evaluation."""
    return {
        "split": SPLIT,
        "data_digest": shards.digest,
        "weights_sha256": sha256(weights),
        "threads": config.threads,
        "device": "gpu" if config.gpu else "cpu",
    }


def described(summary: Mapping[str, Any]) -> str:
    """The main metrics in words, for the log."""
    interval, unseen, tta = summary["intervals"][0], summary["without_duplicates"], summary.get("tta")
    if "note" in unseen:
        beside = f"without duplicates in training and validation {unseen['note']}"
    elif unseen["rows"] == summary["rows"]:
        beside = "no duplicates in training and validation"
    else:
        low, high = (unseen["intervals"][0][end] for end in ("low", "high"))
        beside = (
            f"without duplicates in training and validation {unseen['accuracy']:.4f} ({low:.4f} to {high:.4f}, "
            f"{unseen['rows']} rows)"
        )
    return (
        f"test accuracy {summary['accuracy']:.4f} ({100 * interval['confidence']:g} % interval {interval['low']:.4f} "
        f"to {interval['high']:.4f}, {summary['rows']} rows), balanced {summary['balanced_accuracy']:.4f}, "
        f"macro F1 {summary['macro_f1']:.4f}, ECE {summary['ece']:.4f}; {beside}"
        + (f"; with {tta['name']} views {tta['accuracy']:.4f}" if tta else "")
    )


def predict(
    job: PredictJob, config: EvaluateConfig, cluster: ClusterConfig, rows: int, storage: str | None = None
) -> Predictions:
    """Predictions for all `rows` rows of the job's split, in its order: on Ray workers, or in this process without Ray.

    The result is the same bits.

    Args:
        storage: the store from which workers read the job's files; None: they see this machine's.

    Raises:
        ValueError: labels that do not match, unreadable shards, a cluster that is too small or cannot be reached, or a
            GPU that is requested and not there.
    """
    ranks = range(max(config.workers, 1))
    if storage is not None and config.workers:
        job = job.sent_to(storage)
    parts = map_blocks(
        partial(_predict_part, job, len(ranks), config.gpu), ranks,
        workers=config.workers, cluster=cluster, cpus=config.threads, gpus=int(config.gpu), retries=2, storage=storage,
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


def check_training(trained: Path, weights: Path, shards: ShardSet, target: str) -> dict[str, Any]:
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


def _validation(trained: Path, facts: Mapping[str, Any]) -> float | None:
    """Accuracy of the kept weights on validation, by which MLflow's champion is chosen."""
    accuracies = training_history(trained).get("val_accuracy", [])
    return accuracies[facts["best_epoch"] - 1] if accuracies and facts.get("best_epoch") else None


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
