"""The part of a file that has arrived: what it is a part of, who may write it, and how long a transfer is tried."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from fer.console import log
from fer.io.disk import disk_errors
from fer.io.files import FileError, read_json, write_json

_PROGRESS = 1 << 20  # bytes that an attempt must bring to count as progress
_AGAIN = "run the same command again to go on from there"


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a transfer is tried. Waiting times have no random part: a transfer of one file disturbs nobody.

    Attributes:
        attempts: in a row, none of which brings 1 MiB that was not there before.
        stall: seconds without a byte after which a connection is given up.
        wait: seconds before the second attempt; doubles with each.
        longest_wait: bound of a wait, and of what a server may ask for.
    """

    attempts: int = 6
    stall: float = 60.0
    wait: float = 1.0
    longest_wait: float = 120.0


class InterruptionError(Exception):
    """A transfer broke off and may be tried again.

    Args:
        problem: what happened.
        wait: seconds that the server asks to wait; None where it does not.
    """

    def __init__(self, problem: str, wait: float | None = None) -> None:
        super().__init__(problem)
        self.wait = wait


@dataclass(frozen=True, kw_only=True)
class Version:
    """What a part belongs to; bytes of two versions are never put together.

    Attributes:
        source: public form of the URL.
        validator: strong ETag, or else the date of the last change; None where the source gives neither.
        total: bytes of the whole file, None where unknown.
    """

    source: str
    validator: str | None
    total: int | None


class Part:
    """The hidden file beside `destination` that grows until it is whole, and a small one that says its version.

    Args:
        destination: final path.
        source: public form of the URL.
        verified: a digest will be checked, so that bytes may be gone on from whose version is not known.
    """

    def __init__(self, destination: Path, source: str, *, verified: bool) -> None:
        self.path = destination.parent / f".{destination.name}.part"
        self._record = destination.parent / f".{destination.name}.part.json"
        self._source, self._verified = source, verified

    @property
    def size(self) -> int:
        """Bytes that have arrived."""
        return self.path.stat().st_size if self.path.exists() else 0

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Keeps other processes and threads from writing it for the block; yields whether there was another before.

        The lock is on the part itself and the kernel frees it when its holder dies. What holds nothing is removed.
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
                if not self._is(handle.fileno()):  # the other has finished: this is another file by now
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
        """Bytes to go on from, and of which version. 0 where there are none, or where nothing says of what."""
        size, version = self.size, self._version()
        if version is None or version.source != self._source:
            return (size, None) if self._verified and version is None else (0, None)
        if version.total is not None and size > version.total:
            return 0, None
        return (size if version.validator or self._verified else 0), version

    def _version(self) -> Version | None:
        try:
            return Version(**read_json(self._record))
        except (FileError, TypeError):
            return None

    def start(self, version: Version) -> None:
        """Empties it for a version. In this order: a crash must not leave old bytes under a new version's name."""
        with disk_errors(self.path, "make room and run the same command again"):
            self.empty()
            write_json(self._record, dataclasses.asdict(version))

    def empty(self) -> None:
        """Forgets all bytes; stays the same file for the lock."""
        with open(self.path, "wb") as handle:
            os.fsync(handle.fileno())

    def drop(self) -> None:
        """Removes it."""
        self.path.unlink(missing_ok=True)
        self.forget()

    def forget(self) -> None:
        """Removes what says its version, once the part itself is gone or has its final name."""
        if not self.path.exists():
            self._record.unlink(missing_ok=True)

    @contextmanager
    def writer(self, bar: Any) -> Iterator[Callable[[bytes], None]]:
        """A function that appends bytes, at once, and tells a progress bar."""
        remedy = f"what has arrived is kept in {self.path.name}: make room and {_AGAIN}"
        with disk_errors(self.path, remedy):
            handle = open(self.path, "ab", buffering=0)  # noqa: SIM115 - its errors alone are the disk's

        def write(data: bytes) -> None:
            rest = memoryview(data)
            with disk_errors(self.path, remedy):
                while rest:
                    rest = rest[handle.write(rest) :]
            bar.update(len(data))

        with handle:
            yield write


def persist(attempt: Callable[[], None], part: Part, patience: Patience, name: str) -> None:
    """Calls `attempt` until it ends without an `InterruptionError`, as long as there is hope.

    Raises:
        FileError: too many attempts in vain, or the server asks for more patience than there is.
    """
    failures, most = 0, part.size
    while True:
        try:
            attempt()
            return
        except InterruptionError as broken:
            if part.size >= most + _PROGRESS:
                failures = 0
            most = max(most, part.size)
            failures += 1
            if failures >= patience.attempts:
                kept = f"; {_AGAIN}: {part.size:,} bytes are in {part.path.name}" if part.size else ""
                raise FileError(f"{name}: {broken} ({failures} attempts){kept}") from None
            wait = min(patience.wait * 2 ** (failures - 1), patience.longest_wait)
            if broken.wait is not None:
                if broken.wait > patience.longest_wait:
                    raise FileError(f"{name}: {broken}, and asks to come back in {broken.wait:.0f} s") from None
                wait = broken.wait
            log.warning("%s: %s; again in %g s (attempt %d of %d)", name, broken, wait, failures + 1, patience.attempts)
            time.sleep(wait)


def public_url(url: str) -> str:
    """A URL without user name, password, query and fragment, fit for logs. A path stays as it is."""
    if "://" not in url and not url.startswith("file:"):
        return url
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def without_secrets(text: str, url: str) -> str:
    """One line of an error's text, with what `public_url` leaves out of a URL masked."""
    parts = urlsplit(url)
    secrets = [parts.query, parts.fragment, parts.netloc.rpartition("@")[0], parts.password or ""]
    secrets += [value for _, value in parse_qsl(parts.query)]
    line = text.strip().partition("\n")[0]
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        line = line.replace(secret, "***")
    return line
