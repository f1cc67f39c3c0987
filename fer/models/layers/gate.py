"""Coordinate attention's passes over a map, in forms that are fast on CPU in channels-last order.

torch's own reductions over height or width alone take up to ten times as long there as pooling does.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def profiles(x: Tensor) -> tuple[Tensor, Tensor]:
    """The means of the rows and of the columns of x (B,C,H,W): (B,C,H,1), (B,C,1,W)."""
    if _pays(x):
        rows, columns = _Profiles.apply(x)  # type: ignore[no-untyped-call]
        return rows, columns
    return x.mean(3, keepdim=True), x.mean(2, keepdim=True)


def weigh(x: Tensor, gate_h: Tensor, gate_w: Tensor) -> Tensor:
    """x (B,C,H,W) times gate_h (B,C,H,1) times gate_w (B,C,1,W)."""
    if _pays(x):
        weighted: Tensor = _Weigh.apply(x, gate_h, gate_w)  # type: ignore[no-untyped-call]
        return weighted
    return x * gate_w * gate_h


def _pays(x: Tensor) -> bool:
    return x.device.type == "cpu" and not x.is_contiguous() and not torch.compiler.is_compiling()


class _Profiles(torch.autograd.Function):
    """`profiles` by pooling, with one pass backward."""

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        height, width = x.shape[2:]
        return F.avg_pool2d(x, (1, width)), F.avg_pool2d(x, (height, 1))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.size = inputs[0].shape[2:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_rows: Tensor, grad_columns: Tensor) -> Tensor:
        height, width = ctx.size
        grad: Tensor = grad_rows / width + grad_columns / height  # (B,C,H,1) + (B,C,1,W)
        return grad


class _Weigh(torch.autograd.Function):
    """`weigh` with the gates' gradients summed by pooling: a third of the time in channels-last order."""

    @staticmethod
    def forward(x: Tensor, gate_h: Tensor, gate_w: Tensor) -> Tensor:
        weighted = x * gate_w
        return weighted.mul_(gate_h)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, gate_h, gate_w = ctx.saved_tensors
        height, width = x.shape[2:]
        grad_x = grad * gate_h
        grad_gate_w = F.avg_pool2d(grad_x * x, (height, 1), divisor_override=1)  # sum over the rows
        grad_x.mul_(gate_w)
        grad_gate_h = F.avg_pool2d((grad * x).mul_(gate_w), (1, width), divisor_override=1)  # sum over the columns
        return grad_x, grad_gate_h, grad_gate_w
