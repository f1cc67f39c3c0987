"""Training runs side by side: how many at once, what becomes of those that fail or are lost, and how all end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from fer.cluster import beside
from fer.cluster.config import ClusterConfig
from fer.processes import Interrupted, LostError

Poll = Callable[[], object]


class Cells:
    """Runs of threads on a cluster that has one CPU more at each look, and what was told of them."""

    def __init__(self, patch: pytest.MonkeyPatch, room: list[int]) -> None:
        self.told: list[tuple[str, str]] = []
        self.most = self.now = 0
        self._lock = threading.Lock()
        left = iter(room)
        there = [next(left)]

        def nodes() -> list[dict[str, Any]]:
            there[0] = next(left, there[0])
            return [{"Resources": {"CPU": float(there[0])}}]

        @contextmanager
        def connect(config: object) -> Iterator[SimpleNamespace]:
            yield SimpleNamespace(watch=SimpleNamespace(check=lambda: None))

        patch.setattr(beside, "connect", connect)
        patch.setattr(beside, "living_nodes", nodes)
        patch.setattr(beside, "require", lambda **_: None)
        patch.setattr(beside, "_POLL_SECONDS", 0.001)

    def counted(self, work: Callable[[Poll], str]) -> Callable[[Poll], str]:
        def run(poll: Poll) -> str:
            with self._lock:
                self.now += 1
                self.most = max(self.most, self.now)
            try:
                return work(poll)
            finally:
                with self._lock:
                    self.now -= 1

        return run

    def run(self, works: dict[str, Callable[[Poll], str]], workers: int = 1, at_once: int | None = None) -> None:
        def ended(name: str, outcome: Callable[[], str]) -> None:
            try:
                self.told.append((name, outcome()))
            except (ValueError, LostError) as error:
                self.told.append((name, str(error)))

        beside.run_beside(
            {name: self.counted(work) for name, work in works.items()}, ClusterConfig(), workers=workers, threads=1,
            gpu=False, at_once=at_once, on_start=lambda name: self.told.append((name, "begins")), on_end=ended,
        )  # fmt: skip


def together(count: int) -> Callable[[Poll], str]:
    """Work that ends once so many runs are at it."""
    barrier = threading.Barrier(count)

    def work(poll: Poll) -> str:
        barrier.wait(30)
        return "done"

    return work


@pytest.mark.parametrize(
    ("cpus", "workers", "at_once", "most"), [(4, 2, None, 2), (9, 2, None, 4), (9, 1, 2, 2), (1, 1, None, 1)]
)
def test_as_many_runs_train_at_once_as_their_workers_have_room(
    cpus: int, workers: int, at_once: int | None, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells, work = Cells(monkeypatch, [cpus]), together(most)
    cells.run({str(number): work for number in range(2 * most)}, workers, at_once)
    assert cells.most == most
    assert sorted(name for name, what in cells.told if what == "done") == [str(number) for number in range(2 * most)]


def test_a_cluster_that_grows_gets_more_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    cells, work = Cells(monkeypatch, [1, 1, 1, 3]), together(3)
    cells.run(dict.fromkeys("abc", work))
    assert cells.most == 3


def test_a_failed_run_costs_the_others_nothing_and_a_lost_one_begins_again_once_after_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries: list[str] = []

    def broken(poll: Poll) -> str:
        raise ValueError("a mistake")

    def lost(poll: Poll) -> str:
        tries.append("lost")
        raise LostError("gone")

    def lost_once(poll: Poll) -> str:
        tries.append("once")
        if tries.count("once") == 1:
            raise LostError("gone")
        return "done"

    cells = Cells(monkeypatch, [1])
    cells.run({"broken": broken, "lost": lost, "once": lost_once, "good": lambda poll: "done"})
    assert cells.told == [
        ("broken", "begins"), ("broken", "a mistake"), ("lost", "begins"), ("once", "begins"), ("good", "begins"),
        ("good", "done"), ("lost", "begins"), ("lost", "gone"), ("once", "begins"), ("once", "done"),
    ]  # fmt: skip


def test_what_ends_the_command_ends_every_run_in_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[BaseException] = []

    def work(poll: Poll) -> str:
        try:
            while True:
                poll()
        except BaseException as error:
            seen.append(error)
            raise

    cells, signal = Cells(monkeypatch, [3]), Interrupted(15)

    def ended(name: str, outcome: object) -> None:
        raise signal

    with pytest.raises(Interrupted):
        beside.run_beside(
            {"a": work, "b": work, "c": lambda poll: "done"}, ClusterConfig(),
            workers=1, threads=1, gpu=False, at_once=None, on_start=cells.told.append, on_end=ended,  # type: ignore[arg-type]
        )  # fmt: skip
    assert seen == [signal, signal]
