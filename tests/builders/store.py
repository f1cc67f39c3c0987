"""An S3 server in a process of its own, behind a proxy that makes it slow, takes it away or refuses writes."""

import http.client
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest import mock

import fsspec
import pytest
from builders.limits import patience
from builders.places import free_port

BUCKET = "fer-test"
_REFUSAL = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


class S3:
    """The server as clients see it.

    Attributes:
        fault: what the proxy does to each request: "" nothing, "away" ends the connection, "slow" waits, "read only"
            refuses whatever writes.
        asked: method and path of each request that came through.
        variables: of the environment of its clients.
        url: of the bucket.
    """

    def __init__(self, moto: int) -> None:
        self.fault, self.moto = "", moto
        self.asked: list[tuple[str, str]] = []
        self.url = f"s3://{BUCKET}"
        self.port = 0

    @property
    def variables(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def request(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> bytes:
        """Of the server itself, behind the proxy."""
        connection = http.client.HTTPConnection("127.0.0.1", self.moto, timeout=patience(30))
        connection.request(method, path, body, headers or {})
        return connection.getresponse().read()


@contextmanager
def s3_server() -> Iterator[S3]:
    """Runs moto's server and the proxy for the block, in whose environment S3 clients find them.

    Skips the test where the extras are missing.
    """
    pytest.importorskip("moto", reason="needs the extra `bench`")
    pytest.importorskip("s3fs", reason="needs the extra `s3`")
    store = S3(free_port())
    script = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{store.moto}'])"
    moto = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )

    class Handler(_Proxy):
        pass

    Handler.store = store
    try:
        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as proxy:
            proxy.daemon_threads = True
            thread = threading.Thread(target=proxy.serve_forever, args=(0.02,), daemon=True)
            thread.start()
            store.port = proxy.server_port
            deadline = time.monotonic() + patience(30)
            while True:
                try:
                    store.request("PUT", f"/{BUCKET}")
                    break
                except OSError:
                    assert moto.poll() is None, "moto's server does not start"
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            clients = fsspec.get_filesystem_class("s3")
            clients.clear_instance_cache()  # which knows the server of another test
            with mock.patch.dict(os.environ, store.variables):
                yield store
            clients.clear_instance_cache()
            proxy.shutdown()
    finally:
        moto.kill()
        moto.wait()


class _Proxy(BaseHTTPRequestHandler):
    store: S3
    protocol_version = "HTTP/1.1"

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.store.fault == "away":
            self.close_connection = True
            self.connection.close()
            return
        if self.store.fault == "slow":
            time.sleep(0.2)
        if self.store.fault == "read only" and self.command not in ("GET", "HEAD"):
            self._answer(403, {"Content-Type": "application/xml"}, _REFUSAL)
            return
        self.store.asked.append((self.command, self.path))
        connection = http.client.HTTPConnection("127.0.0.1", self.store.moto, timeout=patience(30))
        connection.request(self.command, self.path, body, dict(self.headers.items()))
        answer = connection.getresponse()
        self._answer(answer.status, dict(answer.getheaders()), answer.read())
        connection.close()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _forward  # noqa: N815

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        dropped = ("transfer-encoding", "connection", *(() if self.command == "HEAD" else ("content-length",)))
        for name, value in headers.items():
            if name.lower() not in dropped:
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Nothing on the screen."""

    def handle(self) -> None:
        try:
            super().handle()
        except (BrokenPipeError, ConnectionResetError, ValueError):  # the client has gone, or was sent away
            self.close_connection = True
