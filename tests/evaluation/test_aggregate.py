"""Several runs as one number, and the bootstrap of paired differences: intervals that cover, and their power."""

from __future__ import annotations

import numpy as np
import pytest

from fer.evaluation.aggregate import detectable_difference, pairs_needed, spread
from fer.evaluation.metrics import paired_bootstrap


def test_an_interval_is_students() -> None:
    found = spread([0.1, 0.2, 0.3])
    assert (found.mean, found.std) == (pytest.approx(0.2), pytest.approx(0.1))
    assert found.high == pytest.approx(0.2 + 4.302653 * 0.1 / 3**0.5, abs=1e-6)
    assert spread([0.4]).low is None


def test_the_power_of_a_paired_comparison_is_students() -> None:
    # Tables of the paired t test at 5 % and a power of 80 %: an effect of 1.0 needs 10 pairs, of 0.5 needs 34.
    assert pairs_needed(0.01, 0.01) == 10
    assert pairs_needed(0.02, 0.01) == 34
    assert detectable_difference(0.02, 34) <= 0.01 < detectable_difference(0.02, 33)
    assert detectable_difference(0.0, 3) == 0
    random = np.random.default_rng(0)
    std, pairs, runs = 0.02, 3, 20_000
    drawn = random.normal(detectable_difference(std, pairs), std, (runs, pairs))
    found = drawn.mean(1) > 4.302653 * drawn.std(1, ddof=1) / pairs**0.5
    assert found.mean() == pytest.approx(0.8, abs=0.012)  # four standard errors


def test_the_interval_over_images_is_the_binomials() -> None:
    found = paired_bootstrap(np.array([[1] * 300 + [0] * 700]), seeds=False)
    half = 1.96 * (0.3 * 0.7 / 1000) ** 0.5
    assert (found.low, found.high) == (pytest.approx(0.3 - half, abs=0.003), pytest.approx(0.3 + half, abs=0.003))


def test_the_interval_over_seeds_and_images_has_the_variance_of_both() -> None:
    random = np.random.default_rng(0)
    seeds = random.normal(0, 0.5, (40, 1))  # much wider than the images' part
    differences = seeds + random.normal(0, 1, (40, 2000))
    both, images = paired_bootstrap(differences), paired_bootstrap(differences, seeds=False)
    expected = 2 * 1.96 * float(seeds.std()) / 40**0.5
    assert both.high - both.low == pytest.approx(expected, rel=0.1)
    assert images.high - images.low < 0.1 * expected


def test_the_same_draws_give_the_same_interval() -> None:
    differences = np.random.default_rng(0).integers(-1, 2, (3, 500))
    assert paired_bootstrap(differences) == paired_bootstrap(differences)
