"""Forward and backward over a worker's share of a batch: what an update is made of, once, or twice under SAM."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fer.hashing import stable_hash
from fer.models import FerModel
from fer.training.recipe import Recipe


class Passes:
    """The passes of one training.

    Args:
        model: the model, whose `loss` is minimised.
        parallel: the same where it stands alone, or inside DDP.
    """

    def __init__(self, recipe: Recipe, model: FerModel, parallel: nn.Module, device: str) -> None:
        self._recipe, self._model, self._parallel, self._device = recipe, model, parallel, device

    def run(
        self, images: Tensor, wanted: Tensor, key: tuple[Any, ...], *, exchange: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Adds the gradient of the mean loss to the parameters.

        With `accumulate` the images are taken in parts, each weighted by its size, and exchanged once, with the last.

        Args:
            images: float32 (B, 3, H, W).
            wanted: class indices int64 (B,), or what each class is worth, float (B, N).
            key: what dropout depends on.
            exchange: False keeps the worker's own gradient, where several work together.

        Returns:
            mean loss, and logits (B, N), both without a graph.
        """
        torch.manual_seed(stable_hash(*key))  # for dropout
        parts = min(self._recipe.accumulate, len(images))
        pairs = zip(images.tensor_split(parts), wanted.tensor_split(parts), strict=True)
        losses, logits = [], []
        for number, (part, answers) in enumerate(pairs, start=1):
            with self._alone() if not exchange or number < parts else nullcontext():
                with autocast(self._recipe, self._device):
                    output = self._parallel(part)
                    loss = self._model.loss(output, answers) * (len(part) / len(images))
                loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
            logits.append(output.logits.detach())
        return torch.stack(losses).sum(), torch.cat(logits)

    def _alone(self) -> Any:
        """Where gradients stay this worker's own."""
        return self._parallel.no_sync() if isinstance(self._parallel, DistributedDataParallel) else nullcontext()


def autocast(recipe: Recipe, device: str) -> torch.autocast:
    """Half precision where the recipe asks for it."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=recipe.precision == "bf16")
