"""MobileFaceNet: a classifier, a network of 68 face landmarks, and the frozen landmark branch of the POSTER family.

Paper: "MobileFaceNets: Efficient CNNs for Accurate Real-Time Face Verification on Mobile Devices"
Authors: Sheng Chen, Yang Liu, Xiang Gao, Zhen Han
Venue: CCBR 2018, arXiv:1804.07573
Original repository: https://github.com/cunjian/pytorch_face_landmark (68 landmarks);
as a branch: https://github.com/Talented-Q/POSTER_V2

Departures from the published code, and why:

* The published code trains for face verification or for landmarks. A classifier of expressions is added on top: on the
  512-d embedding before its L2 normalization, which is the baseline of the DDAMFN paper's table, and on the landmarks.
* The branch has no landmark head: POSTER runs the published one and ignores its result (96,016 parameters).
* A frozen branch has frozen BatchNorms too. In the published training `model.train()` reaches them: they normalize by
  the statistics of the batch, and their running statistics drift. `bn="drift"` is that behavior.
* A frozen branch of random weights is useless; the published code reads the weights from a fixed path. Here training
  such a model is refused.
* Weights start from PyTorch's defaults, not from He's normal distribution over the fan-out: a BatchNorm follows every
  convolution and cancels the scale.
* Widths, depths and expansions are one configuration, so that narrow variants are the same code.

Shapes: B batch, C channels, E expanded channels or width of the embedding, H height, W width, N classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fer.models.base import FerModel, TrainOutput
from fer.models.layers.conv import ConvBNAct, global_depthwise
from fer.models.registry import register

INPUT_SIZE = 112

NUM_LANDMARKS = 68
"""The points of 300-W (Multi-PIE): 17 of the jaw, 10 of the brows, 9 of the nose, 12 of the eyes, 20 of the mouth."""

BN_MODES = ("frozen", "drift")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One resolution: a block of stride 2 over `down` expanded channels, then `depth` residual ones over `residual`."""

    width: int
    down: int
    depth: int
    residual: int


@dataclass(frozen=True, kw_only=True)
class MobileFaceNetConfig:
    """Size of the network. `out_width` is C of the final feature map."""

    stem_width: int
    stages: tuple[Stage, Stage, Stage]
    out_width: int


PUBLISHED = MobileFaceNetConfig(
    stem_width=64,
    stages=(
        Stage(width=64, down=128, depth=4, residual=128),
        Stage(width=128, down=256, depth=6, residual=256),
        Stage(width=128, down=512, depth=2, residual=256),
    ),
    out_width=512,
)

NANO = MobileFaceNetConfig(
    stem_width=16,
    stages=(
        Stage(width=16, down=32, depth=1, residual=32),
        Stage(width=32, down=64, depth=1, residual=64),
        Stage(width=32, down=64, depth=1, residual=64),
    ),
    out_width=64,
)


