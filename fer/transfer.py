"""Bringing a file from elsewhere: it has its final name only when it is whole and verified."""

from __future__ import annotations

import os
import shutil
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from fer.console import log, progress
from fer.files import FileError, fsync_directory, refuse_impostor, sha256

_CHUNK = 1 << 20


def download(source: str, destination: Path, *, sha256_hex: str | None = None) -> None:
    """Brings one file from a URL or a local path; it has its name only when it is whole and verified.

    A broken transfer goes on where it stopped (HTTP Range) when the same source is asked for again. An HTML page or a
    Git LFS pointer in place of the data is refused.

    Args:
        source: http(s) URL, file URL or path.
        destination: final path of the file.
        sha256_hex: expected digest, or None when the publisher gives none.

    Raises:
        FileError: unreachable, cut off, of another digest, or no data at all.
    """
    if destination.exists() and sha256_hex and sha256(destination) == sha256_hex:
        return
    destination.parent.mkdir(parents=True, exist_ok=True)
    part = destination.parent / f".{destination.name}.part"
    name = public_url(source)
    if urlsplit(source).scheme in ("http", "https"):
        _fetch(source, part, name)
    else:
        path = Path(urllib.request.url2pathname(urlsplit(source).path) if source.startswith("file:") else source)
        _copy(path.expanduser(), part)
    try:
        refuse_impostor(part, name)
        if sha256_hex and (found := sha256(part)) != sha256_hex.lower():
            raise FileError(f"{name}: sha256 is {found}, expected {sha256_hex}: another or a damaged file")
    except FileError:
        part.unlink()
        raise
    with open(part, "rb") as handle:
        os.fsync(handle.fileno())
    os.replace(part, destination)
    fsync_directory(destination.parent)


def public_url(url: str) -> str:
    """A URL without user name, password and query, fit for logs."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl() if parts.scheme else url


def _copy(path: Path, part: Path) -> None:
    if not path.is_file():
        raise FileError(f"{path}: {'is a folder, expected a file' if path.is_dir() else 'no such file'}")
    with open(path, "rb") as reader, open(part, "wb") as writer:
        shutil.copyfileobj(reader, writer, _CHUNK)


def _fetch(url: str, part: Path, name: str, attempts: int = 4) -> None:
    for attempt in range(1, attempts + 1):
        try:
            _fetch_once(url, part, name)
            return
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the part is longer than the file: it belongs to another version
                part.unlink(missing_ok=True)
            elif error.code not in (408, 425, 429, 500, 502, 503, 504):
                raise FileError(f"{name}: the server answered {error.code} {error.reason}") from None
            problem = f"the server answered {error.code}"
        except (OSError, EOFError) as error:
            problem = str(error) or type(error).__name__
        log.warning("%s: %s (attempt %d of %d)", name, problem, attempt, attempts)
    raise FileError(f"{name}: {problem}; run the same command again to go on from {part.name}")


def _fetch_once(url: str, part: Path, name: str) -> None:
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "fer"} | ({"Range": f"bytes={have}-"} if have else {})
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        resumed = have > 0 and response.status == 206
        length = response.headers.get("Content-Length")
        total = (have if resumed else 0) + int(length) if length else None
        with (
            open(part, "ab" if resumed else "wb") as writer,
            progress(total, f"download {destination_label(name)}", "B", have if resumed else 0) as bar,
        ):
            while chunk := response.read(_CHUNK):
                writer.write(chunk)
                bar.update(len(chunk))
    if total is not None and (size := part.stat().st_size) < total:
        raise EOFError(f"connection closed after {size} of {total} bytes")


def destination_label(name: str) -> str:
    """The last part of a URL or path, for a progress bar."""
    return name.rstrip("/").rpartition("/")[2] or name
