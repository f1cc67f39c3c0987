"""Ray Tune: the trials of a search, proposed by Optuna or a grid and stopped early."""

from __future__ import annotations

import logging
import math
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from ray import tune
from ray.tune.result import TRAINING_ITERATION
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch
from ray.tune.stopper import Stopper

from fer import processes
from fer.cluster import compat
from fer.cluster.config import COSTS, ClusterConfig, SearchRange, TuneConfig
from fer.cluster.nodes import require, with_inputs
from fer.cluster.ranks import places
from fer.cluster.session import Cluster, connect, run_in_thread
from fer.cluster.trials import NUMBER, TrialLog, TrialPlan, Values, own_values, run_trial
from fer.console import log

RANDOM_TRIALS = 5
_STOP_SECONDS = 3.0


def search(
    plan: TrialPlan, config: TuneConfig, cluster: ClusterConfig, record: TrialLog, poll: Callable[[], object]
) -> None:
    """Runs a search to its end, then the further runs that confirm its winner.

    Args:
        record: follows every trial. poll: called again and again, in the calling thread.

    Raises:
        ValueError: the cluster is too small or out of reach, a node does not get the data, or the first trials all
            failed.
        Interrupted: the trials were told to stop; the same command resumes.
    """
    log.info("%d trials of at most %d epochs", config.planned, plan.epochs)
    mode = "max" if record.higher_is_better else "min"
    own = own_values(plan.job.recipe, config.space)
    size: dict[str, Any] = {"workers": plan.workers, "cpus": plan.job.threads, "gpus": int(plan.gpu)}
    with connect(cluster, dashboard=True) as session:
        require(**size, wait_minutes=cluster.wait_minutes)
        sent = replace(plan, job=with_inputs(plan.job, plan.storage, session.address))
        run = partial(_run, sent, record, session, poll, Path(plan.job.work_dir, "ray"))
        run(
            min(config.max_concurrent or config.planned, config.planned),
            num_samples=config.planned, search_alg=_proposals(plan, config, mode, own),
            scheduler=_scheduler(plan, config, mode),
            time_budget_s=config.time_budget_minutes * 60 if config.time_budget_minutes else None,
        )  # fmt: skip
        if record.all_failed():
            reasons = "\n".join(f"trial {trial.number}: {trial.reason}" for trial in record.searched if trial.reason)
            raise ValueError(f"the first trials all failed, the search was ended:\n{reasons}")
        if repeats := record.repeats(config.seeds, config.planned, own or {}):
            log.info("the winner, and the recipe as it is, under %d more seeds", config.seeds)
            run(config.max_concurrent or len(repeats), num_samples=len(repeats), search_alg=_Listed(repeats))


def _run(
    plan: TrialPlan,
    record: TrialLog,
    session: Cluster,
    poll: Callable[[], object],
    folder: Path,
    at_once: int,
    **tune_options: Any,
) -> None:
    """Runs trials, each in a process of its own; `folder` is for Tune's files."""
    # Tune prints the traceback of every failed trial; the record gets the reason.
    logging.getLogger("ray.tune").setLevel(logging.ERROR if log.isEnabledFor(logging.DEBUG) else logging.CRITICAL)
    threads, gpu, workers = plan.job.threads, plan.gpu, plan.workers
    at_once = max(1, min(at_once, (session.gpus if gpu else session.cpus // threads) // workers))
    where = f"; dashboard {session.dashboard_url}" if session.dashboard_url else ""
    log.info("%d at once on %d CPUs%s", at_once, session.cpus, where)
    shutil.rmtree(folder, ignore_errors=True)
    driver = _Driver(record, stop := threading.Event())
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_trainable, plan=plan), places(workers, threads=threads, gpu=gpu)),
        tune_config=tune.TuneConfig(
            max_concurrent_trials=at_once,
            trial_dirname_creator=lambda trial: f"trial-{trial.config[NUMBER]}",
            **tune_options,
        ),
        run_config=tune.RunConfig(
            name=f"grid-{time.time_ns()}",
            storage_path=str(folder),
            verbose=0,
            callbacks=[driver],
            stop=driver,
            failure_config=tune.FailureConfig(max_failures=1),
        ),
    )

    def end_early() -> float:
        log.warning("stopping the trials")
        stop.set()
        return _STOP_SECONDS

    def look() -> None:
        session.watch.check()
        poll()

    run_in_thread(tuner.fit, look, end_early)


