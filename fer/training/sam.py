"""Sharpness-aware minimization: the gradient is taken where the loss is worst nearby, and applied at the weights.

Foret, Kleiner, Mobahi, Neyshabur: "Sharpness-Aware Minimization for Efficiently Improving Generalization", ICLR 2021
(arXiv 2010.01412), equation 2; adaptive: Kwon, Kim, Park, Choi: "ASAM", ICML 2021 (arXiv 2102.11600), with the
elementwise scale |w|. POSTER V2, BTN and DDAMFN++ are trained with it.

An update is two passes over the same images:

    gradient g at w;  e = rho * g / (|g| + 1e-12);  gradient at w + e;  back at w, the optimizer steps with the second

Nothing outlives an update, so there is no state to save: a run killed between the passes repeats both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from fer.models.compat import BatchNorm, add_all_, multiply_all, scale_all_
from fer.training.recipe import SamConfig

_EPSILON = 1e-12


class Sam:
    """Perturbs the weights to w + e and restores them.

    Args:
        parameters: those that the optimizer updates.
    """

    def __init__(self, config: SamConfig, parameters: Sequence[nn.Parameter]) -> None:
        self.config = config
        self._parameters: list[Tensor] = list(parameters)
        self._kept: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def perturb(self) -> Tensor:
        """Moves the weights to w + e by the gradients that they hold, and clears these.

        Returns:
            the norm that e was divided by; where it is not finite nothing was moved.
        """
        assert not self._kept, "perturbed already"
        moved = [parameter for parameter in self._parameters if parameter.grad is not None]
        gradients = [parameter.grad for parameter in moved if parameter.grad is not None]
        if self.config.adaptive:
            norm = get_total_norm(multiply_all(gradients, [weights.abs() for weights in moved]))
            gradients = multiply_all(gradients, multiply_all(moved, moved))
        else:
            norm = get_total_norm(gradients)
        if not norm.isfinite():
            return norm
        self._kept = [(parameter, parameter.clone()) for parameter in moved]
        scale_all_(gradients, self.config.rho / (norm + _EPSILON))
        add_all_(moved, gradients)
        for parameter in moved:
            parameter.grad = None
        return norm

    @torch.no_grad()
    def restore(self) -> None:
        """Puts the weights back, to the bit; the gradients of the second pass stay for the optimizer."""
        for parameter, weights in self._kept:
            parameter.copy_(weights)
        self._kept = []


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """BatchNorms normalize by their batch as in any training pass, and leave their running statistics alone."""
    norms = [
        module
        for module in model.modules()
        if isinstance(module, BatchNorm) and module.training and module.track_running_stats
    ]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
