"""IR, the "improved residual" network of face recognition: the image branch of the POSTER family.

Paper: "ArcFace: Additive Angular Margin Loss for Deep Face Recognition" (its section 3 describes the residual unit)
Authors: Jiankang Deng, Jia Guo, Niannan Xue, Stefanos Zafeiriou
Venue: CVPR 2019, arXiv:1801.07698
Original repository: https://github.com/ZhaoJ9014/face.evoLVe; cut after three stages: https://github.com/Talented-Q/POSTER_V2

Departures from the published code, and why:

* The resize to 112 px that POSTER's copy begins with belongs to the model that uses the features.
* The shortcut that keeps the width is a strided slice, not a max pooling over windows of one pixel: the same values.
* Depths and widths are one configuration, so that narrow variants are the same code.

Shapes: B batch, C channels, H height, W width.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from fer.models.layers.conv import ConvBNAct
from fer.models.layers.prelu import PReLU


@dataclass(frozen=True, kw_only=True)
class IRConfig:
    """Size of the network: residual units and channels of every stage, and channels of the stem."""

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    stem_width: int


IR18 = IRConfig(depths=(2, 2, 2, 2), widths=(64, 128, 256, 512), stem_width=64)
IR50 = IRConfig(depths=(3, 4, 14, 3), widths=(64, 128, 256, 512), stem_width=64)
IR50_THREE_STAGES = IRConfig(depths=(3, 4, 14), widths=(64, 128, 256), stem_width=64)
"""What POSTER and POSTER V2 keep of IR-50: 17,611,968 parameters."""
NANO = IRConfig(depths=(1, 1, 1, 1), widths=(8, 16, 32, 64), stem_width=8)


class IRUnit(nn.Module):
    """BN, conv 3x3, PReLU, conv 3x3 of stride s, BN, plus the shortcut: (B,C,H,W) -> (B,C',H/s,W/s).

    The shortcut is the input at every s-th pixel, or where the width changes a 1x1 convolution with BatchNorm.
    (The first BatchNorm cannot be folded into the convolution after it, whose padding is zero after it, not before.)
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.bn = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.act = PReLU(out_channels)
        self.project = ConvBNAct(out_channels, out_channels, 3, stride=stride, padding=1, act=False)
        same = in_channels == out_channels
        self.shortcut = None if same else ConvBNAct(in_channels, out_channels, act=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.act(self.conv(self.bn(x))))
        # A 1x1 convolution of stride s reads these pixels alone. Given the stride, oneDNN's backward pass (3.12,
        # channels_last) writes beyond its memory where there are fewer than about 12 channels.
        x = x[:, :, :: self.stride, :: self.stride]
        return y + (x if self.shortcut is None else self.shortcut(x))


class IRFeatures(nn.Module):
    """(B,3,H,W) -> the output of every stage: (B,widths[0],H/2,W/2), (B,widths[1],H/4,W/4), ..."""

    def __init__(self, config: IRConfig) -> None:
        super().__init__()
        self.stem = ConvBNAct(3, config.stem_width, 3, padding=1)
        self.stages: list[str] = []
        width = config.stem_width
        for number, (depth, out_width) in enumerate(zip(config.depths, config.widths, strict=True), 1):
            units = [IRUnit(width, out_width, stride=2), *(IRUnit(out_width, out_width, 1) for _ in range(depth - 1))]
            self.stages.append(f"stage{number}")
            self.add_module(self.stages[-1], nn.Sequential(*units))
            width = out_width

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x)
        outputs = []
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
            outputs.append(x)
        return tuple(outputs)
