"""A recipe in stages: each starts from the best epoch of the one before, and a kill anywhere changes no bit."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from builders.projects import TOY
from builders.runs import assert_same_bits, elsewhere, final_state, kill_at_step, make_job, run_child

from fer.models import create_model
from fer.training.data import open_data
from fer.training.distributed import Distributed
from fer.training.learner import Learner, carry_over, freeze_all_but
from fer.training.loop import build_model, train
from fer.training.recipe import Recipe

STAGES: list[dict[str, Any]] = [
    {"epochs": 2, "patience": 1},
    {
        "optimizer": "sgd", "learning_rate": 0.01, "batch_size": 20, "augment": [], "trainable": ["fc.*"],
        "ema_decay": None,
    },
]  # fmt: skip


def _recipe(**keys: Any) -> Recipe:
    return Recipe.model_validate_json(json.dumps({**TOY, **keys}))


def test_each_stage_is_the_recipe_with_its_own_keys() -> None:
    recipe = _recipe(stages=STAGES)
    first, second = recipe.in_stages
    assert (first.epochs, first.patience, first.optimizer) == (2, 1, "adamw")
    assert (second.epochs, second.patience, second.optimizer, second.batch_size) == (3, None, "sgd", 20)
    assert recipe.last == second
    assert _recipe().in_stages == [_recipe()]


@pytest.mark.parametrize(
    ("stages", "text"),
    [
        ([{"epoch": 2}], "epoch"),
        ([{"epochs": 0}], "epochs"),
        ([{"protocol": "published"}], r"stages\[1\]: protocol holds for all stages alike"),
    ],
)
def test_error_in_a_stage_is_one_in_the_recipe(stages: list[dict[str, Any]], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        _recipe(stages=stages)


def test_a_later_stage_trains_its_part_alone_from_the_best_weights_so_far(tmp_path: Path) -> None:
    job = make_job(tmp_path, stages=STAGES)
    state = train(job)
    stages = [row["stage"] for row in state.history]
    assert stages == sorted(stages)
    assert set(stages) == {1, 2}
    assert [row["epoch"] for row in state.history] == list(range(1, len(stages) + 1))
    assert state.best_epoch > state.first_epoch == stages.count(1)
    only_first = train(elsewhere(make_job(tmp_path, **STAGES[0]), tmp_path / "first"))
    for name, tensor in state.model.items():
        assert torch.equal(tensor, only_first.best_model[name]) == (not name.startswith("fc.")), name


@pytest.mark.parametrize("step", [3, 10, 11, 14])
def test_run_killed_in_any_stage_resumes_to_the_same_bits(step: int, tmp_path: Path) -> None:
    job = make_job(tmp_path, stages=[{"epochs": 2}, STAGES[1]], epochs=2)
    whole, killed = elsewhere(job, tmp_path / "whole"), elsewhere(job, tmp_path / "killed")
    assert run_child(train, whole) == 0
    assert run_child(kill_at_step, killed, step) == -signal.SIGKILL
    assert run_child(train, killed) == 0
    assert_same_bits(final_state(killed), final_state(whole))


def test_frozen_batch_norms_keep_their_statistics(tmp_path: Path) -> None:
    job = make_job(tmp_path, trainable=["fc.*"])
    learner = Learner.create(job.recipe, build_model(job), device="cpu", world_size=1)
    learner.train()
    assert learner.model.training
    assert not learner.model.norm.training
    assert [name for name, p in learner.model.named_parameters() if p.requires_grad] == ["fc.weight", "fc.bias"]


def test_pattern_that_matches_nothing_is_refused_with_the_models_parts() -> None:
    with pytest.raises(ValueError, match=r"head\.\* .*act, conv, fc, norm"):
        freeze_all_but(create_model("toy"), ["fc.*", "head.*"])


def test_the_models_of_lhc_nets_stages_contain_one_another() -> None:
    with torch.device("meta"):
        names = [set(create_model(name).state_dict()) for name in ("resnet34v2", "lhc_net", "lhc_netc")]
    assert names[0] < names[1] < names[2]


def test_weights_without_a_place_in_the_next_model_are_refused() -> None:
    weights = create_model("toy").state_dict()
    with pytest.raises(ValueError, match="have no place in the model of the next"):
        carry_over(create_model("toy", norm=False), {k: v for k, v in weights.items() if "norm" in k})
    other = create_model("toy")
    carry_over(other, {"fc.bias": torch.ones(7)})
    assert torch.equal(other.fc.bias, torch.ones(7))


def test_published_protocol_trains_on_all_rows_and_chooses_by_the_test_split(tmp_path: Path) -> None:
    state = train(make_job(tmp_path, protocol="published", ema_decay=None))
    assert state.best_metric == max(row["test_accuracy"] for row in state.history)
    assert state.global_step == 3 * (120 // 16), "80 rows of training and 40 of validation"
    assert not any("val_accuracy" in row for row in state.history)
    selected = train(elsewhere(make_job(tmp_path, epochs=1), tmp_path / "validation"))
    assert "test_accuracy" not in selected.history[0]


def test_a_cross_validation_holds_out_its_fold(tmp_path: Path) -> None:
    held = [make_job(tmp_path, cross_validation={"folds": 2, "fold": fold}, epochs=1) for fold in (0, 1)]
    sizes = [
        open_data(job.shards, job.recipe, create_model("toy"), seed=1, distributed=Distributed(), threads=1).split.rows
        for job in held
    ]
    assert sizes == [80, 40]  # the two folds of these shards: 40 rows of validation, 80 of training
    with pytest.raises(ValueError, match="fold = 2: must be below folds = 2"):
        _recipe(cross_validation={"folds": 2, "fold": 2})
