"""`fer tune`: a real search that loses its driver and has a trial that cannot run; and the parts of a search."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml_text
from builders.projects import TOY, environment, make_project

from fer.cluster.config import SearchRange, TuneConfig
from fer.cluster.trials import Trial, TrialLog, TrialPlan, own_values, run_trial, vary
from fer.config import ConfigError, parse
from fer.io.files import FileError, read_json, sha256
from fer.stages.tune import check_space, refuse_edited, table
from fer.training.recipe import Recipe, load_recipe

RATE = {"learning_rate": SearchRange(low=1e-4, high=0.1, log=True)}


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe(TOY, Path(), "test")


@pytest.fixture
def plan(tmp_path: Path, recipe: Recipe) -> TrialPlan:
    return TrialPlan(
        folder=str(tmp_path),
        shards="",
        recipe=recipe,
        labels=("a", "b"),
        seed=0,
        threads=1,
        gpu=False,
        epochs=2,
        metric="val_accuracy",
        checkpoint_every_steps=10,
        fingerprint="f",
    )


# ------------------------------------------------------------------------------------------------ a real search


@dataclass
class Searched:
    root: Path
    output: str
    pids_before: list[int]
    pids_after: list[int]
    again: str


def _tune(root: Path) -> subprocess.Popen[str]:
    code = "import sys\nfrom fer.cli import main\nmain(['tune', '--dataset', 'tiny', '--model', 'toy'])"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=root,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _pids_of_first_trial(root: Path) -> list[int]:
    (path,) = (root / ".work").glob("tune-*/001-*/progress.json")
    return list(read_json(path)["pids"])


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """Three trials, one at a time, of which the third cannot be built; the driver is killed after the first."""
    root = make_project(tmp_path_factory.mktemp("search"))
    params = yaml_text.load((root / "params.yaml").read_text())
    params["tune"] = {
        "trials": 3,
        "epochs": 2,
        "grace_epochs": 1,
        "max_concurrent": 1,
        "metric": "val_loss",
        "space": {
            "learning_rate": {"low": 1e-4, "high": 0.1, "log": True},
            "options.drop_rate": {"choices": [0.2, 5.0]},  # no dropout probability: the model refuses it
        },
    }
    (root / "params.yaml").write_text(yaml_text.dump(params))
    first = _tune(root)
    assert first.stdout is not None
    lines = []
    for line in first.stdout:
        lines.append(line)
        if line.startswith("trial 1:"):
            break
    first.send_signal(signal.SIGKILL)
    first.wait(30)
    assert lines, "the first attempt never ended a trial"
    before = _pids_of_first_trial(root)
    second = _tune(root)
    output, _ = second.communicate(timeout=240)
    assert second.returncode == 0, "".join(lines) + output
    third = _tune(root)
    again, _ = third.communicate(timeout=60)
    assert third.returncode == 0, again
    return Searched(root, output, before, _pids_of_first_trial(root), again)


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_every_trial_reaches_a_final_state_and_the_table_says_so(searched: Searched) -> None:
    evidence = read_json(searched.root / "tuned" / "tiny" / "toy.json")
    states = [trial["status"] for trial in evidence["trials"]]
    assert len(states) == 3
    assert states[0] in ("finished", "stopped early")
    assert states[2] == "failed"
    assert "dropout probability" in evidence["trials"][2]["reason"]
    assert "options.drop_rate" in searched.output
    assert evidence["seed"] == 3
    assert evidence["budget"]["trials"] == 3


@pytest.mark.ray
def test_after_a_killed_driver_the_same_command_trains_no_finished_trial_again(searched: Searched) -> None:
    assert searched.pids_before == searched.pids_after
    assert "trial 1: finished" in searched.output


@pytest.mark.ray
def test_trials_are_nested_runs_of_one_parent_none_left_running_no_step_twice(searched: Searched) -> None:
    with sqlite3.connect(searched.root / "mlflow.db") as store:
        runs = {key: (name, status) for key, name, status in store.execute("select run_uuid, name, status from runs")}
        parents = dict(store.execute("select run_uuid, value from tags where key = 'mlflow.parentRunId'"))
        doubled = store.execute(
            "select run_uuid, key, step from metrics group by 1, 2, 3 having count(*) > 1"
        ).fetchall()
    search_runs = [key for key, (name, _) in runs.items() if name == "tune toy"]
    assert len(search_runs) == 1
    assert runs[search_runs[0]][1] == "FINISHED"
    trials = sorted(value for key, value in runs.items() if key in parents)
    assert [name for name, _ in trials] == ["toy trial 1", "toy trial 2", "toy trial 3"]
    assert [status for _, status in trials] == ["FINISHED", "FINISHED", "FAILED"]
    assert set(parents.values()) == set(search_runs)
    assert not doubled


@pytest.mark.ray
def test_the_printed_line_makes_params_use_the_best_recipe(searched: Searched) -> None:
    written = searched.root / "tuned" / "tiny" / "toy.yaml"
    line = f"recipe: tuned/tiny/toy.yaml#{sha256(written)[:8]}"
    assert line in searched.output
    tuned = load_recipe(yaml_text.load(line), searched.root, "params.yaml", "models.toy")
    evidence = read_json(written.with_suffix(".json"))
    best = next(one for one in evidence["trials"] if one["number"] == evidence["best_trial"])
    assert tuned.learning_rate == best["values"]["learning_rate"]
    assert tuned.epochs == TOY["epochs"], "a trial is short, the recipe keeps its own length"
    rated = [one["best"] for one in evidence["trials"] if one["status"] != "failed"]
    assert best["best"] == min(rated)


@pytest.mark.ray
def test_a_finished_search_is_not_run_again(searched: Searched) -> None:
    assert "has ended before" in searched.again
    assert "recipe: tuned/tiny/toy.yaml#" in searched.again


@pytest.mark.ray
def test_a_recipe_that_a_person_edited_is_not_replaced(searched: Searched, tmp_path: Path) -> None:
    text = (searched.root / "tuned" / "tiny" / "toy.yaml").read_text()
    own = tmp_path / "toy.yaml"
    refuse_edited(own)
    own.write_text(text)
    refuse_edited(own)
    for edited in (text.replace("batch_size: ", "batch_size: 1"), "model: mine\n", ""):
        own.write_text(edited)
        with pytest.raises(FileError, match=r"toy\.yaml: was edited since a search wrote it"):
            refuse_edited(own)


def test_no_weights_and_no_ray_folder_are_left_of_a_finished_search(searched: Searched) -> None:
    left = [path for path in (searched.root / ".work").rglob("*") if path.suffix == ".pt" or path.name == "ray"]
    assert not left


# ------------------------------------------------------------------------------------------------ parts


def test_more_workers_a_trial_are_refused_when_params_are_read() -> None:
    with pytest.raises(ConfigError, match=r"tune.workers_per_trial = 2.*set 1"):
        parse(TuneConfig, {"workers_per_trial": 2}, "params.yaml", "tune")


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"learning_rat": SearchRange(low=0.1, high=0.2)}, r"tune.space.learning_rat.*did you mean 'learning_rate'"),
        ({"schedule.warmup": SearchRange(low=0.1, high=0.2)}, r"tune.space.schedule.warmup"),
        ({"nowhere.at.all": SearchRange(low=0.1, high=0.2)}, r"unknown recipe key"),
        ({"learning_rate": SearchRange(low=0.1, high=20.0)}, r"tune.space.learning_rate.*20"),
        ({"batch_size": SearchRange(low=16.5, high=32.5)}, r"for whole numbers give choices"),
        ({"optimizer": SearchRange(choices=["adam", "adamm"])}, r"adamm"),
    ],
)
def test_a_wrong_space_is_refused_with_the_key(recipe: Recipe, space: dict[str, SearchRange], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_space(recipe, TuneConfig(space=space), "params.yaml")


def test_the_recipes_own_values_come_first_when_they_lie_in_the_space(recipe: Recipe) -> None:
    assert own_values(recipe, RATE) == {"learning_rate": 0.003}
    assert own_values(recipe, {"schedule.warmup_epochs": SearchRange(choices=[0.5, 1.0])}) == {
        "schedule.warmup_epochs": 0.5
    }
    assert own_values(recipe, {"learning_rate": SearchRange(low=0.01, high=0.1)}) is None


def test_a_trial_that_reports_its_epochs_again_brings_no_warning(recipe: Recipe) -> None:
    from ray.tune.result import TRAINING_ITERATION

    from fer.cluster.search import _NumberedSearch

    space = {"learning_rate": optuna.distributions.FloatDistribution(1e-4, 0.1)}
    proposals = _NumberedSearch(space=space, metric="val_loss", mode="min", sampler=optuna.samplers.TPESampler(seed=0))
    proposals.suggest("a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for epoch in (1, 2, 1, 2, 3):  # its process was lost after the second
            proposals.on_trial_result("a", {TRAINING_ITERATION: epoch, "val_loss": 1 / epoch})
    assert proposals._ot_trials["a"].study.trials[0].intermediate_values == {1: 1, 2: 1 / 2, 3: 1 / 3}


def test_values_are_laid_over_the_recipe_and_leave_the_rest(recipe: Recipe) -> None:
    changed = vary(recipe, {"schedule.warmup_epochs": 0.25, "batch_size": 8}, "test")
    assert changed.schedule.warmup_epochs == 0.25
    assert changed.schedule.kind == recipe.schedule.kind
    assert changed.model_copy(update={"schedule": recipe.schedule, "batch_size": recipe.batch_size}) == recipe


class _Run:
    """What a search asks of an MLflow run."""

    def __init__(self) -> None:
        self.run_id, self.status = "id", "RUNNING"
        self.metrics: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        self.metrics.append((step, dict(metrics)))

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Tags are not looked at."""

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


