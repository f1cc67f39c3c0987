"""Several trainings of the same thing as one figure: mean, spread, and how far the mean can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one figure.

    Attributes:
        std: sample standard deviation; None for a single one.
        low, high: confidence interval of the mean by Student's t; None for a single one.
    """

    count: int
    mean: float
    std: float | None
    low: float | None
    high: float | None


def spread(values: Sequence[float], confidence: float = 0.95) -> Spread:
    """Of trainings that differ by seed or fold.

    Folds share most of their training images, so that their interval is narrower than it should be (Bengio and
    Grandvalet, JMLR 2004: no unbiased estimate of that variance exists).
    """
    from scipy.stats import t

    mean = fmean(values)
    if len(values) < 2:
        return Spread(len(values), mean, None, None, None)
    std = stdev(values)
    half = float(t.ppf(0.5 + confidence / 2, len(values) - 1)) * std / math.sqrt(len(values))
    return Spread(len(values), mean, std, mean - half, mean + half)


def detectable_difference(std: float, pairs: int, *, confidence: float = 0.95, power: float = 0.8) -> float:
    """The smallest true difference that a paired comparison finds with the given power.

    Args:
        std: of the differences of the pairs.
    """
    normal = NormalDist()
    return (normal.inv_cdf(0.5 + confidence / 2) + normal.inv_cdf(power)) * std / math.sqrt(pairs)


def percent(value: float | None) -> str:
    """0.6535 -> "65.35"; "-" where there is none."""
    return "-" if value is None else f"{100 * value:.2f}"
