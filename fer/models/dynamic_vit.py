"""Dynamic-attention vision transformer: regions attend to the regions most like them (BiFormer, for expressions).

Work: "Efficient Facial Expression Recognition with Dynamic Attention", slides without published code
Network: "BiFormer: Vision Transformer with Bi-Level Routing Attention"
Authors: Lei Zhu, Xinjiang Wang, Zhanghan Ke, Wayne Zhang, Rynson Lau
Venue: CVPR 2023, arXiv:2303.08810
Original repository: https://github.com/rayleizhu/BiFormer

The slides name their mechanism, and 9.8 GFLOPs at 224 pixels against 35.1 of ViT-B/16: "72 %" fewer. Of the networks
with that mechanism only BiFormer-B has 9.8, in multiply-accumulates (MACs), as its own repository counts; 35.1 is
ViT-B/16 in operations, two a MAC. In the same unit it is 9.76 against 17.56 GMACs, 44 % fewer. So `dynamic_vit_base` is
BiFormer-B with a head for expressions; that the slides meant it is an inference. Their drawing shows two regions chosen
for each: `topk=2`, 9.72 GMACs. `fer.models.vit` follows the slides literally, with the routing inside ViT-B/16.

Departures from the published code, and why:

* The maps keep their channels last from the first convolution to the last; the published code changes the order
  twice a block.
* Where the map is small, full attention with a mask takes the place of copies (`fer.models.layers.routing`).
* Depths, widths, heads and input size are one configuration, so that narrow variants are the same code. In the last
  stage the published code has 8 heads whatever the width, no bias on queries, keys and values, and its local
  convolution reads the normalized input instead of the values; all as published here.

Shapes: B batch, H height, W width, C channels, R regions per side, N classes.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from fer.models.base import FerModel, TrainOutput
from fer.models.layers.attention import attention
from fer.models.layers.conv import DepthwiseConv, ResidualDepthwiseConv, fold_conv_bn
from fer.models.layers.linear import MLP, DropPath, FusedLinear
from fer.models.layers.routing import RoutingAttention
from fer.models.registry import register

NORM_EPS = 1e-6

STRIDES = (4, 8, 16, 32)
"""Of the maps of the four stages."""


@dataclass(frozen=True, kw_only=True)
class DynamicViTConfig:
    """Size of the network, and the defaults of a variant.

    Attributes:
        input_size: in pixels.
        depths, widths: blocks and channels of the four stages.
        head_dim: channels per head in the first three stages.
        last_heads: heads in the last stage.
        mlp_ratio: hidden channels of a block's MLP by its channels.
        num_regions: regions per side at `input_size`; in proportion at another size.
        topk: regions that a region attends to, in the first three stages.
        init_std: of the weights of linear layers.
        drop_path_rate: of the last block, rising from 0 at the first.
    """

    input_size: int = 224
    depths: tuple[int, int, int, int]
    widths: tuple[int, int, int, int]
    head_dim: int = 32
    last_heads: int = 8
    mlp_ratio: int = 3
    num_regions: int = 7
    topk: tuple[int, int, int] = (1, 4, 16)
    init_std: float = 0.02
    drop_path_rate: float


TINY = DynamicViTConfig(depths=(2, 2, 8, 2), widths=(64, 128, 256, 512), drop_path_rate=0.1)
SMALL = DynamicViTConfig(depths=(4, 4, 18, 4), widths=(64, 128, 256, 512), drop_path_rate=0.15)
BASE = DynamicViTConfig(depths=(4, 4, 18, 4), widths=(96, 192, 384, 768), drop_path_rate=0.4)
NANO = DynamicViTConfig(
    input_size=64,
    depths=(1, 1, 2, 1),
    widths=(16, 32, 64, 96),
    head_dim=16,
    last_heads=4,
    num_regions=4,
    topk=(1, 4, 4),
    init_std=0.1,
    drop_path_rate=0.0,
)


class Halving(nn.Module):
    """3x3 convolution of stride 2, and BatchNorm: (B,H,W,C) -> (B,H/2,W/2,C')."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        return y

    def folded(self) -> nn.Module:
        self.conv, self.bn = fold_conv_bn(self.conv, self.bn), nn.Identity()  # type: ignore[assignment]
        return self


class FullAttention(nn.Module):
    """Attention of all tokens to all, with a local term, the depthwise convolution of the input: (B,H,W,C) -> same."""

    def __init__(self, dim: int, *, num_heads: int, kernel: int = 5) -> None:
        super().__init__()
        assert dim % num_heads == 0
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.local = DepthwiseConv(dim, kernel)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).flatten(1, 2)  # (B,H*W,3C)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B,heads,H*W,C/heads)
        attended = attention(q, k, v, scale=q.shape[-1] ** -0.5).transpose(1, 2).reshape(x.shape)
        out: Tensor = self.proj(self.local(x) + attended)
        return out

    def folded(self) -> nn.Module:
        self.qkv, self.proj = FusedLinear(self.qkv), FusedLinear(self.proj)
        return self


