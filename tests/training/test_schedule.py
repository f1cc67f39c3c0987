"""Learning rates are functions of the step."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import ExponentialLR, StepLR

from fer.training.recipe import Recipe
from fer.training.schedule import learning_rate

STEPS = 10


def recipe(epochs: int = 6, **schedule: Any) -> Recipe:
    text = {"model": "m", "epochs": epochs, "batch_size": 8, "learning_rate": 0.1, "schedule": schedule}
    return Recipe.model_validate_json(json.dumps(text))


def test_warmup_rises_linearly_to_the_full_rate() -> None:
    one = recipe(kind="constant", warmup_epochs=0.5)
    assert [learning_rate(one, step, STEPS) for step in range(7)] == pytest.approx(
        [0.02, 0.04, 0.06, 0.08, 0.1, 0.1, 0.1]
    )


def test_cosine_ends_near_its_final_fraction_and_never_rises() -> None:
    one = recipe(kind="cosine", warmup_epochs=1.0, final_fraction=0.1)
    rates = [learning_rate(one, step, STEPS) for step in range(STEPS, 6 * STEPS)]
    assert rates[0] == 0.1
    assert rates == sorted(rates, reverse=True)
    assert learning_rate(one, 6 * STEPS, STEPS) == pytest.approx(0.01)


@pytest.mark.parametrize("kind", ["step", "exponential"])
def test_decays_are_those_of_torch_stepped_once_an_epoch(kind: str) -> None:
    one = recipe(kind=kind, gamma=0.3, step_epochs=2)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    reference = StepLR(optimizer, 2, 0.3) if kind == "step" else ExponentialLR(optimizer, 0.3)
    for epoch in range(6):
        for step in (0, STEPS - 1):
            assert learning_rate(one, epoch * STEPS + step, STEPS) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
