"""MFN, the mixed feature network: DDAMFN's backbone, and a face-embedding network by itself.

Paper: "A Dual-Direction Attention Mixed Feature Network for Facial Expression Recognition"
Authors: Saining Zhang, Yuhang Zhang, Ye Zhang, Yufei Wang, Zhigang Song
Venue: Electronics 12(17):3595, 2023, doi:10.3390/electronics12173595
Original repository: https://github.com/SainingZhang/DDAMFN

A MobileFaceNet whose inverted residual blocks mix depthwise kernels of several sizes (MixConv, arXiv:1907.09595) and
weight their output by coordinate attention (arXiv:2103.02907).

Departures from the published code, and why:

* The BatchNorm and PReLU that the published MixConv constructs and never calls are left out: 29,184 dead parameters.
  `fer.weights.convert` drops them by name.
* Widths, depths, kernels, stem stride and input size are one configuration, so that narrow variants are the same code.
* The classifier (`num_classes` > 0) reads the embedding before its L2 normalization: a unit vector would bound the
  logits. The published code trains MFN for face recognition only; its table counts this classifier's parameters.

Shapes: B batch, C channels, E expanded channels, H height, W width, N classes.
"""

from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fer.models.base import FerModel, TrainOutput
from fer.models.layers.conv import ConvBNAct, fold_conv_bn, global_depthwise
from fer.models.layers.gate import profiles, weigh
from fer.models.registry import register

Kernels = tuple[tuple[int, int], ...]
"""The depthwise kernels of one MixConv, as (kernel size, number of channels); their channels add up to E."""

