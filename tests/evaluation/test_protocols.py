"""Both protocols: which epoch each split would have selected, by the metric and the patience of the last stage."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from builders.projects import TOY
from builders.runs import make_job

from fer.evaluation.metrics import wilson
from fer.evaluation.protocols import both_protocols, chosen_epoch
from fer.training.loop import train
from fer.training.recipe import Recipe


def recipe(**keys: Any) -> Recipe:
    published = {"protocol": "published", "selection": "refit", "epochs": 4}
    return Recipe.model_validate_json(json.dumps({**TOY, **published, **keys}))


def rows(split: str, values: list[float], *, stage: int, first: int, name: str = "accuracy") -> list[dict[str, float]]:
    """Epochs of one stage, whose other metrics are all 0.5."""
    plain = {f"{split}_{what}": 0.5 for what in ("accuracy", "balanced_accuracy", "loss")}
    return [
        {"epoch": float(first + place), "stage": float(stage), **plain, f"{split}_{name}": value}
        for place, value in enumerate(values)
    ]


def history(test: list[float], val: list[float], name: str = "accuracy") -> list[dict[str, float]]:
    """Epochs on the training rows, validated; then epochs on all rows, tested."""
    return [
        *rows("val", val, stage=1, first=1, name=name),
        *rows("test", test, stage=2, first=1 + len(val), name=name),
    ]


def test_either_selection_and_their_difference_are_reported() -> None:
    found = both_protocols(history([0.5, 0.8, 0.7, 0.6], [0.4, 0.6, 0.9, 0.9]), recipe(), 50, 0.9)
    assert found is not None
    assert found["published"] == {"epoch": 6, "accuracy": 0.8, "balanced_accuracy": 0.5, "nll": 0.5}
    assert found["validation"]["epoch"] == 7, "the first of two that are alike, as in a training"
    assert found["validation"]["accuracy"] == 0.7
    assert found["difference"]["accuracy"] == pytest.approx(0.1)
    low_high = {line["protocol"]: (line["low"], line["high"]) for line in found["intervals"]}
    assert low_high["validation"] == (wilson(35, 50, 0.9).low, wilson(35, 50, 0.9).high)
    assert found["notes"] == []
    json.dumps(found, allow_nan=False)


def test_a_validation_selected_run_has_one_result() -> None:
    assert both_protocols(history([0.5], [0.4]), recipe(protocol="validation"), 50, 0.95) is None


def test_a_run_on_all_rows_alone_has_no_validation_selected_result_and_says_so() -> None:
    found = both_protocols(rows("test", [0.5, 0.8], stage=1, first=1), recipe(selection="best"), 50, 0.95)
    assert found is not None
    assert found["published"]["epoch"] == 2
    assert found["validation"] is found["difference"] is None
    assert [line["protocol"] for line in found["intervals"]] == ["published"]
    assert "selection: refit" in found["notes"][0]


def test_the_lowest_loss_is_selected_and_may_cost_accuracy() -> None:
    epochs = history([0.9, 0.2, 0.4], [0.3, 0.5, 0.1], name="loss")
    for row, accuracy in zip(epochs[3:], (0.5, 0.6, 0.8), strict=True):
        row["test_accuracy"] = accuracy
    found = both_protocols(epochs, recipe(selection_metric="loss"), 10, 0.95)
    assert found is not None
    assert (found["published"]["epoch"], found["validation"]["epoch"]) == (5, 6)
    assert found["published"]["nll"] == 0.2
    assert found["difference"]["accuracy"] == pytest.approx(-0.2), (
        "by loss, the validation-selected epoch is the more accurate"
    )


def test_balanced_accuracy_selects_by_itself() -> None:
    epochs = history([0.4, 0.6], [0.7, 0.5], name="balanced_accuracy")
    found = both_protocols(epochs, recipe(selection_metric="balanced_accuracy"), 10, 0.95)
    assert found is not None
    assert (found["published"]["epoch"], found["validation"]["epoch"]) == (4, 3)
    assert found["difference"]["balanced_accuracy"] == pytest.approx(0.2)


def test_only_the_last_stage_counts_with_its_own_metric() -> None:
    epochs = [
        *rows("val", [0.99, 0.1], stage=1, first=1), *rows("val", [0.5, 0.4], stage=2, first=3, name="loss"),
        *rows("test", [0.99, 0.1], stage=3, first=5), *rows("test", [0.2, 0.3], stage=4, first=7, name="loss"),
    ]  # fmt: skip
    staged = recipe(stages=[{"epochs": 2}, {"epochs": 2, "selection_metric": "loss"}])
    found = both_protocols(epochs, staged, 10, 0.95)
    assert found is not None
    assert found["selection_metric"] == "loss"
    assert (found["published"]["epoch"], found["validation"]["epoch"]) == (7, 8)
    assert "selected on it under either protocol" in found["notes"][0]


def test_what_validation_chose_beyond_the_end_of_the_run_is_unknown_and_a_note_says_so() -> None:
    patient = recipe(patience=1, epochs=4)
    found = both_protocols(history([0.1, 0.2, 0.3, 0.4], [0.6, 0.5]), patient, 10, 0.95)
    assert found is not None
    assert found["validation"]["epoch"] == 3
    assert found["notes"] == []
    cut = both_protocols(history([0.2, 0.1], [0.5, 0.6, 0.7]), patient, 10, 0.95)
    assert cut is not None
    assert cut["validation"] is None
    assert "The test split ended the run after 2 epochs (patience 1)" in cut["notes"][0]


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "loss"])
def test_the_selection_is_that_of_a_real_run(tmp_path: Path, metric: str) -> None:
    keys = {"selection_metric": metric, "ema_decay": None, "patience": 2, "epochs": 5}
    state = train(make_job(tmp_path, protocol="published", selection="refit", **keys))
    found = both_protocols(state.history, recipe(**keys), 8, 0.95)
    assert found is not None
    assert found["published"]["epoch"] == state.best_epoch
    (chosen,) = state.chosen
    first = [row for row in state.history if row["stage"] == 1]
    assert chosen_epoch(first, f"val_{metric}", 2) + 1 == chosen
    if found["validation"]:
        assert found["validation"]["epoch"] == len(first) + chosen
    assert bool(found["validation"]) != bool(found["notes"])


def test_a_metric_that_is_not_a_number_is_none() -> None:
    epochs = history([math.nan, 0.4], [0.2, 0.3], name="loss")
    found = both_protocols(epochs, recipe(), 10, 0.95)
    assert found is not None
    assert found["published"]["nll"] is None
    assert found["difference"]["nll"] is None


def test_a_history_without_the_test_split_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"no column test_accuracy, test_balanced_accuracy, test_loss"):
        both_protocols([{"epoch": 1.0, "val_accuracy": 0.5}], recipe(), 10, 0.95)
    with pytest.raises(ValueError, match="no epoch of stage 2"):
        both_protocols([], recipe(), 10, 0.95)
