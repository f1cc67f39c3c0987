"""Cross-validation from the parts as they lie: who is held out when, and what cannot be had."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from builders.shards import write_set

from fer.shards.folds import group_folds, groupings
from fer.shards.manifest import Manifest, load_manifest


@pytest.mark.parametrize("base", [2, 3, 10, 17])
def test_each_base_fold_is_in_one_group_and_group_sizes_differ_by_one_at_most(base: int) -> None:
    for folds in range(2, base + 1):
        for repeat in range(min(groupings(base, folds), 4)):
            groups = group_folds(base, folds, repeat)
            assert sorted(fold for group in groups for fold in group) == list(range(base))
            assert len(groups) == folds
            assert max(map(len, groups)) - min(map(len, groups)) <= 1


def test_as_many_folds_as_base_folds_are_the_base_folds() -> None:
    assert group_folds(10, 10) == tuple((fold,) for fold in range(10))


def test_groups_never_change() -> None:
    assert group_folds(10, 5) == ((0, 5), (1, 6), (2, 7), (3, 8), (4, 9))
    assert group_folds(10, 5, 1) == group_folds(10, 5, 1) != group_folds(10, 5)
    assert group_folds(6, 3, 2) == PINNED


PINNED = ((0, 2), (3, 4), (1, 5))


def test_no_two_repeats_give_the_same_groups_and_all_groupings_occur() -> None:
    for base, folds, ways in ((4, 2, 3), (5, 2, 10), (6, 3, 15), (7, 5, 105)):
        assert groupings(base, folds) == ways
        found = {frozenset(group_folds(base, folds, repeat)) for repeat in range(ways)}
        assert len(found) == ways


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"folds": 1}, r"2 to 3 are possible.*shard\.folds"),
        ({"folds": 4}, r"folds = 4.*2 to 3 are possible.*shard\.folds"),
        ({"folds": 3, "repeat": 1}, r"repeat = 1.*0 to 0 differ.*shard\.folds"),
        ({"folds": 2, "repeat": -1}, r"repeat = -1.*0 to 2 differ"),
        ({"folds": 3, "fold": 3}, r"fold = 3: of 3 folds, 0 to 2"),
        ({"folds": 3, "fold": -1}, r"fold = -1: of 3 folds, 0 to 2"),
        ({"fold": 1}, "without folds"),
        ({"repeat": 1}, "without folds"),
    ],
)
def test_impossible_folds_are_rejected_with_the_possible_ones(
    tmp_path: Path, arguments: dict[str, Any], reason: str
) -> None:
    manifest = load_manifest(write_set(tmp_path / "tiny"))
    with pytest.raises(ValueError, match=reason):
        manifest.files("train", **arguments)


def test_splits_without_folds_are_the_manifests(tmp_path: Path) -> None:
    manifest = load_manifest(write_set(tmp_path / "tiny"))
    for split in ("train", "validation", "test"):
        assert manifest.files(split) == manifest.splits[split]  # type: ignore[arg-type,index]
    with pytest.raises(ValueError, match="no split 'tests'; there are: train, validation, test"):
        manifest.files("tests")  # type: ignore[arg-type]


def test_every_development_row_is_validated_once_and_test_stays_as_published(tmp_path: Path) -> None:
    manifest = load_manifest(write_set(tmp_path / "tiny"))
    development = {part.file for part in manifest.parts if part.split != "test"}
    for folds, repeat in ((3, 0), (2, 0), (2, 1), (2, 2)):
        held_out: Counter[str] = Counter()
        for fold in range(folds):
            train, validation, test = (
                set(manifest.files(split, folds=folds, fold=fold, repeat=repeat))  # type: ignore[arg-type]
                for split in ("train", "validation", "test")
            )
            assert train | validation == development
            assert not train & validation
            assert test == set(manifest.splits["test"])
            held_out.update(validation)
        assert set(held_out.values()) == {1}


def test_fold_0_of_the_base_folds_is_the_manifests_validation_split(tmp_path: Path) -> None:
    manifest = load_manifest(write_set(tmp_path / "tiny"))
    assert manifest.files("validation", folds=3, fold=0) == manifest.splits["validation"]
    assert manifest.files("train", folds=3, fold=0) == manifest.splits["train"]


def test_published_validation_split_is_not_in_cross_validation(tmp_path: Path) -> None:
    manifest = load_manifest(write_set(tmp_path / "tiny"))
    parts = [vars(part) | ({"fold": None} if part.split == "validation" else {}) for part in manifest.parts]
    published = Manifest(**vars(manifest) | {"parts": tuple(type(manifest.parts[0])(**part) for part in parts)})
    for fold in (1, 2):
        names = {
            *published.files("train", folds=3, fold=fold),
            *published.files("validation", folds=3, fold=fold),
        }
        assert names == set(manifest.splits["train"])
    with pytest.raises(ValueError, match="fold 0 of 3 holds no rows"):  # its rows were all published as validation
        published.files("validation", folds=3, fold=0)
