"""Models and datasets of different classes: which rows are scored, and by which logits."""

from __future__ import annotations

import numpy as np
import pytest

from fer.evaluation.classes import ClassMap, ExtraClasses
from fer.evaluation.predict import Predictions

EIGHT = ("neutral", "happiness", "fear", "contempt")
SEVEN = ("fear", "neutral", "happiness")


def scored(of_model: tuple[str, ...], of_dataset: tuple[str, ...], extra: ExtraClasses = "left_out") -> Predictions:
    """Every row's logits are 10 at its own class, where the model has it, and 20 at contempt; it is of `of_dataset`."""
    labels = np.arange(len(of_dataset))
    wins = {"contempt": 20.0}
    logits = np.array(
        [[10.0 if name == actual else wins.get(name, 0.0) for name in of_model] for actual in of_dataset], np.float32
    )
    classes = ClassMap(of_model=of_model, of_dataset=of_dataset, extra=extra)
    return classes.scored(Predictions(labels, labels, logits, logits))


def test_the_same_classes_in_the_same_order_change_nothing() -> None:
    found = scored(SEVEN, SEVEN)
    assert found.rows.tolist() == found.labels.tolist() == [0, 1, 2]
    assert found.logits.tolist() == (10 * np.eye(3)).tolist()


def test_another_order_is_mapped_by_name() -> None:
    found = scored(("happiness", "fear", "neutral"), SEVEN)
    assert found.logits.argmax(axis=1).tolist() == found.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(("extra", "correct"), [("left_out", 3), ("wrong", 0)])
def test_a_class_that_the_dataset_lacks_is_left_out_or_wrong(extra: ExtraClasses, correct: int) -> None:
    found = scored(EIGHT, SEVEN, extra)
    assert (found.logits.argmax(axis=1) == found.labels).sum() == correct
    names = ClassMap(of_model=EIGHT, of_dataset=SEVEN, extra=extra).names
    assert names == (SEVEN if extra == "left_out" else (*SEVEN, "contempt"))
    assert found.logits.shape == (3, len(names))


def test_rows_of_a_class_that_the_model_lacks_are_left_out() -> None:
    found = scored(SEVEN, EIGHT)
    assert found.rows.tolist() == [0, 1, 2], "contempt is the last"
    assert found.labels.tolist() == [0, 1, 2], "neutral, happiness, fear, in the dataset's order"
    assert found.logits.argmax(axis=1).tolist() == [0, 1, 2]
    assert ClassMap(of_model=SEVEN, of_dataset=EIGHT).about(1)["only_dataset"] == ["contempt"]
