"""Private parts of torch, one function each; seen with 2.9 to 2.13.

`tests/models/test_torch_compat.py` has a canary for each: it says which of them a new version breaks.
"""

import platform
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

BatchNorm = nn.modules.batchnorm._BatchNorm
"""The class that all BatchNorms derive from."""


class DispatchMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context in which every operation passes `__torch_dispatch__`."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Whether torch guards the method from its compiler, whose import takes two seconds."""
        return False


def has_onednn() -> bool:
    """Whether torch computes with oneDNN here."""
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def has_fast_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 itself (AVX512_BF16 or AMX). Emulated, it is 10 to 20 times slower.

    True on other processors than x86, of which nothing is known.
    """
    cpu: Any = torch.cpu
    return platform.machine() != "x86_64" or cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, gelu: bool) -> Tensor:
    """`F.linear`, then GELU where asked for, by oneDNN; without a gradient."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu" if gelu else "none", [], "none")
    return y


def onednn_pack(conv: nn.Conv2d, *, leaky: float | None) -> tuple[Any, ...]:
    """A convolution, then a leaky ReLU of this slope where one is given, for `onednn_conv`; its weights are final."""
    geometry = list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups
    weight = torch.ops.mkldnn._reorder_convolution_weight(conv.weight.detach(), *geometry, [])
    return weight, conv.bias, *geometry, *(("none", []) if leaky is None else ("leaky_relu", [leaky])), ""


def onednn_conv(x: Tensor, packed: tuple[Any, ...]) -> Tensor:
    """The convolution of `onednn_pack`."""
    y: Tensor = torch.ops.mkldnn._convolution_pointwise.default(x, *packed)
    return y


def lerp_all_(tensors: Sequence[Tensor], ends: Sequence[Tensor], weight: float) -> None:
    """`tensor.lerp_(end, weight)` of each pair, in one pass."""
    torch._foreach_lerp_(list(tensors), list(ends), weight)


def add_all_(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    """`tensor.add_(other)` of each pair, in one pass."""
    torch._foreach_add_(list(tensors), list(others))


def scale_all_(tensors: Sequence[Tensor], factor: Tensor) -> None:
    """`tensor.mul_(factor)` of each, in one pass."""
    torch._foreach_mul_(list(tensors), factor)


def multiply_all(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> list[Tensor]:
    """`tensor * other` of each pair, in one pass."""
    return list(torch._foreach_mul(list(tensors), list(others)))
