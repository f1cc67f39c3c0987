"""Ray Train: one training run on several workers, resumed where some are lost."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from fer.cluster import compat
from fer.cluster.config import ClusterConfig
from fer.cluster.nodes import answering_nodes, max_workers, require, require_paths
from fer.cluster.session import connect, run_in_thread
from fer.console import log
from fer.io.files import is_storage_error
from fer.processes import LostError, with_environment
from fer.training.job import TrainJob
from fer.training.loop import DivergedError, train
from fer.training.recipe import Recipe, TrainStageConfig

_START_LIMIT, _SHORT_START_SECONDS = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30"
"""How long workers may wait for their places; after a loss shorter, before the nodes are asked once more."""


class LostWorkersError(RuntimeError):
    """Workers ended, or did not start, for no fault of the run."""


class NoPlaceError(LostWorkersError):
    """Workers did not start, since the cluster gave them no places in time."""


def train_on_ray(job: TrainJob, stage: TrainStageConfig, config: ClusterConfig, poll: Callable[[], object]) -> None:
    """The loop on `train.workers` Ray workers; where some are lost, all resume from the last checkpoint.

    Lost workers are replaced. Where their node is lost too, the run resumes with as many as fit on the nodes that
    answer.

    Args:
        poll: called again and again while the workers run, in the calling thread.

    Raises:
        DivergedError: the run diverged. LostError: more workers were lost than `train.max_failures` allows.
        ValueError: what a worker raised.
    """
    with connect(config) as cluster:

        def look() -> None:
            cluster.watch.check()
            poll()

        gpus = int(stage.gpu)
        require(workers=stage.workers, cpus=stage.threads, gpus=gpus, wait_minutes=config.wait_minutes)
        files = [Path(job.shards) / "manifest.json", Path(job.work_dir) / "lock"]
        require_paths([*map(str, files), *(source.path for source in job.pretrained)], cluster.address)
        workers, failures, short = stage.workers, 0, False
        while True:
            try:
                # Once after a loss, the wait is short: the cluster may lose more, and missing places are no failure.
                with with_environment(_START_LIMIT, _SHORT_START_SECONDS) if short else nullcontext():
                    diverged = _fit(_trainer(job, stage, workers), look)
                break
            except LostWorkersError as error:
                short = not (short and isinstance(error, NoPlaceError))
                failures += short
                if failures > stage.max_failures:
                    more = "the run lost more workers than train.max_failures allows; the same command resumes"
                    raise LostError(f"{error}\n{more}") from None
                log.warning("lost workers (%s); asking which nodes still answer", error)
                workers = _remaining_workers(job.recipe, stage, cluster.address)
                log.warning("resuming from the last checkpoint with %d", workers)
    if diverged:
        raise DivergedError(diverged)


def _trainer(job: TrainJob, stage: TrainStageConfig, workers: int) -> Any:
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    storage = Path(job.work_dir) / "ray"
    shutil.rmtree(storage, ignore_errors=True)
    return TorchTrainer(
        _train_worker,
        train_loop_config={"job": job},
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
            failure_config=ray.train.FailureConfig(max_failures=0, controller_failure_limit=0),
        ),
    )


def _remaining_workers(recipe: Recipe, stage: TrainStageConfig, address: str | None) -> int:
    """The most workers, up to `train.workers`, that fit and that divide every batch evenly."""
    limit = min(stage.workers, max_workers(answering_nodes(address), cpus=stage.threads, gpus=int(stage.gpu)))
    batches = [part.batch_size for part in recipe.in_stages]
    return max((n for n in range(1, limit + 1) if not any(batch % n for batch in batches)), default=stage.workers)


def _train_worker(config: dict[str, Any]) -> str | None:
    """One Ray worker. Returns how the run diverged: a retry would only find the same numbers."""
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    try:
        train(
            config["job"],
            rank=context.get_world_rank(),
            world_size=context.get_world_size(),
            device=str(ray.train.torch.get_device()),
            on_epoch=lambda record: ray.train.report(dict(record)),
        )
    except DivergedError as error:
        return str(error)
    except ValueError as error:  # its own type may need more than a text to be made again in another process
        raise ValueError(str(error)) from None
    return None


def _fit(trainer: Any, poll: Callable[[], object]) -> str | None:
    """What rank 0 returned."""
    try:
        message: str | None = run_in_thread(trainer.fit, poll).return_value
    except Exception as error:  # noqa: BLE001 - raised again, explained
        raise _explained(error) from None
    return message


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
