"""Verification: metrics as counted by hand, pairs that share nobody across folds."""

from __future__ import annotations

import numpy as np
import pytest

from fer.evaluation.verification import (
    best_threshold,
    draw_pairs,
    fold_accuracies,
    roc_auc,
    tar_at_far,
    verify,
)

LABELS = np.repeat(np.arange(30), 5)


def test_pairs_match_their_labels_and_no_person_is_in_two_folds() -> None:
    pairs = draw_pairs(LABELS, 95, seed=0)
    assert pairs.same.sum() == 95 == (~pairs.same).sum()
    assert ((LABELS[pairs.first] == LABELS[pairs.second]) == pairs.same).all()
    assert (pairs.first != pairs.second).all()
    people = [set(LABELS[pairs.first[pairs.fold == f]]) | set(LABELS[pairs.second[pairs.fold == f]]) for f in range(10)]
    assert sum(map(len, people)) == len(set().union(*people))
    assert sorted(np.bincount(pairs.fold)) == [18] * 5 + [20] * 5
    again = draw_pairs(LABELS, 95, seed=0)
    assert all(np.array_equal(getattr(pairs, name), getattr(again, name)) for name in ("first", "second", "fold"))
    assert not np.array_equal(pairs.first, draw_pairs(LABELS, 95, seed=1).first)


def test_too_few_people_are_rejected_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"19 people with two images.*raise the dataset's test_fraction"):
        draw_pairs(np.concatenate([np.repeat(np.arange(19), 2), np.arange(100, 200)]), 100, seed=0)


def test_auc_is_the_fraction_of_ordered_pairs_with_ties_as_halves() -> None:
    random = np.random.default_rng(0)
    scores, same = random.integers(0, 8, 60) / 8, random.random(60) < 0.4
    couples = [(a > b) + (a == b) / 2 for a in scores[same] for b in scores[~same]]
    assert roc_auc(scores, same) == pytest.approx(np.mean(couples), abs=1e-12)
    assert roc_auc(np.array([3.0, 2.0, 1.0, 0.0]), np.array([True, True, False, False])) == 1.0
    assert roc_auc(np.zeros(4), np.array([True, True, False, False])) == 0.5


def test_threshold_maximizes_accuracy() -> None:
    random = np.random.default_rng(1)
    for _ in range(50):
        scores, same = random.integers(0, 6, 12) / 4, random.random(12) < 0.5
        right = [np.mean((scores >= value) == same) for value in (*np.unique(scores), np.inf)]
        assert np.mean((scores >= best_threshold(scores, same)) == same) == max(right)


def test_fold_is_scored_at_the_threshold_of_the_others() -> None:
    scores = np.array([0.9, 0.1, 0.9, 0.1, 0.4, 0.3])
    same = np.array([True, False, True, False, True, False])
    fold = np.array([0, 0, 1, 1, 2, 2])
    assert fold_accuracies(scores, same, fold).tolist() == [
        1.0,
        1.0,
        0.5,
    ]  # of the last, nothing reaches (0.9 + 0.1) / 2


def test_tar_at_far_accepts_no_more_false_pairs_than_allowed() -> None:
    scores = np.array([0.9, 0.5, 0.2, 0.8, 0.4, 0.3, 0.1])
    same = np.array([True, True, True, False, False, False, False])
    assert tar_at_far(scores, same, 0.0) == pytest.approx(1 / 3)
    assert tar_at_far(scores, same, 0.25) == pytest.approx(2 / 3)
    assert tar_at_far(scores, same, 0.74) == pytest.approx(2 / 3)
    assert tar_at_far(scores, same, 0.75) == 1.0
    assert tar_at_far(scores, same, 1.0) == 1.0


def test_noise_is_at_chance_and_orthogonal_people_are_separated() -> None:
    random = np.random.default_rng(0)
    noise = random.normal(size=(len(LABELS), 16)).astype(np.float32)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    chance = verify(noise, LABELS, pairs=2000, seed=0)
    assert abs(chance.auc - 0.5) < 0.06
    assert abs(chance.accuracy - 0.5) < 0.06
    known = verify(np.eye(30, dtype=np.float32)[LABELS], LABELS, pairs=500, seed=0)
    assert (known.auc, known.accuracy, known.tar) == (1.0, 1.0, {0.1: 1.0, 0.01: 1.0})
    assert (known.people, known.pairs) == (30, 1000)
