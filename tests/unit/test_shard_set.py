"""Promises of opening shards: what is wrong with them is told before the first step, with file and remedy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from builders.shards import LABELS, change_manifest, picture, png, write_part, write_set

from fer.shards.read import ShardSet
from fer.shards.schema import ShardError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_set(tmp_path / "tiny")


def test_an_opened_set_tells_its_labels_splits_and_identity(folder: Path) -> None:
    shards = ShardSet.open(folder)
    assert shards.labels == LABELS
    assert shards.label_space == "basic7"
    assert {name: shards.split(name).rows for name in ("train", "validation", "test")} == {
        "train": 60,
        "validation": 20,
        "test": 24,
    }
    assert shards.split("train").sample_ids()[-1] == "small/0059"
    assert shards.split("train").row_group_sizes == (16, 16, 8, 16, 4)
    assert len(shards.digest) == 64
    assert ShardSet.open(folder, verify=False).digest == shards.digest
    with pytest.raises(ValueError, match="no split 'tests'; there are: train, validation, test"):
        shards.split("tests")


def flip_a_bit(folder: Path) -> str:
    path = folder / "train-f2-0.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 16
    path.write_bytes(data)
    return path.name


def truncate(folder: Path) -> str:
    path = folder / "test-0.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    return path.name


def remove(folder: Path) -> str:
    (folder / "train-f0-0.parquet").unlink()
    return "train-f0-0.parquet"


def add_a_stranger(folder: Path) -> str:
    write_part(folder, "train-f9-0.parquet", "train", {1: png(picture(1, 12))})
    return "train-f9-0.parquet"


def remove_the_manifest(folder: Path) -> str:
    (folder / "manifest.json").unlink()
    return "manifest.json"


def cut_the_manifest(folder: Path) -> str:
    path = folder / "manifest.json"
    path.write_text(path.read_text()[:200])
    return "manifest.json"


def raise_the_schema_version(folder: Path) -> str:
    return change_the_manifest(folder, schema_version=99)


def reorder_the_labels(folder: Path) -> str:
    return change_the_manifest(folder, labels=list(reversed(LABELS)))


def forget_a_part(folder: Path) -> str:
    manifest = json.loads((folder / "manifest.json").read_text())
    return change_the_manifest(folder, splits=manifest["splits"] | {"test": []})


def exchange_a_part_for_another_of_the_same_name(folder: Path) -> str:
    write_part(folder, "test-0.parquet", "test", {row: png(picture(row + 1, 12)) for row in range(80, 104)})
    return "test-0.parquet"


def change_the_manifest(folder: Path, **values: object) -> str:
    change_manifest(folder, **values)
    return "manifest.json"


@pytest.mark.parametrize(
    "harm",
    [
        flip_a_bit,
        truncate,
        remove,
        add_a_stranger,
        remove_the_manifest,
        cut_the_manifest,
        raise_the_schema_version,
        reorder_the_labels,
        forget_a_part,
        exchange_a_part_for_another_of_the_same_name,
    ],
    ids=lambda harm: harm.__name__,
)
def test_damage_is_told_before_step_one_with_file_and_remedy(folder: Path, harm: Callable[[Path], str]) -> None:
    file = harm(folder)
    with pytest.raises(ShardError, match=rf"{file}.*dvc repro -f shard@tiny"):
        ShardSet.open(folder)


def test_a_bit_flipped_after_opening_is_found_by_the_page_checksum(folder: Path) -> None:
    split = ShardSet.open(folder).split("train")
    path = folder / "train-f2-0.parquet"
    start = pq.ParquetFile(path).metadata.row_group(0).column(1).data_page_offset
    data = bytearray(path.read_bytes())
    data[start + 200] ^= 1
    path.write_bytes(data)
    split.images(0)
    with pytest.raises(ShardError, match=r"train-f2-0\.parquet.*CRC"):
        split.images(3)
