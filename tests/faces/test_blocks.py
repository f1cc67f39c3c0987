"""What a block of images reads, where no folder is shared."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from fer.faces.blocks import StoredRaw
from fer.io.files import FileError
from fer.sources.base import Block


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StoredRaw]:
    """Two files in a store, of which a block reads both."""
    monkeypatch.setenv("FER_CACHE", str(tmp_path))
    files = {name: bytes([number]) * 1000 for number, name in enumerate(("labels.csv", "images.parquet"))}
    system = fsspec.filesystem("memory")
    for name, data in files.items():
        system.pipe(f"/raw/digest/{name}", data)
    about = {name: (hashlib.sha256(data).hexdigest(), len(data)) for name, data in files.items()}
    yield StoredRaw("memory://raw/digest", about, ("labels.csv",))
    system.store.clear()


BLOCK = Block(index=0, file="images.parquet", start=0, stop=1)


def test_a_block_is_fetched_with_what_all_blocks_read(raw: StoredRaw) -> None:
    folder = raw.fetched(BLOCK)
    assert {path.name for path in folder.iterdir()} == {"labels.csv", "images.parquet"}


def test_a_cache_without_room_for_one_block_is_named(raw: StoredRaw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FER_CACHE_GB", "1.5e-6")
    with pytest.raises(FileError, match=r"a block reads 2e-06 GB.*raise FER_CACHE_GB, or lower cluster.crop_workers"):
        raw.fetched(BLOCK)
