"""The trials of a search: proposals, one trial on its own, and the record of all."""

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from builders.projects import TOY

from fer.cluster import trials
from fer.cluster.config import SearchRange
from fer.cluster.trials import Trial, TrialLog, TrialPlan, own_values, run_trial
from fer.io.files import write_json
from fer.stages.tune import table
from fer.tracking import Run
from fer.training.loop import DivergedError, TrainJob
from fer.training.recipe import Recipe, load_recipe, vary

RATE = {"learning_rate": SearchRange(low=1e-4, high=0.1, log=True)}


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe(TOY, Path(), "test")


@pytest.fixture
def plan(tmp_path: Path, recipe: Recipe) -> TrialPlan:
    job = TrainJob(
        shards="", work_dir=str(tmp_path), recipe=recipe, labels=("a", "b"), seed=0, threads=1,
        checkpoint_every_steps=10, fingerprint="f",
    )  # fmt: skip
    return TrialPlan(job=job, gpu=False, epochs=2, metric="val_accuracy")


def test_the_recipes_own_values_come_first_where_the_space_holds_them(recipe: Recipe) -> None:
    assert own_values(recipe, RATE) == {"learning_rate": 0.003}
    assert own_values(recipe, {"schedule.warmup_epochs": SearchRange(choices=[0.5, 1.0])}) == {
        "schedule.warmup_epochs": 0.5
    }
    assert own_values(recipe, {"learning_rate": SearchRange(low=0.01, high=0.1)}) is None


