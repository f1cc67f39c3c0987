"""The download stage: a dataset's files, verified and counted, in data/raw/<dataset>."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fer.console import log
from fer.hashing import stable_hash
from fer.io.files import FileError, link_or_copy, read_json_if_there, sha256, write_json
from fer.outputs import RAW
from fer.params import Params
from fer.processes import lock, remove_held
from fer.sources.base import Source, describe
from fer.sources.origin import changed, given_paths, look, with_absolute_paths
from fer.sources.registry import DatasetConfig, get_source
from fer.stages.closure import code

FORMAT = 1


def run(params: Params, dataset: str) -> Path:
    """Downloads one dataset of params.yaml; see `download_dataset`."""
    config = params.dataset(dataset)
    return download_dataset(dataset, config, seed=params.seed, root=params.root, parent=params.parent)


def download_dataset(name: str, config: DatasetConfig, *, seed: int, root: Path, parent: Path | None = None) -> Path:
    """Writes one dataset to `root`/data/raw/<name>, complete or not at all.

    Nothing is done where the folder holds all that is asked for, and its origin has not changed. Where another
    dataset's folder holds it, made by the same code (.work/raw), its files are linked: of two crops of a dataset the
    second needs no other data. An interrupted transfer leaves its part in .work/download, and the same command resumes
    it; a whole file that was refused for its counts is kept there too.

    Args:
        name: key under `datasets`; names the folder.
        seed: of generated datasets.
        root: the project's folder; relative paths start there.
        parent: the project whose queued experiment `root` is: they start there instead.

    Returns:
        the folder.

    Raises:
        ValueError: no usable data; what the folder held is unchanged.
    """
    home = parent or root
    origin = look(name, config, home)  # first, so that a change from here on is noticed the next time
    config = with_absolute_paths(config, home)
    source = get_source(config, seed)
    final = RAW.folder(root, name)
    if is_complete(final, source, origin):
        log.info("%s: already complete", final.relative_to(root))
        return final
    notes, code_digest = home / ".work" / "raw", code().digest("download", reader=type(source).__module__)
    for twin in sorted(other.parent for other in final.parent.glob("*/source.json") if other.parent != final):
        made = {"code": code_digest, "source": sha256(twin / "source.json")}
        if read_json_if_there(notes / f"{twin.name}.json") == made and is_complete(twin, source, origin):
            _link(twin, final)
            write_json(notes / f"{name}.json", made)
            log.info("%s: the same data as in %s", final.relative_to(root), twin.relative_to(root))
            return final
    known = {key: digest for key, digest in origin.items() if digest is not None}
    paths = " ".join(str(path) for path in given_paths(config).values())
    work = home / ".work" / "download" / f"{name}-{stable_hash(paths):016x}"
    with lock(work / "lock", wait=parent is not None):
        with RAW.publish(final) as out:
            with _key_named(name):
                body = source.download(out, _cache_of(work / "files", known))
            files = [
                {"file": str(path.relative_to(out)), **_size_and_digest(path)}
                for path in sorted(out.rglob("*"))
                if path.is_file()
            ]
            about = {"format": FORMAT, "request": source.request, "files": files, **body}
            about |= {"origin": known} if known else {}
            write_json(out / "source.json", about, sealed=True)
        write_json(notes / f"{name}.json", {"code": code_digest, "source": sha256(final / "source.json")})
        remove_held(work)
    total = sum(one["bytes"] for one in files)
    log.info("%s: %d files, %.1f MB", final.relative_to(root), len(files), total / 1e6)
    return final


@contextmanager
def _key_named(name: str) -> Iterator[None]:
    """A reader does not know its key in params.yaml; its messages write `datasets.<name>`."""
    try:
        yield
    except ValueError as error:
        if (text := str(error).replace("datasets.<name>", f"datasets.{name}")) == str(error):
            raise
        raise FileError(text) from error


def _link(twin: Path, final: Path) -> None:
    """Another dataset's complete folder once more, as `final`."""
    with RAW.publish(final) as out:
        for file in (*(one["file"] for one in describe(twin)["files"]), "source.json"):
            (out / file).parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(twin / file, out / file)


def is_complete(raw: Path, source: Source, origin: Mapping[str, str | None]) -> bool:
    """Whether a folder holds what the source was asked for, every byte of it.

    Args:
        origin: what `fer.sources.origin.look` finds now. A folder of an earlier version does not state it: then local
            data are read again, and a URL is assumed to be unchanged.
    """
    try:
        description = describe(raw)
    except FileError:
        return False
    if description["request"] != source.request or changed(description.get("origin", {}), origin):
        return False
    paths = {raw / one["file"]: {"bytes": one["bytes"], "sha256": one["sha256"]} for one in description["files"]}
    return all(path.is_file() and _size_and_digest(path) == known for path, known in paths.items())


def _size_and_digest(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def _cache_of(folder: Path, origin: Mapping[str, str]) -> Path:
    """A folder for what is fetched and extracted, emptied where it holds that of other data."""
    note = folder / ".origin.json"
    if folder.is_dir() and changed(read_json_if_there(note) or {}, origin):
        shutil.rmtree(folder)
    write_json(note, origin)
    return folder
