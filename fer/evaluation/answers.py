"""What a model in memory says of a whole split, where a training has just ended and no file of weights is wanted."""

from __future__ import annotations

import torch
from torch import Tensor

from fer.models import FerModel
from fer.shards.read import EvalBatches
from fer.training.loop import prepare
from fer.training.passes import autocast
from fer.training.recipe import Recipe


@torch.no_grad()
def answers(model: FerModel, batches: EvalBatches, recipe: Recipe, device: str) -> tuple[Tensor, Tensor]:
    """Logits float32 (N, classes) and labels int64 (N,) on the CPU; the model is left in eval mode."""
    model.eval()
    logits, targets = [torch.empty(0, model.num_classes)], [torch.empty(0).long()]
    for batch in batches:
        with autocast(recipe, device):
            logits.append(model(prepare(batch.images, model, recipe, device)).float().cpu())
        targets.append(batch.targets)
    return torch.cat(logits), torch.cat(targets)
