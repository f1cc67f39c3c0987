"""Confident learning on an example worked by hand, and on labels whose errors are known."""

import numpy as np
import pytest

from fer.explain.audit import NONE, Suspects, confident_labels, estimated_joint, find_suspects, scored

# Thresholds: column 0 over rows 0 to 2, (0.9 + 0.7 + 0.2) / 3 = 0.6; column 1 over rows 3 and 4, 0.5; class 2: none.
PROBABILITIES = np.array([[0.9, 0.1, 0], [0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.1, 0.6, 0.3], [0.55, 0.4, 0.05]])
LABELS = np.array([0, 0, 0, 1, 1])


def test_the_worked_example() -> None:
    found = find_suspects(LABELS, PROBABILITIES)
    np.testing.assert_allclose(found.thresholds, [0.6, 0.5, np.inf])
    assert found.rows.tolist() == [2], "row 4 prefers class 0, and does not reach its threshold"
    assert found.suggested.tolist() == [1]
    np.testing.assert_allclose(found.margin, [0.5])
    # Counts [[2, 1], [0, 1]]; the lines scaled to 3 and 2 of 5 rows.
    np.testing.assert_allclose(found.joint, [[0.4, 0.2, 0], [0, 0.4, 0], [0, 0, 0]])
    assert found.noise == pytest.approx(0.2)


def test_of_several_confident_classes_the_most_probable_counts_and_none_where_no_class_is() -> None:
    rows = np.array([[0.45, 0.5, 0.05], [0.3, 0.3, 0.4]])
    assert confident_labels(rows, np.array([0.4, 0.4, 0.5])).tolist() == [1, NONE]


def test_the_joint_keeps_the_given_labels_fractions() -> None:
    given = np.array([60, 30, 10])
    joint = estimated_joint(np.array([[40, 5, 5], [1, 2, 0], [0, 0, 0]]), given)
    np.testing.assert_allclose(joint.sum(axis=1), given / 100)
    assert joint[2, 2] == 0.1, "without a confident row a class keeps its label"


@pytest.fixture(scope="module")
def noisy() -> tuple[np.ndarray, np.ndarray, Suspects]:
    """Labels of which 10 % are wrong, which those are, and what a good classifier's probabilities say of them."""
    random = np.random.default_rng(0)
    clean = random.integers(0, 7, 7000)
    wrong = random.random(7000) < 0.1
    labels = np.where(wrong, (clean + random.integers(1, 7, 7000)) % 7, clean)
    scores = random.normal(size=(7000, 7)) + 6 * np.eye(7)[clean]
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    return labels, wrong, find_suspects(labels, probabilities)


def test_planted_errors_are_found_and_counted(noisy: tuple[np.ndarray, np.ndarray, Suspects]) -> None:
    labels, wrong, found = noisy
    check = scored(found, wrong, np.ones(len(labels), bool))
    assert check["precision"]["value"] > 0.95
    assert check["recall"]["value"] > 0.8
    assert check["base_rate"]["value"] == wrong.mean()
    assert found.noise == pytest.approx(wrong.mean(), abs=0.02)
    assert (np.diff(found.margin) <= 0).all()
    assert [one["rows"] for one in check["top"]] == [70, 140, 350]
    assert [one["value"] for one in check["top"]] == [wrong[found.rows[: one["rows"]]].mean() for one in check["top"]]


def test_shuffled_suspects_are_no_better_than_chance(noisy: tuple[np.ndarray, np.ndarray, Suspects]) -> None:
    labels, wrong, found = noisy
    rows = np.random.default_rng(1).permutation(len(labels))[: len(found.rows)]
    check = scored(Suspects(rows, found.suggested, found.margin, found.joint, found.thresholds), wrong, wrong >= 0)
    assert check["precision"]["low"] < wrong.mean() < check["precision"]["high"]


def test_rows_without_a_better_label_count_for_nothing(noisy: tuple[np.ndarray, np.ndarray, Suspects]) -> None:
    labels, wrong, found = noisy
    known = np.arange(len(labels)) % 2 == 0
    check = scored(found, wrong & known, known)
    assert check["rows"] == known.sum()
    assert check["suspects"] == known[found.rows].sum()
    nothing = scored(found, wrong & False, known & False)
    assert nothing["base_rate"]["value"] is None
    assert nothing["top"] == []
