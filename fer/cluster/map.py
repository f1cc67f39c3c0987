"""A function over many units of work, by Ray Data: on every CPU of the cluster, with the results in order.

What passes through Ray is small: descriptions of work in, counts out. Pictures are read and written by the tasks
themselves, so memory is bounded by one unit a worker, and the result is the same on any number of workers. Workers are
actors: what a task sets up at its first unit, such as a network, serves all others in that process. A unit whose worker
dies is done again by another, as often as it takes; so a task must write by rename, and know when to give up.
"""

from __future__ import annotations

import logging
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from fer import processes
from fer.cluster.config import ClusterConfig
from fer.cluster.session import connect, require
from fer.cluster.shared import require_paths

T = TypeVar("T")
R = TypeVar("R")


def map_blocks(
    task: Callable[[T], R],
    work: Sequence[T],
    *,
    workers: int | None,
    cluster: ClusterConfig,
    needs: Sequence[str] = (),
) -> Iterator[R]:
    """Results of `task` in the order of `work`, as they become ready.

    Args:
        task: picklable (a module's function, or a partial of one); sees absolute paths only.
        work: picklable units.
        workers: actors, of one CPU each; None takes all CPUs of the cluster; 0 works in this process, without Ray.
        needs: absolute paths that every node must see.

    Raises:
        ValueError, OSError: raised by a task, the same as without Ray; or the cluster has too few CPUs, or a node
            without the paths that are needed.
        RuntimeError: a task failed otherwise.
    """
    if workers == 0:
        yield from map(task, work)
        return
    if not work:
        return
    with ExitStack() as stack:
        with _without_core_messages():
            session = stack.enter_context(connect(cluster))
        import ray.data

        if workers is not None:
            require(workers=workers)
        require_paths(needs, session.address)
        context = ray.data.DataContext.get_current()
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # its import sets a level of its own
        context.enable_progress_bars = False  # we have one
        context.execution_options.preserve_order = True
        # One row a block: each unit is a task of its own, for whichever actor is free.
        items = ray.data.from_items([{"work": pickle.dumps(unit)} for unit in work], override_num_blocks=len(work))
        size = max(1, min(workers or session.cpus, len(work)))
        results = items.map(
            _Worker,
            fn_constructor_args=(task,),
            compute=ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=1),
            num_cpus=1,
        )
        for row in results.iter_rows():
            result = pickle.loads(row["result"])
            if isinstance(result, _Failure):
                raise result.error
            yield result


@contextmanager
def _without_core_messages() -> Iterator[None]:
    """For a connection made in the block, nothing of Ray's core reaches the screen; what fails is an exception anyway.

    It would write, for each actor of Ray Data's, of a risk that they do not run (issue 53727 of Ray); and where it is
    told to be quiet, that it was told so.
    """
    processes.set_environment("RAY_BACKEND_LOG_LEVEL", "fatal")
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@dataclass(frozen=True)
class _Failure:
    error: Exception


class _Worker:
    """An actor's task on rows that Ray Data can carry: pickled bytes in and out."""

    def __init__(self, task: Callable[[Any], Any]) -> None:
        self.task = task

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        # Ray Data would hand on an error's text alone, inside its own.
        result: Any
        try:
            result = self.task(pickle.loads(row["work"]))
        except (ValueError, OSError) as error:
            result = _Failure(error)
        except Exception:  # noqa: BLE001 - its own type may need more than a text to be made again in another process
            result = _Failure(RuntimeError(f"in a worker:\n{traceback.format_exc()}"))
        return {"result": pickle.dumps(result)}
