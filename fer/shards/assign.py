"""Split and fold assignment: the part that a face belongs to, a function of its group, its id and the seed.

A group is a subject (a face's own pixels where no subject is known), merged with every group that holds an image of the
same pixels: no person, and no image that occurs twice, is in two folds. Folds are as even as the hash makes them, which
the manifest's histograms show.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Generic, TypeVar

from fer.hashing import stable_hash
from fer.shards.schema import ShardConfig, Split
from fer.shards.survey import Face

T = TypeVar("T", int, str)


class DisjointSets(Generic[T]):
    """Joined items, directly or through others, are one set; a set is named by its smallest member."""

    def __init__(self) -> None:
        self._parent: dict[T, T] = {}

    def find(self, item: T) -> T:
        """The name of the set that holds an item."""
        while (parent := self._parent.setdefault(item, item)) != item:
            self._parent[item] = item = self._parent[parent]
        return item

    def join(self, one: T, other: T) -> None:
        """Merges two sets."""
        low, high = sorted((self.find(one), self.find(other)))
        self._parent[high] = low


@dataclass(frozen=True)
class Destination:
    """A part; `fold` is None for test parts and parts of a published validation split."""

    file: str
    split: Split
    fold: int | None


def assign(
    faces: Sequence[Face], config: ShardConfig, *, seed: int, together: Iterable[tuple[int, int]] = ()
) -> list[Destination]:
    """The part of each face.

    Args:
        together: numbers of faces that must share a fold, besides those that share a subject or their pixels.
    """
    published, destination = has_published_validation(faces), cache(Destination)
    places = []
    for face, group in zip(faces, _groups(faces, together), strict=True):
        if face.split == "train":
            fold = stable_hash("fold", seed, group) % config.folds
            part = stable_hash("part", seed, face.sample_id) % config.parts_per_fold
            split: Split = "train" if published or fold else "validation"
            places.append(destination(f"train-f{fold:02d}-{part:03d}.parquet", split, fold))
        else:
            part = stable_hash("part", seed, face.sample_id) % config.test_parts
            places.append(destination(f"{face.split}-{part:03d}.parquet", face.split, None))
    return places


def has_published_validation(faces: Iterable[Face]) -> bool:
    """Whether the dataset comes with a validation split; else it is fold 0 of the training rows."""
    return any(face.split == "validation" for face in faces)


def stored_order(rows: Iterable[int], faces: Sequence[Face], seed: int) -> list[int]:
    """The rows of one part as they are written: shuffled, once for all."""
    return sorted(rows, key=lambda row: (stable_hash("order", seed, faces[row].sample_id), faces[row].sample_id))


def _groups(faces: Sequence[Face], together: Iterable[tuple[int, int]]) -> list[str]:
    own = [f"subject {face.subject}" if face.subject is not None else f"pixels {face.pixels.hex()}" for face in faces]
    sets: DisjointSets[str] = DisjointSets()
    first_with: dict[bytes, str] = {}
    for face, name in zip(faces, own, strict=True):
        sets.join(name, first_with.setdefault(face.pixels, name))
    for one, other in together:
        sets.join(own[one], own[other])
    return [sets.find(name) for name in own]
