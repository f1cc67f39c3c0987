"""A folder on a disk or in an object store (s3://, gs://, az://), by whole files.

A file is there whole or not at all: on a disk it appears by rename, in a store by the one request that puts it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from fer.io.files import FileError, write_atomic
from fer.io.remote import InterruptionError, open_store, public_url, store_errors

T = TypeVar("T")
_ATTEMPTS, _WAIT_SECONDS = 4, 1.0


class OutageError(FileError):
    """A store did not respond, although it was asked again and again."""


def is_store(location: str | os.PathLike[str]) -> bool:
    """Whether it is the URL of an object store, and no path and no web address."""
    return "://" in os.fspath(location) and not os.fspath(location).startswith(("file:", "http:", "https:"))


class Folder:
    """The folder at `location`.

    Errors of a store that may pass are tried again a few times.

    Args:
        location: a path, or the URL of a store.

    Raises:
        OutageError: by every method: no response.
        FileError: by every method: an unknown store, no access, no such file.
    """

    def __init__(self, location: str | os.PathLike[str]) -> None:
        self._url = os.fspath(location).rstrip("/")
        self.name = public_url(self._url)
        self._path = None if is_store(location) else Path(location).expanduser()

    def names(self) -> set[str]:
        """Of the files directly in it; none where it does not exist."""
        if self._path is not None:
            return {path.name for path in self._path.iterdir()} if self._path.is_dir() else set()

        def listed(system: Any, path: str) -> set[str]:
            try:
                return {name.rpartition("/")[2] for name in system.ls(path, detail=False, refresh=True)}
            except FileNotFoundError:
                return set()

        return self._ask("", listed)

    def below(self, endings: tuple[str, ...]) -> Iterator[str]:
        """Every file below it whose name has one of the endings, in any case, as a path relative to it.

        Sorted within a folder on a disk; hidden files and folders are skipped, links to folders are not followed. A
        store lists them all at once.
        """
        if self._path is None:

            def listed(system: Any, path: str) -> list[str]:
                return sorted(os.path.relpath(name, path) for name in system.find(path))

            yield from (name for name in self._ask("", listed) if name.lower().endswith(endings))
            return
        for folder, inside, names in os.walk(self._path):
            inside[:] = sorted(name for name in inside if not name.startswith("."))
            for name in sorted(names):
                if name.lower().endswith(endings) and not name.startswith("."):
                    yield os.path.relpath(os.path.join(folder, name), self._path)  # noqa: PTH118

    def read(self, name: str, most: int) -> bytes:
        """A file of at most `most` bytes."""
        if self._path is not None:
            path = self._path / name
            try:
                with open(path, "rb") as handle:
                    data = handle.read(most + 1)
            except OSError as error:
                raise FileError(f"{path}: {error.strerror}") from None
        else:

            def content(system: Any, path: str) -> bytes:
                # Not a byte of what is too large; the range of an empty object would be refused.
                return bytes(most + 1) if system.size(path) > most else bytes(system.cat_file(path))

            data = self._ask(name, content)
        if len(data) > most:
            raise FileError(f"{self.name}/{name}: larger than {most:,} bytes")
        return data

    def write(self, name: str, data: bytes) -> None:
        """Puts a file, or replaces it."""
        if self._path is not None:
            self._path.mkdir(parents=True, exist_ok=True)
            write_atomic(self._path / name, data)
        else:
            self._ask(name, lambda system, path: system.pipe_file(path, data))

    def _ask(self, name: str, request: Callable[[Any, str], T]) -> T:
        url = f"{self._url}/{name}" if name else self._url
        public = public_url(url)
        system, path = open_store(url, public)
        for attempt in range(_ATTEMPTS):
            try:
                with store_errors(url, public):
                    return request(system, path)
            except InterruptionError as broken:
                if attempt == _ATTEMPTS - 1:
                    raise OutageError(f"{public}: {broken}") from None
                time.sleep(_WAIT_SECONDS * 2**attempt)
        raise AssertionError("unreachable")