def _trainable(config: Values, plan: TrialPlan) -> None:
    """One trial, in a Ray actor."""
    processes.quiet_libraries()
    run_trial(config, lambda record: tune.report(dict(record)), plan=plan)


class _Driver(tune.Callback, Stopper):  # type: ignore[misc]
    """Hands Tune's events to the record, in a thread of the driver; ends all trials on request or after failures."""

    def __init__(self, record: TrialLog | None, stop: threading.Event | None) -> None:
        self._record, self._stop = record, stop

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Driver, (None, None))  # Tune stores its callbacks with the experiment, which is never restored

    def __call__(self, trial_id: str, result: Any) -> bool:
        return False

    def stop_all(self) -> bool:
        return bool(self._stop and self._stop.is_set()) or bool(self._record and self._record.all_failed())

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        if self._record:
            self._record.start(trial.config)

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
        kept = ("epoch", "learning_rate", "seconds", "images_per_second", *COSTS)
        numbers = {name: value for name, value in result.items() if name.startswith(("train_", "val_")) or name in kept}
        if self._record:
            self._record.report(trial.config, numbers)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        if self._record:
            self._record.end(trial.config)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        if self._record:
            self._record.end(trial.config, reason=compat.trial_error(trial))


def _scheduler(plan: TrialPlan, config: TuneConfig, mode: str) -> TrialScheduler:
    """What stops poor trials early."""
    common = {"time_attr": "epoch", "metric": plan.metric, "mode": mode, "grace_period": config.grace_epochs}
    if config.stopping == "asha":
        return ASHAScheduler(max_t=plan.epochs, reduction_factor=config.reduction_factor, **common)
    if config.stopping == "median":  # it pauses no trial in favor of others: a paused one would begin again
        return MedianStoppingRule(min_time_slice=math.inf, **common)
    return FIFOScheduler()


def _proposals(plan: TrialPlan, config: TuneConfig, mode: str, own: Values | None) -> Searcher:
    """TPE over the space, seeded, or its grid; the recipe's `own` values come first: the search knows what to beat."""
    if config.method == "grid":
        points = sorted(config.grid, key=lambda values: values != own)
        return _Listed([{**values, NUMBER: number} for number, values in enumerate(points, start=1)])
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return _NumberedSearch(
        space=partial(propose, config.space),
        metric=[plan.metric, config.cost] if config.cost else plan.metric,
        mode=[mode, "min"] if config.cost else mode,
        sampler=optuna.samplers.TPESampler(seed=plan.job.seed, n_startup_trials=RANDOM_TRIALS),
        points_to_evaluate=[own] if own else None,
    )


def propose(space: Mapping[str, SearchRange], trial: optuna.Trial) -> None:
    """Lets Optuna choose the parameters that exist beside each other, from the first to the last."""
    values: Values = {}
    for name, span in space.items():
        if not span.exists(values):
            continue
        if span.choices is not None:
            values[name] = trial.suggest_categorical(name, span.choices)
        elif span.integer:
            values[name] = trial.suggest_int(name, int(span.low or 0), int(span.high or 0), log=span.log)
        else:
            values[name] = trial.suggest_float(name, span.low, span.high, log=span.log)


def importance(record: TrialLog, space: Mapping[str, SearchRange]) -> dict[str, float]:
    """Of each parameter that all trials have, the fraction of the variance of their results that it explains.

    By Optuna's fANOVA (Hutter, Hoos and Leyton-Brown, ICML 2014), the largest first; nothing for fewer than four trials
    or equal results.
    """
    rows = [trial for trial in record.searched if trial.best is not None and trial.status != "failed"]
    if len(rows) < 4 or len({trial.best for trial in rows}) == 1:
        return {}
    study = optuna.create_study(direction="maximize" if record.higher_is_better else "minimize")
    for trial in rows:
        found = optuna.trial.FixedTrial(trial.values)
        propose(space, found)
        study.add_trial(
            optuna.trial.create_trial(params=found.params, distributions=found.distributions, value=trial.best)
        )
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return {
        name: round(value, 4)
        for name, value in optuna.importance.get_param_importances(study, evaluator=evaluator).items()
    }


class _Listed(Searcher):  # type: ignore[misc]
    """Proposes what is in a list."""

    def __init__(self, proposals: Sequence[Values]) -> None:
        super().__init__()
        self._proposals = iter(proposals)

    def suggest(self, trial_id: str) -> Any:
        return next(self._proposals, Searcher.FINISHED)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing is learned."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing is restored."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing is restored."""


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
