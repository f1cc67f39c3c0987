"""An exponential moving average of a model's weights."""

from __future__ import annotations

import copy
from typing import Any, Generic, TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


class Ema(Generic[Model]):
    """Keeps `average.model`, whose parameters follow those of the trained model; buffers are copied.

    The decay of update n is min(decay, (1 + n) / (10 + n)), so that the random start is soon forgotten.
    """

    def __init__(self, model: Model, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    def restart(self, model: Model) -> None:
        """Begins anew from these weights."""
        self.model.load_state_dict(model.state_dict())
        self.updates = 0

    @torch.no_grad()
    def update(self, model: Model) -> None:
        """Takes in the weights after one update of the optimizer."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)
        for kept, new in zip(self.model.buffers(), model.buffers(), strict=True):
            kept.copy_(new)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on."""
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved average."""
        self.model.load_state_dict(state["model"])
        self.updates = state["updates"]
