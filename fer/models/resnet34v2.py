"""ResNet34v2, the pre-activation residual network that hosts LHC-Net's attention blocks.

Paper: "Local Multi-Head Channel Self-Attention for Facial Expression Recognition" (section 3; the residual units are
those of "Identity Mappings in Deep Residual Networks", arXiv:1603.05027)
Authors: Roberto Pecoraro, Valerio Basile, Viviana Bono (and Sara Gallo, arXiv:2111.07224)
Venue: Information 13(9):419, 2022, doi:10.3390/info13090419
Original repository: https://github.com/Bodhis4ttva/LHC_Net, on ResNet34 of the package image-classifiers 1.0.0

Departures from the published code, and why:

* Channels first, and logits where the published code ends in a softmax: every model of the zoo returns logits.
* Widths, depths, hidden layers and input size are one configuration, so that narrow variants are the same code.
* The published training starts from ImageNet weights of the convolutions; here the weights are initialized as in
  Keras: He's uniform for convolutions, Glorot's uniform for linear layers, no bias.

Shapes: B batch, C channels, H height, W width, N classes.
"""

from copy import deepcopy
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from fer.models.base import FerModel, Resize, TrainOutput
from fer.models.layers.conv import fold_conv_bn
from fer.models.registry import register

BN_EPSILON = 2e-5


@dataclass(frozen=True, kw_only=True)
class ResNetV2Config:
    """Size of the network. A level is the stem or one of the stages; each halves the map but the first stage.

    Attributes:
        input_size: side of the image in pixels.
        stem_width: channels after the stem.
        stem_kernel: side of the stem's convolution, of stride 2; odd.
        stem_pool: whether the stem halves the map again, by max-pooling.
        depths, widths: units and channels of each stage.
        hidden: widths of the classifier's hidden layers.
        drop_rate: dropout probability after each hidden layer.
        bn_momentum: weight of a new batch in the running statistics of the BatchNorms.
        antialias: of the resize to `input_size`. The published networks enlarge images of 48 pixels.
    """

    input_size: int
    stem_width: int
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    hidden: tuple[int, int]
    drop_rate: float
    bn_momentum: float
    antialias: bool
    stem_kernel: int = 7
    stem_pool: bool = True

    def levels(self) -> list[tuple[int, int]]:
        """(channels, side of the map) after the stem and after each stage."""
        size = -(-self.input_size // (4 if self.stem_pool else 2))
        levels = [(self.stem_width, size)]
        for number, width in enumerate(self.widths):
            size = -(-size // _stride(number))
            levels.append((width, size))
        return levels


PUBLISHED = ResNetV2Config(
    input_size=224,
    stem_width=64,
    depths=(3, 4, 6, 3),
    widths=(64, 128, 256, 512),
    hidden=(4096, 1024),
    drop_rate=0.4,
    bn_momentum=0.01,
    antialias=False,
)

MEDIUM = ResNetV2Config(
    input_size=48,
    stem_width=48,
    depths=(2, 2, 2, 2),
    widths=(48, 96, 192, 288),
    hidden=(512, 128),
    drop_rate=0.4,
    bn_momentum=0.1,
    antialias=True,
    stem_kernel=5,
    stem_pool=False,
)
"""For FER2013 from scratch at its own 48 px: the maps have 24, 24, 12, 6 and 3 px."""


def _stride(stage: int) -> int:
    """Of the first unit of a stage, counted from 0."""
    return 1 if stage == 0 else 2


def _bn(channels: int, momentum: float) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=BN_EPSILON, momentum=momentum)


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Without bias, by He's uniform distribution: U(-a, a), a^2 = 6 / fan-in."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_uniform_(conv.weight, nonlinearity="relu")
    return conv


def _linear(in_features: int, out_features: int) -> nn.Linear:
    """By Keras' default: Glorot's uniform distribution, U(-a, a), a^2 = 6 / (fan-in + fan-out); no bias at first."""
    layer = nn.Linear(in_features, out_features)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class PixelNorm(nn.BatchNorm2d):
    """BatchNorm with a shift and no scale, as on the pixels: (B,3,H,W) -> (B,3,H,W)."""

    def __init__(self, channels: int, momentum: float) -> None:
        super().__init__(channels, eps=BN_EPSILON, momentum=momentum)
        self.register_parameter("weight", None)

    def reset_parameters(self) -> None:
        """Resets the statistics and the shift."""
        self.reset_running_stats()
        nn.init.zeros_(self.bias)


class Stem(nn.Module):
    """Normalize the pixels, convolution of stride 2, max-pooling of stride 2: (B,3,S,S) -> (B,C,S/4,S/4).

    Without the pooling (B,C,S/2,S/2). The published pooling pads with zeros; after a ReLU that gives what padding with
    minus infinity gives.
    """

    def __init__(self, width: int, kernel: int, momentum: float, *, pool: bool) -> None:
        super().__init__()
        self.norm = PixelNorm(3, momentum)
        self.conv = _conv(3, width, kernel, stride=2)
        self.bn: nn.Module = _bn(width, momentum)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(self.norm(x))), inplace=True)  # (B,C,S/2,S/2)
        return F.max_pool2d(x, 3, stride=2, padding=1) if self.pool else x

    def folded(self) -> nn.Module:
        """The stem for inference."""
        stem = deepcopy(self)
        assert isinstance(self.bn, nn.BatchNorm2d)
        stem.conv, stem.bn = fold_conv_bn(self.conv, self.bn), nn.Identity()
        return stem


