"""A function over many units of work, as Ray tasks: on the CPUs or GPUs of the cluster, with the results in order.

What passes through Ray is small: descriptions of work in, counts or predictions out. Images are read and written by the
tasks themselves, so memory is bounded by a few units a worker, and the result is the same on any number of workers. Ray
reuses the processes of its tasks: what a task caches at its first unit, such as a network, serves the later ones.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from fer.cluster.config import ClusterConfig
from fer.cluster.nodes import require, require_paths, require_store
from fer.cluster.session import connect

T = TypeVar("T")
R = TypeVar("R")
_POLL_SECONDS = 0.25
_AHEAD = 4
"""Results for each worker that wait for one before them."""


def map_blocks(
    task: Callable[[T], R],
    work: Sequence[T],
    *,
    workers: int | None,
    cluster: ClusterConfig,
    needs: Sequence[str] = (),
    storage: str | None = None,
    cpus: int = 1,
    gpus: int = 0,
    retries: int = -1,
) -> Iterator[R]:
    """Results of `task` in the order of `work`, as they become ready.

    Args:
        task: picklable (a module's function, or a partial of one); sees absolute paths only.
        work: picklable units.
        workers: tasks at once; None takes all CPUs of the cluster; 0 works in this process, without Ray.
        needs: absolute paths that every node must see. storage: a store that every node must be able to use.
        cpus, gpus: of each worker.
        retries: how often a unit whose worker died is done again; -1: as often as it takes, so the task must write by
            rename, and know when to give up.

    Raises:
        ValueError, OSError: raised by a task, the same as without Ray; or the cluster is too small, or a node does not
            see what is needed.
        RuntimeError: a task failed otherwise.
        LostClusterError: the cluster has lost its head or its raylet.
    """
    if workers == 0:
        yield from map(task, work)
        return
    if not work:
        return
    with connect(cluster) as session:
        import ray

        require(workers=workers or 1, cpus=cpus, gpus=gpus, wait_minutes=cluster.wait_minutes)
        require_paths(needs, session.address)
        if storage is not None:
            require_store(storage, session.address)
        remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=retries)(_outcome)
        shared, units, at_once = ray.put(task), deque(work), workers or session.cpus or 1
        order: deque[Any] = deque()
        running: list[Any] = []
        while units or order:
            while units and len(running) < at_once and len(order) < _AHEAD * at_once:
                running.append(remote.remote(shared, units.popleft()))
                order.append(running[-1])
            running = ray.wait(running, timeout=_POLL_SECONDS)[1] if running else running
            session.watch.check()
            while order and order[0] not in running:
                result, error = ray.get(order.popleft())
                if error is not None:
                    raise error
                yield result


def _outcome(task: Callable[[T], R], unit: T) -> tuple[R | None, Exception | None]:
    """What a task returned or raised; Ray would hand on an exception inside one of its own."""
    try:
        return task(unit), None
    except (ValueError, OSError) as error:
        return None, error.with_traceback(None)
    except Exception:  # noqa: BLE001 - its own type may need more than a text to be made again in another process
        return None, RuntimeError(f"in a worker:\n{traceback.format_exc()}")
