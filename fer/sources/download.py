"""The download stage: a dataset's files, verified and counted, in data/raw/<dataset>."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fer.console import log
from fer.hashing import stable_hash
from fer.io.files import FileError, read_json, sha256, write_json
from fer.outputs import RAW
from fer.processes import lock, remove_held
from fer.sources.base import Source, read_description
from fer.sources.origin import changed, given_paths, look, with_absolute_paths
from fer.sources.registry import DatasetConfig, get_source

FORMAT = 1


def download_dataset(name: str, config: DatasetConfig, *, seed: int, root: Path, parent: Path | None = None) -> Path:
    """Brings one dataset into `root`/data/raw/<name>, complete or not at all.

    Nothing is done where the folder holds all that is asked for, and what it was made of has not changed. A broken
    transfer leaves its part in .work/download, and the same command goes on from there; so does a whole file that was
    refused for its counts.

    Args:
        name: key under `datasets`; names the folder.
        seed: of generated datasets.
        root: the project's folder; relative paths start there.
        parent: the project whose queued experiment `root` is: they start there instead.

    Returns:
        the folder.

    Raises:
        ValueError: no usable data; what stood in the folder is unchanged.
    """
    home = parent or root
    origin = look(name, config, home)  # first: what changes from here on is noticed the next time
    config = with_absolute_paths(config, home)
    source = get_source(config, seed)
    final = RAW.folder(root, name)
    if is_complete(final, source, origin):
        log.info("%s: already complete", final.relative_to(root))
        return final
    known = {key: digest for key, digest in origin.items() if digest is not None}
    paths = " ".join(str(path) for path in given_paths(config).values())
    work = home / ".work" / "download" / f"{name}-{stable_hash(paths):016x}"
    with lock(work / "lock", wait=parent is not None):
        with RAW.publish(final) as out:
            body = source.download(out, _cache_of(work / "files", known))
            files = sorted(path for path in out.rglob("*") if path.is_file())
            listed = [
                {"file": str(path.relative_to(out)), "bytes": path.stat().st_size, "sha256": sha256(path)}
                for path in files
            ]
            about = {"format": FORMAT, "request": source.request, "files": listed, **body}
            about |= {"origin": known} if known else {}
            write_json(out / "source.json", about, sealed=True)
        remove_held(work)
    log.info(
        "%s: %d files, %.1f MB", final.relative_to(root), len(files), sum(int(str(f["bytes"])) for f in listed) / 1e6
    )
    return final


def is_complete(raw: Path, source: Source, origin: Mapping[str, str | None]) -> bool:
    """Whether a folder holds what the source was asked for, every byte of it.

    Args:
        origin: what `fer.sources.origin.look` finds now. A folder of an earlier version says nothing of it: then local
            data are read again, and a URL is taken for unchanged.
    """
    try:
        description = describe(raw)
    except FileError:
        return False
    same = description["request"] == source.request and not changed(description.get("origin", {}), origin)
    return same and not _damaged(raw, description["files"])


def describe(raw: Path) -> dict[str, Any]:
    """source.json of a downloaded folder.

    Raises:
        FileError: it was not downloaded, or source.json is not as it was written.
    """
    if not (raw / "source.json").is_file():
        raise FileError(f"{raw}: not downloaded; run `dvc repro download@{raw.name}`")
    return read_description(raw, request=dict, files=list)


def _cache_of(folder: Path, origin: Mapping[str, str]) -> Path:
    """A folder for what is fetched and unpacked, emptied where it holds that of other data."""
    note = folder / ".origin.json"
    if folder.is_dir() and changed(read_json(note) if note.is_file() else {}, origin):
        shutil.rmtree(folder)
    write_json(note, origin)
    return folder


def _damaged(raw: Path, files: list[dict[str, Any]]) -> list[str]:
    def good(entry: dict[str, Any]) -> bool:
        path = raw / entry["file"]
        size_and_digest = entry["bytes"], entry["sha256"]
        return path.is_file() and (path.stat().st_size, sha256(path)) == size_and_digest

    return [entry["file"] for entry in files if not good(entry)]
