"""Both protocols of a run: the epoch selected on the test split, and the one that validation would have selected.

Much published code keeps the epoch with the best test result, which is above what the model reaches on other images.
A recipe with `protocol: published` does the same, and its history then holds both splits after every epoch: so the
validation-selected result is known too, and how much the selection is worth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fer.evaluation.metrics import wilson
from fer.training.recipe import Recipe

Row = Mapping[str, float]
METRICS = {"accuracy": "accuracy", "balanced_accuracy": "balanced_accuracy", "nll": "loss"}
"""What is reported of either epoch, under the names of test.json, with its column of the history."""


def both_protocols(history: Sequence[Row], recipe: Recipe, rows: int, confidence: float) -> dict[str, Any] | None:
    """The test metrics of both choices, as the training loop computed them after each epoch, and their difference.

    Either choice is among the epochs of the last stage, by the selection metric and with the patience of that stage.

    Args:
        history: the rows of history.csv, in order.
        rows: of the test split.
        confidence: of the intervals of the accuracies.

    Returns:
        None where validation chose: then there is only one result. Else, ready for JSON: `published` and
        `validation`, each with `epoch` (from 1), `accuracy`, `balanced_accuracy` and `nll`, None for what is no number;
        `difference`, published minus validation; `intervals` of the accuracies; `selection_metric`; and `notes`, in
        words, on where the validation-selected result still depends on the test split.

    Raises:
        ValueError: the history lacks a column.
    """
    if recipe.protocol != "published":
        return None
    last, stages = recipe.last, len(recipe.in_stages)
    epochs = [row for row in history if row.get("stage", stages) == stages]
    columns = [*(f"test_{name}" for name in METRICS.values()), f"val_{last.selection_metric}", "epoch"]
    if not epochs or (lacking := [name for name in columns if name not in epochs[0]]):
        what = f"no column {', '.join(lacking)}" if epochs else f"no epoch of stage {stages}"
        raise ValueError(f"{what}, though the recipe has protocol: published; train again")
    places = {
        "published": chosen_epoch(epochs, f"test_{last.selection_metric}", last.patience),
        "validation": chosen_epoch(epochs, f"val_{last.selection_metric}", last.patience),
    }
    found = {protocol: _metrics(epochs[place]) for protocol, place in places.items()}
    return {
        "selection_metric": last.selection_metric,
        **found,
        "difference": {name: _minus(found["published"][name], found["validation"][name]) for name in METRICS},
        "intervals": [
            {
                "protocol": protocol,
                "metric": "accuracy",
                **vars(wilson(round(found[protocol]["accuracy"] * rows), rows, confidence)),
                "confidence": confidence,
                "method": "Wilson",
            }
            for protocol in places
        ],
        "notes": _notes(stages, last, len(epochs), places["validation"]),
    }


def chosen_epoch(epochs: Sequence[Row], column: str, patience: int | None) -> int:
    """Index of the epoch that a run which selects by this column keeps, as `TrainState` does.

    That is the first of the best ones, among those before patience is at an end.
    """
    sign = -1 if column.endswith("_loss") else 1
    best = 0
    for place, row in enumerate(epochs):
        if sign * row[column] > sign * epochs[best][column]:
            best = place
        if patience is not None and place - best >= patience:
            break
    return best


def _metrics(row: Row) -> dict[str, Any]:
    values = {name: row[f"test_{column}"] for name, column in METRICS.items()}
    return {
        "epoch": int(row["epoch"]),
        **{name: value if math.isfinite(value) else None for name, value in values.items()},
    }


def _minus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _notes(stages: int, last: Recipe, trained: int, chosen: int) -> list[str]:
    notes = []
    if stages > 1:
        notes.append(
            f"The {stages - 1} stage{'s' if stages > 2 else ''} before the last ended with epochs that the test "
            "split selected, so that the last stage's start was selected on it under either protocol."
        )
    if trained < last.epochs and last.patience is not None and trained - 1 - chosen < last.patience:
        notes.append(
            f"The test split ended the run after {trained} of {last.epochs} epochs (patience {last.patience}); "
            "validation would have continued, perhaps to a better epoch."
        )
    return notes
