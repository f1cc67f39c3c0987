"""POSTER V2 (also POSTER++): image and landmark features fused by window-based cross-attention at three scales.

Paper: "POSTER V2: A simpler and stronger facial expression recognition network"
Authors: Jiawei Mao, Rui Xu, Xuesong Yin, Yuanqi Chang, Binling Nie, Aibin Huang
Venue: arXiv:2301.12149, 2023; as "POSTER++", Pattern Recognition 157:110951, 2025
Original repository: https://github.com/Talented-Q/POSTER_V2

An IR-50 cut after three stages and a frozen MobileFaceNet landmark network both read the image. At every scale the
image features attend to the landmark features; the fused maps become 147 tokens for a small vision transformer.

The default is the published code, which differs from the paper: the queries are the landmark features as they are
(`project_query` projects them, as equation 4), the residual connection starts from the normalized image features
(`residual="input"`: from the features themselves, as equation 5), layer scales of 1e-5 weigh both residual branches,
and the windows are the whole maps (`window_size`).

Departures from the published code, and why:

* 14,562,653 parameters that no output depends on are left out, the landmark head among them, which the published code
  runs and ignores. `fer.weights.convert` drops them by name.
* A frozen landmark network keeps its BatchNorm statistics (`landmark_bn`), and cannot be frozen at random weights.
* The relative position index is not stored: the bias is read from its table by strides.
* The image is shrunk once for both branches; keeping every second pixel, as published.
* All sizes are one configuration, so that `poster_v2_nano` is the same code, trainable from scratch.

Shapes: B batch, C channels, S side of a fused map, W side of a window, T tokens, D token width, N classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fer.models.base import FerModel, TrainOutput
from fer.models.ir import IR50_THREE_STAGES, IRConfig, IRFeatures
from fer.models.layers.attention import CrossAttention
from fer.models.layers.linear import MLP, DropPath
from fer.models.layers.tokens import ClassTokenTransformer, Embedding, to_map, to_tokens
from fer.models.mobilefacenet import PUBLISHED as MOBILEFACENET
from fer.models.mobilefacenet import LandmarkBackbone, MobileFaceNetConfig
from fer.models.mobilefacenet import Stage as LandmarkStage
from fer.models.registry import register

ATTENTIONS = ("window", "vanilla")
RESIDUALS = ("normalized", "input")


@dataclass(frozen=True, kw_only=True)
class PosterV2Config:
    """Size of the network, and the defaults of a variant.

    Attributes:
        input_size, inner_size: pixels of the input, and of the input of both branches, by nearest neighbor.
        image, landmarks: the branches; the stages of both have maps of equal width, but for the landmarks' last.
        num_heads: of the attention at every level.
        token_dim, token_heads: width and heads of the vision transformer.
        init_std: of the weights of the transformer's, the gate's and the classifier's linear layers.
        layer_scale: initial weight of the residual branches of the fusion.
        drop_path_rate, landmark_frozen: the options' values where they are not given.
    """

    input_size: int
    inner_size: int
    image: IRConfig
    landmarks: MobileFaceNetConfig
    num_heads: tuple[int, ...]
    token_dim: int
    token_heads: int
    init_std: float
    layer_scale: float
    drop_path_rate: float
    landmark_frozen: bool

    @property
    def sides(self) -> tuple[int, ...]:
        """S of every level; every stride halves, rounding up."""
        return tuple(-(-self.inner_size // 2 ** (level + 2)) for level in range(len(self.num_heads)))

    @property
    def landmark_widths(self) -> tuple[int, ...]:
        """Channels of the landmark branch's maps."""
        first, second, _ = self.landmarks.stages
        return (first.width, second.width, self.landmarks.out_width)


PUBLISHED = PosterV2Config(
    input_size=224,
    inner_size=112,
    image=IR50_THREE_STAGES,
    landmarks=MOBILEFACENET,
    num_heads=(2, 4, 8),
    token_dim=768,
    token_heads=8,
    init_std=0.01,
    layer_scale=1e-5,
    drop_path_rate=0.5,
    landmark_frozen=True,
)

NANO = PosterV2Config(
    input_size=48,
    inner_size=48,
    image=IRConfig(depths=(1, 1, 1), widths=(8, 16, 32), stem_width=8),
    landmarks=MobileFaceNetConfig(
        stem_width=8,
        stages=(
            LandmarkStage(width=8, down=16, depth=0, residual=16),
            LandmarkStage(width=16, down=32, depth=0, residual=32),
            LandmarkStage(width=32, down=64, depth=0, residual=64),
        ),
        out_width=32,
    ),
    num_heads=(1, 2, 4),
    token_dim=48,
    token_heads=4,
    init_std=0.1,
    layer_scale=1.0,
    drop_path_rate=0.0,
    landmark_frozen=False,
)
"""For training from scratch, which layer scales of 1e-5 and linear weights of 0.01 would delay by epochs at these
widths. 151,486 parameters with 7 classes, 7.6 MMACs."""


