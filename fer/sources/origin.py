"""Whether the user's data changed: digests of all that a dataset's configuration points at.

A digest covers names and contents of files, links followed as by the readers, and the version of a URL as its server or
store states it. It does not cover times: another copy of the same data has the same digest. Times, sizes and inodes
only show which files need not be read again: `.work/plan/<dataset>.hashes` caches the hashes, some 150 bytes a file.
Memory grows by less than a kilobyte a file.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fer.console import log, progress
from fer.io.files import FileError, disk_errors, read_json, write_atomic
from fer.io.remote import public_url, validator
from fer.io.transfer import local_path
from fer.sources.base import nfc
from fer.sources.layout import walk
from fer.sources.registry import DatasetConfig, get_source
from fer.sources.tree import TreeSource

_HEADER = b"fer hashes 1 "
_THREADS = 4
_HEX = 64  # characters of a hash
_BATCH = 1024  # files that wait for a thread
_CHUNK = 1 << 20

# A file that is written to after it was hashed has other times, unless that happens within one tick of the file
# system's clock (2 s on FAT). So files younger than that are hashed again the next time.
_TICK_NS = 2_000_000_000

_OF_URL = "url-"


def origin_digest(name: str, config: DatasetConfig, root: Path, home: Path) -> str | None:
    """Hex digest of all that a dataset's configuration points at; None where that is nothing.

    What is unavailable now, an unreachable server or an absent disk, counts as it was the last time, or else as it was
    when data/raw/<name> was downloaded.

    Args:
        name: key under `datasets`.
        root: folder with data/raw.
        home: folder with .work; relative paths start there.

    Raises:
        FileError: a file or folder may not be read.
    """
    found = look(name, config, home)
    if None in found.values():
        recorded = recorded_origin(root / "data" / "raw" / name, get_source(config, 0).request)
        found = {key: digest or recorded.get(key, "unknown") for key, digest in found.items()}
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest() if found else None


def look(name: str, config: DatasetConfig, home: Path) -> dict[str, str | None]:
    """A digest of each key of a dataset's configuration that points at something; see `origin_digest`.

    Returns:
        None for what is unavailable now and was before; nothing for generated datasets.
    """
    source = get_source(with_absolute_paths(config, home), 0)
    if not isinstance(source, TreeSource):
        return {}
    pinned, found = source.config.sha256, dict[str, str | None]()
    with _Hashes(home / ".work" / "plan" / f"{name}.hashes", name) as hashes:
        local: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for key, inside, path in source.inputs():
            if "://" not in path or path.startswith("file:"):
                local[key].append((inside, path))
            elif key == "path" and pinned:  # another file is not accepted
                found[key] = _OF_URL + pinned.lower()
            else:
                found[key] = hashes.known_place(key, path, _of_url(path))
        for key, places in local.items():
            digest = hashes.digest(key, places)
            found[key] = hashes.known_place(key, places[0][1], digest) if places[0][0] == "" else digest
    return found


def changed(recorded: Mapping[str, Any], now: Mapping[str, str | None]) -> bool:
    """Whether anything is known to differ. What was not recorded differs where it is a local file, and is assumed to be
    the same where it would have to be downloaded again."""
    return any(
        recorded[key] != digest if key in recorded else not digest.startswith(_OF_URL)
        for key, digest in now.items()
        if digest is not None
    )


def recorded_origin(raw: Path, request: Mapping[str, Any]) -> Mapping[str, Any]:
    """What `look` found when a folder was downloaded; nothing where that was another request, or is unknown."""
    try:
        about = read_json(raw / "source.json")
        return dict(about["origin"]) if about["request"] == request else {}
    except (FileError, KeyError, TypeError):
        return {}


def with_absolute_paths(config: DatasetConfig, home: Path) -> DatasetConfig:
    """Paths as written in params.yaml start at `home`; URLs stay."""

    def absolute(path: str) -> str:
        return path if "://" in path else str(home / os.path.expanduser(path))  # noqa: PTH111 - a Path's raises

    return config.model_copy(
        update={
            key: absolute(path) if isinstance(path, str) else [absolute(one) for one in path]
            for key, path in given_paths(config).items()
        }
    )


def given_paths(config: DatasetConfig) -> dict[str, str | list[str]]:
    """The keys of a configuration that name a file, a folder or a URL, but for those that are null."""
    keys = ("path", *getattr(config, "more_paths", ()))  # generated datasets have neither
    return {key: path for key in keys if (path := getattr(config, key, None)) is not None}


def missing_paths(config: DatasetConfig, root: Path) -> Iterator[str]:
    """The paths of this machine that a dataset is read from, and that are not there; relative ones are below `root`."""
    for given in given_paths(config).values():
        for path in [given] if isinstance(given, str) else given:
            local = os.path.expanduser(path)  # noqa: PTH111 - a Path's raises
            if "://" not in path and not (root / local).exists():
                yield local


def _of_url(url: str) -> str | None:
    """None, and a warning, where the server does not answer."""
    try:
        version = validator(url)
    except FileError as error:
        log.warning("%s; whether it changed is unknown", error)
        return None
    return _OF_URL + hashlib.sha256(f"{public_url(url)}\n{version}".encode()).hexdigest()


class _Hashes:
    """The cached hashes of a dataset's files. A context manager, which writes them at its end: after an error too, so
    that what was hashed until then is kept."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
        self._known = _load(path)
        self._kept: dict[bytes, bytes] = {}  # known records move here when they are used again
        self._changed = False
        self._started = time.time_ns()

    def __enter__(self) -> _Hashes:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._changed or (kind is None and self._known):
            records = self._kept if kind is None else self._known | self._kept
            body = b"\0".join(part for record in records.items() for part in record)
            with disk_errors(self._path, "make room and run the same command again"):
                write_atomic(self._path, _HEADER + hashlib.sha256(body).hexdigest().encode() + b"\n" + body)

    def known_place(self, key: str, path: str, digest: str | None) -> str | None:
        """The digest of a place; where it is unavailable now, the last one."""
        record = f"={key}:{public_url(path)!a}".encode()
        before = self._known.pop(record, None)
        if digest is None and before is not None:
            log.warning("%s: unavailable now; assumed to be unchanged", nfc(public_url(path)))
            digest = before.decode()
        if digest is not None:
            self._kept[record] = digest.encode()
            self._changed |= self._kept[record] != before
        return digest

    def digest(self, key: str, places: list[tuple[str, str]]) -> str | None:
        """Of the names and contents of files and folders; None where it is one place, and absent."""
        contents: dict[bytes, bytes] = {}  # ends with the hash; of what is not a file, its kind
        unread: list[tuple[bytes, str, bytes, int]] = []
        prefix = f"{key}:".encode()
        for inside, place in places:
            for name, path, status in _files(inside, _path_of(place)):
                record = prefix + name
                if record in contents:  # a table may name an image twice
                    continue
                if status is None or not stat.S_ISREG(status.st_mode):
                    kind = b"absent" if status is None else b"folder" if stat.S_ISDIR(status.st_mode) else b"no file"
                    contents[record] = kind
                    continue
                times = status.st_mtime_ns, status.st_ctime_ns
                facts = b"%d %d %d %d " % (status.st_size, status.st_ino, *times)
                before = self._known.pop(record, b"")
                if before.startswith(facts):
                    contents[record] = self._kept[record] = before
                else:
                    settled = max(times) < self._started - _TICK_NS
                    unread.append((record, path, facts if settled else b"", status.st_size))
        if contents == {prefix: b"absent"}:
            self._kept |= {record: facts for record, facts in self._known.items() if record.startswith(prefix)}
            return None
        for record, facts, content in self._hash(unread):
            contents[record] = facts + content
            if facts:
                self._kept[record] = contents[record]
                self._changed = True
        whole = hashlib.sha256()
        for record in sorted(contents):
            whole.update(b"%s\0%s\0" % (record, contents[record][-_HEX:]))
        return whole.hexdigest()

    def _hash(self, unread: list[tuple[bytes, str, bytes, int]]) -> Iterator[tuple[bytes, bytes, bytes]]:
        """Record's name, facts and hash of each file."""
        if not unread:
            return
        total = sum(size for *_, size in unread)
        stop = threading.Event()
        with progress(total, f"hash {self._name}", "B") as bar, ThreadPoolExecutor(_THREADS) as pool:
            try:
                for start in range(0, len(unread), _BATCH):
                    batch = unread[start : start + _BATCH]
                    hashes = pool.map(lambda one: hash_file(one[1], bar, stop), batch)
                    for (record, _, facts, _), content in zip(batch, hashes, strict=True):
                        yield record, facts, content
            finally:
                stop.set()  # else an interruption would wait for the end of a file of 100 GB


