"""Convolution, BatchNorm and PReLU: the unit that MobileFaceNet and its descendants are made of."""

from collections import OrderedDict
from copy import deepcopy

from torch import nn

from fer.models.layers.fold import fold_conv_bn
from fer.models.layers.prelu import PReLU


class ConvBNAct(nn.Sequential):
    """Convolution without bias, BatchNorm, and a PReLU of one slope a channel unless `act` is false."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | tuple[int, int] = 1,
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        act: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        if act:
            self.act = PReLU(out_channels)

    def folded(self) -> nn.Module:
        """The same function in evaluation mode, without a pass over memory for the BatchNorm."""
        conv = fold_conv_bn(self.conv, self.bn)
        return nn.Sequential(OrderedDict(conv=conv, act=deepcopy(self.act))) if hasattr(self, "act") else conv


def global_depthwise(channels: int, size: int) -> ConvBNAct:
    """MobileFaceNet's end in place of mean pooling: a learnt weight a channel and position, (B,C,S,S) -> (B,C,1,1)."""
    return ConvBNAct(channels, channels, size, groups=channels, act=False)
