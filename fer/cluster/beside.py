"""Training runs side by side, each on workers of its own, as many at once as the cluster has room for.

Each is followed by a thread of this process, which holds nothing of the cluster: its CPUs and GPUs are the workers'.

A run on several workers is one of Ray Train, with processes of its own. A run on one worker is a Ray task: the next one
has its process, where torch and the project are imported.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial
from typing import Any, TypeVar

from fer.cluster.config import ClusterConfig
from fer.cluster.nodes import living_nodes, max_workers, require, with_inputs
from fer.cluster.session import connect, start_thread
from fer.console import log
from fer.processes import LostError, quiet_libraries
from fer.training.job import TrainJob
from fer.training.loop import train
from fer.training.recipe import TrainStageConfig
from fer.training.state import TrainState

T = TypeVar("T")
_POLL_SECONDS = 0.25
_LAST_SECONDS = 12.0
"""For the last checkpoints, where this process gets SIGTERM; a run takes 10 of them."""


def run_beside(
    runs: Mapping[str, Callable[[Callable[[], object]], T]],
    config: ClusterConfig,
    *,
    workers: int,
    threads: int,
    gpu: bool,
    at_once: int | None,
    on_start: Callable[[str], object],
    on_end: Callable[[str, Callable[[], T]], object],
) -> None:
    """Calls each of the named runs, in their order, with a poll that it must call again and again.

    A run whose workers were lost is called once more, after those that wait: on a smaller cluster, another one may have
    had its room.

    Args:
        workers, threads, gpu: Ray workers of a run, CPUs of each, and whether each has a GPU.
        at_once: runs at the same time at most; None: as many as there is room for.
        on_start: gets the name of a run that begins, for the second time too.
        on_end: gets the name, and what returns or raises what the run did. Both are called in this thread.

    Raises:
        ValueError: the cluster is too small for one run, or out of reach.
        LostClusterError: the cluster has lost its head or its raylet.
    """
    waiting, running, again = deque(runs), dict[Future[T], str](), set[str]()
    ended: list[BaseException] = []

    def poll() -> None:
        if ended:
            raise ended[0]

    size: dict[str, Any] = {"cpus": threads, "gpus": int(gpu)}
    with connect(config) as session:
        require(workers=workers, most=workers * min(at_once or len(runs), len(runs)), **size,
                wait_minutes=config.wait_minutes)  # fmt: skip
        try:
            while waiting or running:
                room = max(max_workers(living_nodes(), **size) // workers, 1)
                while waiting and len(running) < min(at_once or room, room):
                    on_start(name := waiting.popleft())
                    running[start_thread(partial(runs[name], poll))] = name
                for future in wait(running, _POLL_SECONDS, FIRST_COMPLETED).done:
                    name = running.pop(future)
                    if isinstance(future.exception(), LostError) and name not in again:
                        log.warning("%s; it will be tried once more", future.exception())
                        again.add(name)
                        waiting.append(name)
                    else:
                        on_end(name, future.result)
                session.watch.check()
        except BaseException as error:
            ended.append(error)
            wait(running, _LAST_SECONDS)
            raise


def train_in_task(
    job: TrainJob,
    stage: TrainStageConfig,
    config: ClusterConfig,
    poll: Callable[[], object],
    storage: str | None = None,
    *,
    then: Callable[[TrainJob, TrainState, str], T],
) -> T:
    """`fer.cluster.fit.train_on_ray` for one worker, in one Ray task; where its process is lost, in another one."""
    with connect(config) as cluster:
        import ray

        task = ray.remote(num_cpus=stage.threads, num_gpus=int(stage.gpu), max_retries=stage.max_failures)(_train)
        answer = task.remote(with_inputs(job, storage, cluster.address), "cuda:0" if stage.gpu else "cpu", then)
        while not ray.wait([answer], timeout=_POLL_SECONDS)[0]:
            cluster.watch.check()
            poll()
        try:
            found: T = ray.get(answer)
        except ray.exceptions.RayTaskError as error:
            known = isinstance(error.cause, ValueError | RuntimeError | OSError | MemoryError)
            raise error.cause if known else RuntimeError(repr(error.cause)) from None
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[0]
            raise LostError(f"the worker was lost ({reason}); the same command resumes") from None
        return found


def _train(job: TrainJob, device: str, then: Callable[[TrainJob, TrainState, str], T]) -> T:
    quiet_libraries()
    return then(job, train(job, device=device), device)
