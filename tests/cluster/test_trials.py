"""The trials of a search: proposals, one trial on its own, and the record of all."""

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import optuna
import pytest
from builders.projects import TOY
from ray.tune.result import TRAINING_ITERATION

from fer.cluster import grid, proposals, trials
from fer.cluster.config import SearchRange, TuneConfig, check_space
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


SPACE = {
    "optimizer": SearchRange(choices=["adamw", "sgd"]),
    "momentum": SearchRange(low=0.5, high=0.99, when={"optimizer": ["sgd"]}),
    "batch_size": SearchRange(low=8, high=64, log=True, integer=True),
    "gradient_clip": SearchRange(choices=[None, 1.0]),
}


def test_only_parameters_that_exist_beside_the_others_are_proposed_and_whole_where_they_must_be(
    plan: TrialPlan, recipe: Recipe
) -> None:
    config = TuneConfig(space=SPACE, stopping="none", cost="gmacs")
    check_space(recipe, config, "params.yaml")
    own = own_values(recipe, SPACE)
    search = proposals.proposals(plan, config, "max", own)
    assert own is not None
    assert search.suggest("0") == {**own, "trial": 1}, "what is to be beaten comes first"
    found = []
    for number in range(1, 20):
        search.on_trial_complete(str(number - 1), {"val_accuracy": 0.1, "gmacs": 1.0})
        found.append(search.suggest(str(number)))
    assert {("momentum" in values) == (values["optimizer"] == "sgd") for values in found} == {True}
    assert {type(values["batch_size"]) for values in found} == {int}
    assert all(8 <= values["batch_size"] <= 64 for values in found)
    assert {values["gradient_clip"] for values in found} == {None, 1.0}


def test_proposals_are_the_same_for_the_same_seed(plan: TrialPlan) -> None:
    both = [proposals.proposals(plan, TuneConfig(space=SPACE), "max", None) for _ in range(2)]
    for number in range(8):
        first, second = (search.suggest(str(number)) for search in both)
        assert first == second
        for search in both:
            search.on_trial_complete(str(number), {"val_accuracy": first["batch_size"] / 64})


def test_a_grid_has_each_combination_that_exists_once_and_the_recipes_own_first(plan: TrialPlan) -> None:
    space = {
        "optimizer": SearchRange(choices=["sgd", "adamw"]),
        "momentum": SearchRange(choices=[0.0, 0.9], when={"optimizer": ["sgd"]}),
        "batch_size": SearchRange(choices=[8, 16]),
    }
    config = TuneConfig(method="grid", space=space)
    own = {"optimizer": "adamw", "batch_size": 16}
    search = proposals.proposals(plan, config, "max", own)
    found = [search.suggest(str(number)) for number in range(config.planned)]
    assert config.planned == 6
    assert found[0] == {**own, "trial": 1}
    assert sorted(values.pop("trial") for values in found) == [1, 2, 3, 4, 5, 6]
    assert {tuple(sorted(values.items())) for values in found} == {
        tuple(sorted(values.items())) for values in config.grid
    }
    assert [values for values in found if "momentum" in values and values["optimizer"] == "adamw"] == []
    assert search.suggest("7") == search.FINISHED


@pytest.mark.parametrize(
    ("stopping", "epochs"), [("asha", [3, 3, 3, 1]), ("median", [3, 3, 3, 1]), ("none", [3, 3, 3, 3])]
)
def test_a_trial_far_below_the_others_is_stopped_unless_nothing_is(
    stopping: Any, epochs: list[int], plan: TrialPlan
) -> None:
    from ray.tune.experiment import Trial as RayTrial

    config = TuneConfig(stopping=stopping, epochs=3, grace_epochs=1)
    scheduler = grid._scheduler(replace(plan, epochs=3), config, "max")
    controller, lived = MagicMock(), []
    controller.get_live_trials.return_value = [SimpleNamespace(status=RayTrial.PENDING)]
    for number, accuracy in enumerate((0.5, 0.6, 0.7, 0.1)):
        trial = MagicMock(trial_id=str(number), status=RayTrial.RUNNING)
        scheduler.on_trial_add(controller, trial)
        for epoch in (1, 2, 3):
            decision = scheduler.on_trial_result(controller, trial, {"epoch": epoch, "val_accuracy": accuracy})
            assert decision != "PAUSE", "a paused trial would begin again"
            if decision == "STOP":
                break
        scheduler.on_trial_complete(controller, trial, {"epoch": epoch, "val_accuracy": accuracy})
        lived.append(epoch)
    assert lived == epochs


def test_the_parameter_that_decides_is_the_most_important(plan: TrialPlan) -> None:
    space = {
        "learning_rate": SearchRange(low=1e-4, high=0.1, log=True),
        "weight_decay": SearchRange(low=0.0, high=0.1),
        "momentum": SearchRange(low=0.0, high=0.9, when={"optimizer": ["sgd"]}),
    }
    record, _ = _log(plan)
    random = Random(0)
    for number in range(1, 25):
        if number < 5:
            assert proposals.importance(record, space) == {}, "too few to say"
        values = {"learning_rate": 10 ** random.uniform(-4, -1), "weight_decay": random.uniform(0, 0.1)}
        config = {"trial": number, **values}
        record.report(config, {"epoch": 1, "val_accuracy": values["learning_rate"], "seconds": 0.0})
        record.end(config)
    found = proposals.importance(record, space)
    assert list(found) == ["learning_rate", "weight_decay"], "a key that some trials lack is not compared"
    assert found["learning_rate"] > 0.9
    assert sum(found.values()) == pytest.approx(1, abs=1e-3)


