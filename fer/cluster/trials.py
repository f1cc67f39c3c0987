"""The trials of a search: what one is, how it runs, and the record that is kept of them.

A search is replayed, never restored: its seed proposes the same values again, and a trial whose epochs are on disk
reports them from there and trains only what is missing. So the same command resumes after whatever happened to the
driver, and more trials requested later find the earlier ones done. Nothing is unpickled.

With several trials at once their results arrive in no fixed order, on which later proposals depend: then a repeated
search draws the same first trials, but may propose other values afterwards.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fer.cluster.config import SearchRange
from fer.console import log
from fer.hashing import stable_hash
from fer.io.files import read_json, write_atomic, write_json
from fer.tracking import Run
from fer.tracking.run import Status
from fer.training.job import TrainJob
from fer.training.loop import DivergedError, train
from fer.training.metrics import best_metrics
from fer.training.progress import FILE_NAME as PROGRESS
from fer.training.recipe import Recipe, vary

NUMBER = "trial"
MIN_FAILED_TRIALS = 3  # that fail before any other ends: then the search is ended
_DIVERGED = "diverged.txt"  # in a trial's folder: why it must not be trained again
_ENDED = ("finished", "stopped early", "failed")
Values = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TrialPlan:
    """What all trials of a search share; picklable.

    Attributes:
        job: of the whole search: its recipe is what trials vary, its fingerprint the search's, and each trial works in
            `work_dir/<its key>`.
        gpu: one GPU a trial.
        epochs: of a trial that is not stopped.
        metric: that decides, of the validation split.
    """

    job: TrainJob
    gpu: bool
    epochs: int
    metric: str

    def key(self, number: int, values: Values) -> str:
        """Identity of a trial: the same proposal of the same search has the same."""
        texts = [f"{name}={value!r}" for name, value in sorted(values.items())]
        return f"{number:03d}-{stable_hash(self.job.fingerprint, number, *texts):016x}"

    def trial_job(self, key: str, values: Values) -> TrainJob:
        """What a trial trains: the values in place of the recipe's own, at the length of a trial, to be validated."""
        fixed = {"epochs": self.epochs, "protocol": "validation", "selection": "best"}
        recipe = vary(self.job.recipe, {**values, **fixed}, "tune.space")
        return replace(self.job, recipe=recipe, work_dir=str(Path(self.job.work_dir, key)), fingerprint=key)


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


def run_trial(config: Values, report: Callable[[Mapping[str, float]], object], plan: TrialPlan) -> None:
    """One trial, in a process of its own.

    Args:
        config: the values of the trial, and its number.
        report: gets each epoch, from disk where it was trained before.

    Raises:
        DivergedError: a loss was no number; a later replay raises it at once.
    """
    number, values = _split(config)
    key = plan.key(number, values)
    work = Path(plan.job.work_dir, key)
    work.mkdir(parents=True, exist_ok=True)
    if (work / _DIVERGED).is_file():
        raise DivergedError((work / _DIVERGED).read_text(encoding="utf-8"))
    reported = 0

    def on_epoch(record: Mapping[str, float]) -> None:
        nonlocal reported
        if record["epoch"] > reported:
            reported = int(record["epoch"])
            if not math.isfinite(record[plan.metric]):
                raise DivergedError(f"{plan.metric} is {record[plan.metric]} after epoch {reported}")
            report(record)

    if (work / PROGRESS).is_file():
        for record in read_json(work / PROGRESS)["records"]:
            on_epoch(record)
    if reported >= plan.epochs:
        return
    try:
        train(plan.trial_job(key, values), device="cuda:0" if plan.gpu else "cpu", on_epoch=on_epoch)
    except DivergedError as error:
        write_atomic(work / _DIVERGED, str(error))
        raise


def _split(config: Values) -> tuple[int, Values]:
    return int(config[NUMBER]), {name: value for name, value in config.items() if name != NUMBER}


# ------------------------------------------------------------------------------------------------ the record


@dataclass(kw_only=True)
class Trial:
    """One row of the record.

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
    """Trials as they run: one log line each, nested MLflow runs, and `trials.json`, by which they are found again.

    Attributes:
        open_trial_run: (trial, known run id or None) -> its MLflow run.
        parent: MLflow run of the search.
    """

    plan: TrialPlan
    open_trial_run: Callable[[Trial, str | None], Run]
    parent: Run
    trials: dict[int, Trial] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._path = Path(self.plan.job.work_dir, "trials.json")
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

    def start(self, values: Values) -> Trial:
        """A trial begins, or begins again after its worker was lost."""
        number, own = _split(values)
        with self._lock:
            if number not in self.trials:
                trial = self.trials[number] = Trial(number=number, key=self.plan.key(number, own), values=own)
                before = self._known.get(trial.key, {})
                # A run that ended keeps its end; one that was left running is found again by the trial's key.
                run = self.open_trial_run(trial, before.get("run_id") if before.get("status") in _ENDED else None)
                self._runs[number], trial.run_id = run, run.run_id
                self._save()
            return self.trials[number]

    def report(self, values: Values, record: Mapping[str, float]) -> None:
        """An epoch of a trial has ended."""
        with self._lock:
            if self._closed:
                return
            trial, value, epoch = self.start(values), float(record[self.plan.metric]), int(record["epoch"])
            if trial.best is None or (value > trial.best if self.higher_is_better else value < trial.best):
                trial.best, trial.best_epoch = value, epoch
                self._best[trial.number] = record
            if epoch > trial.epochs:
                trial.epochs = epoch
                trial.seconds += float(record.get("seconds", 0.0))
            self._runs[trial.number].log_epoch(record)

    def end(self, values: Values, reason: str = "") -> None:
        """A trial has ended; with a reason where it failed."""
        with self._lock:
            if self._closed:
                return
            trial = self.start(values)
            trial.reason = reason
            trial.status = "failed" if reason else "finished" if trial.epochs >= self.plan.epochs else "stopped early"
            self._finish(trial, "FAILED" if reason else "FINISHED")
            if (best := self.best()) is not None:
                self.parent.log_metrics(best_metrics(self._best[best.number]), step=len(self._ended()))
            result = "no result"
            if trial.best is not None:
                result = f"{self.plan.metric} {trial.best:.4f} at epoch {trial.best_epoch}"
            log.info("trial %d: %s after %d epochs, %s", trial.number, trial.status, trial.epochs, reason or result)

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

    def all_failed(self) -> bool:
        """Whether the first trials all failed."""
        ended = self._ended()
        return len(ended) >= MIN_FAILED_TRIALS and all(trial.status == "failed" for trial in ended)

    def _ended(self) -> list[Trial]:
        return [trial for trial in self.trials.values() if trial.status != "running"]

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
