"""A function over many units of work, by Ray Data: on every CPU of the cluster, with the results in order.

What passes through Ray is small: descriptions of work in, counts out. Pictures are read and written by the tasks
themselves, so memory is bounded by one unit a task, and the result is the same on any number of workers. A task that
dies with its node is run again elsewhere; so it must write by rename.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from fer.cluster.config import ClusterConfig
from fer.cluster.session import connect

T = TypeVar("T")
R = TypeVar("R")


def map_blocks(
    task: Callable[[T], R], work: Sequence[T], *, workers: int | None, cluster: ClusterConfig
) -> Iterator[R]:
    """Results of `task` in the order of `work`, as they become ready.

    Args:
        task: picklable (a module's function, or a partial of one); sees absolute paths only.
        work: picklable units.
        workers: tasks at once; None takes all CPUs of the cluster; 0 works in this process, without Ray.

    Raises:
        ValueError, OSError: raised by a task; the same as without Ray.
    """
    if workers == 0:
        yield from map(task, work)
        return
    if not work:
        return
    with connect(cluster) as session:
        import ray.data

        context = ray.data.DataContext.get_current()
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # its import sets a level of its own
        context.enable_progress_bars = False  # we have one
        context.execution_options.preserve_order = True
        # One row a block: each unit is a task of its own, started wherever a CPU is free.
        items = ray.data.from_items([{"work": pickle.dumps(unit)} for unit in work], override_num_blocks=len(work))
        pool = ray.data.TaskPoolStrategy(size=max(1, min(workers or session.cpus, len(work))))
        results = items.map(_Call(task), compute=pool, num_cpus=1)
        for row in results.iter_rows():
            result = pickle.loads(row["result"])
            if isinstance(result, _Refusal):
                raise result.error
            yield result


@dataclass(frozen=True)
class _Refusal:
    error: ValueError | OSError


class _Call:
    """A task on rows that Ray Data can carry: pickled bytes in and out. A function to Ray Data, not an actor class."""

    def __init__(self, task: Callable[[Any], Any]) -> None:
        self.task = task

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        result: Any
        try:
            result = self.task(pickle.loads(row["work"]))
        except (ValueError, OSError) as error:
            result = _Refusal(error)  # Ray Data would hand on its text alone, inside its own
        return {"result": pickle.dumps(result)}