def test_finished_stopped_failed_and_interrupted_trials_are_told_apart_and_all_runs_end(plan: TrialPlan) -> None:
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
    assert best is not None
    assert best.number == 2
    assert "*  2" in table(record, "val_accuracy")
    rows = json.loads(Path(plan.folder, "trials.json").read_text())
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


def test_a_search_whose_first_trials_all_fail_is_hopeless(plan: TrialPlan) -> None:
    record, _ = _log(plan)
    for number in (1, 2, 3):
        assert not record.hopeless()
        record.start(_config(number))
        record.end(_config(number), reason="ValueError: no")
    assert record.hopeless()
    assert record.best() is None


def test_a_run_that_an_earlier_attempt_left_open_is_closed(plan: TrialPlan) -> None:
    record, _ = _log(plan)
    record.start(_config(1))  # and the driver is killed
    later, runs = _log(plan)
    later.start({"trial": 1, "learning_rate": 0.5})  # another proposal in its place
    later.end({"trial": 1, "learning_rate": 0.5})
    later.close(interrupted=False)
    assert sorted(run.status for run in runs.values()) == ["FINISHED", "KILLED"]


def test_a_diverged_trial_is_remembered_and_fails_at_once_when_replayed(
    plan: TrialPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fer.training import loop

    calls = []

    def diverge(*args: object, **options: object) -> None:
        calls.append(args)
        raise loop.DivergedError("the loss is NaN")

    monkeypatch.setattr(loop, "train", diverge)
    for _ in range(2):
        with pytest.raises(loop.DivergedError, match="NaN"):
            run_trial(_config(1), plan)
    assert len(calls) == 1


def test_a_metric_that_is_no_number_fails_the_trial(plan: TrialPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    from fer.training import loop

    monkeypatch.setattr(
        loop, "train", lambda job, device, on_epoch: on_epoch({"epoch": 1, "val_accuracy": float("nan")})
    )
    with pytest.raises(loop.DivergedError, match="val_accuracy is nan after epoch 1"):
        run_trial(_config(1), plan)