def test_epochs_reported_twice_raise_no_warning(recipe: Recipe) -> None:
    from ray.tune.result import TRAINING_ITERATION

    from fer.cluster.grid import _NumberedSearch

    space = {"learning_rate": optuna.distributions.FloatDistribution(1e-4, 0.1)}
    proposals = _NumberedSearch(space=space, metric="val_loss", mode="min", sampler=optuna.samplers.TPESampler(seed=0))
    proposals.suggest("a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for epoch in (1, 2, 1, 2, 3):  # its process was lost after the second
            proposals.on_trial_result("a", {TRAINING_ITERATION: epoch, "val_loss": 1 / epoch})
    assert proposals._ot_trials["a"].study.trials[0].intermediate_values == {1: 1, 2: 1 / 2, 3: 1 / 3}


def test_values_replace_those_of_the_recipe_and_leave_the_rest(recipe: Recipe) -> None:
    changed = vary(recipe, {"schedule.warmup_epochs": 0.25, "batch_size": 8}, "test")
    assert changed.schedule.warmup_epochs == 0.25
    assert changed.schedule.kind == recipe.schedule.kind
    assert changed.model_copy(update={"schedule": recipe.schedule, "batch_size": recipe.batch_size}) == recipe


class _Run:
    """The part of an MLflow run that a search uses."""

    def __init__(self) -> None:
        self.run_id, self.status = "id", "RUNNING"
        self.metrics: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        self.metrics.append((step, dict(metrics)))

    log_epoch = Run.log_epoch

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Tags are ignored."""

    def finish(self, status: str = "FINISHED") -> None:
        self.status = status


def _log(plan: TrialPlan) -> tuple[TrialLog, dict[str, _Run]]:
    runs: dict[str, _Run] = {}

    def open_trial_run(trial: Trial, run_id: str | None) -> Any:
        return runs.setdefault(trial.key, _Run())

    parent: Any = _Run()
    return TrialLog(plan, open_trial_run, parent), runs


def _config(number: int) -> dict[str, Any]:
    return {"trial": number, "learning_rate": number / 1000}


def test_every_trial_and_its_run_get_a_final_status(plan: TrialPlan) -> None:
    record, runs = _log(plan)
    for epoch in (1, 2):
        record.report(_config(1), {"epoch": epoch, "val_accuracy": 0.5 + epoch / 10, "seconds": 1.0})
    record.end(_config(1))
    record.report(_config(2), {"epoch": 1, "val_accuracy": 0.9})
    record.end(_config(2))
    record.start(_config(3))
    record.end(_config(3), reason="ValueError: no")
    record.report(_config(4), {"epoch": 1, "val_accuracy": 0.1})
    record.close(interrupted=True)
    assert [record.trials[n].status for n in (1, 2, 3, 4)] == ["finished", "stopped early", "failed", "interrupted"]
    assert [run.status for run in runs.values()] == ["FINISHED", "FINISHED", "FAILED", "KILLED"]
    best = record.best()
    assert best.number == 2
    assert "*  2" in table(record, "val_accuracy")
    rows = json.loads(Path(plan.job.work_dir, "trials.json").read_text())
    assert [row["status"] for row in rows] == ["finished", "stopped early", "failed", "interrupted"]


def test_a_trial_is_ranked_by_its_best_epoch_and_a_search_by_its_best_trial(plan: TrialPlan) -> None:
    record, runs = _log(plan)
    for number, values in ((1, (0.9, 0.8)), (2, (0.6, 0.7))):
        for epoch, value in enumerate(values, start=1):
            record.report(_config(number), {"epoch": epoch, "val_accuracy": value, "val_loss": 1 - value / 2})
        record.end(_config(number))
    first = {"best_epoch": 1, "best_val_accuracy": 0.9, "best_val_loss": 0.55}
    assert [run.metrics[-1] for run in runs.values()] == [
        (2, first),
        (2, {"best_epoch": 2, "best_val_accuracy": 0.7, "best_val_loss": 0.65}),
    ]
    parent: Any = record.parent
    assert parent.metrics == [(1, first), (2, first)]


def test_a_search_ends_where_its_first_trials_all_fail(plan: TrialPlan) -> None:
    record, _ = _log(plan)
    for number in (1, 2, 3):
        assert not record.all_failed()
        record.start(_config(number))
        record.end(_config(number), reason="ValueError: no")
    assert record.all_failed()
    assert record.best() is None


def test_a_run_left_open_by_an_earlier_attempt_is_ended(plan: TrialPlan) -> None:
    record, _ = _log(plan)
    record.start(_config(1))  # and the driver is killed
    later, runs = _log(plan)
    later.start({"trial": 1, "learning_rate": 0.5})  # another proposal in its place
    later.end({"trial": 1, "learning_rate": 0.5})
    later.close(interrupted=False)
    assert sorted(run.status for run in runs.values()) == ["FINISHED", "KILLED"]


def test_a_diverged_trial_fails_at_once_when_replayed(plan: TrialPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def diverge(*args: object, **options: object) -> None:
        calls.append(args)
        raise DivergedError("the loss is NaN")

    monkeypatch.setattr(trials, "train", diverge)
    for _ in range(2):
        with pytest.raises(DivergedError, match="NaN"):
            run_trial(_config(1), print, plan)
    assert len(calls) == 1


def test_a_replayed_trial_reports_its_epochs_from_disk_and_trains_only_the_rest(
    plan: TrialPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = plan.key(1, {"learning_rate": 0.001})
    work = Path(plan.job.work_dir, key)
    reported: list[Mapping[str, float]] = []

    def record(epoch: int) -> dict[str, float]:
        return {"epoch": epoch, "val_accuracy": epoch / 10}

    def train(job: TrainJob, device: str, on_epoch: Callable[[Mapping[str, float]], object]) -> None:
        assert (job.work_dir, job.fingerprint, job.recipe.learning_rate) == (str(work), key, 0.001)
        on_epoch(record(2))

    monkeypatch.setattr(trials, "train", train)
    write_json(work / trials.PROGRESS, {"records": [record(1)]})
    run_trial(_config(1), reported.append, plan)
    write_json(work / trials.PROGRESS, {"records": [record(1), record(2)]})
    monkeypatch.delattr(trials, "train")
    run_trial(_config(1), reported.append, plan)
    assert reported == [record(1), record(2), record(1), record(2)]


def test_a_metric_that_is_not_a_number_fails_the_trial(plan: TrialPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    records = {"epoch": 1, "val_accuracy": float("nan")}
    monkeypatch.setattr(trials, "train", lambda job, device, on_epoch: on_epoch(records))
    with pytest.raises(DivergedError, match="val_accuracy is nan after epoch 1"):
        run_trial(_config(1), print, plan)
