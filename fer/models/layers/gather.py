"""The samples of all ranks of a data-parallel training, as one batch that gradients flow through."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def rank_and_world_size() -> tuple[int, int]:
    """Of the default process group; (0, 1) where there is none."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather(x: Tensor) -> Tensor:
    """(B,...) of every rank -> (world size * B,...) in the order of ranks, on every rank. B must be the same on all.

    Backward, a rank's slice receives the sum of the gradients that all ranks have for it. With each rank's loss a mean
    over its own samples and the parameters' gradients averaged over ranks, as DistributedDataParallel does, this gives
    the gradient of the mean over the whole batch. Forward and backward are collective: every rank must take part.
    """
    gathered: Tensor = _Gather.apply(x)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.size = inputs[0].shape[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.narrow(0, dist.get_rank() * ctx.size, ctx.size)
