"""Cross-validation without a rewrite: base folds of the shards, grouped into k folds.

`shard.folds` of params.yaml cuts the training rows into base folds, by a hash of the subject (of the pixels where no
subject is known). A cross-validation of k folds takes whole base folds together, so nobody is on both sides of it.
"""

from __future__ import annotations

from math import factorial, prod

from fer.hashing import stable_hash

MAX_REPEATS = 1000
"""Groupings of the same base folds that can be requested."""


def group_folds(base: int, folds: int, repeat: int = 0) -> tuple[tuple[int, ...], ...]:
    """Base folds 0 .. base - 1 in `folds` groups whose sizes differ by one at most; a function of its arguments.

    Repeat 0 assigns the base folds in turn: with `folds` = `base`, group i is base fold i. A higher repeat assigns a
    permutation of them; no two repeats give the same groups.

    Raises:
        ValueError: fewer than 2 or more than `base` folds, or more repeats than there are different groupings.
    """
    if not 2 <= folds <= base:
        raise ValueError(
            f"folds = {folds}: the shards have {base} base folds, so 2 to {base} are possible; "
            "for more raise shard.folds and run the shard stage again"
        )
    ways = min(groupings(base, folds), MAX_REPEATS)
    if not 0 <= repeat < ways:
        remedy = "" if ways == MAX_REPEATS else "; for more raise shard.folds and run the shard stage again"
        raise ValueError(
            f"repeat = {repeat}: {base} base folds can be grouped into {folds} folds so that 0 to {ways - 1} "
            f"differ{remedy}"
        )
    groups = _in_turn(range(base), folds)
    seen = {frozenset(groups)}
    draw = 0
    while len(seen) <= repeat:  # the groupings so far, each once; `groups` is the newest
        draw += 1
        groups = _in_turn(sorted(range(base), key=lambda fold: stable_hash("repeat", draw, fold)), folds)
        seen.add(frozenset(groups))
    return groups


def groupings(base: int, folds: int) -> int:
    """In how many ways `base` folds fall into `folds` groups of even size, the groups' order aside."""
    small, larger = divmod(base, folds)
    sizes = [small + 1] * larger + [small] * (folds - larger)
    return factorial(base) // prod(map(factorial, sizes)) // (factorial(larger) * factorial(folds - larger))


def _in_turn(order: range | list[int], folds: int) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(sorted(order[group::folds])) for group in range(folds))
