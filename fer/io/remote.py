"""Files on HTTP servers and in object stores (s3://, gs://, az://, ...): versions, and bytes from any position on.

HTTP is read by the standard library: fsspec's HTTP driver neither ties a resume to the ETag nor detects a body of
another length than announced. Object stores are read through fsspec. Nothing is written here; `fer.io.transfer` does.
"""

from __future__ import annotations

import base64
import email.utils
import http.client
import re
import select
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from fer.io import compat
from fer.io.files import FileError

_CHUNK = 1 << 20
_RANGE = 8 << 20  # bytes of a request to an object store
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_CLOSING = 0.5  # seconds for a server to close the connection, or to send more than it announced
_STORE_VALIDATORS = (
    "ETag", "etag", "generation", "LastModified", "last_modified", "updated", "mtime", "modified", "created",
)  # fmt: skip


class InterruptionError(Exception):
    """A transfer broke off and may be tried again.

    Args:
        problem: what happened.
        wait: seconds that the server asks to wait; None where it does not.
        discard: whether the bytes received so far are of no use any more.
    """

    def __init__(self, problem: str, wait: float | None = None, *, discard: bool = False) -> None:
        super().__init__(problem)
        self.wait, self.discard = wait, discard


class BrokenCopyError(FileError):
    """A server whose copy of the file is wrong: trying again does not help, and no received byte is of use."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """A version of a remote file; bytes of two versions are never combined.

    Attributes:
        source: public form of the URL.
        validator: strong ETag, or else the date of the last change; None where the source gives neither.
        total: bytes of the whole file, None where unknown.
    """

    source: str
    validator: str | None
    total: int | None


@dataclass(frozen=True, kw_only=True)
class Stream:
    """The bytes of a file from `start` to its end.

    Attributes:
        start: position of the first byte; 0 where the source cannot resume, or has another version than was asked for.
        total: bytes of the whole file, None where unknown.
        version: of the bytes; None where they continue the version that was asked for.
        chunks: may raise InterruptionError or FileError.
    """

    start: int
    total: int | None
    version: Version | None
    chunks: Iterator[bytes]


def read(url: str, name: str, have: int, known: Version | None, stall: float) -> AbstractContextManager[Stream]:
    """Opens a remote file.

    Args:
        url: http(s), or any scheme that fsspec knows.
        name: public form of the URL, for messages.
        have: bytes that are there already; reading resumes behind them if the file still has the version `known`.
        known: None where it is not known; a digest of the whole file must then be checked in the end.
        stall: seconds without a byte after which an HTTP connection is given up.

    Raises:
        InterruptionError: it may work later.
        FileError: it will not.
    """
    return (_read_http if _is_http(url) else _read_store)(url, name, have, known, stall)


def fetch(url: str, most: int, *, stall: float = 20.0) -> bytes:
    """A small remote file, in one attempt.

    Args:
        url: as for `read`.
        most: bytes; a larger file is refused, before it is fetched where its size is announced.
        stall: seconds without a byte after which an HTTP connection is given up.

    Raises:
        FileError: too large, or it cannot be fetched.
    """
    name = public_url(url)
    data = bytearray()
    try:
        with read(url, name, 0, None, stall) as stream:
            size = stream.total or 0
            while size <= most and (chunk := next(stream.chunks, None)) is not None:
                data += chunk
                size = max(size, len(data))
    except InterruptionError as broken:
        raise FileError(f"{name}: {broken}") from None
    if size > most:
        raise FileError(f"{name}: {size:,} bytes or more, at most {most:,} are read")
    return bytes(data)


def validator(url: str, *, timeout: float = 5.0) -> str:
    """The version of a remote file, without fetching it: its ETag or checksum, else its date of change; "" if unknown.

    Args:
        url: as for `read`.
        timeout: seconds that the other side may be silent.

    Raises:
        FileError: no response, or a refusal.
    """
    name = public_url(url)
    try:
        if _is_http(url):
            return _http_validator(url, name, timeout)
        system, path = open_store(url, name)
        with store_errors(url, name):
            system.invalidate_cache()
            version = _store_version(system, path, name, timeout)
        return version.validator or str(version.total)
    except InterruptionError as broken:
        raise FileError(f"{name}: {broken}") from None


def _is_http(url: str) -> bool:
    return urlsplit(url).scheme in ("http", "https")


def public_url(url: str) -> str:
    """A URL without user name, password, query and fragment, fit for logs. A path stays as it is."""
    if "://" not in url and not url.startswith("file:"):
        return url
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def without_secrets(text: str, url: str) -> str:
    """The first line of an error's text, with the parts of a URL masked that `public_url` leaves out."""
    parts = urlsplit(url)
    secrets = [parts.query, parts.fragment, parts.netloc.rpartition("@")[0], parts.password or ""]
    secrets += [value for _, value in parse_qsl(parts.query)]
    line = text.strip().partition("\n")[0]
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        line = line.replace(secret, "***")
    return line


# ------------------------------------------------------------------------------------------------ HTTP


@contextmanager
def _read_http(url: str, name: str, have: int, known: Version | None, stall: float) -> Iterator[Stream]:
    if have and known is not None and have == known.total:  # complete: the process ended before it could rename it
        yield Stream(start=have, total=have, version=None, chunks=iter(()))
        return
    request = _request(url)
    if have:
        request.add_header("Range", f"bytes={have}-")
        if known is not None and known.validator:  # the server sends the whole file where it has changed
            request.add_header("If-Range", known.validator)
    with _connection_errors(url, name, stall):
        try:
            with _open(request, name, stall) as response:
                yield _http_stream(response, have, known, name)
        except urllib.error.HTTPError as error:
            with error:
                raise _status_error(error, name) from None


def _http_stream(response: Any, have: int, known: Version | None, name: str) -> Stream:
    announced = response.headers.get("Content-Length", "")
    left = int(announced) if announced.isdecimal() and not response.chunked else None
    if response.status == 206:
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", "").strip())
        start, total = (int(found[1]), int(found[3]) if found[3] != "*" else None) if found else (None, None)
        if start != have or (known is not None and None not in (total, known.total) and total != known.total):
            raise InterruptionError("the server sent another range than it was asked for", discard=True)
        version = None
    elif response.status == 200:
        _refuse_page(response.headers, name)
        have, total = 0, left
        etag = response.headers.get("ETag", "")  # a weak one does not promise the same bytes
        strong = str(etag) if etag.startswith('"') else response.headers.get("Last-Modified")
        version = Version(source=name, validator=strong, total=total)
    else:
        raise FileError(f"{name}: the server answered {response.status} {response.reason}, and sent no file")
    return Stream(start=have, total=total, version=version, chunks=_http_chunks(response, have, left, total, name))


def _http_chunks(response: Any, have: int, left: int | None, total: int | None, name: str) -> Iterator[bytes]:
    connection = response if response.chunked else compat.http_socket(response)
    while left != 0:
        chunk = connection.read1(_CHUNK if left is None else min(left, _CHUNK))
        if not chunk:
            break
        yield chunk
        have += len(chunk)
        left = None if left is None else left - len(chunk)
    if left or (total is not None and have < total):
        raise InterruptionError(f"the connection was closed after {have:,} of {total:,} bytes")
    if left == 0 and _has_more(connection):
        raise BrokenCopyError(
            f"{name}: the server says that the file has {total:,} bytes, and sends more: its copy is broken"
        )


def _has_more(connection: Any) -> bool:
    """Whether bytes follow behind the announced length; urllib asks for the connection to be closed there."""
    try:
        ready, _, _ = select.select([connection.fileno()], [], [], _CLOSING)
        return bool(ready and connection.peek(1))
    except (OSError, ValueError):  # closed in another way than usual
        return False


def _http_validator(url: str, name: str, timeout: float) -> str:
    problem = ""
    for method in ("HEAD", "GET"):  # links that are signed for GET refuse HEAD; of a GET, only the head is read
        request = _request(url)
        request.method = method
        with _connection_errors(url, name, timeout):
            try:
                with _open(request, name, timeout) as response:
                    _refuse_page(response.headers, name)
                    length = response.headers.get("Content-Length") or ""
                    date = response.headers.get("Last-Modified") or ""
                    return str(response.headers.get("ETag") or f"{date} {length}".strip())
            except urllib.error.HTTPError as error:
                error.close()
                problem = f"the server answered {error.code}"
    raise InterruptionError(problem)


