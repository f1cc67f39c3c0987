"""Metrics of a classifier, as pure functions of (labels, logits) or of the confusion matrix, in float64.

A class that no row of the split belongs to has no recall: it is NaN there, and left out of the means. That is reported
by `summarise`, never hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from fer.evaluation.config import EvaluateConfig

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

HEADLINE = ("accuracy", "balanced_accuracy", "macro_f1", "ece", "nll")
"""The main metrics, each a number, in the order in which they are shown."""

_DRAWS_AT_ONCE = 250


@dataclass(frozen=True)
class Interval:
    """Confidence interval of a metric."""

    low: float
    high: float


def log_softmax(logits: npt.NDArray[Any]) -> Floats:
    """Logarithms of the class probabilities, (N, K)."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    normalized: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return normalized


def confusion_matrix(labels: Ints, predicted: Ints, classes: int) -> Ints:
    """Counts, (K, K): rows are the actual classes, columns the predicted ones."""
    flat = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return flat.reshape(classes, classes).astype(np.int64)


def accuracy(confusion: npt.NDArray[Any]) -> Floats:
    """Fraction of rows that are classified correctly; (..., K, K) -> (...)."""
    right: Floats = np.trace(confusion, axis1=-2, axis2=-1) / confusion.sum(axis=(-2, -1))
    return right


def recalls(confusion: npt.NDArray[Any]) -> Floats:
    """Recall of each class, NaN where it has no rows; (..., K, K) -> (..., K)."""
    return _ratio(_diagonal(confusion), confusion.sum(axis=-1))


def precisions(confusion: npt.NDArray[Any]) -> Floats:
    """Precision of each class, NaN where it was never predicted; (..., K, K) -> (..., K)."""
    return _ratio(_diagonal(confusion), confusion.sum(axis=-2))


def f1_scores(confusion: npt.NDArray[Any]) -> Floats:
    """F1 = 2 TP / (2 TP + FP + FN) of each class, NaN where it has no rows; (..., K, K) -> (..., K)."""
    support = confusion.sum(axis=-1)
    scores = _ratio(2 * _diagonal(confusion), support + confusion.sum(axis=-2))
    return np.where(support > 0, scores, np.nan)


def balanced_accuracy(confusion: npt.NDArray[Any]) -> Floats:
    """Mean recall over the classes that have rows; (..., K, K) -> (...)."""
    mean: Floats = np.nanmean(recalls(confusion), axis=-1)
    return mean


def macro_f1(confusion: npt.NDArray[Any]) -> Floats:
    """Mean F1 over the classes that have rows; (..., K, K) -> (...)."""
    mean: Floats = np.nanmean(f1_scores(confusion), axis=-1)
    return mean


def reliability(labels: Ints, probabilities: Floats, bins: int) -> tuple[list[dict[str, Any]], float]:
    """A reliability diagram: equal-width bins (from, to] of the probability of the predicted class; and the ECE.

    Args:
        labels: (N,). probabilities: (N, K).

    Returns:
        a line for each bin, its means None where it has no rows; and the expected calibration error (Guo et al. 2017,
        eq. 3): |accuracy - confidence|, mean over bins by rows.
    """
    confidence = probabilities.max(axis=1)
    right = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    edges = np.linspace(0.0, 1.0, bins + 1)
    chosen = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    counts = np.bincount(chosen, minlength=bins)
    sure, good = (_ratio(np.bincount(chosen, weights=values, minlength=bins), counts) for values in (confidence, right))
    lines = [
        {"from": low, "to": high, "rows": int(rows), "confidence": _or_none(mean), "accuracy": _or_none(accurate)}
        for low, high, rows, mean, accurate in zip(
            edges[:-1].tolist(), edges[1:].tolist(), counts, sure, good, strict=True
        )
    ]
    return lines, float(np.nansum(np.abs(good - sure) * counts) / counts.sum())


