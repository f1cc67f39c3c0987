"""Ray Tune: the trials of a search, which Optuna proposes and ASHA stops early, or all cells of a study."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import optuna
from ray import tune
from ray.tune.result import TRAINING_ITERATION
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from ray.tune.stopper import Stopper

from fer import processes
from fer.cluster import compat
from fer.cluster.config import ClusterConfig, TuneConfig
from fer.cluster.nodes import require
from fer.cluster.session import connect, run_in_thread
from fer.cluster.trials import NUMBER, TrialLog, TrialPlan, Values, own_values, run_trial
from fer.console import log

RANDOM_TRIALS = 5
_STOP_SECONDS = 3.0
_CELL = "cell"


class Observer(Protocol):
    """Follows the trials, in the driver, by their values; the calls come from another thread than the main one."""

    def start(self, values: Values) -> object:
        """A trial begins, or begins again after its worker was lost."""

    def report(self, values: Values, record: Mapping[str, float]) -> object:
        """An epoch of a trial has ended."""

    def end(self, values: Values, reason: str = "") -> object:
        """A trial has ended; with a reason where it failed."""

    def all_failed(self) -> bool:
        """Whether so many trials failed, and no other ended, that the rest are not started."""


def search(plan: TrialPlan, config: TuneConfig, cluster: ClusterConfig, record: TrialLog) -> None:
    """Runs a search to its end.

    Args:
        record: follows every trial.

    Raises:
        ValueError: the cluster is too small or out of reach, or the first trials all failed.
        Interrupted: the trials were told to stop; the same command resumes.
    """
    log.info("%d trials of at most %d epochs", config.trials, plan.epochs)
    mode = "max" if record.higher_is_better else "min"
    tune_options = {
        "metric": plan.metric,
        "mode": mode,
        "num_samples": config.trials,
        "search_alg": _proposals(plan, config, mode),
        "scheduler": ASHAScheduler(
            time_attr="epoch",
            max_t=plan.epochs,
            grace_period=config.grace_epochs,
            reduction_factor=config.reduction_factor,
        ),
        "time_budget_s": config.time_budget_minutes * 60 if config.time_budget_minutes else None,
        "trial_dirname_creator": lambda trial: f"trial-{trial.config[NUMBER]}",
    }
    at_once = min(config.max_concurrent or config.trials, config.trials)
    task, job = partial(run_trial, plan=plan), plan.job
    _run(task, record, tune_options, None, cluster, Path(job.work_dir), job.threads, plan.gpu, at_once)
    if record.all_failed():
        reasons = "\n".join(f"trial {trial.number}: {trial.reason}" for trial in record.trials.values() if trial.reason)
        raise ValueError(f"the first trials all failed, the search was ended:\n{reasons}")


def run_all(
    task: Callable[[str], object],
    cells: Sequence[str],
    observer: Observer,
    cluster: ClusterConfig,
    *,
    folder: Path,
    threads: int,
    gpu: bool,
    at_once: int | None,
) -> None:
    """Runs a task for each of the named cells, on whatever cluster there is; `observer` gets {"cell": name}.

    Args:
        task: picklable.
        folder: for Ray's own files, which are removed at the end; absolute, seen by all nodes.
        threads, gpu: CPUs of one task, and whether it gets a GPU.
        at_once: tasks at the same time; None: as many as the cluster holds.
    """
    options = {"trial_dirname_creator": lambda trial: trial.config[_CELL]}
    space, at_once = {_CELL: tune.grid_search(list(cells))}, min(at_once or len(cells), len(cells))
    _run(partial(_run_cell, task=task), observer, options, space, cluster, folder, threads, gpu, at_once)
    shutil.rmtree(folder / "ray", ignore_errors=True)


def _run_cell(values: Values, report: Callable[[Mapping[str, float]], object], task: Callable[[str], object]) -> None:
    task(values[_CELL])
    report({"done": 1})


def _run(
    task: Callable[[Values, Callable[[Mapping[str, float]], object]], object],
    observer: Observer,
    tune_options: Mapping[str, Any],
    space: Mapping[str, Any] | None,
    cluster: ClusterConfig,
    folder: Path,
    threads: int,
    gpu: bool,
    at_once: int,
) -> None:
    """Runs the trials in `folder/ray`; each trial calls `task(values, report)` in a process of its own."""
    # Tune prints the traceback of every failed trial; the observer gets the reason.
    logging.getLogger("ray.tune").setLevel(logging.ERROR if log.isEnabledFor(logging.DEBUG) else logging.CRITICAL)
    with connect(cluster, dashboard=True) as session:
        require(workers=1, cpus=threads, gpus=int(gpu), wait_minutes=cluster.wait_minutes)
        at_once = max(1, min(at_once, session.gpus if gpu else session.cpus // threads))
        where = f"; dashboard {session.dashboard_url}" if session.dashboard_url else ""
        log.info("%d at once on %d CPUs%s", at_once, session.cpus, where)
        shutil.rmtree(folder / "ray", ignore_errors=True)
        resources = {"CPU": threads, **({"GPU": 1} if gpu else {})}
        driver = _Driver(observer, stop := threading.Event())
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(_trainable, task=task), resources),
            param_space=space,
            tune_config=tune.TuneConfig(max_concurrent_trials=at_once, **tune_options),
            run_config=tune.RunConfig(
                name=f"grid-{time.time_ns()}",
                storage_path=str(folder / "ray"),
                verbose=0,
                callbacks=[driver],
                stop=driver,
                failure_config=tune.FailureConfig(max_failures=1),
            ),
        )

        def end_early() -> None:
            log.warning("stopping the trials")
            stop.set()

        run_in_thread(tuner.fit, session.watch.check, end_early, _STOP_SECONDS)


def _trainable(config: Values, task: Callable[[Values, Callable[[Mapping[str, float]], object]], object]) -> None:
    """One trial, in a Ray actor."""
    processes.quiet_libraries()
    task(config, lambda record: tune.report(dict(record)))


class _Driver(tune.Callback, Stopper):  # type: ignore[misc]
    """Hands Tune's events to the observer, and ends all trials on request or where the first all failed."""

    def __init__(self, observer: Observer | None, stop: threading.Event | None) -> None:
        self._observer, self._stop = observer, stop

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Driver, (None, None))  # Tune stores its callbacks with the experiment, which is never restored

    def __call__(self, trial_id: str, result: Any) -> bool:
        return False

    def stop_all(self) -> bool:
        return bool(self._stop and self._stop.is_set()) or bool(self._observer and self._observer.all_failed())

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        if self._observer:
            self._observer.start(trial.config)

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
        kept = ("epoch", "learning_rate", "seconds", "images_per_second")
        numbers = {name: value for name, value in result.items() if name.startswith(("train_", "val_")) or name in kept}
        if self._observer:
            self._observer.report(trial.config, numbers)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        if self._observer:
            self._observer.end(trial.config)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        if self._observer:
            self._observer.end(trial.config, reason=compat.trial_error(trial))


