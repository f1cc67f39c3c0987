"""Gradient checkpointing: activations are recomputed in the backward pass; less memory, about a third more time.

Chen, Xu, Zhang, Guestrin: "Training Deep Nets with Sublinear Memory Cost", 2016 (arXiv 1604.06174). torch does the
work; decided here is which modules are units, and that a unit computed twice changes BatchNorm's running statistics
once. The gradients have the bits that they would have without.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from fer.models.compat import BatchNorm

_CONTAINERS = (nn.Sequential, nn.ModuleList)


def recompute_activations(model: nn.Module) -> None:
    """Makes each unit of a model keep nothing but its input in training mode; evaluation stays as it is.

    Raises:
        ValueError: the model has no units.
    """
    found = list(units(model))
    if not found:
        raise ValueError(f"gradient_checkpointing: {type(model).__name__} has no repeated units to recompute")
    for unit in found:
        unit.forward = _Recomputed(unit)


def units(model: nn.Module) -> Iterator[nn.Module]:
    """The composite modules in a model's innermost Sequentials and ModuleLists.

    A module without children, a convolution say, keeps its input anyway, and is none.
    """
    for child in model.children():
        yield from _elements(child) if isinstance(child, _CONTAINERS) else units(child)


def _elements(container: nn.Module) -> Iterator[nn.Module]:
    for element in container.children():
        inner = list(_elements(element)) if isinstance(element, _CONTAINERS) else []
        if inner:
            yield from inner
        elif any(True for _ in element.children()):
            yield element


class _Recomputed:
    """A unit's forward by way of `torch.utils.checkpoint`: dropout and autocast are as the first time."""

    def __init__(self, unit: nn.Module) -> None:
        self._unit, self._forward = unit, unit.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._unit.training:
            return self._forward(*args, **kwargs)
        return checkpoint(self._forward, *args, use_reentrant=False, context_fn=self._contexts, **kwargs)

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Of the first time, and of the second."""
        return nullcontext(), _statistics_unmoved(self._unit)


@contextmanager
def _statistics_unmoved(unit: nn.Module) -> Iterator[None]:
    """BatchNorms keep the same tensors as the first time, and add nothing to their statistics."""
    norms = [
        (module, module.momentum, module.num_batches_tracked, module.num_batches_tracked.clone())
        for module in unit.modules()
        if isinstance(module, BatchNorm) and module.training and module.num_batches_tracked is not None
    ]
    for norm, *_ in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, counter, count in norms:
            norm.momentum = momentum
            counter.copy_(count)
