"""Two models on the same rows: the difference of their accuracies, and whether it could be chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from fer.evaluation.metrics import paired_bootstrap

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Paired:
    """One model against another.

    Attributes:
        value, low, high: accuracy of the one minus that of the other, -1 .. 1, with its paired bootstrap interval.
        gained, lost: rows that only the one, and only the other, classifies correctly.
        p: of McNemar's exact test. adjusted: by Holm, over all pairs that were compared.
    """

    value: float
    low: float
    high: float
    gained: int
    lost: int
    p: float
    adjusted: float

    def reversed(self) -> Paired:
        """The other against the one."""
        return Paired(
            value=-self.value, low=-self.high, high=-self.low, gained=self.lost, lost=self.gained, p=self.p,
            adjusted=self.adjusted,
        )  # fmt: skip


def compare_all(
    correct: Mapping[str, Bools], *, samples: int, confidence: float, seed: int
) -> dict[tuple[str, str], Paired]:
    """Every model against every other, both ways.

    Args:
        correct: of each model, which rows it classifies correctly, (N,); the same N rows in the same order.
        samples, confidence, seed: of `fer.evaluation.metrics.paired_bootstrap`, over rows.
    """
    pairs = list(combinations(correct, 2))
    changes = [correct[one].astype(np.int8) - correct[other].astype(np.int8) for one, other in pairs]
    gained = [int((change > 0).sum()) for change in changes]
    lost = [int((change < 0).sum()) for change in changes]
    p_values = [mcnemar(*counts) for counts in zip(gained, lost, strict=True)]
    found: dict[tuple[str, str], Paired] = {}
    for index, ((one, other), p, adjusted) in enumerate(zip(pairs, p_values, holm(p_values), strict=True)):
        interval = paired_bootstrap(
            changes[index][None], samples=samples, confidence=confidence, seed=seed, seeds=False
        )
        paired = Paired(
            value=float(changes[index].mean()), low=interval.low, high=interval.high,
            gained=gained[index], lost=lost[index], p=p, adjusted=adjusted,
        )  # fmt: skip
        found |= {(one, other): paired, (other, one): paired.reversed()}
    return found


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p of McNemar's test (1947) in its exact form: of the rows that changed, half would go either way."""
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979): below alpha together with at most alpha of any false finding."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted
