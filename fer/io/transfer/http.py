"""One attempt to bring a file over HTTP(S). See `fer.io.transfer.download`."""

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
from contextlib import contextmanager
from typing import IO, Any
from urllib.parse import quote, unquote, urlsplit

from fer.console import progress
from fer.io.disk import refuse_full_disk
from fer.io.files import FileError
from fer.io.transfer.part import InterruptionError, Part, Version, without_secrets

_CHUNK = 1 << 20
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_CLOSING = 0.5  # seconds given to a server to close the connection, or to send more than it said


def fetch(url: str, part: Part, name: str, stall: float) -> None:
    """Brings what is missing of a part.

    Args:
        url: http or https.
        part: held by the caller.
        name: public form of the URL.
        stall: seconds without a byte after which the connection is given up.

    Raises:
        InterruptionError: it may work later.
        FileError: it will not.
    """
    have, version = part.usable()
    if have and version is not None and have == version.total:
        return  # whole already: the process ended before it could say so
    request = _request(url, have, version)
    with _troubles(url, name, stall):
        try:
            with urllib.request.build_opener(_Redirects(name)).open(request, timeout=stall) as response:
                _receive(response, part, have, version, name)
        except urllib.error.HTTPError as error:
            _refused(error, part, name)


def validator(url: str, name: str, timeout: float) -> str:
    """What tells the version of a file that a server has now from others, without fetching it: its ETag, else its date
    of change and its length; "" where the server says neither.

    Args:
        timeout: seconds without a byte after which the connection is given up.

    Raises:
        InterruptionError, FileError: as `fetch`.
    """
    for method in ("HEAD", "GET"):  # links that are signed for GET refuse HEAD; of a GET only the head is read
        request = _request(url, 0, None)
        request.method = method
        with _troubles(url, name, timeout):
            try:
                with urllib.request.build_opener(_Redirects(name)).open(request, timeout=timeout) as response:
                    _refuse_page(response.headers, name)
                    length = response.headers.get("Content-Length") or ""
                    date = response.headers.get("Last-Modified") or ""
                    return str(response.headers.get("ETag") or f"{date} {length}".strip())
            except urllib.error.HTTPError as error:
                error.close()
                answer = f"the server answered {error.code}"
    raise InterruptionError(answer)


@contextmanager
def _troubles(url: str, name: str, stall: float) -> Iterator[None]:
    """What goes wrong with a connection, as an InterruptionError where it may work later, else as a FileError."""
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


def _request(url: str, have: int, version: Version | None) -> urllib.request.Request:
    """GET of what is missing. User name and password go to this server only, never with a redirect."""
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    bare = parts._replace(netloc=host, fragment="").geturl()
    request = urllib.request.Request(quote(bare, safe="%/:=&?~+!$,;'@()*[]"), headers={"User-Agent": "fer"})
    if user:
        token = base64.b64encode(unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    if have:
        request.add_header("Range", f"bytes={have}-")
        if version is not None and version.validator:  # the server sends the whole file where it has changed
            request.add_header("If-Range", version.validator)
    return request


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from an encrypted connection to an open one: anyone on the way could then send
    other bytes than the publisher's.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urlsplit(req.full_url).scheme == "https" and urlsplit(newurl).scheme != "https":
            raise FileError(
                f"{self._name}: the server redirects from https to http, where anyone on the way can change the data; "
                "where that does not matter, give the http address itself"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _refused(error: urllib.error.HTTPError, part: Part, name: str) -> None:
    """Always raises."""
    with error:
        answer = f"the server answered {error.code}"
        if error.code == 416:  # the part is no part of what is there now
            part.empty()
            raise InterruptionError(f"{answer}: the file is shorter than what had arrived of it")
        if error.code in _TRANSIENT:
            raise InterruptionError(answer, _retry_after(error.headers.get("Retry-After")))
        if 300 <= error.code < 400:
            raise FileError(f"{name}: the server redirects in a circle, or to no http address")
        remedy = "; the link needs a login or has expired: fetch it by hand" if error.code in (401, 403, 407) else ""
        raise FileError(f"{name}: {answer} {error.reason}{remedy}")


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait, given as a number or a date."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    date = email.utils.parsedate_tz(value)
    return None if date is None else max(0.0, email.utils.mktime_tz(date) - time.time())


def _receive(response: Any, part: Part, have: int, version: Version | None, name: str) -> None:
    """Appends a response's body to the part, or begins it anew where the response is the whole file."""
    said = response.headers.get("Content-Length", "")
    left = int(said) if said.isdecimal() and not response.chunked else None
    if response.status == 206:
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", "").strip())
        start, total = (int(found[1]), int(found[3]) if found[3] != "*" else None) if found else (None, None)
        if start != have or (version is not None and None not in (total, version.total) and total != version.total):
            part.empty()
            raise InterruptionError("the server sent another range than it was asked for")
    elif response.status == 200:
        _refuse_page(response.headers, name)
        have, total = 0, left
        part.start(Version(source=name, validator=_validator(response.headers), total=total))
    else:
        raise FileError(f"{name}: the server answered {response.status} {response.reason}, and sent no file")
    refuse_full_disk(part.path.parent, left or 0, name)
    # Past the library's own bookkeeping, which hides bytes beyond the length that was said.
    stream: IO[bytes] = response if response.chunked else response.fp
    with (
        progress(total, f"download {name.rpartition('/')[2]}", "B", have) as bar,
        part.writer(bar) as write,
    ):
        while left != 0:
            chunk = stream.read1(_CHUNK if left is None else min(left, _CHUNK))  # type: ignore[attr-defined]
            if not chunk:
                break
            write(chunk)
            left = None if left is None else left - len(chunk)
    if left or (total is not None and part.size < total):
        raise InterruptionError(f"the connection was closed after {part.size:,} of {total:,} bytes")
    if left == 0 and _goes_on(stream):
        part.empty()
        raise FileError(
            f"{name}: the server says that the file has {total:,} bytes, and sends more: its copy is broken"
        )


def _refuse_page(headers: Any, name: str) -> None:
    if headers.get_content_type() in ("text/html", "application/xhtml+xml"):
        raise FileError(
            f"{name}: the server sent a web page, not the data; the link probably needs a login: fetch it by hand"
        )


def _goes_on(stream: Any) -> bool:
    """Whether bytes follow behind the length that was said. The connection is asked to be closed after the body."""
    try:
        ready, _, _ = select.select([stream.fileno()], [], [], _CLOSING)
        return bool(ready and stream.peek(1))
    except (OSError, ValueError):  # closed in another way than usual
        return False


def _validator(headers: Any) -> str | None:
    """What tells versions of a file apart. A weak ETag does not promise the same bytes."""
    etag = headers.get("ETag", "")
    return str(etag) if etag.startswith('"') else headers.get("Last-Modified")
