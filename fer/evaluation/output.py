"""The files of an evaluation: test.json, predictions.parquet, confusion.csv, figures/."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fer.evaluation import figures, metrics
from fer.evaluation.predict import Predictions
from fer.evaluation.summary import SPLIT
from fer.io.files import FileError, read_object, write_atomic, write_json
from fer.shards.read import ShardSet
from fer.shards.schema import prediction_schema
from fer.shards.table import write_table

_KEYS: dict[str, type] = {"about": list, "confusion": list, "intervals": list, "per_class": list}


def write(
    folder: Path,
    predictions: Predictions,
    summary: Mapping[str, Any],
    shards: ShardSet,
    title: str,
    history: Mapping[str, Sequence[float]] | None = None,
    best_epoch: int | None = None,
) -> None:
    """Writes them into a folder.

    Args:
        predictions: of the rows that are scored; a row of the tables each.
        summary: test.json.
        history, best_epoch: of the run, for its learning curves.
    """
    write_json(folder / "test.json", summary)
    _write_tables(folder, predictions, [line["class"] for line in summary["per_class"]], shards)
    _draw(folder / "figures", summary, history or {}, best_epoch, title)


def entries(about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Facts as test.json holds them: a list, which `dvc metrics` skips."""
    return [{"key": key, "value": value} for key, value in about.items()]


def facts_in(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `entries`, of a whole test.json."""
    return {entry["key"]: entry["value"] for entry in summary.get("about", [])}


def read(folder: Path) -> dict[str, Any]:
    """The test.json of a folder; empty where there is none.

    Raises:
        FileError: it is damaged.
    """
    path, remedy = folder / "test.json", "remove the folder, and evaluate again"
    summary = read_object(path, _KEYS, remedy) if path.is_file() else {}
    try:
        facts_in(summary)
    except (TypeError, KeyError):
        raise FileError(f"{path}: about is no list of keys and values; {remedy}") from None
    return summary


def _write_tables(folder: Path, predictions: Predictions, names: Sequence[str], shards: ShardSet) -> None:
    ids = shards.split(SPLIT).sample_ids()
    probabilities = np.exp(metrics.log_softmax(predictions.logits)).astype(np.float32)
    predicted: npt.NDArray[np.int64] = predictions.logits.argmax(axis=1)
    write_table(
        folder / "predictions.parquet",
        {
            "sample_id": [ids[row] for row in predictions.rows],
            "label": predictions.labels.astype(np.int8),
            "predicted": predicted.astype(np.int8),
            "probabilities": list(probabilities),
            "correct": predicted == predictions.labels,
        },
        prediction_schema(),
        metadata={"fer.labels": ",".join(names), "fer.data_digest": shards.digest, "fer.split": SPLIT},
    )
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("actual", "predicted"))
    writer.writerows((names[actual], names[guess]) for actual, guess in zip(predictions.labels, predicted, strict=True))
    write_atomic(folder / "confusion.csv", table.getvalue())


def _draw(
    folder: Path, summary: Mapping[str, Any], history: Mapping[str, Sequence[float]], best: int | None, title: str
) -> None:
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
