"""What moves the weights: the optimizers that recipes name, and the moving average behind them."""

from __future__ import annotations

import copy
from typing import Any, Generic, TypeVar

import torch
from torch import nn, optim

from fer.models.compat import lerp_all_
from fer.training.recipe import Recipe

Model = TypeVar("Model", bound=nn.Module)


def build_optimizer(recipe: Recipe, model: nn.Module) -> optim.Optimizer:
    """The recipe's optimizer over the model's trainable parameters.

    Fused kernels: one call in place of three hundred small ones, which on a narrow model cost more than the update.
    """
    parameters = trainable(model)
    decayed = [one for one in parameters if recipe.weight_decay_on == "all" or one.ndim > 1]
    others = [one for one in parameters if recipe.weight_decay_on == "kernels" and one.ndim <= 1]
    both = ((decayed, recipe.weight_decay), (others, 0.0))
    groups: list[dict[str, Any]] = [{"params": params, "weight_decay": decay} for params, decay in both if params]
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


class Ema(Generic[Model]):
    """An exponential moving average: the parameters of `self.model` follow the trained model's; buffers are copied.

    The decay of update n is min(decay, (1 + n) / (10 + n)), so that the random start is soon forgotten.
    """

    def __init__(self, model: Model, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    def restart(self, model: Model) -> None:
        """Starts over from these weights."""
        self.model.load_state_dict(model.state_dict())
        self.updates = 0

    @torch.no_grad()
    def update(self, model: Model) -> None:
        """Takes in the weights after one update of the optimizer."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        lerp_all_(list(self.model.parameters()), list(model.parameters()), 1 - decay)
        for kept, new in zip(self.model.buffers(), model.buffers(), strict=True):
            kept.copy_(new)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to resume."""
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes from a saved average."""
        self.model.load_state_dict(state["model"])
        self.updates = state["updates"]
