"""Images of different requests, predicted together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

Answer = dict[str, Any]
"""A `Result` as plain JSON."""

_COLLECT_SECONDS = 0.02
"""Long enough for clients that send their next image once they have an answer; a batch takes longer."""


class _Waiting(NamedTuple):
    image: bytes
    answered: asyncio.Future[tuple[Answer, int]]


class Batches:
    """Images that wait together are one batch.

    While a place is free, an image waits for no other: a lone client pays nothing. While all work, as many batches are
    collected for the places that become free next, and are there before they do. All have an equal share of the images
    inside: without that, clients that wait for their answers fall into one large batch and one of a single image.
    `ray.serve.batch` has a timer instead, and one call of Ray for each image.

    Args:
        work: predicts images, in their order; it may fail as a whole.
        places: batches that are predicted at the same time; so many more wait for them.
        most: images of one batch.
    """

    def __init__(self, work: Callable[[Sequence[bytes]], Awaitable[Sequence[Answer]]], *, places: int, most: int):
        self._work, self._places, self._most = work, places, most
        self._waiting: deque[_Waiting] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._inside = self._in_work = 0  # images; batches
        self._ended = asyncio.Event()  # of the next batch that ends

    async def predict(self, image: bytes) -> tuple[Answer, int]:
        """The answer for an image, and the size of its batch.

        Raises: what `work` raises for this image alone.
        """
        one = _Waiting(image, asyncio.get_running_loop().create_future())
        self._waiting.append(one)
        if len(self._tasks) < 2 * self._places:
            task = asyncio.create_task(self._empty())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._inside += 1
        try:
            return await one.answered
        finally:
            self._inside -= 1

    @property
    def _share(self) -> int:
        return max(1, min(self._most, -(-self._inside // (2 * self._places))))

    async def _empty(self) -> None:
        while self._waiting:
            if self._in_work >= self._places and len(self._waiting) < self._share:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._ended.wait(), _COLLECT_SECONDS)
            batch = [self._waiting.popleft() for _ in range(min(self._share, len(self._waiting)))]
            self._in_work += 1
            await self._answer([one for one in batch if not one.answered.done()])  # its request may have been given up
            self._in_work -= 1
            self._ended.set()
            self._ended = asyncio.Event()

    async def _answer(self, batch: Sequence[_Waiting]) -> None:
        try:
            answers = await self._work([one.image for one in batch]) if batch else []
            for one, answer in zip(batch, answers, strict=True):
                if not one.answered.done():
                    one.answered.set_result((answer, len(batch)))
        except Exception as error:  # noqa: BLE001 - raised again where the image is awaited
            if len(batch) > 1:  # one by one, so that only the image at fault fails
                for one in batch:
                    await self._answer([one])
            elif not batch[0].answered.done():
                batch[0].answered.set_exception(error)
