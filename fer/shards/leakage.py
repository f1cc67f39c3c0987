"""Which rows show one photograph, in which splits they stand, and which are left out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fer.shards.assign import DisjointSets
from fer.shards.duplicates import Pair, near_duplicates
from fer.shards.schema import SPLITS, Split
from fer.shards.survey import Face

_ACROSS: tuple[tuple[Split, Split], ...] = (("validation", "train"), ("test", "train"), ("test", "validation"))


@dataclass(frozen=True)
class Duplicates:
    """What was found among the rows of a dataset.

    exact: numbers of the rows that share their pixels, ascending, two or more.
    near: every two images of one photograph that are not the same pixels, each by the first of its rows: what holds
        for that row holds for its copies in `exact`, so that many copies of two such images are one pair.
    """

    exact: tuple[tuple[int, ...], ...]
    near: tuple[Pair, ...]

    def pairs(self) -> list[Pair]:
        """All of it as pairs; rows of the same pixels are each paired with the first of them."""
        exact = [Pair(rows[0], other, "exact", 1.0) for rows in self.exact for other in rows[1:]]
        return [*exact, *self.near]


class Dropped(NamedTuple):
    """A row that is left out: why, and the row that stays in its place."""

    reason: str
    kept: int


def find_duplicates(faces: Sequence[Face], prints: npt.NDArray[np.void] | None) -> Duplicates:
    """Rows of one photograph.

    Args:
        prints: of each face, `fer.shards.duplicates.PRINT`; None looks at equal pixels alone, which costs nothing.
    """
    by_pixels: dict[bytes, list[int]] = defaultdict(list)
    for row, face in enumerate(faces):
        by_pixels[face.pixels].append(row)
    images = by_pixels.values()
    near = near_duplicates(prints, [rows[0] for rows in images]) if prints is not None else []
    return Duplicates(tuple(tuple(rows) for rows in images if len(rows) > 1), tuple(near))


def rows_to_drop(faces: Sequence[Face], duplicates: Duplicates) -> dict[int, Dropped]:
    """Rows that must go so that no photograph is in two splits, or twice in training; rows of the test split never go.

    Of the rows that show one photograph, where one of them stands in the test split, those of train and validation go
    ("duplicate_of_test"); else, where one stands in a published validation split, those of train
    ("duplicate_of_validation"); else all of train but one ("duplicate"): the first by id of those that bear the label
    that most bear.
    """
    dropped = {}
    for rows in _photographs(duplicates):
        by_split = {split: [row for row in rows if faces[row].split == split] for split in SPLITS}
        if by_split["test"]:
            for row in by_split["train"] + by_split["validation"]:
                dropped[row] = Dropped("duplicate_of_test", by_split["test"][0])
        elif by_split["validation"]:
            for row in by_split["train"]:
                dropped[row] = Dropped("duplicate_of_validation", by_split["validation"][0])
        else:
            labels = Counter(faces[row].label for row in rows)
            kept = min(rows, key=lambda row: (-labels[faces[row].label], faces[row].sample_id))
            dropped |= {row: Dropped("duplicate", kept) for row in rows if row != kept}
    return dropped


def _photographs(duplicates: Duplicates) -> Iterable[list[int]]:
    """The rows of each photograph that several show, ascending."""
    together: DisjointSets[int] = DisjointSets()
    pairs = duplicates.pairs()
    for pair in pairs:
        together.join(pair.first, pair.second)
    rows_of: dict[int, list[int]] = defaultdict(list)
    for row in sorted({row for pair in pairs for row in pair[:2]}):
        rows_of[together.find(row)].append(row)
    return rows_of.values()


def rows_shared(split_of: Mapping[int, Split], duplicates: Duplicates) -> dict[str, int]:
    """ "test~train": rows of test whose pixels a row of train has too, and so on for the other splits.

    Args:
        split_of: split of each row that counts.
    """
    return _rows_alike(split_of, ((rows, _splits(split_of, rows)) for rows in duplicates.exact), _ACROSS)


def rows_near(split_of: Mapping[int, Split], duplicates: Duplicates) -> dict[str, int]:
    """ "test~train": rows of test with a near duplicate in train, and so on; also "train~train" and so on."""
    rows_of = {rows[0]: rows for rows in duplicates.exact}
    images = {first: rows_of.get(first, (first,)) for pair in duplicates.near for first in pair[:2]}
    splits = {first: _splits(split_of, rows) for first, rows in images.items()}
    beside: dict[int, set[Split]] = defaultdict(set)
    for pair in duplicates.near:
        beside[pair.first] |= splits[pair.second]
        beside[pair.second] |= splits[pair.first]
    within = [(split, split) for split in SPLITS]
    return _rows_alike(split_of, ((images[first], found) for first, found in beside.items()), [*_ACROSS, *within])


def _splits(split_of: Mapping[int, Split], rows: Iterable[int]) -> set[Split]:
    return {split_of[row] for row in rows if row in split_of}


def _rows_alike(
    split_of: Mapping[int, Split],
    images: Iterable[tuple[Sequence[int], set[Split]]],
    keys: Iterable[tuple[Split, Split]],
) -> dict[str, int]:
    """Of each image: its rows, and the splits that hold what is alike."""
    counts = dict.fromkeys(keys, 0)
    for rows, splits in images:
        members = Counter(split_of[row] for row in rows if row in split_of)
        for one, other in counts:
            counts[one, other] += members[one] if other in splits else 0
    return {f"{one}~{other}": count for (one, other), count in counts.items()}


def label_conflicts(faces: Sequence[Face], split_of: Mapping[int, Split], duplicates: Duplicates) -> dict[str, int]:
    """Images that have several labels though their pixels are equal: of "train", ... and "between splits".

    An image counts for a split where its rows there disagree, else between the splits.
    """
    counts: Counter[str] = Counter(dict.fromkeys([*SPLITS, "between splits"], 0))
    for rows in duplicates.exact:
        labels: dict[Split, set[int]] = defaultdict(set)
        for row in rows:
            if row in split_of:
                labels[split_of[row]].add(faces[row].label)
        within = [split for split, found in labels.items() if len(found) > 1]
        counts.update(within)
        if not within and len(set().union(*labels.values())) > 1:
            counts["between splits"] += 1
    return dict(counts)
