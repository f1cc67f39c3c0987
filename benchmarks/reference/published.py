"""The tensors of a published state dict by their published keys, and the published layers as functions of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Names:
    """How a framework ends the keys of a layer's tensors."""

    weight: str
    bias: str
    norm_weight: str
    norm_bias: str
    mean: str
    variance: str


TORCH = Names(".weight", ".bias", ".weight", ".bias", ".running_mean", ".running_var")
KERAS = Names("/kernel", "/bias", "/gamma", "/beta", "/moving_mean", "/moving_variance")


class Published:
    """A published model's tensors and mode.

    Args:
        tensors: by published key, kernels in torch's order (out, in, height, width) whatever the framework. Without
            them, each tensor is made when a layer first asks for it: random weights, neutral norms.
        names: of the tensors of a layer.
        training: the mode; BatchNorm then uses the batch's statistics and moves its own.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor] | None = None, *, names: Names = TORCH, training: bool = False
    ) -> None:
        self.tensors: dict[str, Tensor] = dict(tensors or {})
        self.training = training
        self._names = names
        self._makes_its_own = tensors is None
        self._prefix = ""
        self._frozen = False

    def within(self, prefix: str, *, frozen: bool = False) -> Self:
        """The same tensors seen from inside a module, whose keys start with `prefix`; frozen ones get no gradient."""
        inner = type(self)(names=self._names, training=self.training)
        inner.tensors = self.tensors
        inner._makes_its_own = self._makes_its_own
        inner._prefix = self._prefix + prefix
        inner._frozen = self._frozen or frozen
        return inner

    def parameters(self) -> list[Tensor]:
        """Those that are trained."""
        return [tensor for tensor in self.tensors.values() if tensor.requires_grad]

    def has(self, key: str) -> bool:
        """Whether there is such a tensor; for variants that differ by a module."""
        return self._prefix + key in self.tensors

    def tensor(self, key: str, *shape: int, fill: float | None = None, trained: bool = True) -> Tensor:
        """The tensor of this shape. Made here: filled with `fill`, or else normal with variance 1 / fan-in."""
        key = self._prefix + key
        if key not in self.tensors and self._makes_its_own:
            fan_in = max(1, torch.Size(shape[1:]).numel())
            made = torch.randn(shape) / fan_in**0.5 if fill is None else torch.full(shape, fill)
            self.tensors[key] = made.requires_grad_(trained and not self._frozen)
        tensor = self.tensors[key]
        assert tensor.shape == shape, f"{key}: {tuple(tensor.shape)} is not {shape}"
        return tensor

    def conv(
        self,
        x: Tensor,
        key: str,
        out_channels: int,
        kernel: int | tuple[int, int] = 1,
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        bias: bool = False,
    ) -> Tensor:
        """Conv2d."""
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        weight = self.tensor(key + self._names.weight, out_channels, x.shape[1] // groups, height, width)
        shift = self.tensor(key + self._names.bias, out_channels, fill=0.0) if bias else None
        return F.conv2d(x, weight, shift, stride, padding, groups=groups)

    def bn(self, x: Tensor, key: str, *, eps: float = 1e-5, momentum: float = 0.1, scale: bool = True) -> Tensor:
        """BatchNorm1d or BatchNorm2d; without a learnt scale where `scale` is false."""
        channels = x.shape[1]
        return F.batch_norm(
            x,
            self.tensor(key + self._names.mean, channels, fill=0.0, trained=False),
            self.tensor(key + self._names.variance, channels, fill=1.0, trained=False),
            self.tensor(key + self._names.norm_weight, channels, fill=1.0) if scale else None,
            self.tensor(key + self._names.norm_bias, channels, fill=0.0),
            self.training,
            momentum,
            eps,
        )

    def prelu(self, x: Tensor, key: str) -> Tensor:
        """PReLU of one slope a channel."""
        return F.prelu(x, self.tensor(key + self._names.weight, x.shape[1], fill=0.25))

    def conv_bn(
        self,
        x: Tensor,
        out_channels: int,
        kernel: int | tuple[int, int] = 1,
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        prelu: bool = False,
    ) -> Tensor:
        """MobileFaceNet's block: Conv2d `conv` without bias, BatchNorm `bn` and, where asked for, PReLU `prelu`."""
        x = self.bn(self.conv(x, "conv", out_channels, kernel, stride=stride, padding=padding, groups=groups), "bn")
        return self.prelu(x, "prelu") if prelu else x

    def linear(self, x: Tensor, key: str, out_features: int, *, bias: bool = True) -> Tensor:
        """Linear over the last axis."""
        weight = self.tensor(key + self._names.weight, out_features, x.shape[-1])
        return F.linear(x, weight, self.tensor(key + self._names.bias, out_features, fill=0.0) if bias else None)

    def layer_norm(self, x: Tensor, key: str, *, eps: float) -> Tensor:
        """LayerNorm over the last axis."""
        width = x.shape[-1]
        weight = self.tensor(key + self._names.norm_weight, width, fill=1.0)
        return F.layer_norm(x, (width,), weight, self.tensor(key + self._names.norm_bias, width, fill=0.0), eps)
