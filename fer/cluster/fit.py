"""Ray Train: one training run on several workers, resumed where some are lost."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from fer.cluster.config import ClusterConfig
from fer.cluster.session import connect, require, room
from fer.cluster.shared import answering_nodes, require_paths
from fer.console import log
from fer.io.files import is_of_the_disk
from fer.processes import LostError, with_environment
from fer.training.job import TrainJob
from fer.training.loop import DivergedError, train
from fer.training.recipe import Recipe, TrainStageConfig

_POLL_SECONDS = 0.25
_START_LIMIT, _IN_HASTE = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30"
"""How long workers may wait for their places; after a loss shorter, before the nodes are asked once more."""


class LostWorkersError(RuntimeError):
    """Workers ended, or did not start, for no fault of the training."""


class NoPlaceError(LostWorkersError):
    """Workers did not start, since the cluster gave them no places in time."""


def train_on_ray(job: TrainJob, stage: TrainStageConfig, config: ClusterConfig, poll: Callable[[], object]) -> None:
    """The loop on `train.workers` Ray workers; where some are lost, all go on from the last checkpoint.

    Lost workers are replaced. Where their node is lost too, as many go on as there is room for on those that answer.

    Args:
        poll: called again and again while the workers run, in the calling thread.

    Raises:
        DivergedError: the run diverged. LostError: more workers were lost than `train.max_failures` allows.
        ValueError: what a worker raised.
    """
    with connect(config) as cluster:
        require(workers=stage.workers, cpus=stage.threads, gpus=int(stage.gpu))
        wanted = [Path(job.shards) / "manifest.json", Path(job.work_dir) / "lock"]
        require_paths([*map(str, wanted), *(source.path for source in job.pretrained)], cluster.address)
        workers, failures, again = stage.workers, 0, False
        while True:
            try:
                # After a loss in haste, once, for the cluster may lose more: that the places are gone is no failure.
                with with_environment(_START_LIMIT, _IN_HASTE) if again else nullcontext():
                    diverged = _fit(_trainer(job, stage, workers), poll)
                break
            except LostWorkersError as error:
                again = not (again and isinstance(error, NoPlaceError))
                failures += again
                if failures > stage.max_failures:
                    more = "the training lost more workers than train.max_failures allows; the same command goes on"
                    raise LostError(f"{error}\n{more}") from None
                log.warning("lost workers (%s); asking which nodes still answer", error)
                workers = _as_many_as_fit(job.recipe, stage, cluster.address)
                log.warning("going on from the last checkpoint with %d", workers)
    if diverged:
        raise DivergedError(diverged)


def _trainer(job: TrainJob, stage: TrainStageConfig, workers: int) -> Any:
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    storage = Path(job.work_dir) / "ray"
    shutil.rmtree(storage, ignore_errors=True)
    return TorchTrainer(
        _work,
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
            # Ray would bring back the same number of workers, and wait for ever for the room of a lost node.
            failure_config=ray.train.FailureConfig(max_failures=0, controller_failure_limit=0),
        ),
    )


def _as_many_as_fit(recipe: Recipe, stage: TrainStageConfig, address: str | None) -> int:
    """The most workers, up to `train.workers`, that there is room for and that every batch can be dealt to evenly."""
    limit = min(stage.workers, room(answering_nodes(address), cpus=stage.threads, gpus=int(stage.gpu)))
    batches = [part.batch_size for part in recipe.in_stages]
    return max((n for n in range(1, limit + 1) if not any(batch % n for batch in batches)), default=stage.workers)


def _work(config: dict[str, Any]) -> str | None:
    """One Ray worker. Returns what went wrong where trying again would only find the same numbers."""
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
    """Runs the trainer in a thread: this one hears signals at once, and `fit` installs no handlers of its own."""
    outcome: list[Any] = []

    def fit() -> None:
        try:
            outcome.append(trainer.fit())
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            outcome.append(error)

    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_SECONDS)
        poll()
    (result,) = outcome
    if isinstance(result, BaseException):
        raise _explained(result)
    message: str | None = result.return_value
    return message


def _explained(error: BaseException) -> BaseException:
    """A worker's own ValueError, or what its disk said, in place of Ray's wrapping; other failures in few words."""
    from ray.exceptions import RayActorError
    from ray.train import TrainingFailedError

    if isinstance(error, RayActorError):  # no worker: without it the room of the workers is freed by our end alone
        return LostError("Ray Train's controller, which drives the workers, has died; the same command goes on")
    unplaced = getattr(error, "controller_failure", None)
    if type(unplaced).__name__ in ("WorkerGroupStartupTimeoutError", "InsufficientClusterResourcesError"):
        return NoPlaceError(str(unplaced).partition(" Potential causes")[0].splitlines()[0])
    failures = dict(getattr(error, "worker_failures", {}))
    causes = [
        getattr(one, "_base_exc", one) for one in failures.values()
    ]  # Ray holds it so, with the traceback as text
    for cause in causes:
        if isinstance(cause, ValueError):
            return ValueError(str(cause))
        if is_of_the_disk(cause):  # as full for the next worker
            return cause
    if not isinstance(error, TrainingFailedError):
        return error
    lines = [f"worker {rank}: {str(one).strip().splitlines()[-1]}" for rank, one in sorted(failures.items())]
    return LostWorkersError("; ".join(lines) or str(error).strip().splitlines()[-1])
