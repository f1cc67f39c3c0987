"""The evaluation in MLflow, added to the run of its training.

Where the store is down and tracking is not required, all but the model waits for it (`fer.tracking`), and joins the
training's run whether that was recorded at once or waits too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fer.files import sha256
from fer.params import Params
from fer.shards.read import ShardSet
from fer.shards.schema import Split
from fer.tracking import Run, open_run
from fer.weights.store import load_model

_HEADLINE = ("accuracy", "balanced_accuracy", "macro_f1", "ece", "nll")


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
