"""Ray Train: one training run on several workers, as many as there is room for, resumed where that changes.

Each attempt has a fixed number of workers. Ray Train's own elastic training (`num_workers=(1, 8)`) does not do: it
takes numbers that do not divide the batch, takes a dead node for alive for some 15 s, resizes without letting the
workers save, and waits for the smallest number for ever.
"""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fer.cluster import compat
from fer.cluster.config import ClusterConfig
from fer.cluster.nodes import (
    answering_nodes,
    free_workers,
    gpu_models,
    living_nodes,
    max_workers,
    requested,
    require,
    with_inputs,
)
from fer.cluster.session import connect, run_in_thread
from fer.console import log
from fer.io.files import is_storage_error
from fer.io.storage import Folder, is_store
from fer.processes import Interrupted, LostError, with_environment
from fer.training.job import TrainJob
from fer.training.loop import DivergedError, StopRequested, train
from fer.training.progress import FILE_NAME as PROGRESS
from fer.training.progress import STOP, record_change
from fer.training.recipe import TrainStageConfig
from fer.training.state import Record, TrainState

T = TypeVar("T")
_START_LIMIT, _SHORT_START_SECONDS = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30"
"""How long workers may wait for their places; after a loss shorter, before the nodes are asked once more."""
_LEAST_WAIT_MINUTES = 0.5
"""For room after a loss: a lost node may be on its way back."""
_LAST_SECONDS = 10.0
"""For the last checkpoint, where this process gets SIGTERM."""


class LostWorkersError(RuntimeError):
    """Workers ended, or did not start, for no fault of the run."""


class NoPlaceError(LostWorkersError):
    """Workers did not start, since the cluster gave them no places in time."""


def train_on_ray(
    job: TrainJob,
    stage: TrainStageConfig,
    config: ClusterConfig,
    poll: Callable[[], object],
    storage: str | None = None,
    *,
    then: Callable[[TrainJob, TrainState, str], T] | None = None,
    on_change: Callable[[str], object] = lambda reason: None,
    on_gpu: Callable[[str], object] = lambda name: None,
) -> T | None:
    """The loop on `train.workers` Ray workers; where some are lost, all resume from the last checkpoint.

    Lost workers are replaced. Where their node is lost too, the run resumes with as many as fit on the nodes that
    answer. Where a worker or its node will end soon, all save first, and it costs none of `train.max_failures`. Where
    there is room for more workers, up to `train.workers`, the run resumes with them after the epoch. Each change is
    recorded in the work folder.

    Args:
        poll: called again and again while the workers run, in the calling thread.
        storage: the store through which workers get their inputs, and that holds `job.work_dir`; None: all of them see
            the folders of this machine.
        then: called on rank 0 after the last epoch, with its job, the last state and the device; picklable.
        on_change: gets the reason of each change, once it is recorded.
        on_gpu: gets the models of the cluster's GPUs, where they are used.

    Returns:
        what `then` did.

    Raises:
        DivergedError: the run diverged. LostError: more workers were lost than `train.max_failures` allows, or too few
            are left. ValueError: there are too few at the start; or what a worker raised.
    """
    with connect(config) as cluster:

        def look() -> None:
            cluster.watch.check()
            poll()

        def fitting(counts: Sequence[int], wait_minutes: float, **more: Any) -> int:
            room = require(workers=counts[-1], most=counts[0], **demand, wait_minutes=wait_minutes, **more)
            return next(count for count in counts if count <= room)

        demand: dict[str, Any] = {"cpus": stage.threads, "gpus": int(stage.gpu)}
        workers = fitting(stage.worker_counts(job.recipe, at_start=True), config.wait_minutes)
        counts = stage.worker_counts(job.recipe)
        if stage.gpu:
            on_gpu(", ".join(gpu_models()))
        job = with_inputs(job, storage, cluster.address)
        if workers < counts[0]:
            log.info("the cluster has room for %d workers", workers)
        nodes, failures, short, before = partial(answering_nodes, cluster.address), 0, False, 0
        while True:
            try:
                # Once after a change, the wait is short: the cluster may lose more, and missing places are no failure.
                limit = with_environment(_START_LIMIT, _SHORT_START_SECONDS) if short else nullcontext()
                with limit, requested(counts[0], **demand) if config.wait_minutes else nullcontext():
                    end = _fit(_trainer(job, stage, workers, counts, then), look, Folder(job.work_dir))
                if "stopped" not in end:
                    break
                short, why = True, end["stopped"]
                log.warning("%s: all workers have saved; asking which nodes still answer", why)
            except LostWorkersError as error:
                if isinstance(error, NoPlaceError) and 0 < before < workers:
                    counts = [count for count in counts if count <= before]  # it has less room than it says
                short, why = not (short and isinstance(error, NoPlaceError)), str(error)
                failures += short
                if failures > stage.max_failures:
                    more = "the run lost more workers than train.max_failures allows; the same command resumes"
                    raise LostError(f"{error}\n{more}") from None
                log.warning("lost workers (%s); asking which nodes still answer", error)
            before = workers
            try:
                workers = fitting(counts, max(config.wait_minutes, _LEAST_WAIT_MINUTES), nodes=nodes)
            except ValueError as error:
                raise LostError(f"{error}; the same command resumes") from None
            record_change(job.work_dir, why=why, workers=before, resumed_with=workers)
            on_change(why)
            log.warning("resuming from the last checkpoint with %d", workers)
    shutil.rmtree(_ray_folder(job), ignore_errors=True)
    if "diverged" in end:
        raise DivergedError(end["diverged"])
    found: T | None = end.get("found")
    return found


