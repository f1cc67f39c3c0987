"""Face verification: do two images show one person? Metrics of an embedding, as pure functions.

The protocol is that of Labeled Faces in the Wild (Huang et al. 2007, "View 2"): as many matched as mismatched pairs, in
ten folds that share nobody; accuracy of a fold is that at the threshold which is best on the other nine. Beside it,
without a chosen threshold, the area under the ROC curve (AUC), and TAR @ FAR, the true accept rate at a false accept
rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

FOLDS = 10


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Pairs of rows. first, second, fold: int64 (P,); same: bool (P,), whether they are of one person."""

    first: Ints
    second: Ints
    same: Bools
    fold: Ints


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Metrics of an embedding.

    Attributes:
        people, pairs: how many there were.
        auc: area under the ROC curve, 0 .. 1; 0.5 is chance.
        accuracy, accuracy_error: mean over the folds, and its standard error.
        tar: TAR @ FAR, the fraction of matched pairs accepted, by the largest fraction of accepted mismatched pairs.
    """

    people: int
    pairs: int
    auc: float
    accuracy: float
    accuracy_error: float
    tar: dict[float, float]


def verify(
    embeddings: npt.NDArray[np.float32], labels: Ints, *, pairs: int, seed: int, fars: Sequence[float] = (0.1, 0.01)
) -> Verification:
    """The metrics of embeddings (n, E) of length 1, with the people (n,) that they show.

    Args:
        pairs: matched pairs that are drawn, and as many mismatched ones.
        seed: of the draw.

    Raises:
        ValueError: too few people; see `draw_pairs`.
    """
    drawn = draw_pairs(labels, pairs, seed)
    scores = np.einsum("pe,pe->p", embeddings[drawn.first], embeddings[drawn.second], dtype=np.float64)
    accuracies = fold_accuracies(scores, drawn.same, drawn.fold)
    return Verification(
        people=len(np.unique(labels)),
        pairs=len(scores),
        auc=roc_auc(scores, drawn.same),
        accuracy=float(accuracies.mean()),
        accuracy_error=float(accuracies.std(ddof=1) / np.sqrt(len(accuracies))),
        tar={far: tar_at_far(scores, drawn.same, far) for far in fars},
    )


def draw_pairs(labels: Ints, pairs: int, seed: int, folds: int = FOLDS) -> Pairs:
    """`pairs` matched and as many mismatched pairs, evenly over folds that share nobody.

    A matched pair is drawn by person, then by image; a mismatched one by two people, then by images. A pair may
    come twice.

    Raises:
        ValueError: fewer than two people a fold with two images or more, or fewer pairs than folds.
    """
    people, counts = np.unique(labels, return_counts=True)
    people = people[counts > 1]
    if len(people) < 2 * folds or pairs < folds:
        raise ValueError(
            f"{len(people)} people with two images or more, {pairs} pairs: {folds} folds need {2 * folds} such "
            f"people and {folds} pairs; raise the dataset's test_fraction"
        )
    random = np.random.default_rng(seed)
    rows = {person: np.flatnonzero(labels == person) for person in people.tolist()}
    found: list[tuple[int, int, bool, int]] = []
    for fold, members in enumerate(np.array_split(random.permutation(people), folds)):
        count = pairs * (fold + 1) // folds - pairs * fold // folds
        for person in random.choice(members, count).tolist():
            one, other = random.choice(rows[person], 2, replace=False).tolist()
            found.append((one, other, True, fold))
        for _ in range(count):
            one, other = (
                int(random.choice(rows[person])) for person in random.choice(members, 2, replace=False).tolist()
            )
            found.append((one, other, False, fold))
    first, second, same, fold_of = (np.array(column) for column in zip(*found, strict=True))
    return Pairs(first=first, second=second, same=same, fold=fold_of)


def roc_auc(scores: Floats, same: Bools) -> float:
    """The fraction of (matched, mismatched) couples in which the matched pair scores higher; ties count half."""
    values, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    matched = np.bincount(place[same], minlength=len(values)).astype(np.float64)
    others = counts - matched
    below = np.cumsum(others) - others
    return float(matched @ (below + others / 2) / (matched.sum() * others.sum()))


def fold_accuracies(scores: Floats, same: Bools, fold: Ints) -> Floats:
    """Accuracy of each fold at the threshold that is best on the others; (folds,)."""
    accuracies = []
    for held_out in np.unique(fold):
        mine = fold == held_out
        threshold = best_threshold(scores[~mine], same[~mine])
        accuracies.append(np.mean((scores[mine] >= threshold) == same[mine]))
    return np.array(accuracies)


def best_threshold(scores: Floats, same: Bools) -> float:
    """The score from which on to say "one person" so that most pairs are right; halfway to the next score below."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    gain = np.concatenate([[0], np.cumsum(np.where(same[order], 1, -1))])  # of accepting the first k
    ends = np.concatenate([[True], ranked[1:] != ranked[:-1], [True]])  # equal scores are accepted together
    best = int(np.argmax(np.where(ends, gain, np.iinfo(np.int64).min)))
    if best == 0:
        return float(np.inf)
    below = ranked[best] if best < len(ranked) else ranked[best - 1]
    return float((ranked[best - 1] + below) / 2)


def tar_at_far(scores: Floats, same: Bools, far: float) -> float:
    """Fraction of the matched pairs above the lowest threshold that accepts at most a fraction `far` of the others."""
    others = np.sort(scores[~same])[::-1]
    allowed = int(far * len(others))
    if allowed >= len(others):
        return 1.0
    return float(np.mean(scores[same] > others[allowed]))
