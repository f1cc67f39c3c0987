"""A client of the HTTP service."""

from __future__ import annotations

import http.client
from typing import Any, NamedTuple

from builders.limits import patience


class Answered(NamedTuple):
    """Of an HTTP request."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes


class Client:
    """Sends requests to a port of this machine, each over a connection of its own."""

    def __init__(self, port: int) -> None:
        self.port, self.url = port, f"http://127.0.0.1:{port}"

    def ask(self, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answered:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=patience(60))
        try:
            connection.request("GET" if body is None else "POST", path, body, headers or {})
            found = connection.getresponse()
            return Answered(found.status, found.headers, found.read())
        finally:
            connection.close()

    def predict(self, body: Any, headers: dict[str, str] | None = None) -> Answered:
        return self.ask("/v1/predict", body, headers)
