"""What MLflow keeps of an evaluation, and of the data behind any run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fer.evaluation.metrics import HEADLINE
from fer.evaluation.output import facts_in
from fer.params import Params
from fer.shards.read import ShardSet
from fer.shards.schema import Split
from fer.tracking import Candidate, Run, open_run

_COSTS = ("parameters", "gmacs", "latency_ms")


def record(
    params: Params,
    dataset: str,
    name: str,
    summary: Mapping[str, Any],
    shards: ShardSet,
    folder: Path,
    *,
    key: str,
    tags: Mapping[str, Any],
    run_id: str | None = None,
    model: Path | None = None,
    cost: Mapping[str, Any] | None = None,
    validation: float | None = None,
) -> None:
    """Adds an evaluation to the run of its key in MLflow, or to a new one: metrics, tables, figures, the data.

    Args:
        name: of the run, where it is new. tags: of it, among them `model`, the architecture.
        summary: test.json. folder: that holds it.
        key: fingerprint of the run. run_id: its id, where known.
        model: weights file that is kept as a model and registered, where `tracking.log_model` says so; None keeps none.
        cost: of a forward pass (`fer.evaluation.speed.cost`). validation: accuracy of the weights on validation.

    Raises:
        TrackingError: the store cannot be reached, and `tracking.required` is true.
    """
    about = facts_in(summary)
    tags = {**tags, **{tag: about[tag] for tag in ("dataset", "data_digest", "weights_sha256")}}
    if shards.manifest.synthetic:
        tags |= {"synthetic": "true", "mlflow.note.content": "SYNTHETIC: says nothing about accuracy on people."}
    if note := summary["without_duplicates"].get("note"):
        tags |= {"test_without_duplicates": note}
    with open_run(
        params.tracking, params.home, checkout=params.root, experiment=dataset, run_name=name, key=key,
        params={"evaluate": params.evaluate.model_dump(mode="json")}, tags=tags, run_id=run_id, join=True,
    ) as run:  # fmt: skip
        if not params.tracking.enabled:
            return
        run.log_metrics({f"test_{metric}": value for metric, value in numbers(summary).items()})
        run.log_metrics({name: value for name, value in (cost or {}).items() if name in _COSTS})
        log_data(run, dataset, shards, "test")
        lines = summary["per_class"]
        run.log_table({column: [line[column] for line in lines] for column in lines[0]}, "test_per_class.json")
        run.log_artifact(folder / "test.json", "evaluation")
        for figure in sorted((folder / "figures").iterdir()):
            run.log_artifact(figure, "figures")
        if model:
            run.log_model(model, name=f"{dataset}-{tags['model']}")
            synthetic = shards.manifest.synthetic
            run.register(Candidate(dataset, validation, data_digest=shards.digest, synthetic=synthetic))


def numbers(summary: Mapping[str, Any]) -> dict[str, float]:
    """The metrics in test.json, by their names in MLflow without the `test_` before each.

    Those of the rows without duplicates in training and validation begin with `without_duplicates_`. A run that chose
    its epoch on the test split has `accuracy_published_protocol`, the one of that epoch; where validation chose a
    number of epochs too, `accuracy_validation_protocol`, after as many, and `accuracy_protocol_difference`, the former
    minus the latter; and the same of the balanced accuracy.
    """
    found = _headline(summary)
    unseen = summary.get("without_duplicates", {})
    if "rows" in unseen:
        found |= _headline(unseen, "without_duplicates_") | {"without_duplicates_rows": unseen["rows"]}
    if augmented := summary.get("tta"):
        (difference,) = augmented["difference"]
        found |= _headline(augmented, "tta_")
        found |= {"tta_accuracy_difference": difference["value"], **_ends("tta_accuracy_difference", difference)}
        if "tta" in unseen:
            found |= _headline(unseen["tta"], "without_duplicates_tta_")
    if protocols := summary.get("protocols"):
        for name in ("accuracy", "balanced_accuracy"):
            for protocol in ("published", "validation"):
                if protocols[protocol]:
                    found[f"{name}_{protocol}_protocol"] = protocols[protocol][name]
            if protocols["difference"]:
                found[f"{name}_protocol_difference"] = protocols["difference"][name]
    return found


def _headline(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    values = {name: metrics[name] for name in HEADLINE} | _ends("accuracy", metrics["intervals"][0])
    return {f"{prefix}{name}": value for name, value in values.items()}


def _ends(name: str, interval: Mapping[str, Any]) -> dict[str, float]:
    return {f"{name}_{end}": interval[end] for end in ("low", "high")}


def log_data(run: Run, dataset: str, shards: ShardSet, *splits: Split) -> None:
    """Records splits as a run's data, each with its number of rows."""
    for split in splits:
        context = {"train": "training", "validation": "validation", "test": "testing"}[split]
        profile = {"split": split, "rows": shards.manifest.rows(split)}
        source = str(shards.folder)
        run.log_dataset(f"{dataset}-{split}", shards.digest, source=source, context=context, profile=profile)
