"""A real HTTP server that fails in the ways that real servers fail."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BODY = bytes(range(256)) * 8192  # 2 MiB
LOGIN_PAGE = b"<!DOCTYPE html><html>please log in</html>"


@dataclass
class Site:
    """What the server does, and what it was asked.

    Attributes:
        body: of the file.
        tag: ETag, or None for none.
        date: Last-Modified, or None for none.
        ranges: whether it answers a Range with a part.
        heads: whether it answers HEAD; else with 403, as links do that are signed for GET.
        faults: taken one a request, as long as there are any; then all is well. Each is "cut", "stall", "page",
            "chunked-cut", "nothing-said", "long", "short", "shifted", or a status such as 503.
        headers: sent besides.
        piece: bytes sent at a time, with `pause` seconds in between.
        asked: path and headers of each request.
    """

    body: bytes = BODY
    tag: str | None = '"one"'
    date: str | None = None
    ranges: bool = True
    heads: bool = True
    faults: list[str | int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    piece: int = 1 << 20
    pause: float = 0.0
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    url: str = ""
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def starts(self) -> list[int]:
        """First byte of each request."""
        return [_start(headers) for _, headers in self.asked]


@contextmanager
def serve(site: Site) -> Iterator[Site]:
    """Runs a server for the block; `site.url` is where."""

    class Handler(_Handler):
        pass

    Handler.site = site
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        site.url = f"http://127.0.0.1:{running.server_port}"
        try:
            yield site
        finally:
            site.over.set()
            running.shutdown()
            thread.join()


def _start(headers: dict[str, str]) -> int:
    return int(headers.get("Range", "bytes=0-").split("=")[1].split("-")[0])


class _Handler(BaseHTTPRequestHandler):
    site: Site

    def do_HEAD(self) -> None:
        self.site.asked.append((f"HEAD {self.path}", dict(self.headers.items())))
        length = {"Content-Length": str(len(self.site.body))}
        self._head(200 if self.site.heads else 403, length | self.site.headers)

    def do_GET(self) -> None:
        site = self.site
        headers = dict(self.headers.items())
        site.asked.append((self.path, headers))
        fault = site.faults.pop(0) if site.faults else None
        if isinstance(fault, int):
            self._head(fault, {"Content-Length": "0"} | site.headers)
        elif self.path.startswith(("/redirect", "/circle")):
            target = self.path.partition("?to=")[2] or {"/circle": "/circle"}.get(self.path, "/whole")
            self._head(302, {"Location": target, "Content-Length": "0"})
        elif fault == "page":
            self._head(200, {"Content-Length": str(len(LOGIN_PAGE)), "Content-Type": "text/html; charset=utf-8"})
            self.wfile.write(LOGIN_PAGE)
        else:
            self._file(headers, fault)

    def _file(self, headers: dict[str, str], fault: Any) -> None:
        site = self.site
        start, total = _start(headers), len(site.body)
        known = headers.get("If-Range")
        if not site.ranges or (known is not None and known not in (site.tag, site.date)):
            start = 0
        if start >= total > 0:
            self._head(416, {"Content-Range": f"bytes */{total}", "Content-Length": "0"})
            return
        data = site.body[start:]
        length = len(data) + {"long": 1000, "short": -1000}.get(fault, 0)
        said = {"Content-Length": str(length)}
        if fault == "chunked-cut":
            said = {"Transfer-Encoding": "chunked"}
            data = b"%x\r\n%s\r\n" % (1000, data[:1000])
        elif fault == "nothing-said":
            said = {}
        elif fault in ("cut", "stall"):
            data = data[: len(data) // 3]
        shift = 1 if fault == "shifted" else 0
        partial = {"Content-Range": f"bytes {start - shift}-{total - 1}/{total}"} if start else {}
        self._head(206 if start else 200, said | partial | site.headers)
        for place in range(0, len(data), site.piece):
            self.wfile.write(data[place : place + site.piece])
            if site.pause:
                time.sleep(site.pause)
        if fault == "stall":
            site.over.wait(20)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.protocol_version = "HTTP/1.1" if "Transfer-Encoding" in headers else "HTTP/1.0"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        for name, value in (("ETag", self.site.tag), ("Last-Modified", self.site.date)):
            if value is not None:
                self.send_header(name, value)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Nothing on the screen."""

    def handle(self) -> None:
        try:
            super().handle()
        except (BrokenPipeError, ConnectionResetError):  # the other side was killed, as it should be
            self.close_connection = True
