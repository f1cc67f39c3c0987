"""Files of object stores, kept on this machine by their content: a bounded folder that all processes share.

    <cache>/shards/<digest>/<file>    digest: of what the file belongs to, so that no name ever means other bytes

Before a file is fetched, those that were not used for the longest time make room for it; what is on its way at the same
time, at most four parts a process, comes on top. A process that has such a file open reads on; one that opens it
again fetches it again.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from fer.environment import environment
from fer.io.files import FileError, sha256
from fer.io.storage import Folder, inside, is_store
from fer.io.transfer import PATIENCE, Patience, download

DEFAULT_GB = 100.0
_SENDS = 4
_ABANDONED_SECONDS = 7 * 86_400.0


def cache_folder() -> Path:
    """Where files of object stores are kept, unless the caller says otherwise."""
    return environment().cache.expanduser() / "shards"


def cache_bytes() -> int:
    """How much may be kept: FER_CACHE_GB, by default 100.

    Raises:
        FileError: it is no positive number.
    """
    given = environment().cache_gb
    with suppress(ValueError):
        gigabytes = DEFAULT_GB if given is None else float(given)
        if 0 < gigabytes < 1e9:
            return int(gigabytes * 1e9)
    raise FileError(f"FER_CACHE_GB = {given!r}: expected a positive number of gigabytes")


def send(path: Path, url: str) -> str:
    """Puts a file into `url/<its SHA-256>` in a store, where it is not there already; its URL."""
    folder = Folder(inside(url, sha256(path)))
    if folder.sizes().get(path.name) != path.stat().st_size:
        folder.put(path.name, path)
    return inside(folder.location, path.name)


def send_folder(folder: Path, url: str, manifest: str, sizes: Mapping[str, int]) -> str:
    """Puts a folder into `url/<SHA-256 of its manifest>` in a store, where it is not there already; the URL of that.

    The manifest is put last: a folder that has one is complete. An interrupted call resumes.

    Args:
        manifest: name of the file that describes the others, with their digests.
        sizes: of the others, in bytes.
    """
    text = (folder / manifest).read_bytes()
    target = Folder(inside(url, hashlib.sha256(text).hexdigest()))
    found = target.sizes()
    if manifest not in found:
        with ThreadPoolExecutor(_SENDS) as pool:
            list(pool.map(lambda name: target.put(name, folder / name), [n for n in sizes if found.get(n) != sizes[n]]))
        target.write(manifest, text)
    return target.location


def local(location: str) -> Path:
    """The path of a file on this machine: as given, or the copy in the cache of one that `send` put into a store."""
    if not is_store(location):
        return Path(location)
    digest, name = location.rsplit("/", 2)[1:]
    return keep(location, cache_folder() / digest / name, digest, cache_folder())


def keep(url: str, path: Path, sha256_hex: str, cache: Path, size: int = 0, *, patience: Patience = PATIENCE) -> Path:
    """Brings a file into the cache, and makes room for it; see `fer.io.transfer.download`.

    Args:
        path: in the folder `cache`.
        size: bytes, where they are known before.
    """
    if not path.is_file():
        make_room(cache, size, cache_bytes())
    download(url, path, sha256_hex=sha256_hex, patience=patience)
    with suppress(FileNotFoundError):  # another process has made room
        os.utime(path)
    return path


def make_room(cache: Path, needed: int, most: int) -> None:
    """Removes the files that were not used for the longest time, until `needed` bytes fit into `most`.

    Parts of files that were not continued for a week are removed too.
    """
    found = []
    for path in cache.glob("*/*"):
        with suppress(FileNotFoundError):  # another process has removed it
            if path.name.startswith("."):  # on its way
                if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                    path.unlink()
            elif path.name != "manifest.json":  # which is small
                found.append((path.stat().st_mtime_ns, path.stat().st_size, path))
    total = sum(size for _, size, _ in found) + needed
    for _, size, path in sorted(found):
        if total <= most:
            return
        path.unlink(missing_ok=True)
        total -= size
