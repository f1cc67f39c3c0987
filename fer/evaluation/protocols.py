"""Both protocols of a training: the epoch that its test split chose, and the one that validation would have chosen.

Much published code keeps the epoch with the best test figure, which is above what the model reaches on other pictures.
A recipe with `protocol: published` does the same, and its history then holds both splits after every epoch: so the
honest figure is known too, and how much the choice is worth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fer.evaluation.metrics import wilson
from fer.training.recipe import Recipe

Row = Mapping[str, float]
FIGURES = {"accuracy": "accuracy", "balanced_accuracy": "balanced_accuracy", "nll": "loss"}
"""What is told of either epoch, under the names of test.json, with its column of the history."""


def both_protocols(history: Sequence[Row], recipe: Recipe, rows: int, confidence: float) -> dict[str, Any] | None:
    """The test figures of both choices, as the training itself counted them after each epoch, and what lies between.

    Either choice is among the epochs of the last stage, by the selection metric and with the patience of that stage.

    Args:
        history: the rows of history.csv, in order.
        rows: of the test split.
        confidence: of the intervals of the accuracies.

    Returns:
        None where validation chose: then there is only the honest figure. Else, ready for JSON: `published` and
        `validation`, each with `epoch` (from 1), `accuracy`, `balanced_accuracy` and `nll`, None for what is no number;
        `difference`, published minus validation; `intervals` of the accuracies; `selection_metric`; and `notes`, in
        words, on what makes the honest figure less than wholly honest.

    Raises:
        ValueError: the history lacks a column.
    """
    if recipe.protocol != "published":
        return None
    last, stages = recipe.last, len(recipe.in_stages)
    epochs = [row for row in history if row.get("stage", stages) == stages]
    columns = [*(f"test_{name}" for name in FIGURES.values()), f"val_{last.selection_metric}", "epoch"]
    if not epochs or (lacking := [name for name in columns if name not in epochs[0]]):
        what = f"no column {', '.join(lacking)}" if epochs else f"no epoch of stage {stages}"
        raise ValueError(f"{what}, though the recipe has protocol: published; train again")
    places = {
        "published": chosen_epoch(epochs, f"test_{last.selection_metric}", last.patience),
        "validation": chosen_epoch(epochs, f"val_{last.selection_metric}", last.patience),
    }
    told = {protocol: _figures(epochs[place]) for protocol, place in places.items()}
    return {
        "selection_metric": last.selection_metric,
        **told,
        "difference": {name: _minus(told["published"][name], told["validation"][name]) for name in FIGURES},
        "intervals": [
            {
                "protocol": protocol,
                "metric": "accuracy",
                **vars(wilson(round(told[protocol]["accuracy"] * rows), rows, confidence)),
                "confidence": confidence,
                "method": "Wilson",
            }
            for protocol in places
        ],
        "notes": _notes(stages, last, len(epochs), places["validation"]),
    }


def chosen_epoch(epochs: Sequence[Row], column: str, patience: int | None) -> int:
    """Index of the epoch that a training keeps which chooses by this column, as `TrainState` does.

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


def _figures(row: Row) -> dict[str, Any]:
    figures = {name: row[f"test_{column}"] for name, column in FIGURES.items()}
    return {
        "epoch": int(row["epoch"]),
        **{name: value if math.isfinite(value) else None for name, value in figures.items()},
    }


def _minus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _notes(stages: int, last: Recipe, trained: int, honest: int) -> list[str]:
    notes = []
    if stages > 1:
        notes.append(
            f"The {stages - 1} stage{'s' if stages > 2 else ''} before the last ended with epochs that the test "
            "split chose, so that the last stage's start was chosen on it under either protocol."
        )
    if trained < last.epochs and last.patience is not None and trained - 1 - honest < last.patience:
        notes.append(
            f"The test split ended the training after {trained} of {last.epochs} epochs (patience {last.patience}); "
            "validation would have gone on, perhaps to a better epoch."
        )
    return notes
