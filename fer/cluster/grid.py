"""Ray Tune: the trials of a search, side by side and stopped early."""

from __future__ import annotations

import logging
import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from fer import processes
from fer.cluster import compat
from fer.cluster.config import COSTS, ClusterConfig, TuneConfig
from fer.cluster.nodes import require, with_inputs
from fer.cluster.proposals import Listed, generation, proposals
from fer.cluster.ranks import places
from fer.cluster.session import Cluster, connect, run_in_thread
from fer.cluster.trials import NUMBER, TrialLog, TrialPlan, Values, own_values, run_trial
from fer.console import log

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
        started, budget = time.monotonic(), config.time_budget_minutes
        for count, searcher in _rounds(plan, config, mode, own, record):
            left = budget * 60 - (time.monotonic() - started) if budget else None
            if left is None or left > 0:
                run(
                    min(config.max_concurrent or count, count), num_samples=count, search_alg=searcher,
                    scheduler=_scheduler(plan, config, mode), time_budget_s=left,
                )  # fmt: skip
        if record.all_failed():
            reasons = "\n".join(f"trial {trial.number}: {trial.reason}" for trial in record.searched if trial.reason)
            raise ValueError(f"the first trials all failed, the search was ended:\n{reasons}")
        if repeats := record.repeats(config.seeds, config.planned, own or {}):
            log.info("the winner, and the recipe as it is, under %d more seeds", config.seeds)
            run(config.max_concurrent or len(repeats), num_samples=len(repeats), search_alg=Listed(repeats))


def _rounds(
    plan: TrialPlan, config: TuneConfig, mode: str, own: Values | None, record: TrialLog
) -> Iterator[tuple[int, Searcher]]:
    """What is tried side by side, and how many that are: all trials, or one generation after the other."""
    if config.method != "pbt":
        yield config.planned, proposals(plan, config, mode, own)
        return
    for number in range(config.generations):
        log.info("generation %d of %d", number + 1, config.generations)
        found = generation(number, plan, config, record, own)
        if not found:
            return
        yield len(found), Listed(found)


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