class Fusion(nn.Module):
    """One level: image features attend to landmark features (paper, section 3.1): (B,C,2S,2S), (B,C',S,S) -> (B,C,S,S).

    The image map is halved and cut into windows; the landmark map, averaged to the size of one window, is the query
    of every window. Without landmarks (`landmark_width` None) the windows attend to themselves.
    """

    def __init__(
        self,
        width: int,
        landmark_width: int | None,
        *,
        num_heads: int,
        side: int,
        window: int,
        attention: str,
        project_query: bool,
        residual: str,
        layer_scale: float,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        self.side = side
        self.window = window
        self.residual = residual
        self.down = nn.Conv2d(width, width, 3, 2, 1)
        self.landmark_conv: nn.Module = nn.Identity()
        if landmark_width is not None and landmark_width != width:
            self.landmark_conv = nn.Conv2d(landmark_width, width, 3, padding=1)
        self.norm1 = nn.LayerNorm(width)
        self.attention = CrossAttention(
            width,
            num_heads,
            project_query=project_query or attention == "vanilla" or landmark_width is None,
            side=window if attention == "window" else None,
            layer_scale=layer_scale,
        )
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width, 4 * width, layer_scale=layer_scale)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, image: Tensor, landmarks: Tensor | None) -> Tensor:
        x = to_tokens(self.down(image))  # (B,S*S,C)
        normalized = self.norm1(x)
        shortcut = normalized if self.residual == "normalized" else x
        x = shortcut + self.drop_path(self._attend(normalized, landmarks))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return to_map(x, self.side)

    def _attend(self, x: Tensor, landmarks: Tensor | None) -> Tensor:
        """(B,S*S,C), (B,C',S,S) -> (B,S*S,C)."""
        windows = self._cut(x)
        query = windows
        if landmarks is not None:
            landmarks = self.landmark_conv(landmarks)
            if self.window < self.side:
                landmarks = F.avg_pool2d(landmarks, self.side // self.window)  # (B,C,W,W)
            query = to_tokens(landmarks)  # (B,W*W,C)
            if self.window < self.side:
                query = query.repeat_interleave((self.side // self.window) ** 2, dim=0)
        return self._join(self.attention(query, windows))

    def _cut(self, x: Tensor) -> Tensor:
        """(B,S*S,C) -> (B*(S/W)^2,W*W,C), the windows of one image in a row."""
        if self.window == self.side:
            return x
        count = self.side // self.window
        x = torch.unflatten(x, 1, (count, self.window, count, self.window))  # (B,S/W,W,S/W,W,C)
        return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)

    def _join(self, windows: Tensor) -> Tensor:
        """The inverse of `_cut`."""
        if self.window == self.side:
            return windows
        count = self.side // self.window
        x = torch.unflatten(windows, 0, (-1, count, count))  # (B,S/W,S/W,W*W,C)
        x = torch.unflatten(x, 3, (self.window, self.window))  # (B,S/W,S/W,W,W,C)
        return x.transpose(2, 3).flatten(1, 4)


class Gate(nn.Module):
    """Weight every feature by a function of all of them, squeeze-and-excitation without the squeeze: (B,D) -> (B,D)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, dim)
        self.fc2 = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.fc2(self.fc1(x).relu()).sigmoid()
        return x * gate


@register("poster_v2_nano", config=NANO)
@register("poster_v2", config=PUBLISHED)
class PosterV2(FerModel):
    """POSTER V2.

    landmark_frozen: the landmark network takes no gradient and needs loaded weights; None: the configuration's value
        (published: True; nano: False).
    landmark_bn: in training, a frozen landmark network's BatchNorm is "frozen", or lets its statistics "drift" as in
        the published training.
    drop_path_rate: stochastic depth grows linearly with the level, by a quarter of this rate each, from 0; None: the
        configuration's value (published: 0.5; nano: 0).

    The others are ablations. Rows of the paper's Table 8 and their options; the paper does not say what replaces the
    part that is left out, so that the last column is inferred:

        w/o multi-scale feature extraction  multi_scale=False     the last level alone, fused and tokenized
        w/o ViT                             vit_depth=0           mean of the tokens, normalized, before the gate
        w/o W-MCSA                          attention="vanilla"   projected queries, no position bias, whole maps
        w/o cross-fusion                    cross_fusion=False    image features attend to themselves, no landmarks

    Figure 6: `vit_depth` 2, 4, 6, 8. `window_size`: W in pixels of the fused maps, of sides 28, 14 and 7; a level of a
    smaller side is one window, any other side must be a multiple. None, as published: every level is one window.
    With smaller windows the landmark maps are averaged to W x W and are the queries of each window, as in section 3.1;
    the paper does not say how they are reduced.

    The paper's equations, where the published code differs: `project_query`, the landmark queries pass a linear layer
    of their own (equation 4; 86,464 parameters more); `residual`, the attention is added to the "normalized" image
    features, as in the code, or to the "input" of that normalization (equation 5). Keys and values are of normalized
    features in both; the equations name no normalization before the attention.

    Parameters, published configuration: 43,753,941 for 7 classes, 43,754,710 for 8; 911,232 are the landmark network's.
    """

    def __init__(
        self,
        num_classes: int = 7,
        *,
        config: PosterV2Config,
        multi_scale: bool = True,
        vit_depth: int = 2,
        attention: str = "window",
        window_size: int | None = None,
        project_query: bool = False,
        residual: str = "normalized",
        cross_fusion: bool = True,
        drop_path_rate: float | None = None,
        landmark_bn: str = "frozen",
        landmark_frozen: bool | None = None,
    ) -> None:
        if not isinstance(vit_depth, int) or vit_depth < 0:
            raise ValueError(f"poster_v2: vit_depth = {vit_depth!r}: an integer of at least 0 is needed")
        if attention not in ATTENTIONS:
            raise ValueError(f"poster_v2: attention = {attention!r}: one of {ATTENTIONS} is allowed")
        if residual not in RESIDUALS:
            raise ValueError(f"poster_v2: residual = {residual!r}: one of {RESIDUALS} is allowed")
        if window_size is not None and attention == "vanilla":
            raise ValueError(f"poster_v2: window_size = {window_size!r}: vanilla attention has no windows")
        super().__init__(num_classes, input_size=config.input_size)
        self.inner_size = config.inner_size
        rate = config.drop_path_rate if drop_path_rate is None else drop_path_rate
        self.image = IRFeatures(config.image)
        self.landmarks = None
        if cross_fusion:
            frozen = config.landmark_frozen if landmark_frozen is None else landmark_frozen
            self.landmarks = LandmarkBackbone(config.landmarks, frozen=frozen, bn=landmark_bn)
        last = len(config.sides) - 1
        self.levels = list(range(last + 1)) if multi_scale else [last]
        self.fusions = nn.ModuleList(
            Fusion(
                config.image.widths[level],
                config.landmark_widths[level] if cross_fusion else None,
                num_heads=config.num_heads[level],
                side=config.sides[level],
                window=_window(window_size, config.sides[level]),
                attention=attention,
                project_query=project_query,
                residual=residual,
                layer_scale=config.layer_scale,
                drop_path_rate=rate * level / 4,
            )
            for level in self.levels
        )
        dim = config.token_dim
        self.embeddings = nn.ModuleList(
            Embedding(config.image.widths[level], dim, side=config.sides[level], halvings=last - level)
            for level in self.levels
        )
        self.vit = ClassTokenTransformer(
            len(self.levels) * config.sides[last] ** 2, dim, depth=vit_depth, num_heads=config.token_heads
        )
        self.gate = Gate(dim)
        self.head = nn.Linear(dim, num_classes)
        for module in (*self.vit.modules(), *self.gate.modules(), self.head):
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=config.init_std)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor | TrainOutput:
        logits = self.classify(self.fuse(x))
        return TrainOutput(logits, {}) if self.training else logits

    def fuse(self, x: Tensor) -> list[Tensor]:
        """The fused map of every level, (B,C,S,S) each: the paper's features of three scales."""
        if x.shape[-2:] != (self.inner_size, self.inner_size):
            x = F.interpolate(x, size=(self.inner_size, self.inner_size), mode="nearest")
        image = self.image(x)
        landmarks = self.landmarks(x) if self.landmarks is not None else (None,) * len(image)
        return [fusion(image[level], landmarks[level]) for level, fusion in zip(self.levels, self.fusions, strict=True)]

    def classify(self, maps: Sequence[Tensor]) -> Tensor:
        """The fused maps -> logits (B,N)."""
        tokens = [embedding(x) for embedding, x in zip(self.embeddings, maps, strict=True)]
        features = self.vit(torch.cat(tokens, dim=1))  # (B,D)
        return self.head(self.gate(features))  # type: ignore[no-any-return]


def _window(window_size: int | None, side: int) -> int:
    """W of a level of side S."""
    window = side if window_size is None else window_size
    if not isinstance(window, int) or window < 1 or (window < side and side % window):
        raise ValueError(f"poster_v2: window_size = {window_size!r}: a divisor of the side {side} of a level is needed")
    return min(window, side)
