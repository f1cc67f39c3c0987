"""Deletion, insertion, randomization and the pointing game, where their values are known."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from fer.explain.faithfulness import (
    area,
    cascade,
    deletion_and_insertion,
    pointing_game,
    randomized,
    rank_correlation,
)
from fer.models import FerModel, create_model


class Corner(FerModel):
    """Sees the upper left quarter alone: class 1 where it is bright."""

    def __init__(self) -> None:
        super().__init__(2, input_size=16)
        self.conv = nn.Conv2d(3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logit = 10 * x[:, :, :8, :8].mean((1, 2, 3)) - 5
        return torch.stack([-logit, logit], dim=1)


def test_a_right_map_deletes_early_and_inserts_early_and_a_wrong_one_late() -> None:
    images = torch.zeros(1, 3, 16, 16)
    images[:, :, :8, :8] = 1.0
    right, target = images[:, 0], torch.tensor([1])
    deletion, insertion = deletion_and_insertion(Corner(), images, right, target, steps=4)
    assert deletion.shape == insertion.shape == (1, 5)
    assert deletion[0, 0] > 0.99
    assert (deletion[0, 1:] < 0.01).all(), "a quarter of the pixels is all that it sees"
    assert (insertion[0, 1:] > 0.99).all()
    wrong = deletion_and_insertion(Corner(), images, 1 - right, target, steps=4)
    assert area(wrong[0]) > 0.8 > 0.2 > area(deletion)
    assert area(wrong[1]) < area(insertion)


def test_area_is_the_trapezoid_rule() -> None:
    assert area(torch.tensor([[1.0, 0.5, 0.0], [1.0, 1.0, 1.0]])).tolist() == [0.5, 1.0]


def test_a_cascade_randomizes_from_the_logits_down_to_everything() -> None:
    torch.manual_seed(5)
    model = create_model("mfn_nano", 3).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fresh = randomized(model, seed=1).state_dict()
    steps = []
    for layer, changed in cascade(model, seed=1, steps=4):
        state = changed.state_dict()
        steps.append([name for name in state if not torch.equal(state[name], before[name])])
        assert all(torch.equal(state[name], fresh[name]) for name in steps[-1])
        assert any(name.startswith(layer) for name in state)
    assert all(set(few) < set(more) for few, more in pairwise(steps))
    assert "fc.weight" in steps[0]
    assert "features.stem.conv.weight" not in steps[2]
    assert "features.stem.conv.weight" in steps[3]
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before), "the model itself is kept"


def test_rank_correlation_is_spearmans() -> None:
    first = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    assert rank_correlation(first, first.exp()).tolist() == pytest.approx([1.0])
    assert rank_correlation(first, -first).tolist() == pytest.approx([-1.0])
    assert rank_correlation(first, torch.zeros_like(first)).tolist() == [0.0]
    assert rank_correlation(first, torch.tensor([[[1.0, 1.0], [4.0, 3.0]]])).tolist() == pytest.approx([0.737865])


def test_pointing_game_asks_for_the_highest_pixel() -> None:
    maps = torch.zeros(3, 4, 6)
    maps[0, 1, 5] = maps[1, 1, 5] = 1.0  # y = 1, x = 5; the third is empty
    boxes = torch.tensor([[5, 1, 6, 2], [1, 5, 2, 6], [0, 0, 6, 4]])
    assert pointing_game(maps, boxes).tolist() == [True, False, False]
