"""Both protocols: which epoch each split would have selected, by the metric and the patience of the last stage."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from builders.projects import TOY
from builders.runs import elsewhere, make_job

from fer.evaluation.metrics import wilson
from fer.evaluation.protocols import both_protocols, chosen_epoch
from fer.training.loop import train
from fer.training.recipe import Recipe


def recipe(**keys: Any) -> Recipe:
    return Recipe.model_validate_json(json.dumps({**TOY, "protocol": "published", "epochs": 4, **keys}))


def history(
    test: list[float], val: list[float], *, stage: int = 1, first: int = 1, name: str = "accuracy"
) -> list[dict]:
    """Epochs whose other metrics are all 0.5."""
    plain = {f"{part}_{what}": 0.5 for part in ("test", "val") for what in ("accuracy", "balanced_accuracy", "loss")}
    return [
        {"epoch": float(first + place), "stage": float(stage), **plain, f"test_{name}": one, f"val_{name}": other}
        for place, (one, other) in enumerate(zip(test, val, strict=True))
    ]


def test_either_selection_and_their_difference_are_reported() -> None:
    found = both_protocols(history([0.5, 0.8, 0.7, 0.6], [0.4, 0.6, 0.9, 0.9]), recipe(), 50, 0.9)
    assert found is not None
    assert found["published"] == {"epoch": 2, "accuracy": 0.8, "balanced_accuracy": 0.5, "nll": 0.5}
    assert found["validation"]["epoch"] == 3, "the first of two that are alike, as in a training"
    assert found["validation"]["accuracy"] == 0.7
    assert found["difference"]["accuracy"] == pytest.approx(0.1)
    low_high = {line["protocol"]: (line["low"], line["high"]) for line in found["intervals"]}
    assert low_high["validation"] == (wilson(35, 50, 0.9).low, wilson(35, 50, 0.9).high)
    assert found["notes"] == []
    json.dumps(found, allow_nan=False)


def test_a_validation_selected_run_has_one_result() -> None:
    assert both_protocols(history([0.5], [0.4]), recipe(protocol="validation"), 50, 0.95) is None


def test_the_lowest_loss_is_selected_and_may_cost_accuracy() -> None:
    epochs = history([0.9, 0.2, 0.4], [0.3, 0.5, 0.1], name="loss")
    for row, accuracy in zip(epochs, (0.5, 0.6, 0.8), strict=True):
        row["test_accuracy"] = accuracy
    found = both_protocols(epochs, recipe(selection_metric="loss"), 10, 0.95)
    assert found is not None
    assert (found["published"]["epoch"], found["validation"]["epoch"]) == (2, 3)
    assert found["published"]["nll"] == 0.2
    assert found["difference"]["accuracy"] == pytest.approx(-0.2), (
        "by loss, the validation-selected epoch is the more accurate"
    )


def test_balanced_accuracy_selects_by_itself() -> None:
    epochs = history([0.4, 0.6], [0.7, 0.5], name="balanced_accuracy")
    found = both_protocols(epochs, recipe(selection_metric="balanced_accuracy"), 10, 0.95)
    assert found is not None
    assert (found["published"]["epoch"], found["validation"]["epoch"]) == (2, 1)
    assert found["difference"]["balanced_accuracy"] == pytest.approx(0.2)


def test_only_the_last_stage_counts_with_its_own_metric() -> None:
    epochs = [*history([0.99, 0.1], [0.99, 0.1]), *history([0.2, 0.3], [0.5, 0.4], stage=2, first=3, name="loss")]
    staged = recipe(stages=[{"epochs": 2}, {"epochs": 2, "selection_metric": "loss"}])
    found = both_protocols(epochs, staged, 10, 0.95)
    assert found is not None
    assert found["selection_metric"] == "loss"
    assert (found["published"]["epoch"], found["validation"]["epoch"]) == (3, 4)
    assert "selected on it under either protocol" in found["notes"][0]


def test_validation_selects_within_its_own_patience_and_a_note_says_what_it_did_not_see() -> None:
    patient = recipe(patience=1, epochs=4)
    found = both_protocols(history([0.1, 0.2, 0.3, 0.4], [0.6, 0.5, 0.9, 0.9]), patient, 10, 0.95)
    assert found is not None
    assert found["validation"]["epoch"] == 1, "under its own protocol the run would have ended after epoch 2"
    assert found["notes"] == []
    cut = both_protocols(history([0.2, 0.1], [0.5, 0.6]), patient, 10, 0.95)
    assert cut is not None
    assert cut["validation"]["epoch"] == 2
    assert "The test split ended the run after 2 of 4 epochs (patience 1)" in cut["notes"][0]


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "loss"])
def test_the_selection_is_that_of_a_real_run(tmp_path: Path, metric: str) -> None:
    keys = {"selection_metric": metric, "ema_decay": None, "patience": 2, "epochs": 5}
    on_test = train(make_job(tmp_path, protocol="published", **keys))
    published = both_protocols(on_test.history, recipe(**keys), 8, 0.95)
    assert published is not None
    assert published["published"]["epoch"] == on_test.best_epoch
    on_validation = train(elsewhere(make_job(tmp_path, **keys), tmp_path / "validation"))
    assert chosen_epoch(on_validation.history, f"val_{metric}", 2) + 1 == on_validation.best_epoch
    if not published["notes"]:  # the same bits up to where either protocol ends
        assert published["validation"]["epoch"] == on_validation.best_epoch


def test_a_metric_that_is_not_a_number_is_none() -> None:
    epochs = history([math.nan, 0.4], [0.2, 0.3], name="loss")
    found = both_protocols(epochs, recipe(), 10, 0.95)
    assert found is not None
    assert found["published"]["nll"] is None
    assert found["difference"]["nll"] is None


def test_a_history_without_the_test_split_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"no column test_accuracy, test_balanced_accuracy, test_loss"):
        both_protocols([{"epoch": 1.0, "val_accuracy": 0.5}], recipe(), 10, 0.95)
    with pytest.raises(ValueError, match="no epoch of stage 1"):
        both_protocols([], recipe(), 10, 0.95)
