"""What the loss is told of a batch: labels, smoothed, weighted by class, of several people, or of mixed pictures.

All are probabilities (B, N), or multiples of them: the cross-entropy of w p is w times that of p, so that a weight of a
sample is a factor of its probabilities, and every model's loss takes it.
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
    """Makes the targets of one training.

    Args:
        class_histogram: rows of each class of the training split.
    """

    def __init__(self, recipe: Recipe, class_histogram: Sequence[int], device: str) -> None:
        self._recipe, self._classes = recipe, len(class_histogram)
        self._weights: Tensor | None = None
        if recipe.class_weights != "none":
            self._weights = class_weights(class_histogram, effective=recipe.class_weights == "effective").to(device)

    def __call__(
        self, images: Tensor, labels: Tensor, key: tuple[Any, ...], distributions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What the model is given, and what it should say.

        Args:
            images: float32 (B, 3, H, W).
            labels: int64 (B,).
            key: what the draws of `mix` depend on.
            distributions: float32 (B, N), shares of the classes; None where only the labels are known.

        Returns:
            the images, mixed where the recipe says so; and int64 (B,), or float32 (B, N) where the recipe asks for more
            than the plain labels.
        """
        recipe = self._recipe
        if distributions is None and not recipe.label_smoothing and self._weights is None and recipe.mix is None:
            return images, labels
        shares = F.one_hot(labels, self._classes).float() if distributions is None else distributions
        wanted = soften(shares, recipe.label_smoothing)
        if self._weights is not None:
            wanted = wanted * self._weights[labels, None]
        return mixed(images, wanted, recipe.mix, key) if recipe.mix else (images, wanted)


def soften(shares: Tensor, smoothing: float) -> Tensor:
    """Label smoothing (Szegedy et al., CVPR 2016): float32 (B, N) -> the same."""
    return shares * (1 - smoothing) + smoothing / shares.shape[1]


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


def mixed(images: Tensor, wanted: Tensor, mix: Mix, key: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """Each picture with a share of another of the same worker's batch, and their targets in the same shares.

    mixup: blended (Zhang et al., ICLR 2018); cutmix: a rectangle is pasted (Yun et al., ICCV 2019). One share a batch,
    drawn from Beta(alpha, alpha). Pure: the same key, the same draws.
    """
    draws = np.random.Generator(np.random.Philox(key=stable_hash(*key, "mix")))
    share = float(draws.beta(mix.alpha, mix.alpha))
    partner = torch.from_numpy(draws.permutation(len(images))).to(images.device)
    if draws.random() >= mix.p:
        return images, wanted
    if mix.kind == "mixup":
        return images.lerp(images[partner], 1 - share), wanted.lerp(wanted[partner], 1 - share)
    height, width = images.shape[-2:]
    side = (1 - share) ** 0.5
    centre_y, centre_x = draws.random() * height, draws.random() * width
    top, bottom = (round(min(max(centre_y + end * side * height / 2, 0), height)) for end in (-1, 1))
    left, right = (round(min(max(centre_x + end * side * width / 2, 0), width)) for end in (-1, 1))
    pasted = images.clone()
    pasted[:, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
    covered = (bottom - top) * (right - left) / (height * width)
    return pasted, wanted.lerp(wanted[partner], covered)