def _trainer(
    job: TrainJob,
    stage: TrainStageConfig,
    workers: int,
    counts: Sequence[int],
    then: Callable[[TrainJob, TrainState, str], object] | None,
) -> Any:
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    storage = _ray_folder(job)
    shutil.rmtree(storage, ignore_errors=True)
    return TorchTrainer(
        _train_worker,
        train_loop_config={"job": job, "counts": counts, "gpus": int(stage.gpu), "then": then},
        torch_config=TorchConfig(backend="nccl" if stage.gpu else "gloo", timeout_s=stage.collective_timeout_seconds),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=stage.gpu,
            resources_per_worker={"CPU": float(stage.threads), **({"GPU": 1.0} if stage.gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            # Under a name that it knows, Ray would return the old result and train nothing.
            name=f"{job.fingerprint[:12]}-{time.time_ns()}",
            storage_path=str(storage),
            # Ray would bring back the same number of workers, and wait forever for the room of a lost node.
            failure_config=ray.train.FailureConfig(
                max_failures=0, controller_failure_limit=0, max_preemption_failures=0
            ),
        ),
    )


def _ray_folder(job: TrainJob) -> Path:
    """Where Ray may keep what is none of ours. It only looks that it can write there, on whichever node it does."""
    if is_store(job.work_dir):
        return Path(tempfile.gettempdir(), f"fer-train-{job.fingerprint[:12]}")
    return Path(job.work_dir) / "ray"


def _train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """One Ray worker. Returns why the run `stopped`, or `diverged`: a retry would only find the same numbers.

    At the end of the run, rank 0 returns what `then` has `found`.
    """
    import ray.train
    import ray.train.torch

    job, context = config["job"], ray.train.get_context()
    rank, workers, ends, room = context.get_world_rank(), context.get_world_size(), compat.await_end(), ""

    def on_epoch(record: Record) -> None:
        nonlocal room
        ray.train.report(dict(record))
        if rank == 0 and workers < config["counts"][0]:
            more = _larger(config["counts"], workers, cpus=job.threads, gpus=config["gpus"])
            room = f"there is room for {more} workers" if more else ""

    device, then = str(ray.train.torch.get_device()), config["then"]
    try:
        state = train(job, rank=rank, world_size=workers, device=device, on_epoch=on_epoch, stop=lambda: ends() or room)
        return {"found": then(job, state, device) if then and rank == 0 else None}
    except DivergedError as error:
        return {"diverged": str(error)}
    except StopRequested as reason:
        return {"stopped": str(reason)}
    except ValueError as error:  # its own type may need more than a text to be made again in another process
        raise ValueError(str(error)) from None


def _larger(counts: Sequence[int], workers: int, **demand: float) -> int | None:
    """The largest number of workers that the cluster has room for, if that is more than there are now."""
    room = min(max_workers(living_nodes(), **demand), workers + free_workers(**demand))
    return next((count for count in counts if workers < count <= room), None)


def _fit(trainer: Any, poll: Callable[[], object], work: Folder) -> dict[str, Any]:
    """What rank 0 returned. Where this process gets SIGTERM while they train, the workers are asked to save."""

    def ask_to_save() -> float:
        error = sys.exception()
        if not (isinstance(error, Interrupted) and error.signum == signal.SIGTERM) or work.find(PROGRESS) is None:
            return 0.0
        work.write(STOP, b"")
        return _LAST_SECONDS

    try:
        found: dict[str, Any] = run_in_thread(trainer.fit, poll, ask_to_save).return_value
    except Exception as error:  # noqa: BLE001 - raised again, explained
        raise _explained(error) from None
    return found


def _explained(error: Exception) -> BaseException:
    """A worker's own ValueError, or what its disk said, in place of Ray's wrapping; other failures in few words."""
    from ray.exceptions import RayActorError
    from ray.train import TrainingFailedError

    if isinstance(error, RayActorError):  # no worker: without it, only our own end frees the workers' places
        return LostError("Ray Train's controller, which drives the workers, has died; the same command resumes")
    if reason := compat.placement_failure(error):
        return NoPlaceError(reason)
    failures = compat.worker_errors(error)
    for cause, _ in failures.values():
        if isinstance(cause, ValueError):
            return ValueError(str(cause))
        if is_storage_error(cause):  # as full for the next worker
            return cause
    if not isinstance(error, TrainingFailedError):
        return error
    lines = [f"worker {rank}: {line}" for rank, (_, line) in failures.items()]
    return LostWorkersError("; ".join(lines) or str(error).strip().splitlines()[-1])
