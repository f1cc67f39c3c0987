"""What a service accepts: how large, how many at once, how often."""

from __future__ import annotations

import time
from collections.abc import Callable

from pydantic import Field

from fer.config import Config
from fer.io.images import MAX_BYTES

_ADDRESSES = 10_000  # remembered at once, before those that are not limited any more are forgotten


class Limits(Config):
    """Of one service."""

    max_bytes: int = Field(default=16 << 20, ge=1, le=MAX_BYTES, description="of an image, with the form around it")
    queue: int = Field(default=64, ge=1, le=10_000, description="requests that are read, wait or are predicted at once")
    rate: float | None = Field(
        default=None, gt=0, le=1e6, description="requests a second of one address; null: no limit"
    )
    body_seconds: float = Field(default=30, gt=0, description="in which a body must arrive")
    predict_seconds: float = Field(default=120, gt=0, description="in which an image must be predicted")


class Rate:
    """So many requests a second for each address, and as many at once after a pause.

    The generic cell rate algorithm (ITU-T I.371): one number for each address.
    """

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval, self._clock = 1 / per_second, clock
        self._due: dict[str, float] = {}

    def wait(self, address: str) -> float:
        """Seconds until this address may come again; 0 where it may now, which counts as one request."""
        now = self._clock()
        if len(self._due) >= _ADDRESSES:
            self._due = {one: due for one, due in self._due.items() if due > now}
        due = max(self._due.get(address, now), now)
        early = due - now - max(0.0, 1 - self._interval)
        if early > 1e-9:
            return early
        self._due[address] = due + self._interval
        return 0.0
