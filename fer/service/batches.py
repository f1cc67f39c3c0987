"""Images of different requests, predicted together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

Answer = dict[str, Any]
"""A `Result` as plain JSON."""


class _Waiting(NamedTuple):
    image: bytes
    answered: asyncio.Future[tuple[Answer, int]]


class Batches:
    """What waits when a place becomes free is one batch.

    There is no timer, as `ray.serve.batch` has: on an idle service an image waits for no other, and on a busy one a
    batch grows until the model is ready for it. One call of Ray carries a whole batch.

    Args:
        work: predicts images, in their order; it may fail as a whole.
        at_once: batches that are worked on at the same time.
        most: images of one batch.
    """

    def __init__(self, work: Callable[[Sequence[bytes]], Awaitable[Sequence[Answer]]], *, at_once: int, most: int):
        self._work, self._at_once, self._most = work, at_once, most
        self._waiting: deque[_Waiting] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    async def predict(self, image: bytes) -> tuple[Answer, int]:
        """The answer for an image, and the size of its batch.

        Raises: what `work` raises for this image alone.
        """
        one = _Waiting(image, asyncio.get_running_loop().create_future())
        self._waiting.append(one)
        if len(self._tasks) < self._at_once:
            task = asyncio.create_task(self._empty())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await one.answered

    async def _empty(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
            await self._answer([one for one in batch if not one.answered.done()])  # its request may have been given up

    async def _answer(self, batch: Sequence[_Waiting]) -> None:
        try:
            answers = await self._work([one.image for one in batch]) if batch else []
        except Exception as error:  # noqa: BLE001 - raised again where the image is awaited
            if len(batch) > 1:  # one by one, so that only the image at fault fails
                for one in batch:
                    await self._answer([one])
            elif not batch[0].answered.done():
                batch[0].answered.set_exception(error)
            return
        for one, answer in zip(batch, answers, strict=True):
            if not one.answered.done():
                one.answered.set_result((answer, len(batch)))
