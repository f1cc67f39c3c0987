"""Opening shards: whatever differs from the manifest is rejected before the first step, with file and remedy."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from builders.shards import LABELS, change_manifest, picture, png, write_part, write_set

from fer.shards.manifest import FILE_NAME, load_manifest, parse_manifest
from fer.shards.read import ShardSet
from fer.shards.schema import ShardError
from fer.shards.table import read_table

PART = "train-f2-0.parquet"
TEST = "test-0.parquet"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("shards") / "tiny")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "tiny"))


def test_opened_set_has_labels_splits_and_identity(whole: Path) -> None:
    shards = ShardSet.open(whole)
    assert (shards.labels, shards.label_space) == (LABELS, "basic7")
    rows = {name: shards.split(name).rows for name in ("train", "validation", "test")}
    assert rows == {"train": 60, "validation": 20, "test": 24}
    assert shards.split("train").sample_ids()[-1] == "small/0059"
    assert shards.split("train").row_group_sizes == (16, 16, 8, 16, 4)
    assert len(shards.digest) == 64
    assert ShardSet.open(whole, verify=False).digest == shards.digest
    with pytest.raises(ValueError, match=r"'tests'.* train, validation, test"):
        shards.split("tests")


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 16
    path.write_bytes(data)


DAMAGE: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "flipped bit": (lambda f: flip(f / PART, 3000), PART, "sha256"),
    "truncated": (lambda f: (f / TEST).write_bytes((f / TEST).read_bytes()[:-100]), TEST, r"\d+ bytes.*truncated"),
    "missing part": (lambda f: (f / PART).unlink(), PART, "missing"),
    "extra part": (
        lambda f: write_part(f, "train-f9-0.parquet", "train", {1: png(picture(1, 12))}),
        "train-f9-0.parquet",
        "not in manifest",
    ),
    "other part of the same name and size": (
        lambda f: write_part(f, TEST, "test", {row: png(picture(row + 1, 12)) for row in range(80, 104)}),
        TEST,
        "",
    ),
    "missing manifest": (lambda f: (f / FILE_NAME).unlink(), FILE_NAME, "no such file"),
    "truncated manifest": (
        lambda f: (f / FILE_NAME).write_text((f / FILE_NAME).read_text()[:200]),
        FILE_NAME,
        "not a manifest",
    ),
    "empty manifest": (lambda f: (f / FILE_NAME).write_text("{}"), FILE_NAME, "not a manifest"),
    "wrong type": (lambda f: change_manifest(f, folds=[3]), FILE_NAME, "not a manifest.*folds"),
    "unknown key": (lambda f: change_manifest(f, color="RGB"), FILE_NAME, "not a manifest.*color"),
    "other schema": (lambda f: change_manifest(f, schema_version=99), FILE_NAME, "schema version 99"),
    "other labels": (lambda f: change_manifest(f, labels=list(reversed(LABELS))), FILE_NAME, "labels anger.*basic7"),
    "part in no split": (
        lambda f: change_manifest(f, splits=json.loads((f / FILE_NAME).read_text())["splits"] | {"test": []}),
        FILE_NAME,
        "splits",
    ),
}


@pytest.mark.parametrize(("damage", "file", "reason"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_rejected_before_step_one_with_file_and_remedy(
    folder: Path, damage: Callable[[Path], object], file: str, reason: str
) -> None:
    damage(folder)
    with pytest.raises(ShardError, match=rf"{file}.*{reason}.*dvc repro (-f )?shard@tiny"):
        ShardSet.open(folder)


def test_bit_flipped_after_opening_is_found_by_the_page_checksum(folder: Path) -> None:
    split = ShardSet.open(folder).split("train")
    path = folder / PART
    flip(path, pq.ParquetFile(path).metadata.row_group(0).column(1).data_page_offset + 200)
    split.images(0)
    with pytest.raises(ShardError, match=rf"{PART}.*CRC"):
        split.images(3)
    with pytest.raises(ValueError, match=rf"{PART}: damaged"):
        read_table(path)


# ------------------------------------------------------------------------------------------------ the manifest


def test_manifest_survives_writing_and_reading(whole: Path, tmp_path: Path) -> None:
    manifest = load_manifest(whole)
    manifest.save(tmp_path)
    assert load_manifest(tmp_path) == manifest
    assert (tmp_path / FILE_NAME).read_bytes() == (whole / FILE_NAME).read_bytes()


@pytest.mark.parametrize(
    "alter",
    [
        lambda text: text[:-1],
        lambda text: text + b" ",
        lambda text: text.replace(b"\n  ", b"\n"),
        lambda text: text.replace(b'"seed": 0', b'"seed": 1'),
        lambda text: text.replace(b'"seed": 0', b'"seed": 0, "seed": 0'),
        lambda text: json.dumps(json.loads(text)).encode(),
        lambda text: b"",
        lambda text: b"[" * 100_000,
        lambda text: b'{"schema_version": 2, "dataset": "\\ud800"}',
        lambda text: b"\xff\xfe",
    ],
)
def test_manifest_other_than_exactly_as_written_is_rejected(whole: Path, alter: Callable[[bytes], bytes]) -> None:
    with pytest.raises(ShardError, match=r"altered since it was written|not a manifest"):
        parse_manifest(alter((whole / FILE_NAME).read_bytes()), whole / FILE_NAME)


@pytest.mark.parametrize("older", [{"schema_version": 1}, None], ids=["alone", "in a whole manifest"])
def test_manifest_of_another_version_is_named_as_such(folder: Path, older: dict[str, Any] | None) -> None:
    if older:
        (folder / FILE_NAME).write_text(json.dumps(older))
    else:
        change_manifest(folder, schema_version=1)
    with pytest.raises(ShardError, match=r"schema version 1.* 2"):
        load_manifest(folder)
