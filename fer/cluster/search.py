"""The search itself: Optuna proposes, ASHA stops the poor ones early, Ray Tune runs several trials at once."""

from __future__ import annotations

import logging
import shutil
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from ray import tune
from ray.tune.result import TRAINING_ITERATION
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from ray.tune.stopper import Stopper

from fer.cluster.config import ClusterConfig, TuneConfig
from fer.cluster.session import connect, require
from fer.cluster.trials import NUMBER, TrialLog, TrialPlan, own_values, run_trial
from fer.console import log

RANDOM_TRIALS = 5
_POLL_SECONDS = 0.25
_STOP_SECONDS = 3.0


def run_trials(
    plan: TrialPlan, config: TuneConfig, cluster: ClusterConfig, record: TrialLog, stop: threading.Event
) -> None:
    """Runs the search to its end; `record` hears of everything.

    Args:
        stop: set from outside to end the search early.

    Raises:
        ValueError: the cluster is too small or out of reach, or the first trials all failed.
        Interrupted: the trials were told to stop; the same command goes on.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with connect(cluster, dashboard=True) as found:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():  # ray.init puts its own in place, with other exit codes
                signal.signal(number, handler)
        require(workers=1, cpus=plan.threads, gpus=int(plan.gpu))
        room = found.gpus if plan.gpu else found.cpus // plan.threads
        at_once = max(1, min(config.max_concurrent or room, room, config.trials))
        log.info(
            "%d trials of at most %d epochs, %d at once on %d CPUs%s",
            config.trials, plan.epochs, at_once, found.cpus,
            f"; dashboard {found.dashboard_url}" if found.dashboard_url else "",
        )  # fmt: skip
        tuner = _tuner(plan, config, record, at_once, stop)
        fit(tuner, stop)
    if record.hopeless():
        reasons = "\n".join(f"trial {trial.number}: {trial.reason}" for trial in record.trials.values() if trial.reason)
        raise ValueError(f"the first trials all failed, the search was ended:\n{reasons}")


def fit(tuner: Any, stop: threading.Event) -> None:
    """Runs a tuner in a thread: this one hears signals at once, and Tune installs no handlers of its own.

    Args:
        stop: set where the waiting is interrupted.
    """
    outcome: list[BaseException] = []

    def fit() -> None:
        try:
            tuner.fit()
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            outcome.append(error)

    thread = threading.Thread(target=fit, name="ray-tune", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(_POLL_SECONDS)
    except BaseException:
        stop.set()
        log.warning("stopping the trials")
        thread.join(_STOP_SECONDS)
        raise
    if outcome:
        raise outcome[0]


def _tuner(plan: TrialPlan, config: TuneConfig, record: TrialLog, at_once: int, stop: threading.Event) -> Any:
    # Tune prints the traceback of every failed trial; our record tells the reason in a line.
    logging.getLogger("ray.tune").setLevel(logging.ERROR if log.isEnabledFor(logging.DEBUG) else logging.CRITICAL)
    mode = "max" if record.higher_is_better else "min"
    storage = Path(plan.folder, "ray")
    shutil.rmtree(storage, ignore_errors=True)
    budget = config.time_budget_minutes
    return tune.Tuner(
        tune.with_resources(
            tune.with_parameters(run_trial, plan=plan), {"CPU": plan.threads, **({"GPU": 1} if plan.gpu else {})}
        ),
        tune_config=tune.TuneConfig(
            metric=plan.metric,
            mode=mode,
            num_samples=config.trials,
            search_alg=_proposals(plan, config, mode),
            scheduler=ASHAScheduler(
                time_attr="epoch",
                max_t=plan.epochs,
                grace_period=config.grace_epochs,
                reduction_factor=config.reduction_factor,
            ),
            max_concurrent_trials=at_once,
            time_budget_s=budget * 60 if budget else None,
            trial_dirname_creator=lambda trial: f"trial-{trial.config[NUMBER]}",
        ),
        run_config=tune.RunConfig(
            name=f"search-{time.time_ns()}",
            storage_path=str(storage),
            verbose=0,
            callbacks=[_Listener(record)],
            stop=_SearchStopper(record, stop),
            failure_config=tune.FailureConfig(max_failures=1),
        ),
    )


def _proposals(plan: TrialPlan, config: TuneConfig, mode: str) -> OptunaSearch:
    """TPE over the space, seeded; the recipe's own values come first, so that the search knows what it must beat."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    space = {
        name: optuna.distributions.CategoricalDistribution(span.choices)
        if span.choices is not None
        else optuna.distributions.FloatDistribution(span.low, span.high, log=span.log)
        for name, span in config.space.items()
    }
    start = own_values(plan.recipe, config.space)
    return _NumberedSearch(
        space=space,
        metric=plan.metric,
        mode=mode,
        sampler=optuna.samplers.TPESampler(seed=plan.seed, n_startup_trials=RANDOM_TRIALS),
        points_to_evaluate=[start] if start else None,
    )


class _NumberedSearch(OptunaSearch):  # type: ignore[misc]
    """Numbers the proposals, which with the values makes a trial recognisable."""

    proposed = 0

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._told: dict[str, int] = {}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        # A trial whose process was lost reports its epochs again, of which Optuna keeps the first values and warns.
        if result[TRAINING_ITERATION] > self._told.get(trial_id, 0):
            self._told[trial_id] = result[TRAINING_ITERATION]
            super().on_trial_result(trial_id, result)

    def suggest(self, trial_id: str) -> Any:
        values = super().suggest(trial_id)
        if isinstance(values, dict):
            self.proposed += 1
            values[NUMBER] = self.proposed
        return values


class _Listener(tune.Callback):  # type: ignore[misc]
    """Hands Tune's events to the record; runs in the driver."""

    def __init__(self, record: TrialLog | None) -> None:
        self._record = record

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        if self._record:
            self._record.start(trial.config)

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
        kept = ("epoch", "learning_rate", "seconds", "images_per_second")
        numbers = {name: value for name, value in result.items() if name.startswith(("train_", "val_")) or name in kept}
        if self._record:
            self._record.report(trial.config, numbers)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        if self._record:
            self._record.end(trial.config)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        if self._record:
            self._record.end(trial.config, reason=reason(trial))

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Listener, (None,))  # Tune stores its callbacks with the experiment, which is never restored


class _SearchStopper(Stopper):  # type: ignore[misc]
    """Ends the search on request, or when its first trials all failed."""

    def __init__(self, record: TrialLog | None, stop: threading.Event | None) -> None:
        self._record, self._stop = record, stop

    def __call__(self, trial_id: str, result: Any) -> bool:
        return False

    def stop_all(self) -> bool:
        return bool(self._stop and self._stop.is_set()) or bool(self._record and self._record.hopeless())

    def __reduce__(self) -> tuple[Any, ...]:
        return (_SearchStopper, (None, None))


def reason(trial: Any) -> str:
    """The last line of what a failed trial's actor left; Tune has written it here before it tells of the failure."""
    text = ""
    with suppress(OSError, TypeError):
        text = Path(trial.error_file).read_text(encoding="utf-8").strip()
    return text.splitlines()[-1].strip() if text else "its process was lost"
