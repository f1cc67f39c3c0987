"""ResNet-50.

Paper: "Deep Residual Learning for Image Recognition"
Authors: Kaiming He, Xiangyu Zhang, Shaoqing Ren, Jian Sun
Venue: CVPR 2016, arXiv:1512.03385
Original repository: https://github.com/KaimingHe/deep-residual-networks; weights are commonly torchvision's

Departures from the published code, and why:

* The stride of a bottleneck is in its 3x3 convolution, not in the first 1x1: that is the network of torchvision's
  weights ("ResNet v1.5"), which `fer.weights.convert` imports.

Shapes: B batch, C channels, H height, W width, N classes.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from fer.models.base import FerModel, TrainOutput
from fer.models.layers.conv import ConvBNAct
from fer.models.registry import register

DEPTHS = (3, 4, 6, 3)
WIDTHS = (64, 128, 256, 512)
EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1 to `width` channels, 3x3 of stride s, 1x1 to four times the width, plus the shortcut: -> (B,4*width,H/s,W/s).

    The shortcut is the input, or where width or resolution change a 1x1 convolution with BatchNorm.
    """

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = EXPANSION * width
        self.reduce = ConvBNAct(in_channels, width, act=False)
        self.spatial = ConvBNAct(width, width, 3, stride=stride, padding=1, act=False)
        self.expand = ConvBNAct(width, out_channels, act=False)
        same = in_channels == out_channels and stride == 1
        self.shortcut = None if same else ConvBNAct(in_channels, out_channels, stride=stride, act=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.reduce(x))
        y = F.relu(self.spatial(y))
        y = self.expand(y)
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)))


@register("resnet50")
class ResNet50(FerModel):
    """ResNet-50. Parameters: 25,557,032 with 1000 classes, 23,522,375 with 7."""

    def __init__(self, num_classes: int = 7, *, drop_rate: float = 0.0) -> None:
        super().__init__(num_classes, input_size=224)
        self.stem = ConvBNAct(3, 64, 7, stride=2, padding=3, act=False)
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        self.stages = nn.Sequential()
        channels = 64
        for number, (depth, width) in enumerate(zip(DEPTHS, WIDTHS, strict=True)):
            first = Bottleneck(channels, width, stride=2 if number else 1)
            channels = EXPANSION * width
            self.stages.append(nn.Sequential(first, *(Bottleneck(channels, width, 1) for _ in range(depth - 1))))
        self.drop = nn.Dropout(drop_rate)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor | TrainOutput:
        x = self.stages(self.pool(F.relu(self.stem(x))))  # (B,2048,7,7)
        logits = self.fc(self.drop(x.mean((2, 3))))  # (B,N)
        return TrainOutput(logits, {}) if self.training else logits
