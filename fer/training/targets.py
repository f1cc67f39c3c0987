"""The targets of the loss: labels, smoothed, weighted by class, as several people voted, or of mixed images.

All are class probabilities (B, N), or multiples of them: the cross-entropy of w p is w times that of p, so that the
weight of a sample is a factor of its probabilities, and every model's loss takes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fer.hashing import stable_hash
from fer.training.recipe import Mix, Recipe


class Targets:
    """Makes the targets of one stage.

    Args:
        class_histogram: rows of each class of the training split.
    """

    def __init__(self, recipe: Recipe, class_histogram: Sequence[int], device: str) -> None:
        self._recipe, self._classes = recipe, len(class_histogram)
        self._weights: Tensor | None = None
        if recipe.class_weights != "none":
            self._weights = class_weights(class_histogram, effective=recipe.class_weights == "effective").to(device)

    def __call__(
        self, images: Tensor, labels: Tensor, key: tuple[Any, ...], class_probs: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The images that the model is given, and their targets.

        Args:
            images: float32 (B, 3, H, W).
            labels: int64 (B,).
            key: what the draws of `mix` depend on.
            class_probs: float32 (B, N); None where only the labels are known.

        Returns:
            the images, mixed where the recipe says so; and int64 (B,), or float32 (B, N) where the recipe asks for more
            than plain labels.
        """
        recipe = self._recipe
        if class_probs is None and not recipe.label_smoothing and self._weights is None and recipe.mix is None:
            return images, labels
        probs = F.one_hot(labels, self._classes).float() if class_probs is None else class_probs
        targets = smooth_labels(probs, recipe.label_smoothing)
        if self._weights is not None:
            targets = targets * self._weights[labels, None]
        return mix_images(images, targets, recipe.mix, key) if recipe.mix else (images, targets)


def smooth_labels(class_probs: Tensor, smoothing: float) -> Tensor:
    """Label smoothing (Szegedy et al., CVPR 2016): float32 (B, N) -> the same."""
    return class_probs * (1 - smoothing) + smoothing / class_probs.shape[1]


def class_weights(class_histogram: Sequence[int], *, effective: bool) -> Tensor:
    """A weight for each class, 1 in the mean over the samples; 0 where a class has none.

    Args:
        effective: by the effective number of samples (Cui et al., CVPR 2019, eq. 2, beta = 0.9999), else by 1 / rows.
    """
    rows = torch.tensor(class_histogram, dtype=torch.float64)
    beta = 0.9999
    number = (1 - beta**rows) / (1 - beta) if effective else rows
    weights = torch.where(rows > 0, 1 / number.clamp(min=1e-12), 0.0)
    return (weights * rows.sum() / (weights * rows).sum()).float()


def mix_images(images: Tensor, targets: Tensor, mix: Mix, key: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """Each image mixed with another of the same rank's batch, and their targets in the same proportion.

    mixup: blended (Zhang et al., ICLR 2018); cutmix: a rectangle is pasted (Yun et al., ICCV 2019). One proportion a
    batch, drawn from Beta(alpha, alpha). Pure: the same key, the same draws.
    """
    draws = np.random.Generator(np.random.Philox(key=stable_hash(*key, "mix")))
    keep = float(draws.beta(mix.alpha, mix.alpha))
    partner = torch.from_numpy(draws.permutation(len(images))).to(images.device)
    if draws.random() >= mix.p:
        return images, targets
    if mix.kind == "mixup":
        return images.lerp(images[partner], 1 - keep), targets.lerp(targets[partner], 1 - keep)
    height, width = images.shape[-2:]
    side = (1 - keep) ** 0.5
    center_y, center_x = draws.random() * height, draws.random() * width
    top, bottom = (round(min(max(center_y + end * side * height / 2, 0), height)) for end in (-1, 1))
    left, right = (round(min(max(center_x + end * side * width / 2, 0), width)) for end in (-1, 1))
    pasted = images.clone()
    pasted[:, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
    covered = (bottom - top) * (right - left) / (height * width)
    return pasted, targets.lerp(targets[partner], covered)