def _request(url: str) -> urllib.request.Request:
    """User name and password go to this server only, never along with a redirect."""
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    bare = parts._replace(netloc=host, fragment="").geturl()
    request = urllib.request.Request(quote(bare, safe="%/:=&?~+!$,;'@()*[]"), headers={"User-Agent": "fer"})
    if user:
        token = base64.b64encode(unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    return request


def _open(request: urllib.request.Request, name: str, timeout: float) -> Any:
    return urllib.request.build_opener(_Redirects(name)).open(request, timeout=timeout)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to http, where anyone on the way could send other bytes."""

    def __init__(self, name: str) -> None:
        self._name = name

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urlsplit(req.full_url).scheme == "https" and urlsplit(newurl).scheme != "https":
            raise FileError(
                f"{self._name}: the server redirects from https to http, where anyone on the way can change the data; "
                "where that does not matter, give the http address itself"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _refuse_page(headers: Any, name: str) -> None:
    if headers.get_content_type() in ("text/html", "application/xhtml+xml"):
        raise FileError(
            f"{name}: the server sent a web page, not the data; the link probably needs a login: fetch it by hand"
        )


def _status_error(error: urllib.error.HTTPError, name: str) -> Exception:
    status = f"the server answered {error.code}"
    if error.code == 416:
        return InterruptionError(f"{status}: the file is shorter than the part that was received", discard=True)
    if error.code in _TRANSIENT:
        return InterruptionError(status, _retry_after(error.headers.get("Retry-After")))
    if 300 <= error.code < 400:
        return FileError(f"{name}: the server redirects in a circle, or to an address that is not http")
    remedy = "; the link needs a login or has expired: fetch it by hand" if error.code in (401, 403, 407) else ""
    return FileError(f"{name}: {status} {error.reason}{remedy}")


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait, given as a number or a date."""
    if value is None or value.strip().isdecimal():
        return None if value is None else float(value)
    date = email.utils.parsedate_tz(value)
    return None if date is None else max(0.0, email.utils.mktime_tz(date) - time.time())


@contextmanager
def _connection_errors(url: str, name: str, stall: float) -> Iterator[None]:
    """Turns connection errors into an InterruptionError where it may work later, else into a FileError."""
    try:
        yield
    except (http.client.InvalidURL, UnicodeError):
        raise FileError(f"{name}: not a valid URL") from None
    except (OSError, EOFError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise FileError(
                f"{name}: the server's certificate is not valid ({reason.verify_message}): another server may be "
                "pretending to be it"
            ) from None
        if isinstance(reason, TimeoutError):
            raise InterruptionError(f"no byte for {stall:g} s") from None
        raise InterruptionError(without_secrets(str(reason) or type(reason).__name__, url)) from None


# ------------------------------------------------------------------------------------------------ object stores


@contextmanager
def _read_store(url: str, name: str, have: int, known: Version | None, stall: float) -> Iterator[Stream]:
    system, path = open_store(url, name)
    with store_errors(url, name):
        version = _store_version(system, path, name)
    resumes = known == version
    start = have if resumes else 0

    def chunks() -> Iterator[bytes]:
        assert version.total is not None
        position = start
        while position < version.total:
            with store_errors(url, name):
                data = system.cat_file(path, start=position, end=min(position + _RANGE, version.total))
            if not data:
                break
            yield data
            position += len(data)
        with store_errors(url, name):
            system.invalidate_cache()
            changed = _store_version(system, path, name) != version
        if changed or position != version.total:
            raise InterruptionError("it changed while it was fetched", discard=True)

    yield Stream(start=start, total=version.total, version=None if resumes else version, chunks=chunks())


def open_store(url: str, name: str) -> tuple[Any, str]:
    """The file system of a URL's store, and the path in it.

    Raises:
        FileError: an unknown kind of store, or its package is not installed.
    """
    import fsspec  # type: ignore[import-untyped]

    scheme = urlsplit(url).scheme
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:  # its text names the package
        raise FileError(f"{name}: {scheme}:// needs another package: {without_secrets(str(error), url)}") from None
    except ValueError:
        raise FileError(f"{name}: unknown scheme {scheme}://; known are http, https, file, s3, gs and az") from None
    return system, path


@contextmanager
def store_errors(url: str, name: str) -> Iterator[None]:
    """Turns a driver's errors into an InterruptionError where it may work later, else into a FileError."""
    try:
        yield
    except (FileError, InterruptionError):
        raise
    except FileNotFoundError:
        raise FileError(f"{name}: no such object") from None
    except IsADirectoryError:
        raise FileError(f"{name}: is a folder, expected one file") from None
    except Exception as error:  # noqa: BLE001 - drivers raise whatever their clients do
        text = without_secrets(str(error) or type(error).__name__, url)
        if isinstance(error, PermissionError) or "credential" in f"{type(error).__name__} {text}".lower():
            raise FileError(
                f"{name}: the store refuses ({text}): set its credentials as its own tools expect them"
            ) from None
        raise InterruptionError(text) from None


def _store_version(system: Any, path: str, name: str, timeout: float | None = None) -> Version:
    if timeout is not None and system.async_impl:
        from fsspec.asyn import sync  # type: ignore[import-untyped]

        info = sync(system.loop, system._info, path, timeout=timeout)
    else:
        info = system.info(path)
    if info["type"] == "directory" or info.get("size") is None:
        raise IsADirectoryError(path)
    found = next((info[key] for key in _STORE_VALIDATORS if info.get(key)), None)
    return Version(source=name, validator=None if found is None else str(found), total=int(info["size"]))
