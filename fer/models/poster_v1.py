"""POSTER, here POSTER V1: image and landmark tokens fused in both directions, on a pyramid of token widths.

Paper: "POSTER: A Pyramid Cross-Fusion Transformer Network for Facial Expression Recognition"
Authors: Ce Zheng, Matias Mendieta, Chen Chen
Venue: ICCV Workshops (AMFG) 2023, arXiv:2204.04083
Original repository: https://github.com/zczcwh/POSTER

An IR-50 cut after three stages and a frozen MobileFaceNet landmark network both read the image and give 49 tokens
each. In every block the image tokens attend to themselves by the landmark tokens' queries, and the other way round.
POSTER V2 starts from it and compares with it: its Tables 1 and 6 name the three depths V1-T, V1-S and V1. The
published code calls the same three "small", "base" and "large".

The default is the published code for RAF-DB. Its surprising parts are kept:

* An image token is 1,024 consecutive numbers of the map (C,14,14) in memory order, 5.2 channels of it rather than a
  position; the landmark tokens are the 49 positions of their map.
* Queries are the other stream's normalized tokens as they are, without a projection. Both directions of a block start
  from the same tokens.
* A 1x1 convolution over the token axis ends every block and mixes all 100 tokens. The published model for AffectNet,
  another file, has none: `token_mixing=False`.
* The wider levels of the pyramid receive the narrower ones, never the reverse, and the classifier reads only the
  image's class token, of the widest level.

Departures from the published code, and why:

* 12,944,144 parameters that no output depends on are left out: the heads of both branches and a class token that the
  mean of the tokens replaces. `fer.weights.convert` drops them by name. Without token mixing the landmark half of the
  last block's widest level has no effect either, and is left out.
* A frozen landmark network keeps its BatchNorm statistics (`landmark_bn`), and cannot be frozen at random weights.
* The image is shrunk once for both branches; keeping every second pixel, as published.

Shapes: B batch, C channels, T tokens a stream (49 and their class token), D token width, N classes.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fer.models.base import FerModel, TrainOutput, at_least_float32, cross_entropy
from fer.models.ir import IR50_THREE_STAGES, IRConfig, IRFeatures
from fer.models.layers.attention import CrossAttention
from fer.models.layers.linear import MLP, DropPath
from fer.models.mobilefacenet import PUBLISHED as MOBILEFACENET
from fer.models.mobilefacenet import LandmarkBackbone, MobileFaceNetConfig
from fer.models.poster_v2 import NANO as POSTER_V2_NANO
from fer.models.poster_v2 import Gate
from fer.models.registry import register

STREAMS = ("both", "landmark_to_image", "image_to_landmark", "none")

SMOOTHING = 0.2
"""Label smoothing of the first term of the loss."""

NORM_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class PosterV1Config:
    """Size of the network.

    Attributes:
        input_size, inner_size: pixels of the input, and of the input of both branches, by nearest neighbor.
        image, landmarks: the branches, of strides 8 and 16.
        dim: D of the widest of the three levels; each next one is half as wide.
        depth: number of pyramid blocks.
    """

    input_size: int = 224
    inner_size: int = 112
    image: IRConfig = IR50_THREE_STAGES
    landmarks: MobileFaceNetConfig = MOBILEFACENET
    dim: int = 512
    num_heads: int = 8
    mlp_ratio: int = 2
    depth: int

    @property
    def num_places(self) -> int:
        """Tokens of a stream, but for the class token: the positions of the landmark map."""
        return (self.inner_size // 16) ** 2

    @property
    def image_token(self) -> int:
        """Numbers in an image token: the image map has four times the positions of the landmark map."""
        return 4 * self.image.widths[-1]


TINY = PosterV1Config(depth=4)
SMALL = replace(TINY, depth=6)
LARGE = replace(TINY, depth=8)
NANO = PosterV1Config(
    input_size=POSTER_V2_NANO.input_size,
    inner_size=POSTER_V2_NANO.inner_size,
    image=POSTER_V2_NANO.image,
    landmarks=POSTER_V2_NANO.landmarks,
    dim=32,
    num_heads=4,
    depth=2,
)
"""On the branches of `poster_v2_nano`."""


class Stream(nn.Module):
    """One direction of the cross-fusion (paper, section 3.3): own (B,T,D), other (B,T,D) -> own tokens, fused (B,T,D).

    Pre-norm transformer block whose queries come from the other stream, through the same LayerNorm; those of a stream
    that is its own other are projected.
    """

    def __init__(self, dim: int, config: PosterV1Config, drop_path_rate: float, *, alone: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attention = CrossAttention(dim, config.num_heads, project_query=alone)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = MLP(dim, config.mlp_ratio * dim)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, own: Tensor, other: Tensor) -> Tensor:
        own = own + self.drop_path(self.attention(self.norm1(other), self.norm1(own)))
        return own + self.drop_path(self.mlp(self.norm2(own)))  # type: ignore[no-any-return]


class CrossFusion(nn.Module):
    """One level of one block: image and landmark tokens (B,2T,D) -> (B,2T,D).

    to_image, to_landmarks: the streams that are fused; another keeps its tokens. alone: there are image tokens only,
    which attend to themselves: (B,T,D) -> (B,T,D).
    """

    def __init__(
        self,
        dim: int,
        config: PosterV1Config,
        *,
        to_image: bool,
        to_landmarks: bool,
        alone: bool,
        token_mixing: bool,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        self.alone = alone
        num_tokens = (config.num_places + 1) * (1 if alone else 2)
        self.image = Stream(dim, config, drop_path_rate, alone=alone) if to_image else None
        self.landmarks = Stream(dim, config, drop_path_rate, alone=False) if to_landmarks else None
        self.mix = nn.Conv1d(num_tokens, num_tokens, 1) if token_mixing else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        image, landmarks = (x, x) if self.alone else x.chunk(2, dim=1)  # (B,T,D) each
        parts = [
            self.image(image, landmarks) if self.image is not None else image,
            self.landmarks(landmarks, image) if self.landmarks is not None else landmarks,
        ]
        return self.mix(parts[0] if self.alone else torch.cat(parts, dim=1))  # type: ignore[no-any-return]


class PyramidBlock(nn.Module):
    """Fuse on every level, then add each level, doubled in width, to the next wider: [(B,2T,D), (B,2T,D/2), ...]."""

    def __init__(self, levels: list[CrossFusion], num_tokens: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(levels)
        self.widen = nn.ModuleList(nn.ConvTranspose1d(num_tokens, num_tokens, 2, 2) for _ in levels[1:])

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        xs = [level(x) for level, x in zip(self.levels, xs, strict=True)]
        for level in reversed(range(len(self.widen))):
            xs[level] = xs[level] + self.widen[level](xs[level + 1])
        return xs


@register("poster_v1_nano", config=NANO, landmark_frozen=False)
@register("poster_v1_tiny", config=TINY)
@register("poster_v1_small", config=SMALL)
@register("poster_v1_large", config=LARGE)
class PosterV1(FerModel):
    """POSTER V1, of 4 (tiny), 6 (small) or 8 (large) pyramid blocks; 2 small ones (nano) for tests and trials.

    streams: "both", "landmark_to_image" (landmark queries update the image tokens), "image_to_landmark", or "none":
        image tokens alone, which attend to themselves by queries of their own, without the landmark network. Accuracy
        on RAF-DB and AffectNet-7 in Table 1 of POSTER V2's paper; no code of it is published:

            both                92.05  67.31   POSTER V1
            landmark_to_image   91.82  65.96   w/o image to landmark branch
            image_to_landmark   91.62  65.28   w/o landmark to image branch
            none, no pyramid    91.00  65.06   Baseline (inferred)

        The stream that is not updated keeps its tokens, and the classifier reads the class token of the updated one
        (inferred). The table says of its baseline only that it is that of POSTER V1: taken here for the network without
        the two parts that POSTER adds, cross-fusion and pyramid.
    pyramid: three levels of token widths D, D/2 and D/4; otherwise D alone.
    token_mixing: as in the published model for RAF-DB; False: the one for AffectNet.
    drop_path_rate: stochastic depth grows linearly from 0 at the first block to this rate at the last.
    landmark_frozen: the landmark network takes no gradient and needs loaded weights; the nano always trains it.
    landmark_bn: in training, a frozen landmark network's BatchNorm is "frozen", or lets its statistics "drift" as in
        the published training.

    Parameters for 7 classes: 39,284,991 (tiny), 49,095,623 (small) and 58,906,255 (large); 911,232 of them are the
    landmark network's.
    """

    loss_is = "sum of two cross-entropies, one of them smoothed and doubled"

    def __init__(
        self,
        num_classes: int = 7,
        *,
        config: PosterV1Config,
        streams: str = "both",
        pyramid: bool = True,
        token_mixing: bool = True,
        drop_path_rate: float = 0.1,
        landmark_bn: str = "frozen",
        landmark_frozen: bool = True,
    ) -> None:
        if streams not in STREAMS:
            raise ValueError(f"poster_v1: streams = {streams!r}: one of {STREAMS} is allowed")
        super().__init__(num_classes, input_size=config.input_size)
        self.config = config
        self.image = IRFeatures(config.image)
        alone = streams == "none"
        self.landmarks = None
        if not alone:
            self.landmarks = LandmarkBackbone(config.landmarks, frozen=landmark_frozen, bn=landmark_bn)
        assert config.landmarks.out_width == config.dim
        self.image_proj = nn.Linear(config.image_token, config.dim)
        self.positions = nn.Parameter(torch.zeros(1, config.num_places + 1, config.dim))
        num_tokens = (config.num_places + 1) * (1 if alone else 2)
        num_levels = 3 if pyramid else 1
        self.narrow = nn.ModuleList(
            nn.Conv1d(num_tokens, num_tokens, 2**level, 2**level) for level in range(1, num_levels)
        )
        to_image, to_landmarks = streams != "image_to_landmark", streams in ("both", "image_to_landmark")
        self.class_token = 0 if to_image else config.num_places + 1
        blocks = []
        for block, rate in enumerate(torch.linspace(0, drop_path_rate, config.depth, device="cpu").tolist()):
            levels = []
            for level in range(num_levels):
                unused = not token_mixing and block == config.depth - 1 and level == 0
                levels.append(
                    CrossFusion(
                        config.dim // 2**level,
                        config,
                        to_image=to_image,
                        to_landmarks=to_landmarks and not (unused and to_image),
                        alone=alone,
                        token_mixing=token_mixing,
                        drop_path_rate=rate,
                    )
                )
            blocks.append(PyramidBlock(levels, num_tokens))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(config.dim, eps=NORM_EPS)
        self.gate = Gate(config.dim)
        self.head = nn.Linear(config.dim, num_classes)

    def forward(self, x: Tensor) -> Tensor | TrainOutput:
        size = self.config.inner_size
        x = F.interpolate(x, size=(size, size), mode="nearest")
        image = self.image(x)[-1].flatten(1).unflatten(1, (self.config.num_places, -1))  # (B,49,4C), no positions
        tokens = with_mean(self.image_proj(image)) + self.positions  # (B,T,D)
        if self.landmarks is not None:
            landmarks = with_mean(self.landmarks(x)[-1].flatten(2).transpose(1, 2))  # (B,T,D)
            tokens = torch.cat([tokens, landmarks], dim=1)  # (B,2T,D)
        tokens = self.blocks([tokens, *(narrow(tokens) for narrow in self.narrow)])[0]
        logits = self.head(self.gate(self.norm(tokens[:, self.class_token])))  # (B,N)
        return TrainOutput(logits, {}) if self.training else logits

    def loss(self, output: TrainOutput, targets: Tensor) -> Tensor:
        """Twice the cross-entropy with labels smoothed by 0.2, plus the plain one (published code)."""
        plain = cross_entropy(output.logits, targets)
        uniform = -at_least_float32(output.logits).log_softmax(1).mean()  # cross-entropy against uniform labels
        return 2 * torch.lerp(plain, uniform, SMOOTHING) + plain


def with_mean(tokens: Tensor) -> Tensor:
    """The tokens with their mean prepended as the class token: (B,T-1,D) -> (B,T,D)."""
    return torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1)
