"""Which labels of a dataset are probably wrong: confident learning on out-of-fold probabilities.

Paper: "Confident Learning: Estimating Uncertainty in Dataset Labels"
Authors: Curtis G. Northcutt, Lu Jiang, Isaac L. Chuang
Venue: Journal of Artificial Intelligence Research 70 (2021), arXiv:1911.00068

Each row's probabilities come from a model that was not trained on it. A class counts as confident for a row where its
probability reaches the mean that the class has over the rows labeled so (their t_j, equation 2). The row's confident
label is the most probable of these (equation 1); rows whose confident label is not the given one are the suspects: the
off-diagonal of the confident joint. They are ranked by margin, as in the paper's prune by noise rate.

Shapes: N rows, K classes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fer.evaluation.metrics import confusion_matrix, wilson

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

NONE = -1
"""The confident label of a row of which no class reaches its threshold."""


@dataclass(frozen=True)
class Suspects:
    """Rows whose label is probably wrong, the largest margin first.

    Attributes:
        rows: int64 (S,). suggested: int64 (S,), their confident labels.
        margin: float64 (S,), probability of the suggested label minus that of the given one.
        joint: float64 (K, K), estimated joint distribution of given (rows) and true labels (columns); sums to 1.
        thresholds: float64 (K,), infinite for a class without rows.
    """

    rows: Ints
    suggested: Ints
    margin: Floats
    joint: Floats
    thresholds: Floats

    @property
    def noise(self) -> float:
        """Estimated fraction of wrong labels."""
        return float(1 - np.trace(self.joint))


def find_suspects(labels: Ints, probabilities: Floats) -> Suspects:
    """Confident learning.

    Args:
        labels: int64 (N,), as given. probabilities: (N, K), out of sample.
    """
    count = probabilities.shape[1]
    members = [labels == index for index in range(count)]
    thresholds = np.array([probabilities[of, k].mean() if of.any() else np.inf for k, of in enumerate(members)])
    confident = confident_labels(probabilities, thresholds)
    known = confident != NONE
    rows = np.flatnonzero(known & (confident != labels))
    margin = probabilities[rows, confident[rows]] - probabilities[rows, labels[rows]]
    order = np.argsort(-margin, kind="stable")
    counts = confusion_matrix(labels[known], confident[known], count)
    joint = estimated_joint(counts, np.bincount(labels, minlength=count))
    return Suspects(rows[order], confident[rows][order], margin[order], joint, thresholds)


def confident_labels(probabilities: Floats, thresholds: Floats) -> Ints:
    """int64 (N,): the most probable class among those that reach their threshold (equation 1); `NONE` without one."""
    reached = np.where(probabilities >= thresholds, probabilities, -np.inf)
    return np.where(np.isfinite(reached).any(axis=1), reached.argmax(axis=1), NONE)


def estimated_joint(counts: Ints, given: Ints) -> Floats:
    """The confident joint, scaled so that each row of it holds the fraction of rows labeled so (equation 3).

    A class of whose rows none is confident keeps its label.

    Args:
        counts: (K, K), rows of each given (row) and confident label (column). given: (K,), rows of each given label.
    """
    counts = counts + np.diag((counts.sum(axis=1) == 0).astype(np.int64))
    joint: Floats = counts / counts.sum(axis=1, keepdims=True) * given[:, None] / given.sum()
    return joint


def scored(suspects: Suspects, wrong: npt.NDArray[np.bool_], known: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """How well suspects find wrong labels where better ones are known; fractions with Wilson's 95 % interval.

    Args:
        wrong: (N,), whether the given label differs from the better one. known: (N,), whether there is a better one.

    Returns:
        `rows` with a better label; `base_rate`: the fraction of them that is wrong, what a random choice finds;
        `precision` and `recall` of all suspects; `top`: precision of the first 1, 2, 5 and 10 % of the rows.
    """
    flagged = suspects.rows[known[suspects.rows]]
    hits, total, errors = wrong[flagged], int(known.sum()), int((wrong & known).sum())
    sizes = [round(fraction * total) for fraction in (0.01, 0.02, 0.05, 0.1)]
    return {
        "rows": total,
        "base_rate": _fraction(errors, total),
        "suspects": len(flagged),
        "precision": _fraction(int(hits.sum()), len(flagged)),
        "recall": _fraction(int(hits.sum()), errors),
        "top": [{"rows": size, **_fraction(int(hits[:size].sum()), size)} for size in sizes if 0 < size <= len(hits)],
    }


def _fraction(count: int, total: int) -> dict[str, float | None]:
    if not total:
        return {"value": None, "low": None, "high": None}
    return {"value": count / total, **asdict(wilson(count, total))}