class PreActivationUnit(nn.Module):
    """y = conv(relu(bn(conv(relu(bn(x)))))) + shortcut: (B,C,H,W) -> (B,C',H/s,W/s).

    shortcut: x; or in the first unit of a stage, the first stage included, a 1x1 convolution of relu(bn(x)).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, momentum: float, *, project: bool) -> None:
        super().__init__()
        self.bn1 = _bn(in_channels, momentum)
        self.conv1 = _conv(in_channels, out_channels, 3, stride)
        self.bn2: nn.Module = _bn(out_channels, momentum)
        self.conv2 = _conv(out_channels, out_channels, 3)
        self.shortcut = _conv(in_channels, out_channels, 1, stride) if project else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x), inplace=True)
        shortcut = x if self.shortcut is None else self.shortcut(y)
        y = F.relu(self.bn2(self.conv1(y)), inplace=True)
        out: Tensor = self.conv2(y) + shortcut
        return out

    def folded(self) -> nn.Module:
        """The unit for inference. Only the second BatchNorm has a convolution before it."""
        unit = deepcopy(self)
        assert isinstance(self.bn2, nn.BatchNorm2d)
        unit.conv1, unit.bn2 = fold_conv_bn(self.conv1, self.bn2), nn.Identity()
        return unit


class Head(nn.Module):
    """Classifier: (B,C,H,W) -> logits (B,N); BatchNorm, ReLU, mean pooling, two hidden layers with dropout."""

    def __init__(
        self, width: int, hidden: tuple[int, int], num_classes: int, momentum: float, drop_rate: float
    ) -> None:
        super().__init__()
        self.bn = _bn(width, momentum)
        self.fc1 = _linear(width, hidden[0])
        self.fc2 = _linear(hidden[0], hidden[1])
        self.fc3 = _linear(hidden[1], num_classes)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(x), inplace=True).mean((2, 3))  # (B,C)
        x = self.drop(F.relu(self.fc1(x)))
        x = self.drop(F.relu(self.fc2(x)))
        logits: Tensor = self.fc3(x)
        return logits


@register("resnet34v2_medium", config=MEDIUM)
@register("resnet34v2", config=PUBLISHED)
class ResNet34V2(FerModel):
    """ResNet34v2 with the paper's classifier. Its input is pixels 0..255: mean 0 and standard deviation 1/255.

    drop_rate: dropout probability after each of the two hidden layers; None for the configuration's, 0.4 as published.
    truncate: resized training images as the published code stores them, others unrounded; see `FerModel.truncate`.

    Parameters with 7 classes: 27,590,858 trainable. The paper's 27.6 M are 27,606,224: 15,366 BatchNorm statistics are
    counted as well.
    """

    def __init__(
        self, num_classes: int = 7, *, config: ResNetV2Config, drop_rate: float | None = None, truncate: bool = False
    ) -> None:
        super().__init__(
            num_classes,
            input_size=config.input_size,
            mean=(0.0, 0.0, 0.0),
            std=(1 / 255, 1 / 255, 1 / 255),
            resize=Resize(antialias=config.antialias),
            truncate=truncate,
        )
        momentum = config.bn_momentum
        self.stem = Stem(config.stem_width, config.stem_kernel, momentum, pool=config.stem_pool)
        self.stages = nn.ModuleList()
        in_width = config.stem_width
        for number, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True)):
            first = PreActivationUnit(in_width, width, _stride(number), momentum, project=True)
            rest = (PreActivationUnit(width, width, 1, momentum, project=False) for _ in range(depth - 1))
            self.stages.append(nn.Sequential(first, *rest))
            in_width = width
        rate = config.drop_rate if drop_rate is None else drop_rate
        self.head = Head(in_width, config.hidden, num_classes, momentum, rate)

    def features(self, x: Tensor) -> Tensor:
        """(B,3,S,S) -> the map after the last stage; (B,C,S/32,S/32) of the published network."""
        for level in (self.stem, *self.stages):
            x = level(x)
        return x

    def forward(self, x: Tensor) -> Tensor | TrainOutput:
        logits: Tensor = self.head(self.features(x))
        return TrainOutput(logits, {}) if self.training else logits