class Block(nn.Module):
    """Positions by a depthwise convolution, attention, MLP, each added to its input: (B,H,W,C) -> (B,H,W,C)."""

    def __init__(self, dim: int, attention: nn.Module, *, mlp_ratio: int, drop_path: float) -> None:
        super().__init__()
        self.position = ResidualDepthwiseConv(dim, 3)
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attention = attention
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = MLP(dim, mlp_ratio * dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.position(x)
        x = x + self.drop_path(self.attention(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]

    def folded(self) -> nn.Module:
        self.mlp.fc1, self.mlp.fc2 = FusedLinear(self.mlp.fc1, gelu=True), FusedLinear(self.mlp.fc2)
        self.mlp.act = nn.Identity()  # type: ignore[assignment]
        return self


@register("dynamic_vit_nano", config=NANO)
@register("dynamic_vit_base", config=BASE)
@register("dynamic_vit_small", config=SMALL)
@register("dynamic_vit_tiny", config=TINY)
class DynamicViT(FerModel):
    """BiFormer with a head for expressions.

    Options; None stands for the variant's default:

    topk: regions that each region attends to in the first three stages: three numbers, published (1, 4, 16), or one for
        all; the last stage always attends to all tokens.
    num_regions: regions per side (published `n_win`), 7 at 224 pixels and 8 at 256; a divisor of input_size / 16.
    input_size: pixels, a multiple of 32. The slides' faces are 256 pixels wide, which 7 regions per side do not divide.
    drop_path_rate: of the last block. 0.1 (tiny), 0.15 (small), 0.4 (base) are said to be the values of the BiFormer
        paper's ImageNet training; its repository does not hold them, and they are not checked.

    The slides' recipe is not known, neither optimizer nor learning rate nor epochs.

    Parameters with 7 classes: 12,633,351 (tiny), 25,026,823 (small), 56,041,351 (base).
    GMACs at 224 pixels: 2.215, 4.463, 9.758.
    """

    def __init__(
        self,
        num_classes: int = 7,
        *,
        config: DynamicViTConfig,
        topk: int | tuple[int, int, int] | None = None,
        num_regions: int | None = None,
        input_size: int | None = None,
        drop_path_rate: float | None = None,
    ) -> None:
        input_size = config.input_size if input_size is None else input_size
        if input_size < STRIDES[-1] or input_size % STRIDES[-1]:
            raise ValueError(
                f"dynamic_vit: input_size = {input_size}: a multiple of {STRIDES[-1]} is allowed, as 224 and 256"
            )
        if num_regions is None:
            num_regions = config.num_regions * input_size // config.input_size
        _check_regions(num_regions, input_size)
        topks = _topks(config.topk if topk is None else topk, num_regions)
        drop_path_rate = config.drop_path_rate if drop_path_rate is None else drop_path_rate
        super().__init__(num_classes, input_size=input_size)

        widths = config.widths
        self.stem = nn.Sequential(Halving(3, widths[0] // 2), nn.GELU(), Halving(widths[0] // 2, widths[0]))
        self.halvings = nn.ModuleList(Halving(narrow, wide) for narrow, wide in pairwise(widths))
        rates = iter(torch.linspace(0, drop_path_rate, sum(config.depths), device="cpu").tolist())
        self.stages = nn.ModuleList()
        for stage, (dim, depth) in enumerate(zip(widths, config.depths, strict=True)):
            blocks = []
            for _ in range(depth):
                attention = (
                    FullAttention(dim, num_heads=config.last_heads)
                    if stage == len(topks)
                    else RoutingAttention(
                        dim, num_heads=dim // config.head_dim, num_regions=num_regions, topk=topks[stage]
                    )
                )
                blocks.append(Block(dim, attention, mlp_ratio=config.mlp_ratio, drop_path=next(rates)))
            self.stages.append(nn.Sequential(*blocks))
        self.norm = nn.BatchNorm2d(widths[-1])
        self.head = nn.Linear(widths[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=config.init_std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor | TrainOutput:
        x = self.stem(x.permute(0, 2, 3, 1).contiguous())  # (B,H/4,W/4,C)
        x = self.stages[0](x)
        for halving, stage in zip(self.halvings, self.stages[1:], strict=True):
            x = stage(halving(x))
        x = self.norm(x.permute(0, 3, 1, 2))  # (B,C,H/32,W/32)
        logits = self.head(x.mean((2, 3)))  # (B,N)
        return TrainOutput(logits, {}) if self.training else logits


def _check_regions(num_regions: int, input_size: int) -> None:
    smallest = input_size // STRIDES[2]  # the side of the smallest map with regions, which divides those of the others
    valid = [str(regions) for regions in range(1, smallest + 1) if smallest % regions == 0]
    if str(num_regions) not in valid:
        raise ValueError(
            f"dynamic_vit: num_regions = {num_regions!r} does not divide the {smallest} tokens per side of stage 3"
            f" at input_size {input_size}; allowed: {', '.join(valid)}"
        )


def _topks(topk: int | tuple[int, int, int], num_regions: int) -> tuple[int, ...]:
    topks = (topk,) * 3 if isinstance(topk, int) else tuple(topk)
    most = num_regions**2
    if len(topks) != 3 or not all(1 <= k <= most for k in topks):
        raise ValueError(
            f"dynamic_vit: topk = {topk!r}: one number or three, each 1 to {most} (num_regions^2), are allowed"
        )
    return topks