def hash_file(path: str, bar: Any, stop: threading.Event) -> bytes:
    """Hex digest of a file's bytes, counted by `bar`; meaningless once `stop` is set."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as handle:
            while not stop.is_set() and (chunk := handle.read(_CHUNK)):
                digest.update(chunk)
                bar.update(len(chunk))
    except OSError as error:
        raise _unreadable(path, error) from None
    return digest.hexdigest().encode()


def _files(inside: str, path: str) -> Iterator[tuple[bytes, str, os.stat_result | None]]:
    """Name, path and status of a place, and of all in it where it is a whole folder; status None: it is absent."""
    status = _status(path, lambda: os.stat(path))  # noqa: PTH116 - a Path takes longer
    yield os.fsencode(inside), path, status
    if not inside and status is not None and stat.S_ISDIR(status.st_mode):
        for name, entry, _ in walk(Path(path)):
            yield os.fsencode(name), entry.path, _status(entry.path, entry.stat)


def _status(path: str, ask: Callable[[], os.stat_result]) -> os.stat_result | None:
    try:
        return ask()
    except ValueError:  # not a possible name of a file
        return None
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
            return None
        raise _unreadable(path, error) from None


def _path_of(place: str) -> str:
    """Of a path or file URL; "" of a file URL of another machine."""
    try:
        return os.fspath(local_path(place)) if "://" in place else place
    except FileError:
        return ""


def _unreadable(path: str, error: OSError) -> FileError:
    return FileError(f"{nfc(path)}: cannot be read: {error.strerror}; make it readable, or remove it from the dataset")


def _load(path: Path) -> dict[bytes, bytes]:
    """The records of a file of hashes; none where it is absent, damaged or of another format."""
    try:
        head, _, body = path.read_bytes().partition(b"\n")
    except OSError:
        return {}
    if head != _HEADER + hashlib.sha256(body).hexdigest().encode():
        return {}
    parts = body.split(b"\0")
    return dict(zip(parts[::2], parts[1::2], strict=True))
