"""The trials of a search: what one is, how it runs, and the record that is kept of them.

A search is replayed, never restored: its seed proposes the same values again, and a trial whose epochs are on disk
reports them from there and trains only what is missing. So the same command goes on after whatever happened to the
driver, and more trials asked for later find the earlier ones done. Nothing is unpickled.

With several trials at once their results arrive in no fixed order, on which later proposals depend: then a repeated
search draws the same first trials, but may propose other values afterwards.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fer import processes
from fer.cluster.config import SearchRange
from fer.console import log
from fer.hashing import stable_hash
from fer.io.files import read_json, write_atomic, write_json
from fer.tracking import Run
from fer.tracking.run import Status
from fer.training.metrics import best_metrics
from fer.training.recipe import Recipe, vary
from fer.weights.parts import PartSource

NUMBER = "trial"
HOPELESS_TRIALS = 3  # that fail before any other ends: then the search is ended
_DIVERGED = "diverged.txt"  # in a trial's folder: why it must not be trained again
Values = dict[str, Any]


# ------------------------------------------------------------------------------------------------ one trial


@dataclass(frozen=True, kw_only=True)
class TrialPlan:
    """What all trials of a search share; picklable.

    Attributes:
        folder: of the search, absolute, seen by all nodes; each trial works in `folder/<its key>`.
        recipe: the recipe that the trials vary.
        gpu: one GPU a trial.
        pretrained: the parts of the model that start from given weights.
        command, accept_versions: as in `fer.training.job.TrainJob`.
    """

    folder: str
    shards: str
    recipe: Recipe
    labels: tuple[str, ...]
    seed: int
    threads: int
    gpu: bool
    epochs: int
    metric: str
    checkpoint_every_steps: int
    fingerprint: str
    pretrained: tuple[PartSource, ...] = ()
    command: str = ""
    accept_versions: bool = False

    def key(self, number: int, values: Values) -> str:
        """Identity of a trial: the same proposal of the same search has the same."""
        texts = [f"{name}={value!r}" for name, value in sorted(values.items())]
        return f"{number:03d}-{stable_hash(self.fingerprint, number, *texts):016x}"

    def trial_recipe(self, values: Values) -> Recipe:
        """The recipe of a trial: the values laid over the base, at the length of a trial."""
        return vary(self.recipe, {**values, "epochs": self.epochs}, "tune.space")


def own_values(recipe: Recipe, space: Mapping[str, SearchRange]) -> Values | None:
    """The recipe's own values of the searched keys; None where one lies outside of its range."""
    values: Values = {}
    for name, span in space.items():
        inner: Any = recipe.model_dump(mode="json")
        for part in name.split("."):
            inner = inner.get(part) if isinstance(inner, dict) else None
        inside = inner in span.choices if span.choices is not None else isinstance(inner, int | float)
        if span.choices is None and inside:
            inside = float(span.low or 0) <= float(inner) <= float(span.high or 0)
        if not inside:
            return None
        values[name] = inner
    return values


def run_trial(config: Values, plan: TrialPlan) -> None:
    """One trial, in a Ray actor: reports each epoch to Ray Tune, from disk where it was trained before.

    Raises:
        DivergedError: a loss was no number; a later replay raises it at once.
    """
    from ray import tune

    from fer.training.job import TrainJob
    from fer.training.loop import DivergedError, train

    processes.quiet_libraries()
    values = {name: value for name, value in config.items() if name != NUMBER}
    key = plan.key(config[NUMBER], values)
    work = Path(plan.folder, key)
    work.mkdir(parents=True, exist_ok=True)
    if (work / _DIVERGED).is_file():
        raise DivergedError((work / _DIVERGED).read_text(encoding="utf-8"))
    told = 0

    def tell(record: Mapping[str, float]) -> None:
        nonlocal told
        if record["epoch"] > told:
            told = int(record["epoch"])
            if not math.isfinite(record[plan.metric]):
                raise DivergedError(f"{plan.metric} is {record[plan.metric]} after epoch {told}")
            tune.report(dict(record))

    for record in finished_epochs(work):
        tell(record)
    if told >= plan.epochs:
        return
    job = TrainJob(
        shards=plan.shards,
        work_dir=str(work),
        recipe=plan.trial_recipe(values),
        labels=plan.labels,
        seed=plan.seed,
        threads=plan.threads,
        checkpoint_every_steps=plan.checkpoint_every_steps,
        fingerprint=key,
        pretrained=plan.pretrained,
        command=plan.command,
        accept_versions=plan.accept_versions,
    )
    try:
        train(job, device="cuda:0" if plan.gpu else "cpu", on_epoch=tell)
    except DivergedError as error:
        write_atomic(work / _DIVERGED, str(error))
        raise


def finished_epochs(work: Path) -> list[dict[str, float]]:
    """The rows of history that a trial left on disk."""
    from fer.training.progress import FILE_NAME

    path = work / FILE_NAME
    return list(read_json(path)["records"]) if path.is_file() else []


# ------------------------------------------------------------------------------------------------ the record


