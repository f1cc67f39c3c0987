"""The optimizers that recipes may name."""

from __future__ import annotations

from typing import Any

from torch import nn, optim

from fer.training.recipe import Recipe


def build_optimizer(recipe: Recipe, model: nn.Module) -> optim.Optimizer:
    """The recipe's optimizer over the model's trainable parameters.

    Fused kernels: one call in place of three hundred small ones, which on a narrow model cost more than the update.
    """
    groups = _groups(recipe, model)
    if recipe.optimizer == "sgd":
        return optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, fused=True)
    kind = optim.AdamW if recipe.optimizer == "adamw" else optim.Adam
    return kind(groups, lr=recipe.learning_rate, betas=recipe.betas, fused=True)


def set_learning_rate(optimizer: optim.Optimizer, rate: float) -> None:
    """Sets the rate of the next update."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that the optimizer updates."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _groups(recipe: Recipe, model: nn.Module) -> list[dict[str, Any]]:
    parameters = trainable(model)
    if recipe.weight_decay_on == "all":
        return [{"params": parameters, "weight_decay": recipe.weight_decay}]
    kernels = [parameter for parameter in parameters if parameter.ndim > 1]
    others = [parameter for parameter in parameters if parameter.ndim <= 1]
    groups = [
        {"params": kernels, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
