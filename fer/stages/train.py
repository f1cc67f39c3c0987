"""The train stage: decides what a run is, where it runs, and what it leaves.

    .work/<fingerprint>/          what a killed run resumes from; removed when its results are published
        state-*.pt, progress.json     written by rank 0 (fer.training)
        lock                          held by the driver
    trained/<dataset>/<model>/    appears complete, by rename; run.json alone differs between equal runs

The fingerprint (`fer.training.job`) identifies the run: another one never resumes from its state. The driver follows
it by `progress.json`, so all nodes must see the driver's work folder; it alone talks to MLflow.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fer.cluster.config import ClusterConfig
from fer.console import log, progress
from fer.io.files import read_json
from fer.lineage import hardware, lineage, versions
from fer.outputs import TRAINED
from fer.params import Params
from fer.processes import empty_held, lock, remove_held
from fer.shards.read import ShardSet
from fer.stages.closure import code
from fer.tracking import Run, open_run
from fer.training.job import TrainJob
from fer.training.learner import slow_precision
from fer.training.loop import build_model, not_loaded, train
from fer.training.metrics import best_metrics
from fer.training.phases import LABELS, phase_stages, protocol_name, trained_on, validated
from fer.training.progress import FILE_NAME as PROGRESS
from fer.training.progress import Progress
from fer.training.publish import publish
from fer.training.recipe import TrainStageConfig
from fer.training.state import Record, TrainState
from fer.weights.parts import WHOLE, locate
from fer.weights.store import shortened


def run(params: Params, dataset: str, model_key: str, *, accept_versions: bool = False, restart: bool = False) -> Path:
    """Trains `models.<model_key>` on a dataset, or resumes it, and publishes `trained/<dataset>/<model_key>/`.

    Args:
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
        work=params.home / ".work",
        pretrained=locate(recipe.sources, params.root, params.parent),
        command=f"python -m pipelines.train --dataset {dataset} --model {model_key}",
        accept_versions=accept_versions,
    )
    stages, protocol = phase_stages(recipe), protocol_name(recipe.model_dump())
    label = "" if protocol == "validation" else f"; {LABELS[protocol]}"
    model, work, title = build_model(job), Path(job.work_dir), f"train {model_key} on {dataset}"
    random = not_loaded(job) if job.pretrained else []
    digests = {source.part: source.digest for source in job.pretrained}
    start = {"source": recipe.start_from, "sha256": digests.pop(WHOLE, None), "random": random}
    settings = {"recipe": recipe.model_dump(mode="json"), "seed": params.seed}
    stage = {"train": config.model_dump()}
    facts = {
        "dataset": dataset,
        "model": recipe.last.model,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
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
    tags = {key: facts[key] for key in ("dataset", "model", "parameters", "data_digest", "code_digest", "protocol")}
    tags["recipe"] = params.recipe_names.get(model_key)
    with (
        lock(work / "lock", wait=params.queued),
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
        if restart:
            empty_held(work)
        _announce(title, job, config, label)
        if recipe.start_from:
            log.info(f"{title}: starts from {recipe.start_from}; at random: {shortened(random) or 'nothing'}")
        follower = Follower(title, work, sum(stage.recipe.epochs for stage in stages), tracked)
        _run(job, config, params.cluster, follower)
        state = TrainState.load(work)
        assert state is not None, "a run that ended well left its last state"
        assert state.stage + 1 == len(stages), "a run ends with its last stage"
        assert stages[-1].is_over(state), "a run ends at its end"
        for record in state.records():  # what a killed driver could not log; points are logged once
            tracked.log_epoch(record)
        best = {**(validated(recipe, state) or {}), **state.history[state.best_epoch - 1]}
        tracked.log_metrics({**best_metrics(best), "checkpoint_fallbacks": state.fallbacks}, step=state.epoch)
        facts |= settings | {"decisive_versions": state.versions}
        if recipe.selection == "refit":
            facts["chosen_epochs"] = state.chosen[: len(recipe.in_stages)]
        publish(published, model, job, state, facts, stage | _circumstances(params, state, tracked))
        for name in ("history.csv", "train.json", "run.json"):
            tracked.log_artifact(published / name, "training")
        remove_held(work)
    log.info(
        f"{title}: best epoch {state.best_epoch} of {state.epoch}, {_metrics_line(best)}{label}"
        f" -> {published.relative_to(params.root)}"
    )
    if accept_versions or restart:
        log.info(f"next, so that `dvc repro` keeps it: dvc commit --force {params.target('train', dataset, model_key)}")
    return published


# ------------------------------------------------------------------------------------------------ where it runs


def _run(job: TrainJob, config: TrainStageConfig, cluster: ClusterConfig, follower: Follower) -> None:
    (Path(job.work_dir) / PROGRESS).unlink(missing_ok=True)
    with follower:
        if config.workers:
            from fer.cluster.fit import train_on_ray

            train_on_ray(job, config, cluster, follower.poll)
        else:
            train(job, device=_own_device(config.gpu), on_epoch=follower.on_epoch, on_step=follower.on_step)


def _own_device(gpu: bool) -> str:
    import torch

    if gpu and not torch.cuda.is_available():
        raise ValueError("train.gpu is true, and torch finds no GPU here: set it to false, or name a cluster with GPUs")
    return "cuda:0" if gpu else "cpu"


def _announce(title: str, job: TrainJob, stage: TrainStageConfig, label: str) -> None:
    """Logs what will be done; a damaged checkpoint is reported here, before any worker starts."""
    where = f"{stage.workers} Ray workers" if stage.workers else "this process"
    epochs = " + ".join(str(part.epochs) for part in job.recipe.in_stages)
    log.info(f"{title}: {epochs} epochs in {where}, {stage.threads} thread(s) each{label}")
    if warning := slow_precision(job.recipe, stage.gpu):
        log.warning(f"{title}: {warning}")
    if state := TrainState.load(Path(job.work_dir)):
        if stage.workers:  # in this process the loop itself warns
            state.check(job, stage.workers, warn=log.warning)
        log.info(f"{title}: resuming after {state.epoch} epochs and {state.step} updates")


# ------------------------------------------------------------------------------------------------ progress


class Follower:
    """One line an epoch, a bar on terminals, and the curves in MLflow; fed by the loop, or by the file it writes."""

    def __init__(self, title: str, work: Path, epochs: int, run: Run) -> None:
        self._title, self._path, self._epochs, self._run = title, work / PROGRESS, epochs, run
        self._last_epoch: int | None = None
        self._bar: Any = None

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def on_epoch(self, record: Record) -> None:
        """Logs a finished epoch."""
        self._run.log_epoch(record)
        self._run.log_system(int(record["epoch"]))
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
        if not self._path.exists():
            return
        content = read_json(self._path)
        records = content.pop("records")
        if self._last_epoch is None:  # epochs that an earlier process has logged
            self._last_epoch = content["epoch"] if content["step"] else max(0, content["epoch"] - 1)
        for record in records[self._last_epoch :]:
            self.on_epoch(record)
        self._last_epoch = max(self._last_epoch, len(records))
        self.on_step(Progress(**content))


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


def _circumstances(params: Params, state: TrainState, run: Run) -> dict[str, Any]:
    """How and with what it was trained; differs between two equal runs."""
    made_by = lineage(params.root)
    rates = [timing["images_per_second"] for timing in state.timings]
    return {
        "seconds": round(sum(timing["seconds"] for timing in state.timings), 2),
        "images_per_second": round(sum(rates) / len(rates), 1),
        "resumes": state.resumes,
        "checkpoint_fallbacks": state.fallbacks,
        "accepted_versions": state.accepted,
        "versions": versions(),
        "hardware": hardware(),
        "git_commit": made_by.get("git.commit"),
        "git_dirty": made_by.get("git.dirty"),
        "mlflow_run_id": run.run_id,
    }
