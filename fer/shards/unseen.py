"""Test rows whose photograph is in no row of training or validation, by what the shard stage found."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fer.io.files import FileError

_PAIR = ("first", "second", "first_split", "second_split")


def unseen_rows(statistics: Path, sample_ids: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Which test rows have no duplicate or near duplicate in training and validation, (rows,).

    As in `fer.shards.leakage.rows_to_drop`, duplicates of duplicates show one photograph. Rows that
    `shard.duplicates: drop` left out are in no split, and count for nothing.

    Args:
        statistics: data/statistics/<dataset>, of the same shards.
        sample_ids: of all rows of the test split, in its order.

    Raises:
        FileError: its duplicates.csv or dropped.csv is absent, damaged, or of other shards.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = _columns(statistics / "duplicates.csv", _PAIR)
    (dropped,) = _columns(statistics / "dropped.csv", ("sample_id",))
    ids, numbers = np.unique(np.array([*pairs[0], *pairs[1], *sample_ids]), return_inverse=True)
    first, second, rows = np.split(numbers, [len(pairs[0]), 2 * len(pairs[0])])
    in_test = np.zeros(len(ids), bool)
    for members, splits in ((first, pairs[2]), (second, pairs[3])):
        in_test[members[np.array(splits, dtype=str) == "test"]] = True
    if in_test.sum() > np.isin(np.flatnonzero(in_test), rows).sum():
        raise FileError(f"{statistics / 'duplicates.csv'}: names test rows that the shards lack; {_again(statistics)}")
    in_test[rows] = True
    links = coo_array((np.ones(len(first), np.int8), (first, second)), shape=(len(ids), len(ids)))
    photographs, photograph_of = connected_components(links, directed=False)
    seen = np.zeros(photographs, bool)
    seen[photograph_of[~in_test & ~np.isin(ids, dropped)]] = True
    return np.asarray(~seen[photograph_of[rows]])


def _columns(path: Path, names: Sequence[str]) -> list[list[str]]:
    try:
        with open(path, encoding="utf-8", newline="") as handle:
            lines = list(csv.DictReader(handle, strict=True))
        return [[str(line[name]) for line in lines] for name in names]
    except FileNotFoundError:
        raise FileError(f"{path}: no such file; {_again(path.parent)}") from None
    except (ValueError, KeyError, csv.Error) as error:
        raise FileError(f"{path}: not what the shard stage writes ({error}); {_again(path.parent)}") from None


def _again(statistics: Path) -> str:
    return f"make it again: dvc repro -sf shard@{statistics.name}"
