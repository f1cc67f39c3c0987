"""Resumable, atomic downloads: a file has its final name only when it is complete and verified."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import shutil
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from fer.console import log, progress
from fer.io import remote
from fer.io.archives import refuse_truncated
from fer.io.files import (
    FileError,
    disk_errors,
    fsync_directory,
    read_json,
    refuse_full_disk,
    refuse_impostor,
    sha256,
    write_all,
    write_json,
)
from fer.io.remote import BrokenCopyError, InterruptionError, Version, public_url

_CHUNK = 1 << 20
_PROGRESS = 1 << 20  # new bytes with which an attempt counts as progress
_RESUME = "run the same command again to resume"


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a transfer is tried. Waiting times have no random part: one download disturbs nobody.

    Attributes:
        attempts: in a row without 1 MiB of new data.
        stall: seconds without a byte after which a connection is given up.
        wait: seconds before the second attempt; doubles with each.
        longest_wait: bound of a wait, and of what a server may ask for.
    """

    attempts: int = 6
    stall: float = 60.0
    wait: float = 1.0
    longest_wait: float = 120.0


PATIENCE = Patience()


def download(source: str, destination: Path, *, sha256_hex: str | None = None, patience: Patience = PATIENCE) -> None:
    """Brings one file from a URL or a local path; it has its final name only when it is complete and verified.

    The bytes of a broken transfer are kept in a hidden file beside the destination. The same call resumes from there,
    in this process or another, as long as the source is provably the same version: same ETag or date of change, or a
    digest to check in the end. Broken or stalled connections and busy servers are tried again after growing waits.
    Several processes may ask for the same file: one fetches it, the others wait.

    Refused are: an HTML page or a Git LFS pointer in place of the data; a zip, tar, gz, bz2 or xz without its end; more
    or fewer bytes than the server announces; a redirect from https to http.

    Args:
        source: http(s) URL; path or file URL; or URL of an object store that fsspec knows (s3://, gs://, az://, ...),
            which takes its credentials and its endpoint from where the store's own tools do.
        destination: final path of the file.
        sha256_hex: expected digest, or None when the publisher gives none.
        patience: with a server or store.

    Raises:
        FileError: unreachable, truncated, of another digest, not the data, or too little disk space. The message names
            the source without user name, password and query.
    """
    name = public_url(source)
    part = Part(destination, name, verified=sha256_hex is not None)
    if _is_there(destination, sha256_hex):
        part.forget()
        return
    destination.parent.mkdir(parents=True, exist_ok=True)
    with part.held() as waited:
        # Another process may have finished since the check above, also without a wait for the lock.
        if _is_there(destination, sha256_hex) or (waited and sha256_hex is None and destination.exists()):
            return
        resumed = part.usable()[0] > 0
        _fetch(source, part, name, patience)
        found = _check(part, name, sha256_hex)
        if found != sha256_hex and resumed:
            log.warning("%s: the bytes received before are of another version; fetching it from the start", name)
            part.empty()
            _fetch(source, part, name, patience)
            found = _check(part, name, sha256_hex)
        if found != sha256_hex:
            part.drop()
            raise FileError(f"{name}: sha256 is {found}, expected {sha256_hex}: another or a damaged file")
        with open(part.path, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(part.path, destination)
        part.forget()
        fsync_directory(destination.parent)


def local_path(url: str) -> Path:
    """The path of a file URL; FileError where it is on another machine."""
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise FileError(f"{public_url(url)}: a file URL of another machine; give a path, or file:///path")
    return Path(urllib.request.url2pathname(parts.path))


def _is_there(destination: Path, sha256_hex: str | None) -> bool:
    return sha256_hex is not None and destination.exists() and sha256(destination) == sha256_hex.lower()


def _check(part: Part, name: str, sha256_hex: str | None) -> str | None:
    """The digest where one is expected; FileError, and the part is removed, where the content cannot be the data."""
    try:
        refuse_impostor(part.path, name)
        if sha256_hex is None:
            refuse_truncated(part.path, name)
            return None
        found = sha256(part.path)
        return sha256_hex if found == sha256_hex.lower() else found
    except FileError:
        part.drop()
        raise


# ------------------------------------------------------------------------------------------------ the received part


class Part:
    """The hidden file beside `destination` that grows until it is complete, and a small one with its version.

    Args:
        destination: final path.
        source: public form of the URL.
        verified: a digest will be checked, so that bytes of an unknown version may be resumed.
    """

    def __init__(self, destination: Path, source: str, *, verified: bool) -> None:
        self.path = destination.parent / f".{destination.name}.part"
        self._record = destination.parent / f".{destination.name}.part.json"
        self._source, self._verified = source, verified

    @property
    def size(self) -> int:
        """Bytes received."""
        return self.path.stat().st_size if self.path.exists() else 0

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Locks out other processes and threads for the block; yields whether it waited for one. Removes an empty part.

        The lock is on the part itself, and the kernel releases it when its holder dies.
        """
        waited = False
        while True:
            with open(self.path, "ab") as handle:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    log.info("%s: another process is fetching it; waiting", self._source)
                    waited = True
                    fcntl.flock(handle, fcntl.LOCK_EX)
                if not self._is(handle.fileno()):  # the other process finished: the path is another file by now
                    continue
                try:
                    yield waited
                finally:
                    if self._is(handle.fileno()) and not self.size:
                        self.drop()
                return

    def _is(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self.path.stat())
        except FileNotFoundError:
            return False

    def usable(self) -> tuple[int, Version | None]:
        """Number of bytes that can be resumed, 0 where their version is not known, and their version."""
        size = self.size
        try:
            version = Version(**read_json(self._record))
        except (FileError, TypeError):
            return (size if self._verified else 0), None
        if version.source != self._source or (version.total is not None and size > version.total):
            return 0, None
        return (size if version.validator or self._verified else 0), version

    def start(self, version: Version) -> None:
        """Empties it for a version. In this order: after a crash, old bytes must not count as a new version's."""
        with disk_errors(self.path, "make room and run the same command again"):
            self.empty()
            write_json(self._record, dataclasses.asdict(version))

    def empty(self) -> None:
        """Discards all bytes; stays the same file for the lock."""
        with open(self.path, "wb") as handle:
            os.fsync(handle.fileno())

    def drop(self) -> None:
        """Removes it."""
        self.path.unlink(missing_ok=True)
        self.forget()

    def forget(self) -> None:
        """Removes the record of its version, once the part itself is gone or has its final name."""
        if not self.path.exists():
            self._record.unlink(missing_ok=True)


def _fetch(source: str, part: Part, name: str, patience: Patience) -> None:
    """Completes a part, in as many attempts as `patience` allows."""
    scheme = urlsplit(source).scheme if "://" in source or source.startswith("file:") else ""
    if scheme in ("", "file"):
        _copy(local_path(source) if scheme else Path(source).expanduser(), part)
        return
    failures, most = 0, part.size
    while True:
        try:
            _attempt(source, part, name, patience.stall)
            return
        except InterruptionError as broken:
            failures = 1 if part.size >= most + _PROGRESS else failures + 1
            most = max(most, part.size)
            if failures >= patience.attempts:
                kept = f"; {_RESUME}: {part.size:,} bytes are in {part.path.name}" if part.size else ""
                raise FileError(f"{name}: {broken} ({failures} attempts){kept}") from None
            wait = min(patience.wait * 2 ** (failures - 1), patience.longest_wait)
            if broken.wait is not None:
                if broken.wait > patience.longest_wait:
                    raise FileError(f"{name}: {broken}, and asks for a wait of {broken.wait:.0f} s") from None
                wait = broken.wait
            log.warning("%s: %s; again in %g s (attempt %d of %d)", name, broken, wait, failures + 1, patience.attempts)
            time.sleep(wait)


def _attempt(source: str, part: Part, name: str, stall: float) -> None:
    have, known = part.usable()
    try:
        with remote.read(source, name, have, known, stall) as stream:
            if stream.version is not None:
                part.start(stream.version)
            refuse_full_disk(part.path.parent, (stream.total or stream.start) - stream.start, name)
            remedy = f"the bytes received are kept in {part.path.name}: make room and {_RESUME}"
            with disk_errors(part.path, remedy):
                writer = open(part.path, "ab", buffering=0)  # noqa: SIM115 - its errors alone are the disk's
            with writer, progress(stream.total, f"download {name.rpartition('/')[2]}", "B", stream.start) as bar:
                for chunk in stream.chunks:
                    with disk_errors(part.path, remedy):
                        write_all(writer, chunk)
                    bar.update(len(chunk))
    except BrokenCopyError:
        part.empty()
        raise
    except InterruptionError as broken:
        if broken.discard:
            part.empty()
        raise


def _copy(path: Path, part: Part) -> None:
    if not path.is_file():
        raise FileError(f"{path}: {'is a folder, expected a file' if path.is_dir() else 'no such file'}")
    refuse_full_disk(part.path.parent, path.stat().st_size, str(path))
    with disk_errors(part.path, f"copied from {path}: make room and run the same command again"):
        part.empty()
        with open(path, "rb") as reader, open(part.path, "ab") as writer:
            shutil.copyfileobj(reader, writer, _CHUNK)
