"""The order of samples: a pure function of (seed, epoch, weights), never of the number of workers or restarts.

Global step `s` of an epoch takes the samples `order[s * B : (s + 1) * B]`, whoever computes them: `rank_slice` only
splits that range. The position of a run is therefore two integers, the epoch and the step.

Only raw 64-bit words of counter-based Philox streams are drawn, and sorted or compared here, so that no release of
numpy may change the order (it keeps a bit generator's words for ever, but not what `Generator.permutation` makes of
them).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fer.hashing import stable_hash

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]


def epoch_order(
    group_sizes: Sequence[int],
    *,
    seed: int,
    epoch: int,
    window_groups: int = 8,
    weights: npt.NDArray[np.floating] | None = None,
) -> Int64Array:
    """The rows of one epoch, in the order in which they are consumed.

    Rows are numbered 0 .. N - 1 through the row groups as they are stored. The definition, step by step:

    1. The row groups are permuted: sorted by one random word each.
    2. The permuted groups are cut into windows of `window_groups`; the last window may hold fewer.
    3. With weights, N draws with replacement, row i with probability weights[i] / sum(weights), say how often each row
       appears in this epoch. Without, each row appears once.
    4. The rows of a window, each as often as it appears, are permuted: sorted by one random word each.

    So a reader that goes through the epoch in order needs no more than `window_groups` row groups at once (two windows
    where a batch lies across their border), however large the dataset. Any sample of a window of g groups can meet any
    other in a batch: choose `window_groups` such that a window is many batches long.

    Args:
        group_sizes: rows of each row group, all positive.
        seed: of the run.
        epoch: 0, 1, ...
        window_groups: row groups that are shuffled into each other, at least 1.
        weights: (N,) finite, non-negative, not all zero; None takes every row once.

    Returns:
        int64 (N,): position in the epoch -> row.

    Raises:
        ValueError: weights of the wrong length or with a negative, infinite, or no positive value.
    """
    sizes = np.asarray(group_sizes, dtype=np.int64)
    assert window_groups >= 1, "window_groups must be at least 1"
    assert (sizes > 0).all(), "row groups must not be empty"
    first_rows = np.concatenate(([0], np.cumsum(sizes)))
    rows_in_all = int(first_rows[-1])
    multiplicity = None if weights is None else draw_multiplicities(weights, rows_in_all, seed=seed, epoch=epoch)
    groups = _permutation(len(sizes), "groups", seed, epoch)
    order: list[Int64Array] = []
    for window, start in enumerate(range(0, len(sizes), window_groups)):
        members = groups[start : start + window_groups]
        rows = np.concatenate([np.arange(first_rows[g], first_rows[g + 1]) for g in members])
        if multiplicity is not None:
            rows = np.repeat(rows, multiplicity[rows])
        order.append(rows[_permutation(len(rows), "window", seed, epoch, window)])
    return np.concatenate(order) if order else np.zeros(0, np.int64)


def draw_multiplicities(weights: npt.NDArray[np.floating], total: int, *, seed: int, epoch: int) -> Int64Array:
    """How often each row appears in the epoch: `total` draws with replacement, in proportion to `weights`.

    Returns:
        int64 (N,), summing to `total`.
    """
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != (total,):
        raise ValueError(f"weights have shape {weights.shape}, but there are {total} rows")
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
        raise ValueError("weights must be finite and non-negative, and at least one of them positive")
    upper = np.cumsum(weights)
    marks = (_words(total, "weights", seed, epoch) >> np.uint64(11)) * 2.0**-53 * upper[-1]  # in [0, sum)
    rows = np.searchsorted(upper, marks, side="right")
    # Rounding may carry a mark up to the sum itself: it belongs to the last row that has any weight.
    last = np.flatnonzero(weights)[-1]
    return np.bincount(np.minimum(rows, last), minlength=total).astype(np.int64)


def balanced_weights(labels: npt.NDArray[np.integer]) -> Float64Array:
    """Weights that make every class that occurs equally frequent: 1 / (rows with the same label), as the
    ImbalancedDatasetSampler of several published recipes.
    """
    labels = np.asarray(labels)
    if not labels.size:
        return np.zeros(0)
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return np.asarray(1.0 / counts[inverse], dtype=np.float64)


def occurrences(order: Int64Array) -> Int64Array:
    """For each position of an epoch, how often its row has appeared before: all zero unless rows repeat.

    A repeated row is augmented differently each time, because its occurrence is part of the augmentation's key.
    """
    by_row = np.argsort(order, kind="stable")
    ranked = order[by_row]
    starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1])[: len(order)])
    lengths = np.diff(np.append(starts, len(order)))
    seen = np.empty(len(order), np.int64)
    seen[by_row] = np.arange(len(order)) - np.repeat(starts, lengths)
    return seen


def rank_slice(batch_size: int, rank: int, world_size: int) -> slice:
    """The part of a global batch that a rank computes: contiguous, and of equal size where `world_size` divides it."""
    assert 0 <= rank < world_size <= batch_size
    return slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)


def _words(count: int, *key: str | int) -> npt.NDArray[np.uint64]:
    """`count` random 64-bit words of the stream that belongs to the key."""
    philox = np.random.Philox(key=stable_hash("fer.order", *key, bits=128))
    return np.asarray(philox.random_raw(count), dtype=np.uint64)


def _permutation(count: int, *key: str | int) -> Int64Array:
    return np.argsort(_words(count, *key), kind="stable")
