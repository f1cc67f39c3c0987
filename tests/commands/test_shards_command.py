"""`fer shards`: classes, splits, leaks and folds in readable lines."""

from dataclasses import replace

import pytest
from builders.shards import write_set

from fer.commands.shards import describe, describe_folds
from fer.shards.manifest import Manifest, load_manifest


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return load_manifest(write_set(tmp_path_factory.mktemp("shards") / "tiny"))


def test_every_class_and_split_is_listed_with_its_fraction(manifest: Manifest) -> None:
    lines = describe(manifest)
    assert lines[0] == "tiny: 104 faces, 12 x 12 px, label space basic7, 4 parts, 3 base folds"
    assert next(line for line in lines if line.startswith("neutral")).split() == [
        "neutral", "30", "50.0", "%", "11", "55.0", "%", "12", "50.0", "%",
    ]  # fmt: skip
    assert next(line for line in lines if line.startswith("all")).split()[1::3] == ["60", "20", "24"]
    assert "not searched for (shard.duplicates: off)" in "\n".join(lines)


def test_leaks_are_listed_in_words(manifest: Manifest) -> None:
    leaky = replace(
        manifest,
        duplicates="report",
        near_pictures={"test~train": 1234, "train~train": 5, "test~test": 0},
        rejects={"no_face": 3},
        label_conflicts={"train": 2, "between splits": 1},
    )
    text = "\n".join(describe(leaky))
    assert "same photograph:  test in train 1,234, within train 5" in text
    assert "rejected:         no face 3" in text
    assert "several labels:   train 2, between splits 1" in text


def test_folds_are_listed_with_their_rows(manifest: Manifest) -> None:
    lines = describe_folds(manifest, 3, 0)
    assert [line.split()[:3] for line in lines[1:]] == [["0", "60", "20"], ["1", "40", "40"], ["2", "60", "20"]]
    with pytest.raises(ValueError, match=r"repeat = 1: .*shard\.folds"):
        describe_folds(manifest, 3, 1)
