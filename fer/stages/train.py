"""The train stage: decides what a run is, where it runs, and what it leaves.

    .work/<fingerprint>/          what a killed run resumes from; removed when its results are published
        state-*.pt, progress.json     written by rank 0 (fer.training)
        lock                          held by the driver
        begun                         there once the run has its places
    trained/<dataset>/<model>/    appears complete, by rename; run.json alone differs between equal runs

The fingerprint (`fer.training.job`) identifies the run: another one never resumes from its state. The driver follows
it by `progress.json`; it alone talks to MLflow. All nodes see the driver's folders, or `storage` in params.yaml names
an object store: then the states and the progress are in it, and workers read their inputs from it.

    STORAGE/work/<fingerprint>/     state-*.pt, progress.json
    STORAGE/leases/<fingerprint>/   held by the driver (fer.lease)
    STORAGE/shards/<digest>/, STORAGE/weights/<digest>/    inputs; put there once, and never removed
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from fer.console import log, progress
from fer.environment import environment
from fer.io.files import read_json_if_there
from fer.io.storage import Folder, OutageError, inside, is_store
from fer.lease import leased
from fer.lineage import hardware, lineage, versions
from fer.outputs import BEGUN, TRAINED
from fer.params import Params
from fer.processes import empty_held, lock, remove_held, sigterm_awaited
from fer.shards.read import ShardSet
from fer.stages.closure import code
from fer.stages.record import log_data
from fer.tracking import Run, open_run
from fer.training.job import TrainJob
from fer.training.learner import slow_precision
from fer.training.loop import StopRequested, build_model, not_loaded, train
from fer.training.metrics import best_metrics
from fer.training.phases import LABELS, phase_stages, protocol_name, trained_on, validated
from fer.training.progress import FILE_NAME as PROGRESS
from fer.training.progress import STOP, Progress, changes
from fer.training.publish import publish
from fer.training.recipe import TrainStageConfig
from fer.training.state import Record, TrainState
from fer.weights.parts import WHOLE, locate
from fer.weights.store import shortened

_STORE_SECONDS = 2.0
"""Between two looks at the progress in a store."""
_LAST_SECONDS = 4.0
"""For the last checkpoint, where this process gets SIGTERM and trains by itself."""


def run(
    params: Params,
    dataset: str,
    model_key: str,
    *,
    ahead: bool = False,
    accept_versions: bool = False,
    restart: bool = False,
) -> Path:
    """Trains `models.<model_key>` on a dataset, or resumes it, and publishes `trained/<dataset>/<model_key>/`.

    Where DVC runs it and another process trains it, that one is followed to its end.

    Args:
        ahead: trains what is not published yet, and leaves it for the stage to publish.
        accept_versions: resumes a checkpoint that other versions of the libraries wrote; run.json tells of it.
        restart: removes the checkpoints of this run, and starts over.

    Returns:
        The published folder: model.safetensors, history.csv, val.json, train.json, run.json.

    Raises:
        ValueError: a mistake in params, shards that cannot be used, resources that do not exist, another process at the
            same run, checkpoints that cannot be used, or a run that diverged.
    """
    recipe, config = params.recipe(model_key), params.train_of(model_key)
    params.dataset(dataset)
    published = TRAINED.folder(params.root, dataset, model_key)
    shards = ShardSet.open((params.root / "data" / "shards" / dataset).resolve())
    code_digest = code().digest("train", recipes=[recipe])
    job = TrainJob.create(
        shards,
        recipe,
        seed=params.seed,
        code=code_digest,
        config=config,
        work=inside(params.storage, "work") if params.storage else params.home / ".work",
        pretrained=locate(recipe.sources, params.root, params.parent),
        command=f"python -m pipelines.train --dataset {dataset} --model {model_key}",
        accept_versions=accept_versions,
    )
    stages, protocol = phase_stages(recipe), protocol_name(recipe.model_dump())
    label = "" if protocol == "validation" else f"; {LABELS[protocol]}"
    model, work, title = build_model(job), Folder(job.work_dir), f"train {model_key} on {dataset}"
    random = not_loaded(job) if job.pretrained else []
    digests = {source.part: source.digest for source in job.pretrained}
    start = {"source": recipe.start_from, "sha256": digests.pop(WHOLE, None), "random": random}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    settings = {"recipe": recipe.model_dump(mode="json"), "seed": params.seed}
    stage = {"train": config.model_dump()}
    facts = {
        "dataset": dataset,
        "model": recipe.last.model,
        "parameters": parameters,
        "labels": list(shards.labels),
        "label_space": shards.label_space,
        "synthetic": shards.manifest.synthetic,
        "crop": shards.manifest.crop,
        "fingerprint": job.fingerprint,
        "data_digest": shards.digest,
        "code_digest": code_digest,
        "pretrained": digests,
        "start_from": start if recipe.start_from else None,
        "protocol": protocol,
        "trained_on": trained_on(recipe),
    }
    tags = {key: facts[key] for key in ("dataset", "model", "data_digest", "code_digest", "protocol")}
    tags |= {"fer.kind": "training", "recipe": params.recipe_names.get(model_key)}
    held = params.home / ".work" / job.fingerprint[:16]
    if ahead and (read_json_if_there(published / "train.json") or {}).get("fingerprint") == job.fingerprint:
        return published
    epochs = sum(stage.recipe.epochs for stage in stages)
    with (
        Follower(title, work, epochs) as other,
        lock(held / "lock", wait=other.poll if params.queued or environment().dvc_stage else False),
        leased(params.storage, job.fingerprint[:16], params.home, wait=params.queued) as check,
        open_run(
            params.tracking,
            params.home,
            checkout=params.root,
            experiment=dataset,
            run_name=params.run_name(model_key),
            key=job.fingerprint,
            params=settings | stage,
            tags=tags,
        ) as tracked,
    ):
        log_data(tracked, dataset, shards, "train", "validation")
        tracked.log_metrics({"parameters": parameters})
        if restart:
            empty_held(held)
            _clear(job)
        state = TrainState.load(job.work_dir)  # a damaged one is reported here, before any worker starts
        if state is not None and state.stage + 1 == len(stages) and stages[-1].is_over(state):
            state.check(job, state.world_size, warn=None)
            log.info(f"{title}: is trained already")
            other.poll()
        else:
            _announce(title, job, config, label, state)
            if recipe.start_from:
                log.info(f"{title}: starts from {recipe.start_from}; at random: {shortened(random) or 'nothing'}")
            with Recorder(title, work, epochs, tracked, check, held / BEGUN) as recorder:
                _run(job, config, params, recorder)
            state = TrainState.load(job.work_dir)
        if ahead:
            tracked.finish("KILLED")  # its stage opens the run again, and finishes it
            return published
        assert state is not None, "a run that ended well left its last state"
        assert state.stage + 1 == len(stages), "a run ends with its last stage"
        assert stages[-1].is_over(state), "a run ends at its end"
        for record in state.records():  # what a killed driver could not log; points are logged once
            tracked.log_epoch(record)
        best = {**(validated(recipe, state) or {}), **state.history[state.best_epoch - 1]}
        changed = changes(job.work_dir)
        numbers = {"checkpoint_fallbacks": state.fallbacks, "worker_changes": len(changed)}
        tracked.log_metrics({**best_metrics(best), **numbers}, step=state.epoch)
        facts |= settings | {"decisive_versions": state.versions}
        if recipe.selection == "refit":
            facts["chosen_epochs"] = state.chosen[: len(recipe.in_stages)]
        publish(published, model, job, state, facts, stage | _circumstances(params, state, changed, tracked))
        for name in ("history.csv", "train.json", "run.json"):
            tracked.log_artifact(published / name, "training")
        _clear(job)
        remove_held(held)
    log.info(
        f"{title}: best epoch {state.best_epoch} of {state.epoch}, {_metrics_line(best)}{label}"
        f" -> {published.relative_to(params.root)}"
    )
    if accept_versions or restart:
        log.info(f"next, so that `dvc repro` keeps it: dvc commit --force {params.target('train', dataset, model_key)}")
    return published


# ------------------------------------------------------------------------------------------------ where it runs


def _clear(job: TrainJob) -> None:
    """Removes the states of a run from its store."""
    if is_store(job.work_dir):
        Folder(job.work_dir).clear()


def _run(job: TrainJob, config: TrainStageConfig, params: Params, recorder: Recorder) -> None:
    for left in (PROGRESS, STOP):
        Folder(job.work_dir).remove(left)
    if config.most_workers:
        from fer.cluster.fit import train_on_ray

        train_on_ray(
            job, config, params.cluster, recorder.poll, params.storage,
            on_change=recorder.on_change, on_gpu=recorder.on_gpu,
        )  # fmt: skip
    else:
        device = _own_device(config.gpu, recorder)
        with sigterm_awaited(_LAST_SECONDS) as stop, suppress(StopRequested):
            train(job, device=device, on_epoch=recorder.on_epoch, on_step=recorder.on_step, stop=stop)


def _own_device(gpu: bool, recorder: Recorder) -> str:
    import torch

    if gpu and not torch.cuda.is_available():
        raise ValueError("train.gpu is true, and torch finds no GPU here: set it to false, or name a cluster with GPUs")
    if gpu:
        recorder.on_gpu(torch.cuda.get_device_name(0))
    return "cuda:0" if gpu else "cpu"


def _announce(title: str, job: TrainJob, stage: TrainStageConfig, label: str, state: TrainState | None) -> None:
    """Logs what will be done, from which state."""
    where = f"{stage.workers} Ray workers" if stage.most_workers else "this process"
    epochs = " + ".join(str(part.epochs) for part in job.recipe.in_stages)
    log.info(f"{title}: {epochs} epochs in {where}, {stage.threads} thread(s) each{label}")
    if warning := slow_precision(job.recipe, stage.gpu):
        log.warning(f"{title}: {warning}")
    if state:
        if isinstance(stage.workers, int) and stage.workers:  # in this process the loop itself warns
            state.check(job, stage.workers, warn=log.warning)
        log.info(f"{title}: resuming after {state.epoch} epochs and {state.step} updates")


# ------------------------------------------------------------------------------------------------ progress


class Follower:
    """One line an epoch and a bar on terminals, of what another process trains; fed by the file that rank 0 writes."""

    def __init__(self, title: str, work: Folder, epochs: int) -> None:
        self._title, self._epochs = title, epochs
        # Whether an outage of a store is too long is for the workers to say.
        self._work, self._every = Folder(work.location, attempts=1), _STORE_SECONDS if is_store(work.location) else 0.0
        self._polled = -math.inf
        self._last_epoch: int | None = 0
        self._bar: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def on_epoch(self, record: Record) -> None:
        """Logs a finished epoch."""
        line = (
            f"epoch {record['epoch']}/{self._epochs}: loss {record['train_loss']:.4f}, "
            f"accuracy {record['train_accuracy']:.4f}; "
            f"{_metrics_line(record, loss=True)}; "
            f"{record['images_per_second']:.0f} images/s, {record['seconds']:.1f} s"
        )
        log.info("%s", line)

    def on_step(self, now: Progress) -> None:
        """Moves the bar."""
        done = now.epoch * now.steps + now.step
        if self._bar is None:
            self._bar = progress(now.epochs * now.steps, self._title, "step", done)
        self._bar.update(done - self._bar.n)

    def poll(self) -> None:
        """Reads what rank 0 wrote since the last call."""
        if time.monotonic() - self._polled < self._every:
            return
        self._polled = time.monotonic()
        content: Any = None
        with suppress(OutageError):
            content = self._work.find_json(PROGRESS)
        if content is None:
            return
        records = content.pop("records")
        if self._last_epoch is None:  # epochs that an earlier process has logged
            self._last_epoch = content["epoch"] if content["step"] else max(0, content["epoch"] - 1)
        for record in records[self._last_epoch :]:
            self.on_epoch(record)
        self._last_epoch = max(self._last_epoch, len(records))
        self.on_step(Progress(**content))


class Recorder(Follower):
    """A follower of one's own run, fed by the loop too: the curves in MLflow.

    MLflow's run has the tag `gpu`, the metric `worker_changes`, how often workers were lost, added or replaced, and for
    each of these a tag with its time and reason.

    Args:
        check: raises where the run was lost. begun: a file that appears once the run has its places.
    """

    def __init__(
        self, title: str, work: Folder, epochs: int, run: Run, check: Callable[[], object], begun: Path
    ) -> None:
        super().__init__(title, work, epochs)
        self._run, self._check, self._begun = run, check, begun
        self._last_epoch = None
        self._epoch = 0
        begun.unlink(missing_ok=True)

    def on_epoch(self, record: Record) -> None:
        """Logs a finished epoch."""
        self._run.log_epoch(record)
        self._run.log_system(int(record["epoch"]))
        super().on_epoch(record)

    def on_step(self, now: Progress) -> None:
        """Moves the bar."""
        self._check()
        if self._bar is None:
            self._begun.touch()
        self._epoch = now.epoch
        super().on_step(now)

    def poll(self) -> None:
        """Reads what rank 0 wrote since the last call."""
        self._check()
        super().poll()

    def on_gpu(self, name: str) -> None:
        """Records the model of the GPUs."""
        self._run.set_tags({"gpu": name})

    def on_change(self, reason: str) -> None:
        """Records that the workers have changed."""
        self._run.log_metrics({"worker_changes": len(changes(self._work.location))}, step=self._epoch)
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        self._run.set_tags({f"worker_change.{now}": f"after epoch {self._epoch}: {reason}"})


def _metrics_line(record: Record, *, loss: bool = False) -> str:
    """The metrics of the splits that a row of history holds, in words."""
    parts = []
    for prefix, split in (("val", "validation"), ("test", "test")):
        if f"{prefix}_accuracy" in record:
            start = f"{split} loss {record[f'{prefix}_loss']:.4f}, " if loss else f"{split} "
            balanced = record[f"{prefix}_balanced_accuracy"]
            parts.append(f"{start}accuracy {record[f'{prefix}_accuracy']:.4f}, balanced {balanced:.4f}")
    return "; ".join(parts) or "all rows but the test split's are trained on"


# ------------------------------------------------------------------------------------------------ results


def _circumstances(params: Params, state: TrainState, changed: Sequence[Mapping[str, Any]], run: Run) -> dict[str, Any]:
    """How and with what it was trained; differs between two equal runs."""
    made_by = lineage(params.root)
    rates = [timing["images_per_second"] for timing in state.timings]
    return {
        "seconds": round(sum(timing["seconds"] for timing in state.timings), 2),
        "images_per_second": round(sum(rates) / len(rates), 1),
        "workers": [timing["workers"] for timing in state.timings],
        "worker_changes": list(changed),
        "resumes": state.resumes,
        "checkpoint_fallbacks": state.fallbacks,
        "accepted_versions": state.accepted,
        "versions": versions(),
        "hardware": hardware(),
        "git_commit": made_by.get("git.commit"),
        "git_dirty": made_by.get("git.dirty"),
        "mlflow_run_id": run.run_id,
    }
