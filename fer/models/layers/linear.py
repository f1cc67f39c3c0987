"""Linear layers of transformers, and stochastic depth."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fer.models.compat import has_onednn, onednn_linear


class ScaledLinear(nn.Linear):
    """A linear layer followed by a learned factor per channel (LayerScale, arXiv:2103.17239)."""

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
    """A linear layer; with `layer_scale` followed by a learned factor per channel, of that initial value."""
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


class FusedLinear(nn.Linear):
    """A linear layer, and exact GELU after it if `gelu`; a copy of a layer's tensors, for inference.

    On CPU it is computed by oneDNN. Measured on one core of an AMD EPYC with AVX-512, float32, 64 to 512 channels: it
    takes 10 to 20 % less time than `torch.nn.functional.linear` (MKL), with the GELU 20 %.

    torch gives oneDNN's product no gradient and no export, so `F.linear` stands in for it where either is asked for, as
    on any other device and under autocast. The results agree to rounding.
    """

    def __init__(self, linear: nn.Linear, *, gelu: bool = False) -> None:
        weight, has_bias = linear.weight, linear.bias is not None
        super().__init__(linear.in_features, linear.out_features, has_bias, device=weight.device, dtype=weight.dtype)
        self.load_state_dict(linear.state_dict())
        self.requires_grad_(False)
        self.gelu = gelu

    def forward(self, x: Tensor) -> Tensor:
        if self._is_onednns(x):
            return onednn_linear(x, self.weight, self.bias, gelu=self.gelu)
        y = super().forward(x)
        return F.gelu(y) if self.gelu else y

    def _is_onednns(self, x: Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and has_onednn()
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
            and not (torch.is_grad_enabled() and x.requires_grad)
        )


class DropPath(nn.Module):
    """Stochastic depth (arXiv:1603.09382): zero a residual branch for a random `rate` of the samples (first axis).

    The others are scaled by 1 / (1 - rate). The identity in evaluation mode and at rate 0. The kept samples are drawn
    from torch's generator of the device.
    """

    def __init__(self, rate: float) -> None:
        if not 0 <= rate < 1:
            raise ValueError(f"drop path rate = {rate!r}: 0 or more and less than 1 is allowed")
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep).div_(keep)  # (B,1,...)
        return x * mask

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"
