"""Whether a folder of shards is what its manifest says: every byte, every count."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fer.io.files import FileError, sha256
from fer.labels import SPACES
from fer.shards.manifest import FILE_NAME, Manifest, Part, load_manifest, repair
from fer.shards.schema import ShardError, shard_schema

_THREADS = 4


def verify(folder: Path, *, content: bool = True) -> Manifest:
    """Checks a folder of shards against its manifest.

    Args:
        content: also read every byte: sha256 of each part. Without it: presence, sizes, schema and counts.

    Returns:
        the manifest.

    Raises:
        ShardError: names the file, what is wrong, and the command that repairs it.
    """
    manifest = load_manifest(folder)
    _check_labels(folder, manifest)
    expected = {part.file for part in manifest.parts}
    present = {path.name for path in folder.glob("*.parquet")}
    for name in sorted(expected - present):
        raise ShardError(f"{folder / name}: missing; {repair(folder)}")
    for name in sorted(present - expected):
        raise ShardError(f"{folder / name}: not in {FILE_NAME}: a file of another run; {repair(folder)}")
    listed = [name for names in manifest.splits.values() for name in names]
    if sorted(listed) != sorted(expected):
        raise ShardError(f"{folder / FILE_NAME}: its splits do not hold each part once; {repair(folder)}")
    check: Callable[[Part], None] = lambda part: _check_part(folder, manifest, part, content)  # noqa: E731
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(check, manifest.parts):
            pass
    return manifest


def _check_labels(folder: Path, manifest: Manifest) -> None:
    known = SPACES.get(manifest.label_space)
    if known is None or known.labels != manifest.labels:
        raise ShardError(
            f"{folder / FILE_NAME}: labels {', '.join(manifest.labels)} are not those of label space "
            f"{manifest.label_space!r} in this program; {repair(folder)}"
        )


def _check_part(folder: Path, manifest: Manifest, part: Part, content: bool) -> None:
    from fer.shards.table import TableReader

    path = folder / part.file
    if (size := path.stat().st_size) != part.bytes:
        raise ShardError(
            f"{path}: {size} bytes, the manifest says {part.bytes}: truncated or changed; {repair(folder)}"
        )
    if content and sha256(path) != part.sha256:
        raise ShardError(f"{path}: its sha256 is not the manifest's: changed on disk; {repair(folder)}")
    try:
        reader = TableReader(path)
    except FileError as error:
        raise ShardError(f"{error}; {repair(folder)}") from None
    said = reader.metadata
    wanted = {
        "fer.schema": str(manifest.schema_version),
        "fer.labels": json.dumps(list(manifest.labels)),
        "fer.color": manifest.colour,
    }
    for key, value in wanted.items():
        if said.get(key) != value:
            raise ShardError(f"{path}: {key} is {said.get(key)!r}, expected {value!r}; {repair(folder)}")
    if (
        reader.columns != shard_schema().names
        or tuple(reader.row_groups) != part.row_groups
        or reader.rows != part.rows
    ):
        raise ShardError(f"{path}: its rows or columns are not the manifest's; {repair(folder)}")
