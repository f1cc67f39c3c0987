"""IR-18 and IR-50, face-recognition networks: the image branch of the POSTER family, and classifiers.

Paper: "ArcFace: Additive Angular Margin Loss for Deep Face Recognition" (its section 3 describes unit and head)
Authors: Jiankang Deng, Jia Guo, Niannan Xue, Stefanos Zafeiriou
Venue: CVPR 2019, arXiv:1801.07698
Original repository: https://github.com/ZhaoJ9014/face.evoLVe; cut after three stages: https://github.com/Talented-Q/POSTER_V2

The DDAMFN paper's table calls them "ResNet-18" (256-d embedding) and "ResNet-50" (512-d). Its parameters, 16.78 and
41.56 Mi, are exactly those of the network up to and with the embedding (17,594,240 and 43,574,976), head included:
BatchNorm2d, linear layer with bias, BatchNorm1d; the classifier is not counted.

Departures from the published code, and why:

* The published code trains for face recognition; here a linear classifier (`num_classes` > 0) reads the embedding
  before its L2 normalization, as `mfn`'s does: a unit vector would bound the logits.
* `stages=3` is IR-50 as POSTER and POSTER V2 cut it. Their copy keeps the head of the four-stage network, which no
  longer fits and is never called (12,847,616 dead parameters). As a network of its own it needs another: the global
  mean of the last map, (B,256), is the embedding.
* The resize to 112 px that POSTER's copy begins with belongs to the model that uses the features.
* The shortcut that keeps the width is a strided slice, not a max pooling over windows of one pixel: the same values.
* Depths and widths are one configuration, so that narrow variants are the same code.
* Dropout before the head's linear layer is an option (face.evoLVe's 0.5, POSTER's 0.0), here 0 by default.

Input: RGB in [-1, 1], as face.evoLVe's weights were trained. (POSTER feeds its copy ImageNet-normalized images.)

Shapes: B batch, C channels, H height, W width, N classes.
"""

from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor, nn

from fer.models.base import FerModel, TrainOutput
from fer.models.layers.conv import ConvBNAct, PReLU
from fer.models.registry import register


@dataclass(frozen=True, kw_only=True)
class IRConfig:
    """Size of the network: residual units and channels of every stage, and channels of the stem."""

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    stem_width: int


IR18 = IRConfig(depths=(2, 2, 2, 2), widths=(64, 128, 256, 512), stem_width=64)
IR50 = IRConfig(depths=(3, 4, 14, 3), widths=(64, 128, 256, 512), stem_width=64)
IR50_THREE_STAGES = IRConfig(depths=(3, 4, 14), widths=(64, 128, 256), stem_width=64)
"""The part of IR-50 in POSTER and POSTER V2: 17,611,968 parameters."""
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


class EmbeddingHead(nn.Sequential):
    """A linear layer over all positions of the final map, between two BatchNorms: (B,C,S,S) -> (B,embedding_width)."""

    def __init__(self, channels: int, size: int, embedding_width: int, drop_rate: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.drop = nn.Dropout(drop_rate)
        self.flatten = nn.Flatten()
        self.embed = nn.Linear(channels * size * size, embedding_width)
        self.bn2 = nn.BatchNorm1d(embedding_width)


class MeanHead(nn.Sequential):
    """Global mean: (B,C,S,S) -> (B,C)."""

    def __init__(self, drop_rate: float) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.drop = nn.Dropout(drop_rate)


@register("ir_nano", config=NANO, embedding_width=64, input_size=64)
@register("ir18", config=IR18, embedding_width=256, stages=4)
@register("ir50", config=IR50, embedding_width=512)
class IR(FerModel):
    """IR with a classifier on its embedding; with `num_classes=0` the L2-normalized embedding itself.

    stages: 4, or 3 for the network that POSTER reads its maps from (embedding of 256).
    drop_rate: dropout probability before the last linear layer but the classifier's; with three stages before that.

    Parameters of the embedding: ir18 17,594,240; ir50 43,574,976; ir50 of three stages 17,611,968.
    """

    without_classes = "the embedding"

    def __init__(
        self,
        num_classes: int = 7,
        *,
        config: IRConfig,
        embedding_width: int,
        input_size: int = 112,
        stages: int = 4,
        drop_rate: float = 0.0,
    ) -> None:
        if stages not in (3, 4):
            raise ValueError(f"ir: stages = {stages!r}: 3 or 4 is allowed")
        super().__init__(num_classes, input_size=input_size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        self.features = IRFeatures(replace(config, depths=config.depths[:stages], widths=config.widths[:stages]))
        channels = config.widths[stages - 1]
        self.head: nn.Module
        if stages == 3:
            embedding_width = channels
            self.head = MeanHead(drop_rate)
        else:
            self.head = EmbeddingHead(channels, input_size // 2**stages, embedding_width, drop_rate)
        self.fc = nn.Linear(embedding_width, num_classes) if num_classes else None

    def forward(self, x: Tensor) -> Tensor | TrainOutput:
        embedding = self.head(self.features(x)[-1])  # (B,embedding_width)
        logits = self.fc(embedding) if self.fc is not None else F.normalize(embedding)
        return TrainOutput(logits, {}) if self.training else logits
