"""The HTTP interface around something that predicts: routes, refusals, metrics, and the server that runs them.

An image is in memory while its request lasts: it is neither written nor logged, and no answer may be cached.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import math
import re
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from email.message import Message
from importlib.resources import files
from typing import Any, Protocol

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from fer.console import log
from fer.lineage import installed_version
from fer.processes import LostError
from fer.service.batches import Answer
from fer.service.limits import Limits, Rate

STATUS = {"empty": 415, "not_an_image": 415, "unsupported": 415, "too_large": 413}
"""By the reason of `fer.io.images`; any other is 422: an image, but not a whole one."""

STOP_SECONDS = 60
"""So long a stopped service waits for the requests in flight."""

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_IMAGES = (1, 2, 4, 8, 16)


class Backend(Protocol):
    """What predicts."""

    async def predict(self, image: bytes) -> tuple[Answer, int]:
        """The `Result` of the bytes of an image file as plain JSON, and the number of images predicted with it.

        Raises:
            LostError: there is nothing that predicts, for now.
        """
        ...

    async def healthy(self) -> bool:
        """Whether it can predict."""
        ...


# ------------------------------------------------------------------------------------------------ schema


class FaceSchema(BaseModel):
    """A face. `box`: x1, y1, x2, y2 in px of the upright image; `probabilities` sum to 1."""

    face: int
    box: tuple[float, float, float, float] | None
    score: float | None
    label: str
    probabilities: dict[str, float]
    logits: dict[str, float]


class RefusalSchema(BaseModel):
    """Why a face, or the image, was not classified."""

    reason: str
    detail: str


class PredictionSchema(BaseModel):
    """The faces of an image, the highest score first."""

    file: str
    read: bool
    faces: list[FaceSchema]
    refused: list[RefusalSchema]
    trained_on_synthetic: bool


_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FORM = {"schema": {"type": "object", "properties": {"file": _BINARY["schema"]}, "required": ["file"]}}
_BODY = {
    "requestBody": {"required": True, "content": {"image/*": _BINARY, "multipart/form-data": _FORM}},
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"model": PredictionSchema},
    408: {"description": "the body did not arrive in time"},
    413: {"description": "too many bytes, or too many pixels"},
    415: {"description": "no image, or of an unsupported kind"},
    422: {"description": "a truncated or damaged image, or a form without a file"},
    429: {"description": "the queue is full, or too many requests of this address; see Retry-After"},
    503: {"description": "nothing predicts at the moment; see Retry-After"},
}


# ------------------------------------------------------------------------------------------------ app


def create_app(backend: Backend, about: Mapping[str, Any], limits: Limits) -> FastAPI:
    """The application.

    Args:
        backend: what predicts.
        about: the model, for `/v1/model`; plain JSON with `trained_on_synthetic`.
        limits: what is accepted.
    """
    app = FastAPI(
        title="fer",
        version=installed_version("fer") or "unknown",
        docs_url=None,
        redoc_url=None,
        description="Expressions of the faces of photos",
    )
    service = _Service(backend, limits)
    model = JSONResponse({**about, "limits": limits.model_dump()})
    page, policy = _page()

    @app.post("/v1/predict", responses=_RESPONSES, openapi_extra=_BODY)
    async def predict(request: Request) -> Response:
        """Finds the faces of a photo and names their expressions. The body is the image file, or a form with one."""
        answer = await service.measured(request)
        return JSONResponse(
            {**answer, "trained_on_synthetic": about["trained_on_synthetic"]}, headers={"Cache-Control": "no-store"}
        )

    @app.get("/v1/model")
    async def describe() -> Response:
        """The model: labels, card, versions; and the limits of this service."""
        return model

    @app.get("/healthz", responses={503: {"description": "nothing predicts at the moment"}})
    async def health() -> Response:
        """Whether the service can predict."""
        healthy = await backend.healthy()
        return JSONResponse({"status": "ok" if healthy else "unavailable"}, 200 if healthy else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus' text format."""
        return Response(generate_latest(service.registry), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"})

    return app


def _page() -> tuple[str, str]:
    """The page, and the policy that lets a browser run its script and style and nothing else."""
    page = (files("fer.service") / "page.html").read_text(encoding="utf-8")

    def source(tag: str) -> str:
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return page, (
        f"default-src 'none'; script-src {source('script')}; style-src {source('style')}; img-src blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class _Service:
    """The requests of one application, limited and counted."""

    def __init__(self, backend: Backend, limits: Limits) -> None:
        self._backend, self._limits = backend, limits
        self._rate = None if limits.rate is None else Rate(limits.rate)
        self.registry = registry = CollectorRegistry()
        self._in_flight = Gauge("fer_requests_in_flight", "requests read, waiting or predicted", registry=registry)
        self._inside = 0
        self._requests = Counter("fer_requests", "requests to predict, by status", ["status"], registry=registry)
        self._rejected = Counter("fer_rejected", "requests without a result, by reason", ["reason"], registry=registry)
        self._faces = Counter("fer_faces", "faces classified", registry=registry)
        self._time = Histogram("fer_request_seconds", "from headers to answer", buckets=_SECONDS, registry=registry)
        self._batch = Histogram(
            "fer_batch_images", "images predicted together, by request", buckets=_IMAGES, registry=registry
        )

    async def measured(self, request: Request) -> Answer:
        """The answer to a request to predict; HTTPException where it is refused."""
        started, status = time.perf_counter(), 500
        try:
            answer = await self._admitted(request)
            status = 200
            self._faces.inc(len(answer["faces"]))
            return answer
        except HTTPException as error:
            status = error.status_code
            self._rejected.labels(error.detail["reason"]).inc()  # type: ignore[index] # of `_refusal`
            raise
        finally:
            self._requests.labels(status).inc()
            self._time.observe(time.perf_counter() - started)

    async def _admitted(self, request: Request) -> Answer:
        address = request.client.host if request.client else ""
        if self._rate and (wait := self._rate.wait(address)):
            raise _refusal(429, "rate", f"more than {self._limits.rate:g} requests a second", retry=wait)
        if self._inside >= self._limits.queue:
            raise _refusal(429, "full", f"{self._inside} requests are in work", retry=1)
        self._inside += 1
        self._in_flight.set(self._inside)
        try:
            return await self._predict(await self._image(request))
        finally:
            self._inside -= 1
            self._in_flight.set(self._inside)

    async def _image(self, request: Request) -> bytes:
        """The image file of a request."""
        most, body = self._limits.max_bytes, bytearray()
        too_large = _refusal(413, "too_large", f"at most {most:,} bytes are read")
        declared = request.headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > most:
            raise too_large  # before any of it is read
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                async for part in request.stream():
                    body += part
                    if len(body) > most:
                        raise too_large
        except TimeoutError:
            raise _refusal(408, "slow", f"the body took longer than {self._limits.body_seconds:g} s") from None
        except ClientDisconnect:
            raise _refusal(400, "disconnected", "the client left before its body had arrived") from None
        return file_of(request.headers.get("content-type", ""), bytes(body))

    async def _predict(self, image: bytes) -> Answer:
        try:
            async with asyncio.timeout(self._limits.predict_seconds):
                answer, together = await self._backend.predict(image)
        except (TimeoutError, LostError) as error:
            log.error("a request was not predicted: %s", str(error) or "no result in time")
            raise _refusal(503, "unavailable", "nothing predicts at the moment", retry=5) from None
        self._batch.observe(together)
        if not answer["read"]:
            (why,) = answer["refused"]
            raise _refusal(STATUS.get(why["reason"], 422), why["reason"], why["detail"])
        return answer


def _refusal(status: int, reason: str, message: str, *, retry: float | None = None) -> HTTPException:
    headers = None if retry is None else {"Retry-After": str(math.ceil(retry))}
    return HTTPException(status, {"reason": reason, "message": message}, headers)


def file_of(content_type: str, body: bytes) -> bytes:
    """The image in a body: the first file of a form (RFC 7578), or all of any other body.

    Raises:
        HTTPException: 422, a form without a file.
    """
    header = Message()
    header["Content-Type"] = content_type
    if header.get_content_type() != "multipart/form-data":
        return body
    boundary = header.get_boundary("")
    for part in (b"\r\n" + body).split(b"\r\n--" + boundary.encode("latin-1", "replace"))[1:] if boundary else ():
        head, blank, data = part.partition(b"\r\n\r\n")
        if blank and b"filename" in head.lower():
            return data
    raise _refusal(422, "no_file", "the form holds no file")


# ------------------------------------------------------------------------------------------------ server


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections at an address; port 0 is any free one.

    Raises:
        ValueError: the port is taken, or the address is not this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"cannot listen at {host}, port {port}: {reason}; choose others with --host, --port") from None


def server(app: FastAPI, check: Callable[[], Awaitable[None]] | None = None) -> uvicorn.Server:
    """What runs the application: `run(sockets=[...])` returns after a signal, when the requests in flight are answered.

    It then raises the signal again, for the handlers of the process.

    Args:
        check: called each second; what it raises ends the server.
    """
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            headers=[("X-Content-Type-Options", "nosniff")],
            lifespan="off",
            callback_notify=check,
            timeout_notify=1,
            timeout_graceful_shutdown=STOP_SECONDS,
        )
    )
