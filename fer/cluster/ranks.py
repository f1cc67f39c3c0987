"""Several ranks in the place of one trial: data-parallel training below Ray Tune.

Ray Train would reserve places of its own inside the trial's: a trial that holds CPUs waits for more of them, and where
Tune ends it early, nobody gives Train's places back, for which the next trial waits for ever (ray#54305). Here Tune
reserves the places of all ranks at once, as one placement group. Rank 0 is the trial's own process, the others are
tasks in the same group. However the trial ends, Tune removes its group, and with it Ray ends what still runs there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

from fer import processes
from fer.training.job import TrainJob
from fer.training.loop import DivergedError, train
from fer.training.state import Record

_END_SECONDS = 30.0
"""For the other ranks, once rank 0 has ended."""


def places(workers: int, *, threads: int, gpu: bool) -> Any:
    """What a trial asks Tune for: so many CPUs, and a GPU, for each rank."""
    from ray import tune

    return tune.PlacementGroupFactory([{"CPU": threads, **({"GPU": 1} if gpu else {})}] * workers)


def train_ranks(
    job: TrainJob, workers: int, *, gpu: bool, timeout_seconds: int, on_epoch: Callable[[Record], object]
) -> None:
    """The loop on `workers` ranks, to the bits that `train_on_ray` reaches with as many; in a trial that has `places`.

    Args:
        timeout_seconds: a rank that is silent for so long is lost.
        on_epoch: called in this process, which is rank 0.

    Raises:
        As `train`; and what another rank raised, or Ray says that it died of.
    """
    import ray
    from torch.distributed import TCPStore  # type: ignore[attr-defined] # it is documented

    host, started = ray.util.get_node_ip_address(), []
    meeting = TCPStore(host, 0, workers, is_master=True, wait_for_workers=False)
    common: dict[str, Any] = {"workers": workers, "gpu": gpu, "timeout_seconds": timeout_seconds}
    # One call a process: only its end closes all connections of a rank that failed, for which the others wait.
    task = ray.remote(max_calls=1, max_retries=0, num_cpus=job.threads, num_gpus=int(gpu))(_other_rank)
    try:
        started = [task.remote(job, rank, (host, meeting.port), common) for rank in range(1, workers)]
        _train(job, 0, meeting, on_epoch, **common)
        ray.wait(started, num_returns=len(started), timeout=_END_SECONDS)
    except RuntimeError:  # an exchange broke off: why is for the rank to say that ended first
        for one in ray.wait(started, num_returns=len(started), timeout=_END_SECONDS)[0]:
            with suppress(ray.exceptions.WorkerCrashedError):  # which says less than the error here
                ray.get(one)
        raise
    finally:
        for one in started:
            ray.cancel(one, force=True)


def _other_rank(job: TrainJob, rank: int, meeting: tuple[str, int], common: dict[str, Any]) -> None:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    processes.quiet_libraries()
    with suppress(DivergedError):  # which rank 0 raises too
        _train(job, rank, TCPStore(*meeting, common["workers"]), lambda record: None, **common)


def _train(
    job: TrainJob,
    rank: int,
    meeting: Any,
    on_epoch: Callable[[Record], object],
    *,
    workers: int,
    gpu: bool,
    timeout_seconds: int,
) -> None:
    from torch import distributed

    limit = timedelta(seconds=timeout_seconds)
    distributed.init_process_group(
        "nccl" if gpu else "gloo", store=meeting, rank=rank, world_size=workers, timeout=limit
    )
    try:
        train(job, rank=rank, world_size=workers, device="cuda:0" if gpu else "cpu", on_epoch=on_epoch)
    finally:
        distributed.destroy_process_group()
