"""MobileFaceNet as a classifier, and as the network of 68 face landmarks that POSTER's landmark branch is a part of.

Paper: "MobileFaceNets: Efficient CNNs for Accurate Real-Time Face Verification on Mobile Devices"
Authors: Sheng Chen, Yang Liu, Xiang Gao, Zhen Han
Venue: CCBR 2018, arXiv:1804.07573
Original repository: https://github.com/cunjian/pytorch_face_landmark (68 landmarks)

Departures from the published code, and why (those of the features are in `fer.models.backbones.mobilefacenet`):

* The published code trains for face verification or for landmarks. A classifier of expressions is added on top: on the
  512-d embedding before its L2 normalisation, which is the baseline of the DDAMFN paper's table, and on the landmarks.

Shapes: B batch, N classes.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from fer.models.backbones.mobilefacenet import NANO, PUBLISHED, MobileFaceNetConfig, MobileFaceNetFeatures
from fer.models.base import FerModel, TrainOutput
from fer.models.layers.conv import global_depthwise
from fer.models.registry import register

INPUT_SIZE = 112

NUM_LANDMARKS = 68
"""The points of 300-W (Multi-PIE): 17 of the jaw, 10 of the brows, 9 of the nose, 12 of the eyes, 20 of the mouth."""


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
    """A classifier on the 512-d embedding E; with `num_classes=0` the L2-normalised embedding itself, (B,E).

    Input: RGB in [-1, 1], as is usual in face verification.
    Parameters: 1,204,103 with 7 classes (1.148 Mi in the DDAMFN paper's table), 1,200,512 for the embedding.
    """

    def __init__(
        self,
        num_classes: int = 7,
        *,
        config: MobileFaceNetConfig,
        input_size: int = INPUT_SIZE,
        embedding_width: int = 512,
    ) -> None:
        if num_classes < 0:
            raise ValueError(
                f"mobilefacenet: num_classes = {num_classes}: 0 (the embedding) or the number of classes is allowed"
            )
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
    """68 landmarks; with `num_classes` > 0 a linear classifier on their 136 coordinates: geometry alone.

    With `num_classes=0` the output is (B,68,2): x and y as fractions of the crop's side, from its upper left corner, in
    the order of 300-W. The crop is a square about the face with little margin.

    Input: RGB in [0, 1], neither centred nor scaled.
    Parameters: 1,007,248 without a classifier.
    """

    def __init__(self, num_classes: int = 7, *, config: MobileFaceNetConfig) -> None:
        if num_classes < 0:
            raise ValueError(
                f"mobilefacenet_landmarks: num_classes = {num_classes}: "
                "0 (the landmarks) or the number of classes is allowed"
            )
        super().__init__(num_classes, input_size=INPUT_SIZE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        self.features = MobileFaceNetFeatures(config)
        self.head = DepthwiseEmbedding(config.out_width, INPUT_SIZE // 16, 2 * NUM_LANDMARKS)
        self.fc = nn.Linear(2 * NUM_LANDMARKS, num_classes) if num_classes else None

    def forward(self, x: Tensor) -> Tensor | TrainOutput:
        coordinates = self.head(self.features(x)[-1])  # (B,136), x and y in turn
        logits = self.fc(coordinates) if self.fc is not None else coordinates.unflatten(1, (NUM_LANDMARKS, 2))
        return TrainOutput(logits, {}) if self.training else logits
