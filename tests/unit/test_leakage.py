"""What becomes of rows that show one photograph; pictures are stood for by names."""

from __future__ import annotations

import numpy as np
import pytest

from fer.shards import leakage
from fer.shards.deal import DisjointSets
from fer.shards.duplicates import Fingerprint, Pair
from fer.shards.leakage import Duplicates, Twins, find_duplicates, label_conflicts, rows_shared, rows_to_drop
from fer.shards.schema import Split
from fer.shards.survey import Face

EMPTY = Fingerprint(np.zeros(64, np.float32), np.zeros((32, 32), np.uint8))


def face(sample_id: str, split: Split = "train", label: int = 0, pixels: bytes = b"") -> Face:
    return Face(
        sample_id=sample_id,
        label=label,
        split=split,
        subject=None,
        yaw=None,
        score=None,
        size=(8, 8),
        grey=True,
        pixels=pixels or sample_id.encode(),
        sums=(64, 0, 0, 0, 0, 0, 0),
        print=EMPTY,
    )


def near(*pairs: tuple[int, int]) -> tuple[Twins, ...]:
    return tuple(Twins(one, other, "near", 0.9) for one, other in pairs)


def test_test_rows_always_stay_and_everything_that_shows_their_picture_goes() -> None:
    faces = [face("a"), face("b", "validation"), face("c", "test"), face("d", "test"), face("e")]
    dropped = rows_to_drop(faces, Duplicates(exact=((0, 2),), near=near((0, 1), (2, 3), (3, 4))))
    assert {row: (why.reason, why.kept) for row, why in dropped.items()} == {
        0: ("duplicate_of_test", 2),
        1: ("duplicate_of_test", 2),
        4: ("duplicate_of_test", 2),
    }


def test_of_a_picture_of_train_and_a_published_validation_split_the_validation_row_stays() -> None:
    faces = [face("a"), face("b", "validation"), face("c", "validation")]
    dropped = rows_to_drop(faces, Duplicates(exact=((0, 1),), near=near((0, 2))))
    assert {row: why.reason for row, why in dropped.items()} == {0: "duplicate_of_validation"}


def test_of_doubles_in_train_the_first_with_the_commonest_label_stays() -> None:
    faces = [face("a", label=1), face("c", label=2), face("b", label=2)]
    dropped = rows_to_drop(faces, Duplicates(exact=((0, 1, 2),), near=()))
    assert {row: (why.reason, why.kept) for row, why in dropped.items()} == {0: ("duplicate", 2), 1: ("duplicate", 2)}


def test_rows_are_counted_once_however_many_doubles_they_have() -> None:
    split_of: dict[int, Split] = {0: "train", 1: "train", 2: "test", 3: "validation"}
    groups = [(0, 1, 2), (2, 0), (1, 3), (2, 9)]
    assert rows_shared(split_of, groups, within=True) == {
        "validation~train": 1,
        "test~train": 1,
        "test~validation": 0,
        "train~train": 2,
        "validation~validation": 0,
        "test~test": 0,
    }
    assert set(rows_shared(split_of, groups, within=False)) == {"validation~train", "test~train", "test~validation"}


def test_conflicting_labels_are_counted_by_picture_within_a_split_or_between_splits() -> None:
    faces = [face("a"), face("b", label=1), face("c", "test", 1), face("d"), face("e", "test"), face("f", label=1)]
    split_of: dict[int, Split] = {row: one.split for row, one in enumerate(faces)}
    duplicates = Duplicates(exact=((0, 1, 2), (3, 4), (4, 5)), near=near((0, 5)))
    assert label_conflicts(faces, split_of, duplicates) == {
        "train": 1,
        "validation": 0,
        "test": 0,
        "between splits": 1,
    }


def test_pairs_of_pictures_hold_for_every_row_that_has_these_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leakage, "near_duplicates", lambda prints: [Pair(0, 1, 0.95, True)])
    faces = [face("a", pixels=b"1"), face("b", pixels=b"2"), face("c", "test", pixels=b"1")]
    found = find_duplicates(faces, near=True)
    assert found.exact == ((0, 2),)
    assert found.near == (Twins(0, 1, "mirrored", 0.95), Twins(1, 2, "mirrored", 0.95))
    assert find_duplicates(faces, near=False) == Duplicates(found.exact, ())


def test_a_set_is_named_by_its_smallest_member_in_whatever_order_it_was_joined() -> None:
    for joins in ((("b", "c"), ("d", "a"), ("c", "d")), (("d", "c"), ("c", "b"), ("b", "a"))):
        sets: DisjointSets[str] = DisjointSets()
        for one, other in joins:
            sets.join(one, other)
        assert {sets.find(name) for name in "abcd"} == {"a"}
        assert sets.find("e") == "e"
