"""Several runs of the same thing as one number: mean, spread, and how far the mean can be trusted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one metric.

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
    """Of runs that differ by seed or fold.

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
    """The smallest true difference that Student's test of paired differences finds with the given power.

    Exact for normal differences, by the noncentral t distribution: with few pairs Student's factor is what costs most.

    Args:
        std: of the differences of the pairs.
        pairs: at least two.
    """
    from scipy.optimize import brentq
    from scipy.stats import nct, t

    freedom = pairs - 1
    bound = float(t.ppf(0.5 + confidence / 2, freedom))

    def excess(shift: float) -> float:
        return float(nct.sf(bound, freedom, shift)) - power  # on the right side; to find the contrary is no finding

    return float(brentq(excess, 0, 10 * bound)) * std / math.sqrt(pairs)


def pairs_needed(std: float, difference: float, *, confidence: float = 0.95, power: float = 0.8) -> int:
    """Pairs after which `detectable_difference` is as small as `difference`; at least two."""
    normal = NormalDist()
    known_std = (normal.inv_cdf(0.5 + confidence / 2) + normal.inv_cdf(power)) * std  # never enough: std is estimated
    pairs = max(2, math.ceil((known_std / difference) ** 2))
    while detectable_difference(std, pairs, confidence=confidence, power=power) > difference:
        pairs += 1
    return pairs


def percent(value: float | None) -> str:
    """0.6535 -> "65.35"; "-" where there is none."""
    return "-" if value is None else f"{100 * value:.2f}"


def markdown_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Lines of a table in markdown."""
    names = list(header)
    first, *others = (f"| {' | '.join(cells)} |" for cells in (names, *rows))
    return [first, "|" + "---|" * len(names), *others]
