"""Depthwise convolutions of maps with the channels last."""

import torch
from torch import Tensor, nn


class DepthwiseConv(nn.Conv2d):
    """Every channel convolved with its own kernel, zero-padded to the same size: (B,H,W,C) -> (B,H,W,C)."""

    def __init__(self, channels: int, kernel: int) -> None:
        assert kernel % 2 == 1
        super().__init__(channels, channels, kernel, padding=kernel // 2, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ResidualDepthwiseConv(DepthwiseConv):
    """A depthwise convolution, and its input added to it."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)

    def folded(self) -> nn.Module:
        """One convolution: the input is added by a 1 in the middle of the kernel.

        Not in half precision, where little of a small weight would remain beside the 1.
        """
        if self.weight.dtype.itemsize < 4:
            return self
        kernel = self.kernel_size[0]
        assert self.bias is not None
        conv = DepthwiseConv(self.in_channels, kernel).to(self.weight)
        with torch.no_grad():
            conv.weight.copy_(self.weight)
            conv.weight[:, :, kernel // 2, kernel // 2] += 1
            conv.bias.copy_(self.bias)  # type: ignore[union-attr]
        return conv
