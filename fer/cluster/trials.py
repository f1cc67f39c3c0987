"""The trials of a search: what one is, how it runs, and the record that is kept of them.

A search is replayed, never restored: its seed proposes the same values again, and a trial whose epochs are on disk
reports them from there and trains only what is missing. So the same command resumes after whatever happened to the
driver, and more trials requested later find the earlier ones done. Nothing is unpickled.

The winner of a search has the best of many results under one seed, which is partly luck. So it is trained again under
other seeds, and beside it the recipe as it is: further trials, with `SEED` among their values, which are never ranked.

With several trials at once their results arrive in no fixed order, on which later proposals depend: then a repeated
search draws the same first trials, but may propose other values afterwards.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fer.cluster.config import SearchRange
from fer.cluster.ranks import train_ranks
from fer.console import log
from fer.hashing import stable_hash
from fer.io.files import read_json, write_json
from fer.io.storage import Folder, inside
from fer.tracking import Run
from fer.tracking.run import Status
from fer.training.job import TrainJob
from fer.training.loop import DivergedError, build_model, train
from fer.training.metrics import best_metrics
from fer.training.progress import FILE_NAME as PROGRESS
from fer.training.recipe import Recipe, vary
from fer.training.state import inherit

NUMBER = "trial"
SEED = "seed"
STAGES, PARENT = "stages", "parent"
"""Of a population's member (`fer.cluster.proposals`), beside the values of its own stage: all its recipe's stages, and
the key of the trial that has trained all but the last."""
MIN_FAILED_TRIALS = 3  # that fail before any other ends: then the search is ended
_OVER = "over.txt"
"""In the folder of a trial that is not trained again: why it diverged; empty where its recipe's `patience` ended it."""
_ENDED = ("finished", "stopped early", "failed")
Values = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TrialPlan:
    """What all trials of a search share; picklable.

    Attributes:
        job: of the whole search: its recipe is what trials vary, its fingerprint the search's, its folder, on the
            driver's machine, where the record is.
        storage: the store through which trials work; None: all nodes see the folders of the driver.
        workers: ranks of a trial. gpu: one GPU each.
        timeout_seconds: a rank that is silent for so long is lost.
        epochs: of a trial that is not stopped.
        metric: that decides, of the validation split.
        cost: key of `fer.evaluation.speed.cost_of` that is to be small besides; None: the metric alone.
    """

    job: TrainJob
    gpu: bool
    epochs: int
    metric: str
    cost: str | None = None
    workers: int = 1
    timeout_seconds: int = 300
    storage: str | None = None

    @property
    def work(self) -> str:
        """Path or URL of the folder below which each trial works, in one that is called as its key."""
        name = Path(self.job.work_dir).name
        return inside(self.storage, f"work/{name}") if self.storage else self.job.work_dir

    def key(self, number: int, values: Values) -> str:
        """Identity of a trial: the same proposal of the same search has the same."""
        texts = [f"{name}={value!r}" for name, value in sorted(values.items())]
        if SEED in values:  # where a longer search confirms the same values, it finds them trained
            return f"seed{values[SEED]}-{stable_hash(self.job.fingerprint, *texts):016x}"
        return f"{number:03d}-{stable_hash(self.job.fingerprint, number, *texts):016x}"

    def trial_job(self, key: str, values: Values) -> TrainJob:
        """What a trial trains: the values in place of the recipe's own, at the length of a trial, to be validated."""
        fixed = {"epochs": self.epochs, "protocol": "validation", "selection": "best"}
        recipe = vary(self.job.recipe, {**recipe_values(values), **fixed}, "tune.space")
        work, seed = inside(self.work, key), values.get(SEED, self.job.seed)
        return replace(self.job, recipe=recipe, work_dir=work, fingerprint=key, seed=seed)

    def epochs_of(self, values: Values) -> int:
        """Of a trial that is not stopped."""
        return sum(part.epochs for part in self.trial_job("", values).recipe.in_stages)


def recipe_values(values: Values) -> Values:
    """What a trial's recipe has in place of the given one's own."""
    if STAGES in values:
        return {STAGES: values[STAGES]}
    return {name: value for name, value in values.items() if name != SEED}


def own_values(recipe: Recipe, space: Mapping[str, SearchRange]) -> Values | None:
    """The recipe's own values of the searched keys; None where one lies outside of its range."""
    values: Values = {}
    for name, span in space.items():
        inner: Any = recipe.model_dump(mode="json")
        for part in name.split("."):
            inner = inner.get(part) if isinstance(inner, dict) else None
        if span.exists(values):
            if not span.holds(inner):
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
    work = Folder(inside(plan.work, key))
    over = work.find(_OVER)
    if over:
        raise DivergedError(over.decode())
    reported, job, epochs = 0, plan.trial_job(key, values), plan.epochs_of(values)
    cost = _cost(plan.cost, job, work) if plan.cost else {}
    own = len(values.get(STAGES, [None]))  # the stage of a member that counts: those before are its parent's

    def on_epoch(record: Mapping[str, float]) -> None:
        nonlocal reported
        if record["epoch"] > reported and record.get("stage", own) >= own:
            reported = int(record["epoch"])
            if not math.isfinite(record[plan.metric]):
                raise DivergedError(f"{plan.metric} is {record[plan.metric]} after epoch {reported}")
            report({**record, **cost})

    for record in (work.find_json(PROGRESS) or {"records": []})["records"]:
        on_epoch(record)
    if reported >= epochs or over is not None:
        return
    if PARENT in values:
        inherit(inside(plan.work, values[PARENT]), job)
    try:
        if plan.workers > 1:
            train_ranks(job, plan.workers, gpu=plan.gpu, timeout_seconds=plan.timeout_seconds, on_epoch=on_epoch)
        else:
            train(job, device="cuda:0" if plan.gpu else "cpu", on_epoch=on_epoch)
    except DivergedError as error:
        work.write(_OVER, str(error).encode())
        raise
    if reported < epochs:
        work.write(_OVER, b"")


