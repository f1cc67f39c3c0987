"""What the loss is told: probabilities, or a weight times probabilities, a pure function of the batch and its key."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from builders.projects import TOY

from fer.training.recipe import Mix, Recipe
from fer.training.targets import Targets, class_weights, mixed, soften

HISTOGRAM = (60, 30, 10)
IMAGES = torch.arange(4 * 3 * 8 * 8, dtype=torch.float32).reshape(4, 3, 8, 8)
LABELS = torch.tensor([0, 1, 2, 0])


def _recipe(**keys: Any) -> Recipe:
    return Recipe.model_validate_json(json.dumps({**TOY, "label_smoothing": 0.0, **keys}))


def test_smoothed_targets_are_probabilities() -> None:
    soft = soften(torch.eye(4)[[1, 0]], 0.2)
    torch.testing.assert_close(soft, torch.tensor([[0.05, 0.85, 0.05, 0.05], [0.85, 0.05, 0.05, 0.05]]))


def test_plain_labels_stay_labels() -> None:
    images, wanted = Targets(_recipe(), HISTOGRAM, "cpu")(IMAGES, LABELS, ("key",))
    assert images is IMAGES
    assert wanted is LABELS


def test_shares_of_several_people_take_the_place_of_labels() -> None:
    shares = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.1, 0.2, 0.7], [1.0, 0.0, 0.0]])
    _, wanted = Targets(_recipe(labels="soft"), HISTOGRAM, "cpu")(IMAGES, LABELS, ("key",), shares)
    assert torch.equal(wanted, shares)
    _, smoothed = Targets(_recipe(labels="soft", label_smoothing=0.3), HISTOGRAM, "cpu")(IMAGES, LABELS, ("k",), shares)
    torch.testing.assert_close(smoothed, shares * 0.7 + 0.1)


@pytest.mark.parametrize("kind", ["inverse", "effective"])
def test_class_weights_are_one_in_the_mean_and_larger_for_rarer_classes(kind: str) -> None:
    weights = class_weights(HISTOGRAM, effective=kind == "effective")
    rows = torch.tensor(HISTOGRAM)
    assert (weights * rows).sum() / rows.sum() == pytest.approx(1.0, abs=1e-6)
    assert weights[2] > weights[1] > weights[0]


def test_a_class_without_rows_has_no_weight() -> None:
    assert class_weights((5, 0), effective=False).tolist() == [1.0, 0.0]


def test_weighted_targets_weigh_each_sample_of_the_loss() -> None:
    _, wanted = Targets(_recipe(class_weights="inverse"), HISTOGRAM, "cpu")(IMAGES, LABELS, ("key",))
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    weights = class_weights(HISTOGRAM, effective=False)[LABELS]
    each = F.cross_entropy(logits, LABELS, reduction="none")
    torch.testing.assert_close(F.cross_entropy(logits, wanted), (weights * each).mean())


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_pictures_and_targets_are_mixed_in_the_same_shares(kind: str) -> None:
    """Each picture is constant in its own class number, so that its mean tells what it is made of."""
    images = LABELS.float()[:, None, None, None].expand(4, 3, 40, 40).contiguous()
    mix = Mix(kind=kind, alpha=1.0)
    found, wanted = mixed(images, torch.eye(3)[LABELS], mix, ("seed", 1))
    torch.testing.assert_close(wanted.sum(1), torch.ones(4))
    torch.testing.assert_close(found.mean((1, 2, 3)), wanted @ torch.arange(3.0))
    again, _ = mixed(images, torch.eye(3)[LABELS], mix, ("seed", 1))
    assert torch.equal(found, again)
    assert not torch.equal(found, mixed(images, torch.eye(3)[LABELS], mix, ("seed", 2))[0])
    assert torch.equal(images[:, 0, 0, 0], LABELS.float())


def test_mixtures_come_as_often_as_asked_for() -> None:
    mix = Mix(kind="mixup", alpha=1.0, p=0.25)
    plain = sum(mixed(IMAGES, torch.eye(3)[LABELS], mix, (step,))[0] is IMAGES for step in range(400))
    assert 270 <= plain <= 330
