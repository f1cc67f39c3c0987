"""Bringing a file from elsewhere: it has its final name only when it is whole and verified."""

from __future__ import annotations

import os
import shutil
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from fer.console import log
from fer.io.archives import refuse_truncated
from fer.io.disk import disk_errors, refuse_full_disk
from fer.io.files import FileError, fsync_directory, refuse_impostor, sha256
from fer.io.transfer import http, store
from fer.io.transfer.part import InterruptionError, Part, Patience, persist, public_url

__all__ = ["PATIENCE", "Patience", "download", "local_path", "public_url", "validator"]

PATIENCE = Patience()

_CHUNK = 1 << 20


def download(source: str, destination: Path, *, sha256_hex: str | None = None, patience: Patience = PATIENCE) -> None:
    """Brings one file from a URL or a local path; it has its name only when it is whole and verified.

    What has arrived of a broken transfer is kept in a hidden file beside the destination, and the same call goes on
    from there, in this process or another, as long as the source is provably the same version: same ETag or date of
    change, or a digest to check in the end. Connections that break or stall, and servers that are busy, are tried
    again after growing waits. Several processes may ask for the same file: one fetches it, the others wait.

    Refused are: an HTML page or a Git LFS pointer in place of the data; a zip, tar, gz, bz2 or xz without its end; more
    or fewer bytes than the server says; a redirect from https to http.

    Args:
        source: http(s) URL; path or file URL; or URL of an object store that fsspec knows (s3://, gs://, az://, ...),
            which takes its credentials and its endpoint from where the store's own tools do.
        destination: final path of the file.
        sha256_hex: expected digest, or None when the publisher gives none.
        patience: with a server or store.

    Raises:
        FileError: unreachable, cut off, of another digest, no data at all, or no room for it. The message names the
            source without user name, password and query.
    """
    name = public_url(source)
    part = Part(destination, name, verified=sha256_hex is not None)
    if _is_wanted(destination, sha256_hex):
        part.forget()
        return
    destination.parent.mkdir(parents=True, exist_ok=True)
    with part.held() as waited:
        # Another process may have brought it just now, also between the look above and the lock, without a wait.
        if _is_wanted(destination, sha256_hex) or (waited and sha256_hex is None and destination.exists()):
            return
        resumed = part.usable()[0] > 0
        _fetch(source, part, name, patience)
        found = _check(part, name, sha256_hex)
        if found != sha256_hex and resumed:
            log.warning("%s: what had arrived before is of another version; fetching it anew", name)
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


def validator(url: str, *, timeout: float = 5.0) -> str:
    """What a server or store says of the version of a file, without fetching it: its ETag or checksum, else its date
    of change; "" where it says nothing.

    Args:
        url: of any kind that `download` takes, but a local one.
        timeout: seconds that the other side may be silent.

    Raises:
        FileError: no answer, or a refusal.
    """
    name = public_url(url)
    ask = http.validator if urlsplit(url).scheme in ("http", "https") else store.validator
    try:
        return ask(url, name, timeout)
    except InterruptionError as broken:
        raise FileError(f"{name}: {broken}") from None


def _is_wanted(destination: Path, sha256_hex: str | None) -> bool:
    return sha256_hex is not None and destination.exists() and sha256(destination) == sha256_hex.lower()


def _fetch(source: str, part: Part, name: str, patience: Patience) -> None:
    scheme = urlsplit(source).scheme if "://" in source or source.startswith("file:") else ""
    if scheme in ("http", "https"):
        persist(lambda: http.fetch(source, part, name, patience.stall), part, patience, name)
    elif scheme in ("", "file"):
        _copy(local_path(source) if scheme else Path(source).expanduser(), part)
    else:
        persist(lambda: store.fetch(source, part, name), part, patience, name)


def _check(part: Part, name: str, sha256_hex: str | None) -> str | None:
    """The digest where one is expected; FileError, and no part any more, where the content cannot be the data."""
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


def local_path(url: str) -> Path:
    """Of a file URL; FileError where it is of another machine."""
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise FileError(f"{public_url(url)}: a file URL of another machine; give a path, or file:///path")
    return Path(urllib.request.url2pathname(parts.path))


def _copy(path: Path, part: Part) -> None:
    if not path.is_file():
        raise FileError(f"{path}: {'is a folder, expected a file' if path.is_dir() else 'no such file'}")
    refuse_full_disk(part.path.parent, path.stat().st_size, str(path))
    with disk_errors(part.path, f"copied from {path}: make room and run the same command again"):
        part.empty()
        with open(path, "rb") as reader, open(part.path, "ab") as writer:
            shutil.copyfileobj(reader, writer, _CHUNK)