def wilson(right: int, rows: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927); sound for small counts and near 0 and 1."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    fraction = right / rows
    center = (fraction + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * (fraction * (1 - fraction) / rows + z * z / (4 * rows * rows)) ** 0.5
    return Interval(max(0.0, center - half), min(1.0, center + half))


def bootstrap(confusion: Ints, samples: int, confidence: float, seed: int) -> dict[str, Interval]:
    """Percentile bootstrap intervals of `balanced_accuracy` and `macro_f1`.

    Drawing N rows with replacement is drawing the cells of the confusion matrix from a multinomial distribution, so the
    rows themselves are not needed. A class that a draw misses is left out of that draw's means.
    """
    total = int(confusion.sum())
    random = np.random.Generator(np.random.Philox(seed))
    draws = random.multinomial(total, (confusion / total).ravel(), size=samples).reshape(samples, *confusion.shape)
    tails = [50 * (1 - confidence), 50 * (1 + confidence)]
    drawn = {"balanced_accuracy": balanced_accuracy(draws), "macro_f1": macro_f1(draws)}
    return {name: Interval(*np.percentile(values, tails).tolist()) for name, values in drawn.items()}


def summarise(
    labels: Ints, logits: npt.NDArray[Any], names: Sequence[str], config: EvaluateConfig, seed: int
) -> dict[str, Any]:
    """All metrics of one split, ready for JSON.

    labels: int64 (N,), N >= 1; logits: (N, K); names: of the K classes.
    Only the main metrics are plain numbers, the rest are lists: `dvc metrics` shows numbers and skips lists.
    """
    rows, classes = logits.shape
    log_probabilities = log_softmax(logits)
    confusion = confusion_matrix(labels, log_probabilities.argmax(axis=1), classes)
    calibration, error = reliability(labels, np.exp(log_probabilities), config.calibration_bins)
    intervals = bootstrap(confusion, config.bootstrap_samples, config.confidence, seed)
    intervals["accuracy"] = wilson(int(np.trace(confusion)), rows, config.confidence)
    support, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    columns = (names, recalls(confusion), precisions(confusion), f1_scores(confusion), support, predicted)
    return {
        "rows": rows,
        "accuracy": float(accuracy(confusion)),
        "balanced_accuracy": float(balanced_accuracy(confusion)),
        "macro_f1": float(macro_f1(confusion)),
        "ece": error,
        "nll": float(-log_probabilities[np.arange(rows), labels].mean()),
        "intervals": [
            {
                "metric": name,
                "low": intervals[name].low,
                "high": intervals[name].high,
                "confidence": config.confidence,
                "method": "Wilson" if name == "accuracy" else f"percentile bootstrap, {config.bootstrap_samples} draws",
            }
            for name in ("accuracy", "balanced_accuracy", "macro_f1")
        ],
        "per_class": [
            {
                "class": name,
                "recall": _or_none(recall),
                "precision": _or_none(precision),
                "f1": _or_none(f1),
                "rows": int(count),
                "predicted": int(times),
            }
            for name, recall, precision, f1, count, times in zip(*columns, strict=True)
        ],
        "absent_classes": [name for name, count in zip(names, support, strict=True) if count == 0],
        "confusion": confusion.tolist(),
        "calibration": calibration,
    }


def accuracy_by_bin(values: Floats, right: npt.NDArray[np.bool_], edges: Sequence[float]) -> list[dict[str, Any]]:
    """Accuracy with its interval in bins [low, high) of a quantity, such as |yaw|; empty bins keep their line.

    The last bin takes its upper end too. Rows outside all bins are counted in none.
    """
    lines: list[dict[str, Any]] = []
    for low, high in pairwise(edges):
        inside = (values >= low) & ((values < high) | ((values == high) & (high == edges[-1])))
        rows, good = int(inside.sum()), int(right[inside].sum())
        interval = wilson(good, rows) if rows else None
        lines.append(
            {
                "from": float(low),
                "to": float(high),
                "rows": rows,
                "accuracy": good / rows if rows else None,
                "low": interval.low if interval else None,
                "high": interval.high if interval else None,
            }
        )
    return lines


def _diagonal(confusion: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.diagonal(confusion, axis1=-2, axis2=-1)


def _ratio(numerator: npt.NDArray[Any], denominator: npt.NDArray[Any]) -> Floats:
    """Quotient, NaN where there is nothing to divide by."""
    quotient: Floats = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=quotient, where=denominator > 0)
    return quotient


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def paired_bootstrap(
    differences: npt.NDArray[Any],
    *,
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    seeds: bool = True,
) -> Interval:
    """Percentile interval of the mean of paired differences.

    Each draw takes as many test images as there are, with replacement; and as many seeds, which makes it an interval
    for other images and other runs alike. With few seeds their part is too narrow: five seeds lie about 10 % closer
    together than their population; see `fer.studies.noise.interval`.

    Args:
        differences: (S, N), of two runs with the same seed on the same image.
        seeds: False keeps the runs as they are: an interval for other images alone.
    """
    runs, images = differences.shape
    random = np.random.Generator(np.random.Philox(seed))
    # Images with the same differences under every seed are drawn together, as one cell of a multinomial distribution.
    kinds, counts = np.unique(differences.T, axis=0, return_counts=True)
    means = []
    for first in range(0, samples, _DRAWS_AT_ONCE):
        count = min(_DRAWS_AT_ONCE, samples - first)
        by_run = random.multinomial(images, counts / images, size=count) @ kinds / images  # (count, S)
        drawn = random.multinomial(runs, np.full(runs, 1 / runs), size=count) / runs
        means.append((by_run * drawn).sum(1) if seeds else by_run.mean(1))
    tails = [50 * (1 - confidence), 50 * (1 + confidence)]
    return Interval(*np.percentile(np.concatenate(means), tails).tolist())