def _proposals(plan: TrialPlan, config: TuneConfig, mode: str) -> OptunaSearch:
    """TPE over the space, seeded; the recipe's own values come first, so that the search knows what it must beat."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {
        name: optuna.distributions.CategoricalDistribution(span.choices)
        if span.choices is not None
        else optuna.distributions.FloatDistribution(span.low, span.high, log=span.log)
        for name, span in config.space.items()
    }
    start = own_values(plan.job.recipe, config.space)
    return _NumberedSearch(
        space=space,
        metric=plan.metric,
        mode=mode,
        sampler=optuna.samplers.TPESampler(seed=plan.job.seed, n_startup_trials=RANDOM_TRIALS),
        points_to_evaluate=[start] if start else None,
    )


class _NumberedSearch(OptunaSearch):  # type: ignore[misc]
    """Numbers the proposals: number and values identify a trial."""

    proposed = 0

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._reported: dict[str, int] = {}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        # A trial whose process was lost reports its epochs again, of which Optuna keeps the first values and warns.
        if result[TRAINING_ITERATION] > self._reported.get(trial_id, 0):
            self._reported[trial_id] = result[TRAINING_ITERATION]
            super().on_trial_result(trial_id, result)

    def suggest(self, trial_id: str) -> Any:
        values = super().suggest(trial_id)
        if isinstance(values, dict):
            self.proposed += 1
            values[NUMBER] = self.proposed
        return values
