"""Shards in an object store: fetched part by part, when they are needed or shortly before.

A part is kept in a folder of this machine that all processes share, and that is bounded (`fer.io.cache`). It has its
name there only when it is whole and has the manifest's sha256, and one process fetches it while the others wait; so a
run starts when the parts of its first batches are there, and later epochs and other runs read from the disk.
"""

from __future__ import annotations

import hashlib
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from fer.io.cache import cache_folder, keep, send_folder
from fer.io.files import FileError, write_atomic
from fer.io.remote import InterruptionError, open_store, public_url, store_errors
from fer.io.transfer import PATIENCE, Patience, download
from fer.shards.manifest import FILE_NAME, parse_manifest
from fer.shards.schema import ShardError
from fer.shards.verify import check_files, check_names

_REMEDY = "upload the folder of shards again"
FETCHES = 4
"""Parts that are fetched at the same time, besides those that a reader waits for."""


def is_remote(location: Path | str) -> bool:
    """Whether this is the URL of a store or server, and no path."""
    return isinstance(location, str) and "://" in location and not location.startswith("file:")


def upload(folder: Path, url: str) -> str:
    """Puts a folder of shards into `url/<digest>`, where it is not there already; the URL of that folder.

    The manifest is put last: a set that has one is complete. An interrupted upload resumes.

    Raises:
        FileError: the store refuses, or does not respond.
    """
    manifest = parse_manifest((folder / FILE_NAME).read_bytes(), folder / FILE_NAME)
    return send_folder(folder, url, FILE_NAME, {part.file: part.bytes for part in manifest.parts})


