"""Targets are class probabilities, or a weight times them: a pure function of the batch and its key."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from builders.projects import TOY

from fer.training.recipe import Mix, Recipe
from fer.training.targets import Targets, class_weights, mix_images, smooth_labels

HISTOGRAM = (60, 30, 10)
IMAGES = torch.arange(4 * 3 * 8 * 8, dtype=torch.float32).reshape(4, 3, 8, 8)
LABELS = torch.tensor([0, 1, 2, 0])


def _recipe(**keys: Any) -> Recipe:
    return Recipe.model_validate_json(json.dumps({**TOY, "label_smoothing": 0.0, **keys}))


def test_smoothed_targets_are_probabilities() -> None:
    soft = smooth_labels(torch.eye(4)[[1, 0]], 0.2)
    torch.testing.assert_close(soft, torch.tensor([[0.05, 0.85, 0.05, 0.05], [0.85, 0.05, 0.05, 0.05]]))


def test_plain_labels_stay_labels() -> None:
    images, targets = Targets(_recipe(), HISTOGRAM, "cpu")(IMAGES, LABELS, ("key",))
    assert images is IMAGES
    assert targets is LABELS


def test_soft_labels_replace_hard_labels() -> None:
    probs = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.1, 0.2, 0.7], [1.0, 0.0, 0.0]])
    _, targets = Targets(_recipe(labels="soft"), HISTOGRAM, "cpu")(IMAGES, LABELS, ("key",), probs)
    assert torch.equal(targets, probs)
    _, smoothed = Targets(_recipe(labels="soft", label_smoothing=0.3), HISTOGRAM, "cpu")(IMAGES, LABELS, ("k",), probs)
    torch.testing.assert_close(smoothed, probs * 0.7 + 0.1)


@pytest.mark.parametrize("kind", ["inverse", "effective"])
def test_class_weights_are_one_in_the_mean_and_larger_for_rarer_classes(kind: str) -> None:
    weights = class_weights(HISTOGRAM, effective=kind == "effective")
    rows = torch.tensor(HISTOGRAM)
    assert (weights * rows).sum() / rows.sum() == pytest.approx(1.0, abs=1e-6)
    assert weights[2] > weights[1] > weights[0]


def test_a_class_without_rows_has_no_weight() -> None:
    assert class_weights((5, 0), effective=False).tolist() == [1.0, 0.0]


def test_weighted_targets_weigh_each_sample_of_the_loss() -> None:
    _, targets = Targets(_recipe(class_weights="inverse"), HISTOGRAM, "cpu")(IMAGES, LABELS, ("key",))
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    weights = class_weights(HISTOGRAM, effective=False)[LABELS]
    each = F.cross_entropy(logits, LABELS, reduction="none")
    torch.testing.assert_close(F.cross_entropy(logits, targets), (weights * each).mean())


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_images_and_targets_are_mixed_in_the_same_proportion(kind: str) -> None:
    """Each image is constant in its class number, so that its mean says what it is made of."""
    images = LABELS.float()[:, None, None, None].expand(4, 3, 40, 40).contiguous()
    mix = Mix(kind=kind, alpha=1.0)
    found, targets = mix_images(images, torch.eye(3)[LABELS], mix, ("seed", 1))
    torch.testing.assert_close(targets.sum(1), torch.ones(4))
    torch.testing.assert_close(found.mean((1, 2, 3)), targets @ torch.arange(3.0))
    again, _ = mix_images(images, torch.eye(3)[LABELS], mix, ("seed", 1))
    assert torch.equal(found, again)
    assert not torch.equal(found, mix_images(images, torch.eye(3)[LABELS], mix, ("seed", 2))[0])
    assert torch.equal(images[:, 0, 0, 0], LABELS.float())


def test_mix_probability_is_respected() -> None:
    mix = Mix(kind="mixup", alpha=1.0, p=0.25)
    plain = sum(mix_images(IMAGES, torch.eye(3)[LABELS], mix, (step,))[0] is IMAGES for step in range(400))
    assert 270 <= plain <= 330
