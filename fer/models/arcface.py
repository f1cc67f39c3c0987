"""Face-recognition networks for training: a backbone's embedding, a class vector per person, the ArcFace loss.

Paper: "ArcFace: Additive Angular Margin Loss for Deep Face Recognition"
Authors: Jiankang Deng, Jia Guo, Niannan Xue, Stefanos Zafeiriou
Venue: CVPR 2019, arXiv:1801.07698
Original repository: https://github.com/deepinsight/insightface

They pretrain the backbones of expression models: MFN (DDAMFN), IR-50 (POSTER, POSTER V2, BTN), MobileFaceNet. The
convolutional part is `features` in both, so that `fer.weights.parts` loads it from a weights file of these.

Departures from the published code, and why:

* Cosines are float32 also under autocast: bfloat16 steps by 0.004 near 1, a quarter once times 64.
* The margin is applied in `loss`, not in the forward pass, which has no targets. The training accuracy is therefore
  that of the plain cosines, higher than the published code's.
* Targets may be probabilities (smoothed, mixed): the most probable class gets the margin.
* Every class is computed. The published code can sample the classes of a step (Partial FC), which pays off from about
  a million people.

Shapes: B batch, E embedding width, N people.
"""

from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from math import cos, pi, sin
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fer.models.base import FerModel, TrainOutput, at_least_float32, cross_entropy
from fer.models.ir import IR, IR50
from fer.models.mfn import MFN, MFNConfig
from fer.models.mfn import NANO as MFN_NANO
from fer.models.mfn import PUBLISHED as MFN_PUBLISHED
from fer.models.mobilefacenet import PUBLISHED as MOBILEFACENET
from fer.models.mobilefacenet import MobileFaceNet
from fer.models.registry import register


class Embedder(NamedTuple):
    """A backbone in two parts. `features`: images -> map, or maps of which the last is used; `head`: map -> (B,E)."""

    features: nn.Module
    head: nn.Module
    width: int
    model: FerModel
    """Gives the input specification."""


def _mfn(config: MFNConfig) -> Embedder:
    net = MFN(0, config=config)
    head = OrderedDict(pool=net.pool, flatten=nn.Flatten(), embed=net.embed, bn=net.bn)
    return Embedder(net.features, nn.Sequential(head), net.embed.out_features, net)


def _ir50() -> Embedder:
    # The paper's head is BN, dropout, linear layer, BN; the rate is that of its code.
    net = IR(0, config=IR50, embedding_width=512, drop_rate=0.4)
    return Embedder(net.features, net.head, 512, net)


def _mobilefacenet() -> Embedder:
    net = MobileFaceNet(0, config=MOBILEFACENET)
    return Embedder(net.features, net.head, net.head.embed.out_features, net)


@register("mfn_arcface_nano", backbone=lambda: _mfn(MFN_NANO))
@register("mfn_arcface", backbone=lambda: _mfn(MFN_PUBLISHED))
@register("ir50_arcface", backbone=_ir50)
@register("mobilefacenet_arcface", backbone=_mobilefacenet)
class ArcFace(FerModel):
    """A backbone with a class vector per person. Logits: `scale` times the cosine of embedding and class vector.

    scale, margin: s and m (in radians) of equation 3; 64 and 0.5 as published. For few people use a smaller scale.

    Parameters: those of the backbone up to its embedding, and E per person.
    """

    loss_is = "cross-entropy with an angular margin"

    def __init__(
        self,
        num_classes: int = 7,
        *,
        backbone: Callable[[], Embedder],
        scale: float = 64.0,
        margin: float = 0.5,
    ) -> None:
        if not scale > 0:
            raise ValueError(f"arcface: scale = {scale}: more than 0 is allowed")
        if not 0 <= margin < pi / 2:
            raise ValueError(f"arcface: margin = {margin}: 0 to pi / 2 (radians) is allowed")
        features, head, width, whole = backbone()
        super().__init__(
            num_classes, input_size=whole.input_size, mean=whole.mean, std=whole.std, resize=whole.resize,
            truncate=whole.truncate,
        )  # fmt: skip
        self.scale = scale
        self.margin = margin
        self.features = features
        self.head = head
        self.people = nn.Parameter(torch.empty(num_classes, width))
        nn.init.normal_(self.people, std=0.01)

    def embed(self, x: Tensor) -> Tensor:
        """Images -> (B,E) of length 1, in at least float32: those of one person lie close together."""
        maps: Any = self.features(x)
        embedding: Tensor = self.head(maps if isinstance(maps, Tensor) else maps[-1])
        return F.normalize(at_least_float32(embedding))

    def forward(self, x: Tensor) -> Tensor | TrainOutput:
        embedding = self.embed(x)
        with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):  # meta knows no autocast
            logits = self.scale * F.linear(embedding, F.normalize(at_least_float32(self.people)))  # (B,N)
        return TrainOutput(logits, {}) if self.training else logits

    def loss(self, output: TrainOutput, targets: Tensor) -> Tensor:
        """Equation 3: the cross-entropy, with the angle to the own class vector made larger by `margin`."""
        chosen = targets.argmax(1) if targets.is_floating_point() else targets
        own = chosen[:, None]
        cosines = output.logits.gather(1, own) / self.scale  # (B,1)
        logits = output.logits.scatter(1, own, self.scale * with_margin(cosines, self.margin))
        return cross_entropy(logits, targets)


def with_margin(cosines: Tensor, margin: float) -> Tensor:
    """cos(theta + margin) of cos(theta), where theta + margin <= pi; beyond, cos(theta) - margin sin(margin).

    Past pi the cosine would rise again and reward an ever worse angle. The published code does so by default; its
    `easy_margin`, no margin at all beyond a right angle, is not used.
    """
    # The root's gradient is infinite at 0: an embedding that lies on its class vector would make it NaN.
    sines = (1 - cosines.square()).clamp(min=1e-7).sqrt()
    return torch.where(
        cosines > cos(pi - margin), cosines * cos(margin) - sines * sin(margin), cosines - margin * sin(margin)
    )
