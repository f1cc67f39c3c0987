"""The train stage: decides what a training is, where it runs, and what is left of it.

    .work/<fingerprint>/          what a killed training goes on from; removed when it is published
        state-*.pt, progress.json     written by rank 0 (fer.training)
        lock                          held by the driver
    trained/<dataset>/<model>/    appears complete, by rename; run.json alone differs between equal trainings

The fingerprint is taken over data, recipe, seed and code: another training never goes on from this one's state. The
driver follows it by `progress.json`, so all nodes must see the driver's work folder; it alone talks to MLflow.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from fer.cluster.follow import Follower, best_metrics, log_record
from fer.cluster.session import connect, require, room
from fer.cluster.shared import answering_nodes, require_paths
from fer.console import log
from fer.disk import is_of_the_disk
from fer.lineage import digest_of_code, hardware, lineage, versions
from fer.outputs import TRAINED
from fer.params import Params
from fer.processes import LostError, lock, remove_held, with_environment
from fer.shards.read import ShardSet
from fer.tracking import Run, open_run
from fer.training.loop import DivergedError, TrainJob, build_model, train
from fer.training.progress import FILE_NAME as PROGRESS
from fer.training.publish import publish
from fer.training.recipe import Recipe, TrainStageConfig
from fer.training.state import TrainState
from fer.weights.parts import PartSource, locate

_CODE = (
    "augment.py",
    "hashing.py",
    "labels.py",
    "models",
    "shards/ahead.py",
    "shards/dataset.py",
    "shards/folds.py",
    "shards/manifest.py",
    "shards/order.py",
    "shards/pixels.py",
    "shards/read.py",
    "shards/schema.py",
    "training",
    "transforms",
    "weights",
)
_POLL_SECONDS = 0.25
_START_LIMIT, _IN_HASTE = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30"
"""How long workers may wait for their places; after a loss shorter, before the nodes are asked once more."""


class LostWorkersError(RuntimeError):
    """Workers ended, or did not start, for no fault of the training."""


class NoPlaceError(LostWorkersError):
    """Workers did not start, since the cluster gave them no places in time."""


def run_training(params: Params, dataset: str, model_key: str) -> Path:
    """Trains `models.<model_key>` on a dataset, or goes on with it, and publishes `trained/<dataset>/<model_key>/`.

    Returns:
        The published folder: model.safetensors, history.csv, val.json, train.json, run.json.

    Raises:
        ValueError: a mistake in params, shards that cannot be used, resources that do not exist, another process at the
            same training, checkpoints of which none is whole, or a training that diverged.
    """
    recipe = params.recipe(model_key)
    params.dataset(dataset)
    published = TRAINED.folder(params.root, dataset, model_key)
    folder = (params.root / "data" / "shards" / dataset).resolve()
    shards = ShardSet.open(folder)
    code = code_digest()
    pretrained = locate(recipe.pretrained, params.root, params.parent)
    whole = fingerprint(shards.digest, recipe, params.seed, code, pretrained)
    job = TrainJob(
        shards=str(folder),
        work_dir=str((params.home / ".work" / whole[:16]).resolve()),
        recipe=recipe,
        labels=tuple(shards.labels),
        seed=params.seed,
        threads=params.train.threads,
        checkpoint_every_steps=params.train.checkpoint_every_steps,
        fingerprint=whole,
        pretrained=pretrained,
    )
    model, work, title = build_model(job), Path(job.work_dir), f"train {model_key} on {dataset}"
    settings = {"recipe": recipe.model_dump(mode="json"), "seed": params.seed}
    stage = {"train": params.train.model_dump()}
    facts = {
        "dataset": dataset,
        "model": recipe.last.model,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "labels": list(shards.labels),
        "label_space": shards.label_space,
        "synthetic": shards.manifest.synthetic,
        "crop": shards.manifest.crop,
        "fingerprint": whole,
        "data_digest": shards.digest,
        "code_digest": code,
        "pretrained": {source.part: source.digest for source in pretrained},
    }
    tags = {key: facts[key] for key in ("dataset", "model", "parameters", "data_digest", "code_digest")}
    with (
        lock(work / "lock", wait=params.queued),
        open_run(
            params.tracking,
            params.home,
            checkout=params.root,
            experiment=dataset,
            run_name=model_key,
            key=whole,
            params=settings | stage,
            tags=tags,
        ) as run,
    ):
        _announce(title, job, params.train)
        _run(params, job, Follower(title, work, sum(stage.epochs for stage in recipe.in_stages), run))
        state = TrainState.load(work)
        assert state is not None, "a training that ended well left its last state"
        assert state.stage_is_over(recipe.last.epochs, recipe.last.patience), "a training ends at its end"
        for record in state.records():  # what a driver that was killed could not log any more; points are logged once
            log_record(run, record)
        best = state.history[state.best_epoch - 1]
        run.log_metrics({**best_metrics(best), "checkpoint_fallbacks": state.fallbacks}, step=state.epoch)
        publish(published, model, job, state, facts | settings, stage | _circumstances(params, state, run))
        for name in ("history.csv", "train.json", "run.json"):
            run.log_artifact(published / name, "training")
        remove_held(work)
    log.info(
        f"{title}: best epoch {state.best_epoch} of {state.epoch}, validation accuracy {best['val_accuracy']:.4f}, "
        f"balanced {best['val_balanced_accuracy']:.4f} -> {published.relative_to(params.root)}"
    )
    return published


# ------------------------------------------------------------------------------------------------ what a training is


def fingerprint(data_digest: str, recipe: Recipe, seed: int, code: str, pretrained: Sequence[PartSource] = ()) -> str:
    """Hex SHA-256 of all that a training's result depends on but for its machine: ranks, threads, processor."""
    parts = {
        "data": data_digest,
        "recipe": recipe.model_dump(mode="json"),
        "pretrained": [source.digest for source in pretrained],  # their parts stand in the recipe
        "seed": seed,
        "code": code,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def code_digest() -> str:
    """Hex SHA-256 of the code that computes a training: models, loop, augmentation, order, reader."""
    return digest_of_code(_CODE)


# ------------------------------------------------------------------------------------------------ where it runs


def _run(params: Params, job: TrainJob, follower: Follower) -> None:
    (Path(job.work_dir) / PROGRESS).unlink(missing_ok=True)
    with follower:
        if params.train.workers:
            _train_on_ray(params, job, follower)
        else:
            train(job, device=_own_device(params.train.gpu), on_epoch=follower.on_epoch, on_step=follower.on_step)


def _own_device(gpu: bool) -> str:
    import torch

    if gpu and not torch.cuda.is_available():
        raise ValueError("train.gpu is true, and torch finds no GPU here: set it to false, or name a cluster with GPUs")
    return "cuda:0" if gpu else "cpu"


def _train_on_ray(params: Params, job: TrainJob, follower: Follower) -> None:
    """The loop on `train.workers` Ray workers; where some are lost, all go on from the last checkpoint.

    Lost workers are replaced. Where their node is lost too, as many go on as there is room for on those that answer.
    """
    stage = params.train
    with connect(params.cluster) as cluster:
        require(workers=stage.workers, cpus=stage.threads, gpus=int(stage.gpu))
        wanted = [Path(job.shards) / "manifest.json", Path(job.work_dir) / "lock"]
        require_paths([*map(str, wanted), *(source.path for source in job.pretrained)], cluster.address)
        workers, failures, again = stage.workers, 0, False
        while True:
            try:
                # After a loss in haste, once, for the cluster may lose more: that the places are gone is no failure.
                with with_environment(_START_LIMIT, _IN_HASTE) if again else nullcontext():
                    diverged = _fit(_trainer(job, stage, workers), follower)
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


def _fit(trainer: Any, follower: Follower) -> str | None:
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
        follower.look()
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


def _announce(title: str, job: TrainJob, stage: TrainStageConfig) -> None:
    """Says what will be done; a damaged checkpoint is told here, before any worker starts."""
    where = f"{stage.workers} Ray workers" if stage.workers else "this process"
    epochs = " + ".join(str(part.epochs) for part in job.recipe.in_stages)
    log.info(f"{title}: {epochs} epochs in {where}, {stage.threads} thread(s) each")
    if state := TrainState.load(Path(job.work_dir)):
        if stage.workers:  # in this process the loop itself warns
            state.check(job.fingerprint, stage.workers, stage.threads, warn=log.warning)
        log.info(f"{title}: going on after {state.epoch} epochs and {state.step} updates")


# ------------------------------------------------------------------------------------------------ what is left of it


def _circumstances(params: Params, state: TrainState, run: Run) -> dict[str, Any]:
    """How and with what it was trained; differs between two runs of the same training."""
    made_by = lineage(params.root)
    rates = [timing["images_per_second"] for timing in state.timings]
    return {
        "seconds": round(sum(timing["seconds"] for timing in state.timings), 2),
        "images_per_second": round(sum(rates) / len(rates), 1),
        "resumes": state.resumes,
        "checkpoint_fallbacks": state.fallbacks,
        "versions": versions(),
        "hardware": hardware(),
        "git_commit": made_by.get("git.commit"),
        "git_dirty": made_by.get("git.dirty"),
        "mlflow_run_id": run.run_id,
    }