def test_the_winner_and_the_recipe_as_it_is_are_confirmed_under_further_seeds(plan: TrialPlan) -> None:
    record, _ = _log(plan)
    own, accuracy = {"learning_rate": 0.001}, {0.001: 0.5, 0.002: 0.9}
    for number in (1, 2):
        record.report(_config(number), {"epoch": 1, "val_accuracy": accuracy[number / 1000]})
        record.end(_config(number))
    repeats = record.repeats(2, 2, own)
    assert [(one["trial"], one["seed"], one["learning_rate"]) for one in repeats] == [
        (3, 1, 0.002), (4, 1, 0.001), (5, 2, 0.002), (6, 2, 0.001),
    ]  # fmt: skip
    for one in repeats[:3]:
        # The last one ends early, by its recipe's patience.
        record.report(one, {"epoch": 3 - one["seed"], "val_accuracy": 0.99 if one["seed"] == 1 else 0.7})
        record.end(one)
    record.start(repeats[3])
    record.end(repeats[3], reason="DivergedError: the loss is NaN")
    best = record.best()
    assert best is not None
    assert best.number == 2, "further seeds are not ranked"
    assert record.confirmed({"learning_rate": 0.002}) == {1: 0.99, 2: 0.7}
    assert record.confirmed(own) == {1: 0.99}
    assert "0.7000" not in table(record, "val_accuracy")
    job = plan.trial_job(plan.key(5, {"learning_rate": 0.002, "seed": 2}), {"learning_rate": 0.002, "seed": 2})
    assert (job.seed, job.recipe.learning_rate) == (2, 0.002)
    assert plan.key(5, {"seed": 2}) == plan.key(9, {"seed": 2}), "a longer search does not train it again"
    assert record.repeats(2, 2, best.values) == [
        {"learning_rate": 0.002, "seed": seed, "trial": 2 + seed} for seed in (1, 2)
    ]


def test_the_front_holds_what_nothing_cheaper_equals(plan: TrialPlan) -> None:
    record, _ = _log(replace(plan, cost="gmacs"))
    for number, (accuracy, cost) in enumerate([(0.5, 1.0), (0.5, 2.0), (0.9, 3.0), (0.7, 2.0), (0.9, 3.0)], start=1):
        record.report(_config(number), {"epoch": 2, "val_accuracy": accuracy, "gmacs": cost})
        record.end(_config(number))
    record.report(_config(6), {"epoch": 1, "val_accuracy": 1.0, "gmacs": 0.5})
    record.end(_config(6), reason="DivergedError: the loss is NaN")
    assert [trial.number for trial in record.front()] == [1, 4, 3]
    lines = table(record, "val_accuracy").splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["+", "2", "*", "+", "5", "6"]


def test_a_trials_cost_is_measured_once(plan: TrialPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[Mapping[str, float]] = []
    monkeypatch.setattr(trials, "train", lambda job, device, on_epoch: on_epoch({"epoch": 1, "val_accuracy": 0.5}))
    run_trial(_config(1), reported.append, replace(plan, cost="parameters", epochs=1))
    monkeypatch.delattr(trials, "build_model")
    run_trial(_config(1), reported.append, replace(plan, cost="parameters", epochs=1))
    assert reported[0] == reported[1]
    assert reported[0]["parameters"] > 1000


def test_epochs_reported_twice_raise_no_warning(recipe: Recipe) -> None:
    space = {"learning_rate": optuna.distributions.FloatDistribution(1e-4, 0.1)}
    searcher = proposals.NumberedSearch(
        space=space, metric="val_loss", mode="min", sampler=optuna.samplers.TPESampler(seed=0)
    )
    searcher.suggest("a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for epoch in (1, 2, 1, 2, 3):  # its process was lost after the second
            searcher.on_trial_result("a", {TRAINING_ITERATION: epoch, "val_loss": 1 / epoch})
    assert searcher._ot_trials["a"].study.trials[0].intermediate_values == {1: 1, 2: 1 / 2, 3: 1 / 3}


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
    assert parent.metrics == [(ended, {"trials": ended, "failed_trials": 0, **first}) for ended in (1, 2)]


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


def test_a_trial_that_its_patience_ended_is_not_trained_again(plan: TrialPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    work, first = Path(plan.job.work_dir, plan.key(1, {"learning_rate": 0.001})), {"epoch": 1, "val_accuracy": 0.1}
    reported: list[Mapping[str, float]] = []

    def train(job: TrainJob, device: str, on_epoch: Callable[[Mapping[str, float]], object]) -> None:
        write_json(work / trials.PROGRESS, {"records": [first]})
        on_epoch(first)

    monkeypatch.setattr(trials, "train", train)
    run_trial(_config(1), reported.append, plan)
    monkeypatch.delattr(trials, "train")
    run_trial(_config(1), reported.append, plan)
    assert reported == [first, first]


def test_a_metric_that_is_not_a_number_fails_the_trial(plan: TrialPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    records = {"epoch": 1, "val_accuracy": float("nan")}
    monkeypatch.setattr(trials, "train", lambda job, device, on_epoch: on_epoch(records))
    with pytest.raises(DivergedError, match="val_accuracy is nan after epoch 1"):
        run_trial(_config(1), print, plan)
