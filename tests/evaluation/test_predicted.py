"""Predictions are read as an evaluation wrote them, and ranked as promised."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fer.evaluation.predicted import Predicted, disagreements, mistakes, mistakes_by_cell, read_predictions
from fer.io.files import FileError
from fer.shards.schema import prediction_schema
from fer.shards.table import write_table

LABELS = (0, 0, 1, 1, 2)


def model(name: str, *of_rows: tuple[float, float, float], ids: str = "abcde") -> Predicted:
    return Predicted(
        name=name, sample_ids=tuple(ids), classes=("neutral", "fear", "anger"), labels=np.array(LABELS),
        probabilities=np.array(of_rows), data_digest="d",
    )  # fmt: skip


ONE = model("one", (0.9, 0.1, 0), (0.4, 0.6, 0), (0.2, 0.8, 0), (0.7, 0.2, 0.1), (0, 0.95, 0.05))
OTHER = model("other", (0.1, 0.9, 0), (0.45, 0.55, 0), (0.1, 0.9, 0), (0.4, 0.6, 0), (0, 0.1, 0.9))


def test_mistakes_come_the_most_confident_first() -> None:
    assert mistakes(ONE).tolist() == [4, 3, 1]


def test_the_most_confident_mistake_of_every_cell_comes_first() -> None:
    certain = [(0.4, 1), (0.9, 1), (0.6, 1), (0.5, 0), (0.99, 1), (0.7, 0)]
    one = replace(
        ONE, sample_ids=tuple("abcdef"), labels=np.array([0, 0, 0, 1, 1, 2]),
        probabilities=np.array([[p * (guess == label) for label in range(3)] for p, guess in certain]),
    )  # fmt: skip
    assert mistakes_by_cell(one, 2).tolist() == [1, 5, 3, 2]
    assert mistakes_by_cell(one, 1).tolist() == [1, 5, 3]
    assert mistakes_by_cell(one, 1, also="a").tolist() == [1, 5, 3, 0]


def test_disagreements_come_by_the_difference_of_the_labels_probability() -> None:
    # Row 1 both get wrong, row 2 both right; |0.05 - 0.9|, |0.9 - 0.1|, |0.2 - 0.6| for the others.
    assert disagreements([ONE, OTHER]).tolist() == disagreements([OTHER, ONE]).tolist() == [4, 0, 3]


def test_models_of_other_rows_are_not_compared() -> None:
    with pytest.raises(ValueError, match="one and renamed"):
        disagreements([ONE, model("renamed", *OTHER.probabilities.tolist(), ids="vwxyz")])


def test_predictions_are_read_as_an_evaluation_wrote_them(tmp_path: Path) -> None:
    path, rows = tmp_path / "predictions.parquet", ONE.probabilities.astype(np.float32)
    columns = {
        "sample_id": list(ONE.sample_ids), "label": np.array(LABELS, np.int8), "predicted": np.int8(rows.argmax(1)),
        "probabilities": list(rows), "correct": rows.argmax(1) == LABELS,
    }  # fmt: skip
    write_table(path, columns, prediction_schema())
    with pytest.raises(FileError, match=r"predictions\.parquet.*fer\.data_digest"):
        read_predictions(path, "one")
    write_table(
        path, columns, prediction_schema(), metadata={"fer.labels": "neutral,fear,anger", "fer.data_digest": "d"}
    )
    found = read_predictions(path, "one")
    assert (found.name, found.sample_ids, found.classes, found.data_digest) == ("one", tuple("abcde"), ONE.classes, "d")
    assert mistakes(found).tolist() == mistakes(ONE).tolist()
    np.testing.assert_allclose(found.of_label, ONE.of_label, rtol=1e-6)
