"""Ordered prefetching: threads make a bounded number of batches ahead, in order, in memory that is reused."""

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

T = TypeVar("T")


class Prefetcher:
    """Runs calls on threads, a bounded number ahead, and yields their results in order.

    Calls start in order, so that each may wait for those before it.
    """

    def __init__(self, threads: int, prefetch: int | None) -> None:
        assert threads >= 1
        assert prefetch is None or prefetch >= 1
        self._count, self._prefetch = threads, prefetch or threads + 1
        self._running: dict[threading.Event, ThreadPoolExecutor] = {}

    def in_order(self, make: Callable[[int, threading.Event], T], indices: Iterable[int]) -> Iterator[T]:
        """make(index, stop) for each index, in order; it must return soon once `stop` is set."""
        cv2.setNumThreads(1)  # the threads here are the parallelism; OpenCV's own would compete for the cores
        stop = threading.Event()
        pool = self._running[stop] = ThreadPoolExecutor(self._count, thread_name_prefix="fer-reader")
        ahead: deque[Future[T]] = deque()
        try:
            for index in indices:
                ahead.append(pool.submit(make, index, stop))
                if len(ahead) > self._prefetch:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        except Exception as error:
            if stop.is_set():  # an epoch cut short must not look like a complete one
                raise RuntimeError("the batches were closed while they were being read") from error
            raise
        finally:
            self._end(stop)

    def close(self) -> None:
        """Ends the threads of every pass that is running."""
        for stop in list(self._running):
            self._end(stop)

    def _end(self, stop: threading.Event) -> None:
        pool = self._running.pop(stop, None)
        stop.set()
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)


class Sequencer:
    """Admits threads one after another, in the order of their numbers 0, 1, ..., all of which must arrive."""

    def __init__(self) -> None:
        self._next = 0
        self._changed = threading.Condition()

    @contextmanager
    def turn(self, number: int) -> Iterator[None]:
        """Waits until every lower number has left."""
        with self._changed:
            self._changed.wait_for(lambda: self._next == number)
        try:
            yield
        finally:
            with self._changed:
                self._next += 1
                self._changed.notify_all()


class BufferPool:
    """Memory of batches, reused when the batch it held is gone: fresh memory costs time at its first touch, and what
    threads free may stay with the process.
    """

    def __init__(self, dtype: npt.DTypeLike = np.uint8) -> None:
        self._dtype = dtype
        self._free: dict[tuple[int, ...], list[npt.NDArray[Any]]] = {}

    def take(self, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """An array of any content; its memory returns to the pool when no array or tensor uses it any more."""
        free = self._free.setdefault(shape, [])
        try:
            memory = free.pop()
        except IndexError:
            memory = np.empty(shape, self._dtype)
        lent = memory.view()
        weakref.finalize(lent, free.append, memory).atexit = False
        return lent
