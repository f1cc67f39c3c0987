"""A folder on a disk or in an object store (s3://, gs://, az://), by whole files.

A file is there whole or not at all: on a disk it appears by rename, in a store by the one request that puts it.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from fer.io.files import FileError, json_text, remove_leftovers, write_atomic
from fer.io.remote import InterruptionError, open_store, public_url, store_errors

T = TypeVar("T")
_ATTEMPTS, _WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 8, 1.0, 30.0
"""A store may be away for a minute and a half."""


class OutageError(FileError):
    """A store did not respond, although it was asked again and again."""


def is_store(location: str | os.PathLike[str]) -> bool:
    """Whether it is the URL of an object store, and no path and no web address."""
    return "://" in os.fspath(location) and not os.fspath(location).startswith(("file:", "http:", "https:"))


def inside(location: str | os.PathLike[str], name: str) -> str:
    """The location of what is called `name` in a folder; of a path, the absolute one."""
    return f"{os.fspath(location).rstrip('/')}/{name}" if is_store(location) else str(Path(location, name).resolve())


class Folder:
    """The folder at `location`.

    Errors of a store that may pass are tried again for a minute and a half.

    Args:
        location: a path, or the URL of a store.
        attempts: how often a store is asked.

    Attributes:
        location: as given, without a slash at the end. name: the same without secrets.

    Raises:
        OutageError: by every method: no response.
        FileError: by every method: an unknown store, no access, no such file.
    """

    def __init__(self, location: str | os.PathLike[str], attempts: int = _ATTEMPTS) -> None:
        self.location, self._attempts = os.fspath(location).rstrip("/"), attempts
        self.name = public_url(self.location)
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

    def read(self, name: str, most: int | None = None) -> bytes:
        """A file, which is refused where it has more than `most` bytes."""
        data = self.find(name, most)
        if data is None:
            raise FileError(f"{self.name}/{name}: no such file")
        return data

    def find(self, name: str, most: int | None = None) -> bytes | None:
        """The same; None where there is no such file."""
        if self._path is not None:
            try:
                with open(self._path / name, "rb") as handle:
                    data = handle.read(-1 if most is None else most + 1)
            except FileNotFoundError:
                return None
            except OSError as error:
                raise FileError(f"{self._path / name}: {error.strerror}") from None
        else:

            def content(system: Any, path: str) -> bytes | None:
                try:  # not a byte of what is too large; the range of an empty object would be refused
                    if most is not None and system.size(path) > most:
                        return bytes(most + 1)
                    return bytes(system.cat_file(path))
                except FileNotFoundError:
                    return None

            found = self._ask(name, content)
            if found is None:
                return None
            data = found
        if most is not None and len(data) > most:
            raise FileError(f"{self.name}/{name}: larger than {most:,} bytes")
        return data

    def write(self, name: str, data: bytes) -> None:
        """Puts a file, or replaces it."""
        if self._path is not None:
            self._path.mkdir(parents=True, exist_ok=True)
            write_atomic(self._path / name, data)
        else:
            self._ask(name, lambda system, path: system.pipe_file(path, data))

    def create(self, name: str, data: bytes) -> bool:
        """Puts a file where there is none of that name; False where there is another one.

        Of several callers, each with data of its own, one gets True. Only in a store: S3 and its like by
        `If-None-Match: *`, Google and Azure by conditions of their own.
        """

        def put(system: Any, path: str) -> bool:
            try:
                system.pipe_file(path, data, mode="create")
            except FileExistsError:
                return False
            return True

        # An interrupted request may have been carried out: then what is there is what was put.
        return self._ask(name, put) or self.find(name) == data

    def put(self, name: str, file: Path) -> None:
        """Puts the content of a file, which need not fit into memory, into a store."""
        self._ask(name, lambda system, path: system.put_file(str(file), path))

    def sizes(self) -> dict[str, int]:
        """Of the files directly in a folder of a store, in bytes; none where it does not exist."""

        def listed(system: Any, path: str) -> dict[str, int]:
            try:
                entries = system.ls(path, detail=True, refresh=True)
            except FileNotFoundError:
                return {}
            return {entry["name"].rpartition("/")[2]: int(entry["size"] or 0) for entry in entries}

        return self._ask("", listed)

    def write_json(self, name: str, value: Any) -> None:
        """Puts JSON: the same bytes for the same value."""
        self.write(name, json_text(value).encode())

    def find_json(self, name: str) -> Any:
        """The value of a JSON file; None where there is no such file."""
        data = self.find(name)
        try:
            return None if data is None else json.loads(data)
        except ValueError as error:
            raise FileError(f"{self.name}/{name}: not valid JSON ({error})") from None

    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""
        if self._path is not None:
            (self._path / name).unlink(missing_ok=True)
        elif name in self.names():  # a store removes what is not there, or complains, each as it likes
            self._ask(name, lambda system, path: system.rm_file(path))

    def clear(self) -> None:
        """Removes everything below a folder of a store."""

        def emptied(system: Any, path: str) -> None:
            try:
                if found := system.find(path):
                    system.rm(found)
            except FileNotFoundError:  # another process has removed it
                pass

        self._ask("", emptied)

    def sweep(self) -> None:
        """Removes what killed processes have left of its files; a store keeps no such parts visible."""
        for left in self._path.glob(".*.tmp-*") if self._path is not None else ():
            remove_leftovers(left.parent, re.sub(r"^\.(.*)\.tmp-.*$", r"\1", left.name))

    def check(self) -> None:
        """Writes a small file, reads and removes it: whether this machine may do all that the work needs."""
        name, data = f"probe-{secrets.token_hex(8)}", secrets.token_bytes(8)
        self.write(name, data)
        if self.read(name, len(data)) != data:
            raise FileError(f"{self.name}/{name}: read back as something else")
        self.remove(name)

    def _ask(self, name: str, request: Callable[[Any, str], T]) -> T:
        url = f"{self.location}/{name}" if name else self.location
        public = public_url(url)
        system, path = open_store(url, public)
        for attempt in range(self._attempts):
            try:
                system.invalidate_cache()  # of listings, which other machines change
                with store_errors(url, public):
                    return request(system, path)
            except InterruptionError as broken:
                if attempt == self._attempts - 1:
                    raise OutageError(f"{public}: {broken}") from None
                time.sleep(min(_WAIT_SECONDS * 2**attempt, _LONGEST_WAIT_SECONDS))
        raise AssertionError("unreachable")
