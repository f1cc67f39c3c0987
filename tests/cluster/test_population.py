"""Population-based training: who goes on from whose weights, and that the winner is what its recipe trains."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from builders.projects import NANO
from builders.runs import assert_same_bits, elsewhere, final_state, make_job

from fer.cluster import grid
from fer.cluster.config import ClusterConfig, SearchRange, TuneConfig, check_space
from fer.cluster.proposals import generation
from fer.cluster.trials import PARENT, SEED, STAGES, TrialLog, TrialPlan, Values, own_values, recipe_values, run_trial
from fer.config import ConfigError
from fer.training.loop import train
from fer.training.recipe import vary

SPACE = {
    "learning_rate": SearchRange(low=1e-4, high=0.02, log=True),
    "optimizer": SearchRange(choices=["adamw", "sgd"]),
    "momentum": SearchRange(low=0.5, high=0.9, when={"optimizer": ["sgd"]}),
    "batch_size": SearchRange(low=8, high=16, integer=True),
}


def _config(**changes: Any) -> TuneConfig:
    own = {"method": "pbt", "stopping": "none", "trials": 8, "epochs": 6, "grace_epochs": 2, "space": SPACE}
    return TuneConfig(**{**own, **changes})


def _begun(folder: Path, config: TuneConfig) -> tuple[TrialPlan, TrialLog]:
    plan = TrialPlan(job=make_job(folder), gpu=False, epochs=config.epochs, metric="val_accuracy")
    return plan, TrialLog(plan, lambda trial, run_id: MagicMock(run_id=None), MagicMock())


def _end(record: TrialLog, results: Mapping[int, float], trials: list[Values]) -> None:
    """Ends these trials with a result each; with none as failed."""
    for trial in trials:
        number = trial["trial"]
        record.start(trial)
        if number in results:
            epochs = record.plan.epochs_of(record.trials[number].values)
            record.report(trial, {"epoch": epochs, "val_accuracy": results[number]})
        record.end(trial, reason="" if number in results else "DivergedError: the loss is NaN")


def test_the_first_generation_begins_with_the_recipe_and_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    config = _config()
    plan, record = _begun(tmp_path, config)
    own = own_values(plan.job.recipe, SPACE)
    found = generation(0, plan, config, record, own)
    assert found == generation(0, plan, config, record, own)
    assert [trial["trial"] for trial in found] == list(range(1, 9))
    assert {name: found[0][name] for name in own or {}} == own
    assert len({trial["learning_rate"] for trial in found}) == 8
    for trial in found:
        assert [stage["epochs"] for stage in trial[STAGES]] == [2]
        assert ("momentum" in trial) == (trial["optimizer"] == "sgd")
        assert all(SPACE[name].holds(trial[name]) for name in SPACE if name in trial)
        (stage,) = vary(plan.job.recipe, recipe_values(trial), "test").in_stages
        assert (stage.learning_rate, stage.schedule.kind) == (trial["learning_rate"], "constant")
        assert stage.schedule.warmup_epochs == plan.job.recipe.schedule.warmup_epochs


def test_the_worst_quarter_and_the_failed_go_on_from_the_best_quarter_with_values_nearby(tmp_path: Path) -> None:
    config = _config()
    plan, record = _begun(tmp_path, config)
    first = generation(0, plan, config, record, None)
    _end(record, {1: 0.9, 2: 0.2, 3: 0.5, 5: 0.6, 6: 0.7, 7: 0.8, 8: 0.4}, first)
    found = generation(1, plan, config, record, None)
    parents = [record.trials[int(trial[PARENT][:3])].number for trial in found]
    assert parents == [1, 1, 3, 1, 5, 6, 7, 8], "of seven with a result one is replaced, and the failed one"
    for trial, parent in zip(found, parents, strict=True):
        before = record.trials[parent]
        assert trial[PARENT] == before.key
        assert trial[STAGES][:-1] == before.values[STAGES]
        assert trial[STAGES][-1]["schedule"]["warmup_epochs"] == 0
        own = {name: value for name, value in trial.items() if name in SPACE}
        assert all(SPACE[name].holds(value) for name, value in own.items())
        assert (own == before.chosen) == (trial["trial"] - 8 == parent)
    _end(record, {}, found)
    assert generation(2, plan, config, record, None) == [], "nobody is left"


def test_numbers_change_by_a_fifth_and_choices_to_a_neighbor_or_are_drawn(tmp_path: Path) -> None:
    space = {
        "learning_rate": SearchRange(low=0.0001, high=0.01),
        "batch_size": SearchRange(choices=[8, 12, 16, 20, 24]),
    }
    config = _config(trials=200, space=space)
    plan, record = _begun(tmp_path, config)
    first = generation(0, plan, config, record, {"learning_rate": 0.005, "batch_size": 16})
    _end(record, {1: 0.9}, first)
    found = generation(1, plan, config, record, None)[1:]
    rates = [trial["learning_rate"] for trial in found]
    near = [rate for rate in rates if min(abs(rate - 0.004), abs(rate - 0.006)) < 1e-12]
    assert 0.65 < len(near) / len(rates) < 0.85, "three quarters are near"
    batches = [trial["batch_size"] for trial in found]
    assert 0.65 < (batches.count(12) + batches.count(20)) / len(batches) < 0.95
    assert set(batches) == {8, 12, 16, 20, 24}


def test_a_member_has_the_bits_of_its_recipe_from_the_first_stage_on_whether_its_parents_weights_are_there_or_not(
    tmp_path: Path,
) -> None:
    config = _config(trials=2, epochs=3, grace_epochs=1, space={"learning_rate": SPACE["learning_rate"]})
    plan, record = _begun(tmp_path, config)
    for number in range(config.generations):
        for trial in generation(number, plan, config, record, None):
            run_trial(trial, partial(record.report, trial), plan)
            record.end(trial)
    assert [trial.status for trial in record.searched] == ["finished"] * 6
    assert [trial.epochs for trial in record.searched] == [1, 1, 2, 2, 3, 3]
    last = record.searched[-1]
    assert last.best_epoch == 3, "the epochs of parents do not count"
    job = plan.trial_job(last.key, last.values)
    state = final_state(job)
    assert state.resumes == 2
    again = elsewhere(job, tmp_path / "again")
    train(again)
    assert_same_bits(state, final_state(again))
    missing = replace(plan, job=replace(plan.job, work_dir=str(tmp_path / "other")))
    run_trial({"trial": 6, **last.values}, lambda record: None, missing)
    assert_same_bits(state, final_state(missing.trial_job(last.key, last.values)))


def test_the_winner_is_confirmed_from_its_first_stage_on(tmp_path: Path) -> None:
    config = _config(trials=2, epochs=2, grace_epochs=1)
    plan, record = _begun(tmp_path, config)
    first = generation(0, plan, config, record, None)
    _end(record, {1: 0.5, 2: 0.6}, first)
    second = generation(1, plan, config, record, None)
    _end(record, {3: 0.7, 4: 0.8}, second)
    best = record.best()
    assert best is not None
    assert best.number == 4
    winner, own = record.repeats(1, config.planned, {"learning_rate": 0.003})
    assert PARENT not in winner
    assert winner[STAGES] == best.values[STAGES]
    _end(record, {5: 0.75, 6: 0.4}, [winner, own])
    assert record.confirmed(best.values) == {plan.job.seed + 1: 0.75}
    assert record.confirmed({"learning_rate": 0.003}) == {plan.job.seed + 1: 0.4}
    job = plan.trial_job("key", {name: value for name, value in winner.items() if name != "trial"})
    assert (job.seed, len(job.recipe.in_stages)) == (winner[SEED], 2)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"stopping": "asha"}, "stopping: none"),
        ({"cost": "gmacs"}, "no cost"),
        ({"trials": 1}, "trials >= 2"),
        ({"epochs": 5}, "epochs = 5 are no whole number of generations of grace_epochs = 2"),
        ({"space": {"patience": {"choices": [1, 2]}}}, "space.patience"),
    ],
)
def test_what_a_population_cannot_do_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told.replace(".", r"\.")):
        _config(**changes)


def test_a_recipe_in_stages_or_with_a_longer_warm_up_than_a_generation_is_refused(tmp_path: Path) -> None:
    recipe = make_job(tmp_path).recipe
    check_space(recipe, _config(), "params.yaml")
    with pytest.raises(ConfigError, match=r"params\.yaml: tune\.method = pbt: the recipe has stages of its own"):
        check_space(vary(recipe, {"stages": [{"epochs": 1}]}, "test"), _config(), "params.yaml")
    with pytest.raises(ConfigError, match=r"schedule\.warmup_epochs must be smaller than epochs = 2"):
        check_space(vary(recipe, {"schedule.warmup_epochs": 2.5}, "test"), _config(), "params.yaml")


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_generations_follow_each_other_on_ray_and_a_repeated_search_proposes_the_same(tmp_path: Path) -> None:
    config = _config(trials=2, epochs=2, grace_epochs=1, seeds=1, space={"learning_rate": SPACE["learning_rate"]})
    found = []
    for _ in range(2):
        plan = TrialPlan(job=make_job(tmp_path, **NANO), gpu=False, epochs=2, metric="val_loss")
        record = TrialLog(plan, lambda trial, run_id: MagicMock(run_id=None), MagicMock())
        grid.search(plan, config, ClusterConfig(cpus=2, object_store_mb=100), record, lambda: None)
        assert [trial.status for _, trial in sorted(record.trials.items())] == ["finished"] * 6
        assert [trial.parent is not None for trial in record.searched] == [False, False, True, True]
        found.append({trial.key: (trial.best, trial.values) for trial in record.trials.values()})
    assert found[0] == found[1]
