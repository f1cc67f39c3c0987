"""manifest.json is what was written, to the last byte, or it is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from builders.shards import change_manifest, write_set

from fer.shards.manifest import FILE_NAME, load_manifest, parse_manifest
from fer.shards.schema import ShardError


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("shards") / "tiny") / FILE_NAME


def test_a_manifest_survives_writing_and_reading(path: Path, tmp_path: Path) -> None:
    manifest = load_manifest(path.parent)
    manifest.save(tmp_path)
    assert load_manifest(tmp_path) == manifest
    assert (tmp_path / FILE_NAME).read_bytes() == path.read_bytes()


def test_a_change_of_any_one_byte_is_refused(path: Path) -> None:
    text = path.read_bytes()
    assert parse_manifest(text, path)
    for place in range(0, len(text), 7):
        for flip in (1, 1 << place % 8):
            changed = bytearray(text)
            changed[place] ^= flip
            with pytest.raises(ShardError, match=r"manifest\.json: .*dvc repro -f shard@tiny"):
                parse_manifest(bytes(changed), path)


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
def test_what_is_not_exactly_what_was_written_is_refused(path: Path, alter: object) -> None:
    with pytest.raises(ShardError, match=r"altered since it was written|not a manifest"):
        parse_manifest(alter(path.read_bytes()), path)  # type: ignore[operator]


def test_the_manifest_of_another_version_is_told_as_such(path: Path, tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(path.read_bytes())
    change_manifest(tmp_path, schema_version=1)
    with pytest.raises(ShardError, match="schema version 1, this program reads 2"):
        load_manifest(tmp_path)
    (tmp_path / FILE_NAME).write_text('{"schema_version": 1}')
    with pytest.raises(ShardError, match="schema version 1, this program reads 2"):
        load_manifest(tmp_path)