def _cost(name: str, job: TrainJob, work: Folder) -> dict[str, float]:
    """One cost of the trial's model, measured once: what a replay reports does not change."""
    found: dict[str, float] | None = work.find_json("cost.json")
    if found is None:
        from fer.evaluation.speed import cost_of

        found = {name: float(cost_of(build_model(job).eval())[name])}
        work.write_json("cost.json", found)
    return found


def _split(config: Values) -> tuple[int, Values]:
    return int(config[NUMBER]), {name: value for name, value in config.items() if name != NUMBER}


# ------------------------------------------------------------------------------------------------ the record


@dataclass(kw_only=True)
class Trial:
    """One row of the record.

    Attributes:
        status: running, finished, stopped early, failed or interrupted.
        values: of the searched keys that exist beside each other; with `SEED` where a search's result is confirmed,
            with `STAGES` and `PARENT` where it is a population's.
        best: the metric at its best epoch; None before the first.
        cost: that is to be small besides; None where there is none.
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
    cost: float | None = None
    run_id: str | None = None

    @property
    def chosen(self) -> Values:
        """The values by which it differs from others; of a population's member those of its last stage."""
        return {name: value for name, value in self.values.items() if name not in (STAGES, PARENT)}

    @property
    def parent(self) -> int | None:
        """The number of the trial from whose weights it began."""
        key = self.values.get(PARENT)
        return None if key is None else int(key.partition("-")[0])


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
            trial.cost = record.get(self.plan.cost or "")
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
            whole = trial.epochs >= self.plan.epochs_of(trial.values)
            trial.status = "failed" if reason else "finished" if whole else "stopped early"
            self._finish(trial, "FAILED" if reason else "FINISHED")
            ended, best = self._ended(), self.best()
            so_far = {"trials": len(ended), "failed_trials": sum(one.status == "failed" for one in ended)}
            self.parent.log_metrics(so_far | (best_metrics(self._best[best.number]) if best else {}), step=len(ended))
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

    @property
    def searched(self) -> list[Trial]:
        """The trials of the search, by number."""
        return [trial for _, trial in sorted(self.trials.items()) if SEED not in trial.values]

    def ranked(self, trials: Sequence[Trial]) -> list[Trial]:
        """Those with a result, by their best epochs, the best first; of equal ones the first."""
        found = [trial for trial in trials if trial.best is not None and trial.status != "failed"]
        return sorted(found, key=self._rank, reverse=True)

    def best(self) -> Trial | None:
        """The trial with the best epoch."""
        return next(iter(self.ranked(self.searched)), None)

    def front(self) -> list[Trial]:
        """The Pareto front, cheapest first: trials of which no other is as good and as cheap, and better in one."""
        front: list[Trial] = []
        for trial in sorted(self.ranked(self.searched), key=lambda one: one.cost or 0.0):
            if not front or self._rank(trial)[0] > self._rank(front[-1])[0]:
                front.append(trial)
        return front

    def repeats(self, seeds: int, planned: int, own: Values) -> list[Values]:
        """The trials by which the winner is confirmed: it and the recipe as it is, under the next seeds each.

        Args:
            planned: trials of the search; these are counted on. own: the recipe's values, as `own_values` gives them.
        """
        best = self.best()
        won = {name: value for name, value in best.values.items() if name != PARENT} if best else {}
        sets = [] if best is None else [won] if won == own else [won, own]
        found = [{**values, SEED: self.plan.job.seed + 1 + shift} for shift in range(seeds) for values in sets]
        return [{**values, NUMBER: planned + 1 + index} for index, values in enumerate(found)]

    def confirmed(self, values: Values) -> dict[int, float]:
        """Seed -> result of the further runs of a set of parameters that ended, by the recipe's `patience` too."""
        of = [one for _, one in sorted(self.trials.items()) if SEED in one.values]
        of = [one for one in of if recipe_values(one.values) == recipe_values(values)]
        ended = [one for one in of if one.status in ("finished", "stopped early")]
        return {one.values[SEED]: one.best for one in ended if one.best is not None}

    def _rank(self, trial: Trial) -> tuple[float, int]:
        return (trial.best or 0.0) * (1 if self.higher_is_better else -1), -trial.number

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
