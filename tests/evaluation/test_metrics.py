"""Metrics: the published definitions, edge cases, intervals that cover."""

import json

import numpy as np
import pytest

from fer.evaluation import metrics
from fer.evaluation.config import EvaluateConfig

CONFIG = EvaluateConfig(bootstrap_samples=200)
NAMES = ("a", "b", "c", "d")


def random_case(rows: int = 400, classes: int = 7, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, rows)
    logits = random.normal(size=(rows, classes)).astype(np.float32)
    logits[np.arange(rows), labels] += 1.0
    return labels, logits


def test_accuracies_of_a_published_worked_example() -> None:
    labels = np.array([0, 0, 1, 1, 1, 2, 2, 2, 2, 3])
    predicted = np.array([0, 1, 1, 1, 2, 2, 2, 2, 0, 3])
    confusion = metrics.confusion_matrix(labels, predicted, 4)
    assert confusion.tolist() == [[1, 1, 0, 0], [0, 2, 1, 0], [1, 0, 3, 0], [0, 0, 0, 1]]
    assert confusion.dtype == np.int64
    assert float(metrics.accuracy(confusion)) == pytest.approx(0.7)
    assert float(metrics.balanced_accuracy(confusion)) == pytest.approx(0.7291666666666666)


def test_metrics_agree_with_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    labels, logits = random_case()
    summary = metrics.summarise(labels, logits, [str(i) for i in range(7)], CONFIG, seed=0)
    predicted = logits.argmax(axis=1)
    probabilities = np.exp(metrics.log_softmax(logits))
    assert summary["confusion"] == sklearn.confusion_matrix(labels, predicted).tolist()
    assert summary["accuracy"] == pytest.approx(sklearn.accuracy_score(labels, predicted))
    assert summary["balanced_accuracy"] == pytest.approx(sklearn.balanced_accuracy_score(labels, predicted))
    assert summary["macro_f1"] == pytest.approx(sklearn.f1_score(labels, predicted, average="macro"))
    assert summary["nll"] == pytest.approx(sklearn.log_loss(labels, probabilities))
    precision, recall, f1, rows = sklearn.precision_recall_fscore_support(labels, predicted)
    for line, *expected in zip(summary["per_class"], precision, recall, f1, rows, strict=True):
        assert [line["precision"], line["recall"], line["f1"], line["rows"]] == pytest.approx(expected)


def test_an_absent_class_is_left_out_of_the_means_and_named() -> None:
    labels = np.array([0, 0, 1, 1])
    logits = np.eye(4, dtype=np.float32)[[0, 3, 1, 1]] * 5
    summary = metrics.summarise(labels, logits, NAMES, CONFIG, seed=0)
    assert summary["absent_classes"] == ["c", "d"]
    assert summary["balanced_accuracy"] == pytest.approx(0.75)
    assert summary["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert summary["per_class"][2] == {
        "class": "c", "recall": None, "precision": None, "f1": None, "rows": 0, "predicted": 0
    }  # fmt: skip
    assert summary["per_class"][3]["precision"] == 0.0


def test_a_single_row_has_every_metric() -> None:
    summary = metrics.summarise(np.array([2]), np.array([[0.0, 0.0, 9.0, 0.0]]), NAMES, CONFIG, seed=0)
    assert summary["rows"] == 1
    assert summary["accuracy"] == summary["balanced_accuracy"] == summary["macro_f1"] == 1.0
    json.dumps(summary, allow_nan=False)


def test_calibration_error_is_as_computed_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.3, 0.7]])
    labels = np.array([0, 1, 0, 1])
    lines, error = metrics.reliability(labels, probabilities, bins=10)
    rows = {number: line["rows"] for number, line in enumerate(lines) if line["rows"]}
    assert rows == {5: 1, 6: 1, 8: 2}, "bins are (from, to]: 0.6 lies in the sixth"
    assert error == pytest.approx((0.4 * 1 + 0.3 * 1 + 0.4 * 2) / 4)


def test_certain_predictions_are_calibrated_when_correct() -> None:
    certain = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert metrics.reliability(np.array([0, 1]), certain, 15)[1] == 0.0
    assert metrics.reliability(np.array([1, 0]), certain, 15)[1] == 1.0


def test_huge_logits_stay_finite() -> None:
    logits = np.array([[1e4, 0.0], [0.0, 1e4]], dtype=np.float32)
    summary = metrics.summarise(np.array([0, 0]), logits, NAMES[:2], CONFIG, seed=0)
    assert summary["nll"] == pytest.approx(5e3)


@pytest.mark.parametrize(
    ("right", "rows", "low", "high"),
    [(0, 10, 0.0, 0.27753), (10, 10, 0.72247, 1.0), (81, 263, 0.25525, 0.36623)],  # Newcombe 1998, table I
)
def test_wilson_matches_published_values(right: int, rows: int, low: float, high: float) -> None:
    interval = metrics.wilson(right, rows)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-4)


def test_the_bootstrap_is_seeded_and_contains_the_metric() -> None:
    labels, logits = random_case()
    confusion = metrics.confusion_matrix(labels, logits.argmax(axis=1), 7)
    first, second = (metrics.bootstrap(confusion, 500, 0.95, seed=3) for _ in range(2))
    assert first == second
    interval = first["balanced_accuracy"]
    assert interval.low < float(metrics.balanced_accuracy(confusion)) < interval.high
    # Width of a proportion's interval at this size: about 2 * 1.96 * sqrt(p q / n).
    assert 0.05 < interval.high - interval.low < 0.15


def test_the_bootstrap_of_confusion_cells_is_that_of_rows() -> None:
    labels, logits = random_case(rows=150)
    predicted = logits.argmax(axis=1)
    confusion = metrics.confusion_matrix(labels, predicted, 7)
    random = np.random.default_rng(1)
    drawn = [
        float(metrics.balanced_accuracy(metrics.confusion_matrix(labels[rows], predicted[rows], 7)))
        for rows in (random.integers(0, 150, 150) for _ in range(2000))
    ]
    interval = metrics.bootstrap(confusion, 2000, 0.95, seed=0)["balanced_accuracy"]
    assert (interval.low, interval.high) == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.01)


def test_only_the_main_metrics_are_plain_numbers_for_dvc() -> None:
    labels, logits = random_case(50)
    summary = metrics.summarise(labels, logits, [str(i) for i in range(7)], CONFIG, seed=0)
    assert [key for key, value in summary.items() if not isinstance(value, list)] == [
        "rows", "accuracy", "balanced_accuracy", "macro_f1", "ece", "nll"
    ]  # fmt: skip
    json.dumps(summary, allow_nan=False)


def test_accuracy_by_bin_keeps_empty_bins_and_the_upper_end() -> None:
    lines = metrics.accuracy_by_bin(
        np.array([0.0, 5.0, 10.0, 90.0]), np.array([True, False, True, True]), (0, 10, 20, 30, 90)
    )
    assert [line["rows"] for line in lines] == [2, 1, 0, 1]
    assert [line["accuracy"] for line in lines] == [0.5, 1.0, None, 1.0]