@dataclass(kw_only=True)
class Trial:
    """A trial as people are told of it.

    Attributes:
        status: running, finished, stopped early, failed or interrupted.
        best: the metric at its best epoch; None before the first.
        seconds: spent in its epochs, whenever they were trained.
    """

    number: int
    key: str
    values: Values
    status: str = "running"
    epochs: int = 0
    best: float | None = None
    best_epoch: int = 0
    seconds: float = 0.0
    reason: str = ""
    run_id: str | None = None


@dataclass
class TrialLog:
    """Trials as they go: one line each for people, nested MLflow runs, and `trials.json` to know them again by.

    Attributes:
        open_trial_run: (trial, known run id or None) -> its MLflow run.
        parent: MLflow run of the search.
    """

    plan: TrialPlan
    open_trial_run: Callable[[Trial, str | None], Run]
    parent: Run
    trials: dict[int, Trial] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._path = Path(self.plan.folder, "trials.json")
        self._runs: dict[int, Run] = {}
        self._best: dict[int, Mapping[str, float]] = {}
        """Of each trial the row of its best epoch."""
        self._known = {row["key"]: row for row in read_json(self._path)} if self._path.is_file() else {}
        self._lock = threading.RLock()
        self._closed = False

    @property
    def higher_is_better(self) -> bool:
        """Of the metric that decides."""
        return self.plan.metric != "val_loss"

    def start(self, config: Values) -> Trial:
        """A trial begins, or begins again after its worker was lost."""
        number = int(config[NUMBER])
        with self._lock:
            if number not in self.trials:
                values = {name: value for name, value in config.items() if name != NUMBER}
                trial = Trial(number=number, key=self.plan.key(number, values), values=values)
                self.trials[number] = trial
                before = self._known.get(trial.key, {})
                # A run that ended keeps its end; one that was left running is found again by the trial's key.
                known = (
                    before.get("run_id") if before.get("status") in ("finished", "stopped early", "failed") else None
                )
                self._runs[number] = self.open_trial_run(trial, known)
                trial.run_id = self._runs[number].run_id
                self._save()
            return self.trials[number]

    def report(self, config: Values, record: Mapping[str, float]) -> None:
        """An epoch of a trial has ended."""
        with self._lock:
            if self._closed:
                return
            trial = self.start(config)
            value = float(record[self.plan.metric])
            if trial.best is None or (value > trial.best if self.higher_is_better else value < trial.best):
                trial.best, trial.best_epoch = value, int(record["epoch"])
                self._best[trial.number] = record
            if int(record["epoch"]) > trial.epochs:
                trial.epochs = int(record["epoch"])
                trial.seconds += float(record.get("seconds", 0.0))
            self._runs[trial.number].log_metrics(
                {name: value for name, value in record.items() if name != "epoch"}, step=int(record["epoch"])
            )

    def end(self, config: Values, reason: str = "") -> None:
        """A trial has ended; with a reason where it failed."""
        with self._lock:
            if self._closed:
                return
            trial = self.start(config)
            trial.reason = reason
            trial.status = "failed" if reason else "finished" if trial.epochs >= self.plan.epochs else "stopped early"
            self._finish(trial, "FAILED" if reason else "FINISHED")
            ended = [one for one in self.trials.values() if one.status != "running"]
            if (best := self.best()) is not None:
                self.parent.log_metrics(best_metrics(self._best[best.number]), step=len(ended))
            shown = (
                f"{self.plan.metric} {trial.best:.4f} at epoch {trial.best_epoch}"
                if trial.best is not None
                else "no result"
            )
            log.info("trial %d: %s after %d epochs, %s", trial.number, trial.status, trial.epochs, reason or shown)

    def close(self, interrupted: bool) -> None:
        """No trial is left running, whatever happened; what an earlier attempt left open is closed too."""
        with self._lock:
            self._closed = True
            for trial in self.trials.values():
                if trial.status == "running":
                    trial.status = "interrupted"
                    self._finish(trial, "KILLED")
            if not interrupted:
                current = {trial.key for trial in self.trials.values()}
                for key, row in self._known.items():
                    if key not in current and row["status"] in ("running", "interrupted"):
                        self.open_trial_run(Trial(**row), None).finish("KILLED")
            self._save()

    def best(self) -> Trial | None:
        """The trial with the best epoch; of equal ones the first."""
        rated = [trial for trial in self.trials.values() if trial.best is not None and trial.status != "failed"]
        sign = 1 if self.higher_is_better else -1
        return max(rated, key=lambda trial: (sign * (trial.best or 0.0), -trial.number), default=None)

    def hopeless(self) -> bool:
        """Whether the first trials failed one and all."""
        ended = [trial for trial in self.trials.values() if trial.status != "running"]
        return len(ended) >= HOPELESS_TRIALS and all(trial.status == "failed" for trial in ended)

    def _finish(self, trial: Trial, status: Status) -> None:
        run = self._runs[trial.number]
        if trial.number in self._best:
            run.log_metrics(best_metrics(self._best[trial.number]), step=trial.epochs)
        run.set_tags({"trial.status": trial.status} | ({"trial.reason": trial.reason} if trial.reason else {}))
        run.finish(status)
        trial.run_id = run.run_id  # not known before where MLflow was down when the trial began
        self._save()

    def _save(self) -> None:
        rows = {**self._known, **{trial.key: asdict(trial) for trial in self.trials.values()}}
        write_json(self._path, [rows[key] for key in sorted(rows)])