EMBEDDING_WIDTH = 256


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One resolution: a block of stride 2 to `width` channels, then `depth` residual blocks."""

    width: int
    down: Kernels
    depth: int
    residual: Kernels


@dataclass(frozen=True, kw_only=True)
class MFNConfig:
    """Size of the network. `input_size` in pixels; `out_width` is C of the final feature map."""

    input_size: int
    stem_width: int
    stem_stride: int
    stages: tuple[Stage, ...]
    out_width: int

    @property
    def map_size(self) -> int:
        """Height and width of the final feature map; every stride halves, rounding up."""
        size = -(-self.input_size // self.stem_stride)
        for _ in self.stages:
            size = -(-size // 2)
        return size


PUBLISHED = MFNConfig(
    input_size=112,
    stem_width=64,
    stem_stride=2,
    stages=(
        Stage(width=64, down=((3, 64), (5, 32), (7, 32)), depth=9, residual=((3, 96), (5, 32))),
        Stage(width=128, down=((3, 128), (5, 64), (7, 64)), depth=16, residual=((3, 192), (5, 64))),
        Stage(
            width=256,
            down=((3, 256), (5, 256), (7, 256), (9, 256)),
            depth=6,
            residual=((3, 172), (5, 170), (7, 170)),
        ),
    ),
    out_width=512,
)

NANO = MFNConfig(
    input_size=64,
    stem_width=16,
    stem_stride=2,
    stages=(
        Stage(width=16, down=((3, 16), (5, 8), (7, 8)), depth=1, residual=((3, 24), (5, 8))),
        Stage(width=32, down=((3, 32), (5, 16), (7, 16)), depth=2, residual=((3, 48), (5, 16))),
        Stage(width=64, down=((3, 64), (5, 32), (7, 32)), depth=1, residual=((3, 64), (5, 32), (7, 32))),
    ),
    out_width=128,
)


class MixConv(nn.Module):
    """Depthwise convolutions of several kernel sizes, each on a part of the channels: (B,E,H,W) -> (B,E,H/s,W/s).

    Neither normalized nor activated, as published.
    """

    def __init__(self, kernels: Kernels, stride: int) -> None:
        super().__init__()
        self.widths = [channels for _, channels in kernels]
        self.stride = stride
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False)
            for kernel, channels in kernels
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(x, self.widths, dim=1)
        return torch.cat([conv(part) for conv, part in zip(self.convs, parts, strict=True)], dim=1)

    def folded(self) -> nn.Module:
        """One depthwise convolution of the largest kernel, the others padded with zeros, where that is no slower.

        Splitting and concatenating are two passes over the map: on CPU they cost more than the zeros up to 7x7.
        """
        convs = [conv for conv in self.convs if isinstance(conv, nn.Conv2d)]
        largest = max(conv.weight.shape[-1] for conv in convs)
        if largest > 7:
            return deepcopy(self)
        padded = [F.pad(conv.weight, [(largest - conv.weight.shape[-1]) // 2] * 4) for conv in convs]
        channels = sum(self.widths)
        whole = nn.Conv2d(channels, channels, largest, self.stride, largest // 2, groups=channels, bias=False)
        whole.weight = nn.Parameter(torch.cat(padded).detach())
        return whole


class CoordinateGate(nn.Module):
    """Two direction profiles of a map -> their gates in (0, 1): the common tail of coordinate attention and DDAMFN.

    Both profiles share one bottleneck, as a sequence of H + W positions: (B,C,H,1), (B,C,1,W) -> (B,C,H,1), (B,C,1,W).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        bottleneck = max(8, channels // 32)
        self.squeeze = nn.Conv2d(channels, bottleneck, 1)
        self.bn = nn.BatchNorm2d(bottleneck)
        self.expand_h = nn.Conv2d(bottleneck, channels, 1)
        self.expand_w = nn.Conv2d(bottleneck, channels, 1)

    def forward(self, profile_h: Tensor, profile_w: Tensor) -> tuple[Tensor, Tensor]:
        height, width = profile_h.shape[2], profile_w.shape[3]
        profile = torch.cat([profile_h.permute(0, 2, 3, 1), profile_w.permute(0, 3, 2, 1)], dim=1)  # (B,H+W,1,C)
        profile = profile.permute(0, 3, 1, 2)  # (B,C,H+W,1), channels last in memory for the convolutions
        profile = F.hardswish(self.bn(self.squeeze(profile)))  # (B,C/32,H+W,1)
        profile_h, profile_w = torch.split(profile, [height, width], dim=2)
        gate_h = self.expand_h(profile_h).sigmoid()  # (B,C,H,1)
        gate_w = self.expand_w(profile_w.transpose(2, 3)).sigmoid()  # (B,C,1,W)
        return gate_h, gate_w

    def folded(self) -> nn.Module:
        """The same gates in evaluation mode, the BatchNorm folded."""
        gate = deepcopy(self)
        gate.squeeze = fold_conv_bn(self.squeeze, self.bn)
        gate.bn = nn.Identity()  # type: ignore[assignment]
        return gate


class CoordinateAttention(nn.Module):
    """Weight a map by gates computed from its row and column means (arXiv:2103.02907): (B,C,H,W) -> (B,C,H,W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = CoordinateGate(channels)

    def forward(self, x: Tensor) -> Tensor:
        gate_h, gate_w = self.gate(*profiles(x))
        return weigh(x, gate_h, gate_w)


class MixBlock(nn.Module):
    """Inverted bottleneck, C -> E -> C': expand, MixConv, coordinate attention, project; residual at stride 1."""

    def __init__(self, in_channels: int, out_channels: int, kernels: Kernels, *, stride: int = 1) -> None:
        super().__init__()
        expanded = sum(channels for _, channels in kernels)
        self.residual = stride == 1
        self.expand = ConvBNAct(in_channels, expanded)
        self.mix = MixConv(kernels, stride)
        self.attention = CoordinateAttention(expanded)
        self.project = ConvBNAct(expanded, out_channels, act=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.attention(self.mix(self.expand(x))))
        return x + y if self.residual else y


class MFNFeatures(nn.Sequential):
    """The convolutional part: (B, 3, input_size, input_size) -> (B, out_width, map_size, map_size)."""

    def __init__(self, config: MFNConfig) -> None:
        super().__init__()
        width = config.stem_width
        self.stem = ConvBNAct(3, width, 3, stride=config.stem_stride, padding=1)
        self.stem_dw = ConvBNAct(width, width, 3, padding=1, groups=width)
        for number, stage in enumerate(config.stages, 1):
            self.add_module(f"down{number}", MixBlock(width, stage.width, stage.down, stride=2))
            width = stage.width
            self.add_module(
                f"stage{number}", nn.Sequential(*(MixBlock(width, width, stage.residual) for _ in range(stage.depth)))
            )
        self.out = ConvBNAct(width, config.out_width)


@register("mfn_nano", config=NANO)
@register("mfn", config=PUBLISHED)
class MFN(FerModel):
    """MFN with a classifier on its 256-d embedding; with `num_classes=0` the L2-normalized embedding itself, (B, 256).

    Parameters, published configuration: 4,164,264 for the embedding, 4,166,063 with 7 classes.
    """

    without_classes = "the embedding"

    def __init__(self, num_classes: int = 7, *, config: MFNConfig) -> None:
        super().__init__(num_classes, input_size=config.input_size)
        self.features = MFNFeatures(config)
        self.pool = global_depthwise(config.out_width, config.map_size)
        self.embed = nn.Linear(config.out_width, EMBEDDING_WIDTH, bias=False)
        self.bn = nn.BatchNorm1d(EMBEDDING_WIDTH)
        self.fc = nn.Linear(EMBEDDING_WIDTH, num_classes) if num_classes else None

    def forward(self, x: Tensor) -> Tensor | TrainOutput:
        embedding = self.bn(self.embed(self.pool(self.features(x)).flatten(1)))  # (B,256)
        logits = self.fc(embedding) if self.fc is not None else F.normalize(embedding)
        return TrainOutput(logits, {}) if self.training else logits
