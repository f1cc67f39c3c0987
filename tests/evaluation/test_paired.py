"""Two models on the same rows: McNemar's test, Holm's adjustment, and the interval of the difference."""

from __future__ import annotations

import numpy as np
import pytest

from fer.evaluation.paired import compare_all, holm, mcnemar


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 5, 1.0), (0, 6, 2 / 2**6), (8, 1, 2 * (1 + 9) / 2**9), (1, 8, 2 * (1 + 9) / 2**9)],
)
def test_mcnemar_is_the_exact_binomial_test_of_the_rows_that_changed(gained: int, lost: int, p: float) -> None:
    assert mcnemar(gained, lost) == pytest.approx(p)


def test_holm_adjusts_by_rank_and_keeps_the_order() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_every_pair_is_compared_both_ways_on_the_same_rows() -> None:
    first, second = np.ones(100, bool), np.ones(100, bool)
    first[:4], second[:20] = False, False
    pairs = compare_all({"a": first, "b": second, "c": first}, samples=500, confidence=0.95, seed=0)
    assert len(pairs) == 6
    found = pairs["a", "b"]
    assert (found.value, found.gained, found.lost) == (pytest.approx(0.16), 16, 0)
    assert found.low == pytest.approx(0.09, abs=0.02), "0.16 - 1.96 * 0.037"
    assert found.high == pytest.approx(0.23, abs=0.02)
    assert found.p == pytest.approx(2 / 2**16)
    assert found.adjusted == pytest.approx(3 * found.p), "one of the two smallest of three p-values"
    assert pairs["b", "a"] == found.reversed()
    assert (pairs["b", "a"].low, pairs["b", "a"].gained) == (-found.high, 0)
    assert (pairs["a", "c"].value, pairs["a", "c"].p) == (0.0, 1.0)
