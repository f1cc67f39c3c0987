"""test.json: everything that data, weights and the `evaluate` section decide of an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fer.evaluation import metrics
from fer.evaluation.classes import ClassMap
from fer.evaluation.config import EvaluateConfig
from fer.evaluation.predict import Predictions
from fer.shards.read import ShardSet
from fer.shards.schema import Split
from fer.shards.table import read_table
from fer.shards.unseen import unseen_rows

SPLIT: Split = "test"
_PLAIN = (*metrics.HEADLINE, "intervals")
"""What it holds of some rows, or under test-time augmentation, beside all metrics of all rows."""


Unseen = npt.NDArray[np.bool_] | str
"""Which test rows have no duplicate in training and validation, (rows,); or why it is not known."""


def unseen_or_why_not(shards: ShardSet, statistics: Path) -> Unseen:
    """Of all rows of the test split.

    Args:
        statistics: data/statistics/<dataset>.

    Raises:
        FileError: as `unseen_rows`.
    """
    if shards.manifest.duplicates == "off":
        return "not known: near duplicates were not searched for (shard.duplicates: off)"
    if not statistics.is_dir():
        return f"not known: the shards are here without data/statistics/{statistics.name}"
    return unseen_rows(statistics, shards.split(SPLIT).sample_ids())


def summary_of(
    predictions: Predictions, classes: ClassMap, shards: ShardSet, unseen: Unseen, config: EvaluateConfig, seed: int
) -> dict[str, Any]:
    """`fer.evaluation.metrics.summarise` of the rows that are scored, and where there are such:

    `tta` and its difference; `pose`, accuracy by pose; `clean_accuracy`, against the labels before noise; `classes`,
    where those of model and dataset differ; always `without_duplicates`, the main metrics of the rows whose photograph
    is in no row of training or validation, or `note`, why they are not known.

    Args:
        predictions: of `ClassMap.scored`, at least one row.
    """
    of_all = [read_table(shards.folder / name, ["clean_label", "pose"]) for name in shards.manifest.splits[SPLIT]]
    all_clean = np.array([label for column in of_all for label in column["clean_label"]])
    all_poses = [pose for column in of_all for pose in column["pose"]]

    found = _metrics(predictions, classes, config, seed)
    summary = dict(found)
    correct = predictions.logits.argmax(axis=1) == predictions.labels
    clean = classes.labels(all_clean)[predictions.rows]
    if (clean != predictions.labels).any():
        summary["clean_accuracy"] = float((predictions.logits.argmax(axis=1) == clean).mean())
    if "tta" in summary:
        difference = [tta_difference(predictions, config, seed)]
        summary["tta"] = {**found["tta"], "name": config.tta, "difference": difference}
    poses = [all_poses[row] for row in predictions.rows]
    known = np.array([pose is not None for pose in poses])
    if known.any():
        yaw = np.array([abs(pose[0]) for pose in poses if pose is not None])
        summary["pose"] = metrics.accuracy_by_bin(yaw, correct[known], config.pose_bins)
    if classes.of_model != classes.of_dataset:
        summary["classes"] = classes.about(len(all_poses) - len(predictions.rows))
    summary["without_duplicates"] = _without_duplicates(found, predictions, classes, unseen, config, seed)
    return summary


def _metrics(predictions: Predictions, classes: ClassMap, config: EvaluateConfig, seed: int) -> dict[str, Any]:
    """All metrics, and the main ones under test-time augmentation."""
    found = metrics.summarise(predictions.labels, predictions.logits, classes.names, config, seed)
    if config.tta != "none":
        augmented = metrics.summarise(predictions.labels, predictions.tta, classes.names, config, seed)
        found["tta"] = {name: augmented[name] for name in _PLAIN}
    return found


def _without_duplicates(
    found: dict[str, Any],
    predictions: Predictions,
    classes: ClassMap,
    unseen: Unseen,
    config: EvaluateConfig,
    seed: int,
) -> dict[str, Any]:
    """found: `_metrics` of all rows, which are those of the rest where no row has a duplicate."""
    if isinstance(unseen, str):
        return {"note": unseen}
    kept = unseen[predictions.rows]
    if not kept.any():
        return {"note": "none: every test row has a duplicate in training or validation"}
    if not kept.all():
        rows = Predictions(*(values[kept] for values in vars(predictions).values()))
        found = _metrics(rows, classes, config, seed)
    return {"rows": found["rows"], **{name: found[name] for name in (*_PLAIN, "tta") if name in found}}


def tta_difference(predictions: Predictions, config: EvaluateConfig, seed: int) -> dict[str, Any]:
    """What the views change: accuracy with them minus without, on the same rows, and the rows changed either way."""
    plain, augmented = (scores.argmax(axis=1) == predictions.labels for scores in (predictions.logits, predictions.tta))
    changed = augmented.astype(np.int8) - plain.astype(np.int8)
    interval = metrics.paired_bootstrap(
        changed[None], samples=config.bootstrap_samples, confidence=config.confidence, seed=seed, seeds=False
    )
    return {
        "metric": "accuracy",
        "value": float(changed.mean()),
        "gained": int((changed > 0).sum()),
        "lost": int((changed < 0).sum()),
        **vars(interval),
        "confidence": config.confidence,
        "method": f"paired percentile bootstrap over rows, {config.bootstrap_samples} draws",
    }
