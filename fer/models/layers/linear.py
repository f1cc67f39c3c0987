"""Linear layers of transformers."""

import torch
from torch import Tensor, nn


class ScaledLinear(nn.Linear):
    """A linear layer and a learnt factor a channel after it (LayerScale, arXiv:2103.17239)."""

    def __init__(self, in_features: int, out_features: int, *, initial_scale: float) -> None:
        super().__init__(in_features, out_features)
        self.scale = nn.Parameter(torch.full((out_features,), initial_scale))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * super().forward(x)

    def folded(self) -> nn.Module:
        """One linear layer, the factors in its weights."""
        linear = nn.Linear(self.in_features, self.out_features, device=self.weight.device, dtype=self.weight.dtype)
        with torch.no_grad():
            linear.weight.copy_(self.weight.double() * self.scale.double()[:, None])
            linear.bias.copy_(self.bias.double() * self.scale.double())
        return linear


def linear(in_features: int, out_features: int, layer_scale: float | None) -> nn.Linear:
    """A linear layer; with `layer_scale` its result is weighed by a learnt factor a channel of that initial value."""
    if layer_scale is None:
        return nn.Linear(in_features, out_features)
    return ScaledLinear(in_features, out_features, initial_scale=layer_scale)


class MLP(nn.Module):
    """Linear, exact GELU, linear, over the last axis; `layer_scale` as in `linear`."""

    def __init__(self, dim: int, hidden: int, *, layer_scale: float | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = linear(hidden, dim, layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(self.act(self.fc1(x)))
        return y
