"""Both protocols of a run: the epoch selected on the test split, and the number of epochs that validation chooses.

Much published code trains on all rows but the test split's and keeps the epoch with the best test result, which is
above what the model reaches on other images. A recipe with `protocol: published` does the same. With `selection: refit`
beside it, validation has chosen a number of epochs before, with its rows held out: so the validation-selected result is
known too, and how much the selection on test is worth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fer.evaluation.metrics import wilson
from fer.training.phases import phase_stages
from fer.training.recipe import Recipe

Row = Mapping[str, float]
METRICS = {"accuracy": "accuracy", "balanced_accuracy": "balanced_accuracy", "nll": "loss"}
"""What is reported of either epoch, under the names of test.json, with its column of the history."""


def both_protocols(history: Sequence[Row], recipe: Recipe, rows: int, confidence: float) -> dict[str, Any] | None:
    """The test metrics of both choices, as the training loop computed them after each epoch, and their difference.

    Either choice is among the epochs of the last stage on all rows, by its selection metric and with its patience.

    Args:
        history: the rows of history.csv, in order.
        rows: of the test split.
        confidence: of the intervals of the accuracies.

    Returns:
        None where validation chose: then there is only one result. Else, ready for JSON: `published` and
        `validation`, each with `epoch` (of the history, from 1), `accuracy`, `balanced_accuracy` and `nll`, None for
        what is no number; `difference`, published minus validation; `intervals` of the accuracies; `selection_metric`;
        and `notes`, in words. `validation` and `difference` are None where no validation-selected result exists.

    Raises:
        ValueError: the history lacks a column.
    """
    if recipe.protocol != "published":
        return None
    last, stages = recipe.last, len(phase_stages(recipe))
    epochs = _rows_of(history, stages, [*(f"test_{name}" for name in METRICS.values()), "epoch"])
    places = {"published": chosen_epoch(epochs, f"test_{last.selection_metric}", last.patience)}
    chosen = 0
    if recipe.selection == "refit":
        column = f"val_{last.selection_metric}"
        chosen = chosen_epoch(_rows_of(history, stages // 2, [column]), column, last.patience) + 1
        if chosen <= len(epochs):
            places["validation"] = chosen - 1
    found = {protocol: _metrics(epochs[place]) for protocol, place in places.items()}
    validation = found.get("validation")
    return {
        "selection_metric": last.selection_metric,
        "published": found["published"],
        "validation": validation,
        "difference": validation and {name: _minus(found["published"][name], validation[name]) for name in METRICS},
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
        "notes": _notes(recipe, len(epochs), chosen),
    }


def _rows_of(history: Sequence[Row], stage: int, columns: Sequence[str]) -> list[Row]:
    """The rows of a stage, which must have these columns. Without a column `stage` there is only one."""
    rows = [row for row in history if row.get("stage", stage) == stage]
    if not rows or (lacking := [name for name in columns if name not in rows[0]]):
        what = f"no column {', '.join(lacking)}" if rows else f"no epoch of stage {stage}"
        raise ValueError(f"{what}, though the recipe has protocol: published; train again")
    return rows


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


def _notes(recipe: Recipe, trained: int, chosen: int) -> list[str]:
    """
    Args:
        trained: epochs of the last stage. chosen: as many as validation chose; 0: it did not.
    """
    if not chosen:
        return [
            "All rows but the test split's were trained on, so that no validation-selected result exists; with "
            "selection: refit there is one."
        ]
    notes, stages = [], len(recipe.in_stages)
    if stages > 1:
        notes.append(
            f"The {stages - 1} stage{'s' if stages > 2 else ''} before the last ended with epochs that the test "
            "split selected, so that the last stage's start was selected on it under either protocol."
        )
    if chosen > trained:
        notes.append(
            f"The test split ended the run after {trained} epochs (patience {recipe.last.patience}); validation had "
            f"chosen {chosen}, whose result is unknown."
        )
    return notes
