"""The phases of a run: validation chooses how many epochs all rows are trained on; a kill in either changes no bit."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from builders.mlflow_runs import give_store, runs
from builders.projects import TOY, make_project
from builders.runs import (
    assert_same_bits,
    elsewhere,
    final_state,
    kill_at_step,
    make_job,
    run_child,
    run_stage,
)  # fmt: skip

from fer.cluster.trials import TrialPlan
from fer.training.job import TrainJob, fingerprint
from fer.training.loop import build_model, train
from fer.training.phases import phase_stages, trained_on, validated
from fer.training.recipe import Recipe
from fer.training.state import TrainState

STAGES = [{"epochs": 2}, {"epochs": 2, "selection_metric": "loss"}]


def recipe(**keys: Any) -> Recipe:
    return Recipe.model_validate_json(json.dumps({**TOY, **keys}))


@pytest.mark.parametrize(
    ("protocol", "selection", "expected"),
    [
        ("validation", "best", [("train", "val_accuracy"), ("train", "val_loss")]),
        (
            "validation", "refit",
            [("train", "val_accuracy"), ("train", "val_loss"), ("development", None), ("development", None)],
        ),
        ("published", "best", [("development", "test_accuracy"), ("development", "test_loss")]),
        (
            "published", "refit",
            [
                ("train", "val_accuracy"), ("train", "val_loss"),
                ("development", "test_accuracy"), ("development", "test_loss"),
            ],
        ),
    ],
)  # fmt: skip
def test_each_protocol_trains_on_its_rows_and_chooses_by_its_split(
    protocol: str, selection: str, expected: list[tuple[str, str | None]]
) -> None:
    stages = phase_stages(recipe(protocol=protocol, selection=selection, stages=STAGES))
    assert [(stage.rows, stage.chosen_by) for stage in stages] == expected
    assert [stage.is_first for stage in stages] == [True, False] * (len(stages) // 2)


def test_a_protocol_has_a_fingerprint_of_its_own() -> None:
    recipes = [recipe(protocol=one, selection=two) for one in ("validation", "published") for two in ("best", "refit")]
    assert len({fingerprint("data", one, 0, "code") for one in recipes}) == 4


@pytest.mark.parametrize("keys", [{"selection": "refit"}, {"protocol": "published"}])
def test_a_cross_validation_that_would_hold_nothing_out_is_refused(keys: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=f"cross_validation .*{': '.join(next(iter(keys.items())))}"):
        recipe(cross_validation={"folds": 2}, **keys)
    with pytest.raises(ValueError, match=r"stages\[1\]: selection holds for all stages alike"):
        recipe(stages=[{"selection": "refit"}])


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    """Validation chooses an earlier epoch than the last."""
    return make_job(tmp_path_factory.mktemp("refit"), selection="refit", selection_metric="loss", learning_rate=0.1)


@pytest.fixture(scope="module")
def undisturbed(job: TrainJob) -> TrainState:
    assert run_child(train, job) == 0
    return final_state(job)


def test_refit_trains_on_all_rows_for_as_many_epochs_as_validation_chose(
    job: TrainJob, undisturbed: TrainState
) -> None:
    state, epochs = undisturbed, job.recipe.epochs
    first, last = state.history[:epochs], state.history[epochs:]
    losses = [row["val_loss"] for row in first]
    (chosen,) = state.chosen
    assert chosen == losses.index(min(losses)) + 1 == len(last) < epochs
    assert state.best_epoch == epochs + chosen == state.epoch
    assert [row["stage"] for row in state.history] == [1] * epochs + [2] * chosen
    assert not [name for row in last for name in row if name.startswith(("val_", "test_"))]
    assert validated(job.recipe, state) == first[chosen - 1]
    assert trained_on(job.recipe) == ["train", "validation"]
    updates = 80 // 16 * epochs
    assert undisturbed.global_step == updates + 120 // 16 * chosen, "80 rows of training, 40 of validation"


@pytest.mark.parametrize("step", [7, 15, 16, 20])
def test_run_killed_in_either_phase_resumes_to_the_same_bits(
    step: int, job: TrainJob, undisturbed: TrainState, tmp_path: Path
) -> None:
    killed = elsewhere(job, tmp_path / "killed")
    assert run_child(kill_at_step, killed, step) == -signal.SIGKILL
    assert run_child(train, killed) == 0
    assert_same_bits(final_state(killed), undisturbed)


def test_a_recipe_in_stages_begins_its_second_phase_with_the_first_weights(tmp_path: Path) -> None:
    job = make_job(tmp_path, protocol="published", selection="refit", stages=STAGES, ema_decay=None, learning_rate=1e-9)
    state = train(job)
    assert [row["stage"] for row in state.history] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert len(state.chosen) == 3
    weights = build_model(job).state_dict()
    assert torch.allclose(state.model["conv.weight"], weights["conv.weight"], atol=1e-5), "nothing was learned"
    assert all(("val_loss" in row) != ("test_loss" in row) for row in state.history)


def test_a_trial_of_a_search_is_validated_whatever_the_recipes_protocol(job: TrainJob) -> None:
    plan = TrialPlan(job=job, gpu=False, epochs=2, metric="val_accuracy")
    assert (trial := plan.trial_job("key", {}).recipe).selection == "best"
    assert trial.epochs == 2


def test_a_refit_run_says_so_in_all_that_it_leaves(tmp_path: Path) -> None:
    keys = {**TOY, "selection": "refit", "selection_metric": "loss"}
    root = give_store(make_project(tmp_path, epochs=2, recipe=keys))
    output = tmp_path / "output.txt"
    assert run_child(run_stage, str(root), str(output)) == 0, output.read_text()
    folder = root / "trained" / "tiny" / "toy"
    facts, val = (json.loads((folder / name).read_text()) for name in ("train.json", "val.json"))
    assert (facts["protocol"], facts["trained_on"]) == ("refit", ["train", "validation"])
    (chosen,) = facts["chosen_epochs"]
    assert (val["best_epoch"], facts["best_epoch"]) == (chosen, 2 + chosen)
    rows = list(csv.DictReader((folder / "history.csv").read_text().splitlines()))
    assert [row["val_loss"] == "nan" for row in rows] == [False] * 2 + [True] * chosen
    assert val["val_loss"] == float(rows[chosen - 1]["val_loss"])
    assert "number of epochs chosen on validation, then trained on all rows" in output.read_text()
    (run,) = runs(root)
    assert run.data.tags["protocol"] == "refit"
    assert run.data.params["recipe.selection"] == "refit"
    assert run.data.metrics["best_val_loss"] == val["val_loss"]