class InvertedResidual(nn.Module):
    """Expand, depthwise 3x3, project; residual at stride 1: (B,C,H,W) -> E channels -> (B,C',H/s,W/s)."""

    def __init__(self, in_channels: int, expanded: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.residual = stride == 1
        self.expand = ConvBNAct(in_channels, expanded)
        self.depthwise = ConvBNAct(expanded, expanded, 3, stride=stride, padding=1, groups=expanded)
        self.project = ConvBNAct(expanded, out_channels, act=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class MobileFaceNetFeatures(nn.Module):
    """(B,3,H,W) -> maps after stage 1, after stage 2 and at the end.

    In the published configuration (B,64,H/4,W/4), (B,128,H/8,W/8), (B,512,H/16,W/16); 911,232 parameters.
    """

    def __init__(self, config: MobileFaceNetConfig) -> None:
        super().__init__()
        width = config.stem_width
        self.stem = ConvBNAct(3, width, 3, stride=2, padding=1)
        self.stem_dw = ConvBNAct(width, width, 3, padding=1, groups=width)
        first, second, third = config.stages
        self.down1, self.stage1 = _stage(width, first)
        self.down2, self.stage2 = _stage(first.width, second)
        self.down3, self.stage3 = _stage(second.width, third)
        self.out = ConvBNAct(third.width, config.out_width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.stem_dw(self.stem(x))
        x1 = self.stage1(self.down1(x))
        x2 = self.stage2(self.down2(x1))
        x3 = self.out(self.stage3(self.down3(x2)))
        return x1, x2, x3


def _stage(in_channels: int, stage: Stage) -> tuple[InvertedResidual, nn.Sequential]:
    down = InvertedResidual(in_channels, stage.down, stage.width, stride=2)
    residual = (InvertedResidual(stage.width, stage.residual, stage.width, stride=1) for _ in range(stage.depth))
    return down, nn.Sequential(*residual)


class LandmarkBackbone(MobileFaceNetFeatures):
    """MobileFaceNet's features as a branch of another model, frozen or trained with it.

    frozen: its parameters take no gradient.
    bn: of a frozen branch in training, "frozen": BatchNorm in evaluation mode; "drift": in training mode, as published.
        Of a branch that is not frozen, BatchNorm is in the mode of the model.

    The forward pass in training raises ValueError where the branch is frozen and was never loaded, and where BatchNorm
    would normalize by the batch but the loaded weights have their BatchNorms folded (`fer.weights.openvino`).

    Attributes:
        loaded: whether a state dict with every tensor of this module was loaded, into it or a model that contains it.
    """

    def __init__(self, config: MobileFaceNetConfig, *, frozen: bool, bn: str) -> None:
        if bn not in BN_MODES:
            raise ValueError(f"landmark_bn = {bn!r}: one of {BN_MODES} is allowed")
        super().__init__(config)
        self.frozen = frozen
        self.bn = bn
        self.loaded = False
        self._checked = False
        self.register_load_state_dict_pre_hook(_note_loading)  # type: ignore[no-untyped-call]
        if frozen:
            self.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "LandmarkBackbone":
        """`training` is `mode`, as of any module; the layers of a frozen branch stay in evaluation mode."""
        super().train(mode)
        if self.frozen and self.bn == "frozen":
            for child in self.children():
                child.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.training and not self._checked:
            self._check_weights()
            self._checked = True
        return super().forward(x)

    def _check_weights(self) -> None:
        if self.frozen and not self.loaded:
            raise ValueError(
                "the landmark network is frozen at random weights. Load the published ones (`fer weights pull "
                "mobilefacenet_landmarks_torch`, and that name as `landmarks` of the recipe's `pretrained`), or train "
                "it with landmark_frozen=False"
            )
        if self.loaded and self.stem.bn.training and _is_folded(self.stem.bn):
            raise ValueError(
                "the landmark network's weights have BatchNorm folded in; without its statistics they serve only "
                "a frozen network. Set landmark_frozen=True and landmark_bn='frozen', or load weights with "
                "statistics (`fer weights pull mobilefacenet_landmarks_torch`)"
            )


def _is_folded(bn: nn.BatchNorm2d) -> bool:
    """It divides by one and subtracts nothing, unlike a trained BatchNorm or a new one (whose variance is one)."""
    assert bn.running_var is not None
    return bool((bn.running_var == 1 - bn.eps).all())


def _note_loading(module: nn.Module, state: Mapping[str, Any], prefix: str, *_: object) -> None:
    """Hook of `load_state_dict`, called before the tensors are copied."""
    assert isinstance(module, LandmarkBackbone)
    module.loaded |= all(prefix + name in state for name in module.state_dict())
    module._checked = False


class DepthwiseEmbedding(nn.Sequential):
    """MobileFaceNet's head, a global depthwise convolution and a linear layer: (B,C,S,S) -> (B,width)."""

    def __init__(self, channels: int, size: int, width: int) -> None:
        super().__init__()
        self.pool = global_depthwise(channels, size)
        self.flatten = nn.Flatten()
        self.embed = nn.Linear(channels, width, bias=False)
        self.bn = nn.BatchNorm1d(width)


@register("mobilefacenet_nano", config=NANO, input_size=64, embedding_width=64)
@register("mobilefacenet", config=PUBLISHED)
class MobileFaceNet(FerModel):
    """A classifier on the 512-d embedding; with `num_classes=0` the L2-normalized embedding itself, (B,E).

    Input: RGB in [-1, 1], as is usual in face verification.
    Parameters: 1,204,103 with 7 classes (1.148 Mi in the DDAMFN paper's table), 1,200,512 for the embedding.
    """

    without_classes = "the embedding"

    def __init__(
        self,
        num_classes: int = 7,
        *,
        config: MobileFaceNetConfig,
        input_size: int = INPUT_SIZE,
        embedding_width: int = 512,
    ) -> None:
        super().__init__(num_classes, input_size=input_size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        self.features = MobileFaceNetFeatures(config)
        self.head = DepthwiseEmbedding(config.out_width, input_size // 16, embedding_width)
        self.fc = nn.Linear(embedding_width, num_classes) if num_classes else None

    def forward(self, x: Tensor) -> Tensor | TrainOutput:
        embedding = self.head(self.features(x)[-1])  # (B,E)
        logits = self.fc(embedding) if self.fc is not None else F.normalize(embedding)
        return TrainOutput(logits, {}) if self.training else logits


@register("mobilefacenet_landmarks", config=PUBLISHED)
class MobileFaceNetLandmarks(FerModel):
    """68 landmarks; with `num_classes` > 0 a linear classifier on their 136 coordinates: only geometry.

    With `num_classes=0` the output is (B,68,2): x and y as fractions of the crop's side, from its upper left corner, in
    the order of 300-W. The crop is a square about the face with little margin.

    Input: RGB in [0, 1], neither centered nor scaled.
    Parameters: 1,007,248 without a classifier.
    """

    without_classes = "the landmarks"

    def __init__(self, num_classes: int = 7, *, config: MobileFaceNetConfig) -> None:
        super().__init__(num_classes, input_size=INPUT_SIZE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        self.features = MobileFaceNetFeatures(config)
        self.head = DepthwiseEmbedding(config.out_width, INPUT_SIZE // 16, 2 * NUM_LANDMARKS)
        self.fc = nn.Linear(2 * NUM_LANDMARKS, num_classes) if num_classes else None

    def forward(self, x: Tensor) -> Tensor | TrainOutput:
        coordinates = self.head(self.features(x)[-1])  # (B,136), x and y in turn
        logits = self.fc(coordinates) if self.fc is not None else coordinates.unflatten(1, (NUM_LANDMARKS, 2))
        return TrainOutput(logits, {}) if self.training else logits
