"""Stochastic depth: a residual branch that is left out of some samples in training (arXiv:1603.09382)."""

from torch import Tensor, nn


class DropPath(nn.Module):
    """Zero the branch for a random `rate` of the samples (first axis), and scale the others by 1 / (1 - rate).

    The identity in evaluation mode and at rate 0. The kept samples are drawn from torch's generator of the device.
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
