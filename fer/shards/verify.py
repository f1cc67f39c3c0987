"""Whether a folder of shards is what its manifest says: every file, every byte, every count."""

from __future__ import annotations

import json
from collections.abc import Mapping
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
    check_names(manifest, str(folder), repair(folder))
    sizes = {path.name: path.stat().st_size for path in folder.glob("*.parquet")}
    check_files(manifest, sizes, str(folder), repair(folder))
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda part: _check_part(folder, manifest, part, content), manifest.parts))
    return manifest


def check_names(manifest: Manifest, place: str, remedy: str) -> None:
    """ShardError where a manifest has other labels than this program, unsafe file names, or parts in no split."""
    known = SPACES.get(manifest.label_space)
    if known is None or known.labels != manifest.labels:
        raise ShardError(
            f"{place}/{FILE_NAME}: labels {', '.join(manifest.labels)} are not those of label space "
            f"{manifest.label_space!r} in this program; {remedy}"
        )
    files = [part.file for part in manifest.parts]
    if any(Path(file).name != file or not file.endswith(".parquet") for file in files):
        raise ShardError(f"{place}/{FILE_NAME}: names a part that is not a plain file name; {remedy}")
    if sorted(file for split in manifest.splits.values() for file in split) != sorted(files):
        raise ShardError(f"{place}/{FILE_NAME}: its splits do not hold each part once; {remedy}")


def check_files(manifest: Manifest, sizes: Mapping[str, int], place: str, remedy: str) -> None:
    """ShardError where files are missing, extra, or not of the manifest's size; `sizes`: bytes of each file found."""
    for part in manifest.parts:
        if part.file not in sizes:
            raise ShardError(f"{place}/{part.file}: missing; {remedy}")
        if sizes[part.file] != part.bytes:
            raise ShardError(
                f"{place}/{part.file}: {sizes[part.file]} bytes, the manifest says {part.bytes}: truncated or changed; "
                f"{remedy}"
            )
    known = {part.file for part in manifest.parts}
    for name in sorted(name for name in sizes if name.endswith(".parquet") and name not in known):
        raise ShardError(f"{place}/{name}: not in {FILE_NAME}: a file of another run; remove it, or {remedy}")


def _check_part(folder: Path, manifest: Manifest, part: Part, content: bool) -> None:
    from fer.shards.table import TableReader

    path = folder / part.file
    if content and sha256(path) != part.sha256:
        raise ShardError(f"{path}: its sha256 is not the manifest's: changed on disk; {repair(folder)}")
    try:
        reader = TableReader(path, remedy=repair(folder))
    except FileError as error:
        raise ShardError(str(error)) from None
    expected = {
        "fer.schema": str(manifest.schema_version),
        "fer.labels": json.dumps(list(manifest.labels)),
        "fer.color": manifest.colour,
    }
    for key, value in expected.items():
        if (found := reader.metadata.get(key)) != value:
            raise ShardError(f"{path}: {key} is {found!r}, expected {value!r}; {repair(folder)}")
    shape = reader.columns, tuple(reader.row_groups), reader.rows
    if shape != (shard_schema().names, part.row_groups, part.rows):
        raise ShardError(f"{path}: its rows or columns are not the manifest's; {repair(folder)}")
