"""IR-18 and IR-50, the face-recognition networks that face expression models start from, as classifiers.

Paper: "ArcFace: Additive Angular Margin Loss for Deep Face Recognition" (its section 3 describes unit and head)
Authors: Jiankang Deng, Jia Guo, Niannan Xue, Stefanos Zafeiriou
Venue: CVPR 2019, arXiv:1801.07698
Original repository: https://github.com/ZhaoJ9014/face.evoLVe

The DDAMFN paper's table calls them "ResNet-18" (256-d embedding) and "ResNet-50" (512-d). Its parameters, 16.78 and
41.56 Mi, are exactly those of the network up to and with the embedding (17,594,240 and 43,574,976), head included:
BatchNorm2d, linear layer with bias, BatchNorm1d; the classifier is not counted.

Departures from the published code, and why:

* The published code trains for face recognition; here a linear classifier (`num_classes` > 0) reads the embedding
  before its L2 normalisation, as `mfn`'s does: a unit vector would bound the logits.
* `stages=3` is IR-50 as POSTER and POSTER V2 cut it. Their copy keeps the head of the four-stage network, which no
  longer fits and is never called (12,847,616 dead parameters). As a network of its own it needs another: the global
  mean of the last map, (B,256), is the embedding.
* Dropout before the head's linear layer is an option (face.evoLVe's 0.5, POSTER's 0.0), here 0 by default.

Input: RGB in [-1, 1], as face.evoLVe's weights were trained. (POSTER feeds its copy ImageNet-normalised pictures.)

Shapes: B batch, N classes.
"""

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from fer.models.backbones.ir import IR18, IR50, NANO, IRConfig, IRFeatures
from fer.models.base import FerModel, TrainOutput
from fer.models.registry import register


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
    """IR with a classifier on its embedding; with `num_classes=0` the L2-normalised embedding itself.

    stages: 4, or 3 for the network that POSTER reads its maps from (embedding of 256).
    drop_rate: dropout probability before the last linear layer but the classifier's; with three stages before that.

    Parameters of the embedding: ir18 17,594,240; ir50 43,574,976; ir50 of three stages 17,611,968.
    """

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
        if num_classes < 0:
            raise ValueError(f"ir: num_classes = {num_classes}: 0 (the embedding) or the number of classes is allowed")
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