class RemoteParts:
    """The parts of one folder of shards in a store. Safe for many threads and processes.

    Args:
        url: of the folder of shards: s3://bucket/prefix/name, or any other that fsspec or HTTP knows.
        cache: folder that holds the parts of all remote sets, in a folder each named by the set's digest.
        verify: whether what an earlier process kept is read once before it is used.
        fetches: parts that are fetched at the same time in advance.
        patience: with the store.

    Attributes:
        name: the URL without secrets.
        folder: where the parts are kept.
        manifest, digest: as in `fer.shards.dataset.ShardSet`.

    Raises:
        ShardError: no folder of shards, an altered or incomplete one, or a store that cannot be read.
    """

    def __init__(
        self,
        url: str,
        *,
        cache: Path | None = None,
        verify: bool = True,
        fetches: int = FETCHES,
        patience: Patience = PATIENCE,
    ) -> None:
        assert fetches >= 1
        self._url, self._verify, self._fetches, self._patience = url.rstrip("/"), verify, fetches, patience
        self.name = public_url(self._url)
        text = self._manifest_text()
        self.digest = hashlib.sha256(text).hexdigest()
        place = Path(urlsplit(self.name).netloc + urlsplit(self.name).path)
        try:
            self.manifest = parse_manifest(text, place / FILE_NAME)
        except ShardError as error:
            raise ShardError(f"{self.name}: {error}, and {_REMEDY}") from None
        check_names(self.manifest, self.name, _REMEDY)
        self._check_files()
        self.folder = (cache or cache_folder()) / self.digest
        if not (self.folder / FILE_NAME).is_file():
            write_atomic(self.folder / FILE_NAME, text)
        self._parts = {part.file: part for part in self.manifest.parts}
        self._lock = threading.Lock()
        self._here: dict[str, Future[None]] = {}  # parts that are here, or on their way
        self._early: dict[str, dict[str, pa.ChunkedArray]] = {}  # columns read before their part was here
        self._expected: deque[str] = deque()
        self._threads = 0

    def need(self, file: str) -> Path:
        """The path of a part, once it is here.

        Raises:
            ShardError: it cannot be fetched, or is not the manifest's; a later call tries again.
        """
        with self._lock:
            future = self._here.get(file)
            mine = future is None
            if future is None:
                future = self._here[file] = Future()
        if mine:
            self._complete(file, future)
        future.result()
        return self.folder / file

    @contextmanager
    def opened(self, file: str) -> Iterator[pa.NativeFile]:
        """A part, open for reading; fetched again where it had to make room for others meanwhile."""
        while True:
            try:
                handle = pa.OSFile(str(self.need(file)))
                break
            except FileNotFoundError:
                with self._lock:
                    self._here.pop(file, None)
        with handle:
            yield handle

    def expect(self, files: Sequence[str]) -> None:
        """Fetches parts in the background, in this order, in place of what was expected before.

        A failure is not reported here, but by `need`, which tries again.
        """
        with self._lock:
            self._expected = deque(dict.fromkeys(file for file in files if file not in self._here))
            more = min(self._fetches, len(self._expected)) - self._threads
            self._threads += max(more, 0)
        for _ in range(more):
            # A daemon: a process that is done does not wait for it, and the next resumes what has arrived.
            threading.Thread(target=self._work, name="fer-fetch", daemon=True).start()

    def column(self, file: str, name: str) -> pa.ChunkedArray:
        """One column of a part, page checksums verified, without waiting for its images.

        Where the part is not here yet only the column is read from the store. It is compared with the part's when
        that arrives: a column of another file than the manifest's is noticed before an image of it is used.

        Raises:
            ShardError: it cannot be read.
        """
        path, size = self.folder / file, self._parts[file].bytes
        with self._lock:
            ready = file in self._here and self._here[file].done()
        try:
            if ready:
                with self.opened(file) as handle:
                    return _column(handle, name)
            if path.is_file() and path.stat().st_size == size:
                column = _column(path, name)
            else:
                column = self._remote_column(file, name)
        except InterruptionError:  # the store fails for a moment: a transfer retries
            with self.opened(file) as handle:
                return _column(handle, name)
        except (OSError, pa.ArrowException, FileError) as error:
            raise ShardError(f"{self.name}/{file}: its column {name!r} cannot be read ({error})") from error
        with self._lock:
            self._early.setdefault(file, {})[name] = column
        return column

    def remedy(self, file: str) -> str:
        """What to do about a kept part that cannot be read any more."""
        return f"remove {self.folder / file}: it is fetched again from {self.name}"

    def _manifest_text(self) -> bytes:
        with tempfile.TemporaryDirectory(prefix="fer-") as scratch:
            path = Path(scratch, FILE_NAME)
            try:
                download(f"{self._url}/{FILE_NAME}", path, patience=self._patience)
            except FileError as error:
                raise ShardError(f"{error}; a folder of shards has one: was all of it uploaded?") from None
            return path.read_bytes()

    def _check_files(self) -> None:
        """Whether every part is in the store, of its size, and no other: one request. HTTP cannot tell."""
        if urlsplit(self._url).scheme in ("http", "https"):
            return
        try:
            system, path = open_store(self._url, self.name)
            with store_errors(self._url, self.name):
                system.invalidate_cache()
                found = {entry["name"].rpartition("/")[2]: entry["size"] for entry in system.ls(path, detail=True)}
        except (FileError, InterruptionError) as error:
            raise ShardError(f"{self.name}: its files cannot be listed ({error})") from None
        check_files(self.manifest, found, self.name, _REMEDY)

    def _complete(self, file: str, future: Future[None]) -> None:
        """Fetches a part, and wakes whoever waits for it."""
        try:
            self._fetch(file)
        except BaseException as error:  # noqa: BLE001 - re-raised to all waiting threads
            with self._lock:
                self._here.pop(file, None)  # a later request tries again
            future.set_exception(error)
        else:
            future.set_result(None)

    def _fetch(self, file: str) -> None:
        part, path = self._parts[file], self.folder / file
        trusted = not self._verify and path.is_file() and path.stat().st_size == part.bytes
        if not trusted:
            url, cache = f"{self._url}/{file}", self.folder.parent
            try:
                keep(url, path, part.sha256, cache, part.bytes, patience=self._patience)
            except FileError as error:
                raise ShardError(f"part {file}: {error}") from None
        with self._lock:
            early = self._early.pop(file, {})
        for name, column in early.items():
            if not _column(path, name).equals(column):
                raise ShardError(f"{self.name}/{file}: it changed since its column {name!r} was read; start again")

    def _work(self) -> None:
        """A thread that fetches what is expected, until nothing is."""
        while True:
            with self._lock:
                while self._expected and self._expected[0] in self._here:
                    self._expected.popleft()
                if not self._expected:
                    self._threads -= 1
                    return
                file = self._expected.popleft()
                future = self._here[file] = Future()
            self._complete(file, future)

    def _remote_column(self, file: str, name: str) -> pa.ChunkedArray:
        system, path = open_store(f"{self._url}/{file}", f"{self.name}/{file}")
        with (
            store_errors(f"{self._url}/{file}", f"{self.name}/{file}"),
            system.open(path, "rb", cache_type="none") as handle,
        ):
            return _column(handle, name)


def _column(source: Any, name: str) -> pa.ChunkedArray:
    """A column of a file, given by path or opened."""
    with pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=False) as parquet:
        return parquet.read(columns=[name], use_threads=False).column(0)
