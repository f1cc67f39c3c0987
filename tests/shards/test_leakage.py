"""Rows of one photograph are counted, dropped or grouped; images are represented by names."""

import numpy as np
import pytest

from fer.shards import leakage
from fer.shards.assign import DisjointSets, assign
from fer.shards.duplicates import PRINT, Pair
from fer.shards.leakage import (
    Duplicates,
    find_duplicates,
    label_conflicts,
    rows_near,
    rows_shared,
    rows_to_drop,
)
from fer.shards.schema import SPLITS, ShardConfig, Split
from fer.shards.survey import Face

PRINTS = np.zeros(0, PRINT)


def face(sample_id: str, split: Split = "train", label: int = 0, pixels: bytes = b"") -> Face:
    return Face(
        sample_id=sample_id,
        label=label,
        split=split,
        subject=None,
        yaw=None,
        score=None,
        size=(8, 8),
        gray=True,
        pixels=pixels or sample_id.encode(),
        sums=(64, 0, 0, 0, 0, 0, 0),
    )


def near(*pairs: tuple[int, int]) -> tuple[Pair, ...]:
    return tuple(Pair(one, other, "near", 0.9) for one, other in pairs)


def test_test_rows_always_stay_and_their_duplicates_are_dropped() -> None:
    faces = [face("a"), face("b", "validation"), face("c", "test"), face("d", "test"), face("e")]
    dropped = rows_to_drop(faces, Duplicates(exact=((0, 2),), near=near((0, 1), (2, 3), (3, 4))))
    assert {row: (why.reason, why.kept) for row, why in dropped.items()} == {
        0: ("duplicate_of_test", 2),
        1: ("duplicate_of_test", 2),
        4: ("duplicate_of_test", 2),
    }


def test_validation_row_stays_of_duplicates_in_train_and_published_validation() -> None:
    faces = [face("a"), face("b", "validation"), face("c", "validation")]
    dropped = rows_to_drop(faces, Duplicates(exact=((0, 1),), near=near((0, 2))))
    assert {row: why.reason for row, why in dropped.items()} == {0: "duplicate_of_validation"}


def test_first_row_with_the_most_common_label_stays_of_duplicates_in_train() -> None:
    faces = [face("a", label=1), face("c", label=2), face("b", label=2)]
    dropped = rows_to_drop(faces, Duplicates(exact=((0, 1, 2),), near=()))
    assert {row: (why.reason, why.kept) for row, why in dropped.items()} == {0: ("duplicate", 2), 1: ("duplicate", 2)}


def test_rows_are_counted_once_however_many_duplicates_they_have() -> None:
    split_of: dict[int, Split] = {0: "train", 1: "train", 2: "test", 3: "validation"}
    duplicates = Duplicates(exact=((0, 1, 2), (5, 6)), near=near((0, 3), (3, 9)))
    assert rows_shared(split_of, duplicates) == {"validation~train": 0, "test~train": 1, "test~validation": 0}
    assert rows_near(split_of, duplicates) == {
        "validation~train": 1,
        "test~train": 0,
        "test~validation": 1,
        "train~train": 0,
        "validation~validation": 0,
        "test~test": 0,
    }


def test_conflicting_labels_are_counted_by_image_within_a_split_or_between_splits() -> None:
    faces = [face("a"), face("b", label=1), face("c", "test", 1), face("d"), face("e", "test"), face("f", label=1)]
    split_of: dict[int, Split] = {row: one.split for row, one in enumerate(faces)}
    duplicates = Duplicates(exact=((0, 1, 2), (3, 4), (4, 5)), near=near((0, 5)))
    assert label_conflicts(faces, split_of, duplicates) == {
        "train": 1,
        "validation": 0,
        "test": 0,
        "between splits": 1,
    }


def test_copies_of_two_near_duplicates_are_one_pair_of_their_first_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leakage, "near_duplicates", lambda prints, rows: [Pair(0, 1, "mirrored", 0.95)])
    faces = [face("a", pixels=b"1"), face("b", pixels=b"2"), face("c", "test", pixels=b"1")]
    found = find_duplicates(faces, PRINTS)
    assert found.exact == ((0, 2),)
    assert found.near == (Pair(0, 1, "mirrored", 0.95),)
    assert find_duplicates(faces, None) == Duplicates(found.exact, ())


def test_four_thousand_copies_of_two_near_duplicates_make_pairs_by_their_sum_not_their_product(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leakage, "near_duplicates", lambda prints, rows: [Pair(0, 1, "near", 0.95)])
    copies = 4_000
    faces = [
        face(f"{row:04}", "test" if row % 5 == 0 else "train", pixels=b"%d" % (row % 2)) for row in range(2 * copies)
    ]
    duplicates = find_duplicates(faces, PRINTS)
    assert len(duplicates.pairs()) == 2 * (copies - 1) + 1
    split_of: dict[int, Split] = {row: one.split for row, one in enumerate(faces)}
    counts = rows_near(split_of, duplicates)
    assert (counts["test~train"], counts["train~train"], counts["test~test"]) == (1_600, 6_400, 1_600)
    assert len(rows_to_drop(faces, duplicates)) == 6_400
    config = ShardConfig(duplicates="group")
    places = assign(faces, config, seed=0, together=[pair[:2] for pair in duplicates.near])
    assert len({place.fold for place in places if place.split == "train"}) == 1


@pytest.mark.parametrize("seed", range(20))
def test_counts_drops_and_groups_equal_those_of_all_pairs_of_rows(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    random = np.random.default_rng(seed)
    images, rows = 9, 24
    shown = [*range(images), *random.integers(0, images, rows - images).tolist()]
    near_pairs = [(a, b) for a in range(images) for b in range(a + 1, images) if random.random() < 0.12]
    monkeypatch.setattr(
        leakage, "near_duplicates", lambda prints, rows: [Pair(a, b, "near", 0.9) for a, b in near_pairs]
    )
    splits = [SPLITS[choice] for choice in random.integers(0, 3, rows)]
    faces = [
        face(f"{random.integers(10**6):06}-{row}", splits[row], int(random.integers(2)), pixels=b"%d" % image)
        for row, image in enumerate(shown)
    ]
    duplicates = find_duplicates(faces, PRINTS)
    all_pairs = [
        (one, other)
        for one in range(rows)
        for other in range(one + 1, rows)
        if tuple(sorted((shown[one], shown[other]))) in near_pairs
    ]
    split_of = {row: split for row, split in enumerate(splits) if random.random() < 0.8}
    for key, count in rows_near(split_of, duplicates).items():
        here, there = key.split("~")
        ways = [*all_pairs, *((other, one) for one, other in all_pairs)]
        assert count == len({a for a, b in ways if split_of.get(a) == here and split_of.get(b) == there}), key
    of_rows = Duplicates(duplicates.exact, near(*all_pairs))
    assert rows_to_drop(faces, duplicates) == rows_to_drop(faces, of_rows)
    grouped, of_all = (
        assign(faces, ShardConfig(), seed=0, together=[pair[:2] for pair in one.near]) for one in (duplicates, of_rows)
    )
    assert grouped == of_all


def test_set_is_named_by_its_smallest_member_in_any_order_of_joins() -> None:
    for joins in ((("b", "c"), ("d", "a"), ("c", "d")), (("d", "c"), ("c", "b"), ("b", "a"))):
        sets: DisjointSets[str] = DisjointSets()
        for one, other in joins:
            sets.join(one, other)
        assert {sets.find(name) for name in "abcd"} == {"a"}
        assert sets.find("e") == "e"
