"""DDAMFN and MFN as published: github.com/SainingZhang/DDAMFN, `networks/DDAM.py` and `networks/MixedFeatureNet.py`."""

from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.reference.published import Published

STEM_AND_END = ("conv1", "conv2_dw", "conv_23", "conv_3", "conv_34", "conv_4", "conv_45", "conv_5", "conv_6_sep")
"""The feature extractor's modules in MFN; DDAMFN numbers them."""


def ddamfn(p: Published, x: Tensor, *, num_classes: int = 7, num_heads: int = 2) -> tuple[Tensor, list[Tensor]]:
    """(B,3,112,112) -> logits (B,N), the heads' maps (B,512,7,7) each."""
    x = _features(p, x, [f"features.{number}" for number in range(len(STEM_AND_END))])
    maps = [_attention_head(p.within(f"cat_head{number}.CoordAtt."), x) for number in range(num_heads)]
    merged = maps[0]
    for other in maps[1:]:
        merged = torch.max(merged, other)
    y = p.within("Linear.").conv_bn(x * merged, 512, (7, 7), groups=512)
    return p.linear(y.view(y.size(0), -1), "fc", num_classes), maps


def mfn(p: Published, x: Tensor) -> Tensor:
    """(B,3,112,112) -> embedding of length 1, (B,256)."""
    x = _features(p, x, list(STEM_AND_END))
    x = p.within("conv_6_dw.").conv_bn(x, 512, (7, 7), groups=512)
    x = p.linear(x.view(x.size(0), -1), "linear", 256, bias=False)
    x = p.bn(x, "bn")
    return torch.div(x, torch.norm(x, 2, 1, True))


def _features(p: Published, x: Tensor, names: list[str]) -> Tensor:
    module = count()

    def here() -> Published:
        return p.within(f"{names[next(module)]}.")

    def residuals(x: Tensor, depth: int, splits: tuple[tuple[int, int], ...]) -> Tensor:
        stage = here()
        for block in range(depth):
            x = x + _mix_block(stage.within(f"model.{block}."), x, x.shape[1], splits, stride=1)
        return x

    x = here().conv_bn(x, 64, 3, stride=2, padding=1, prelu=True)
    x = here().conv_bn(x, 64, 3, padding=1, groups=64, prelu=True)
    x = _mix_block(here(), x, 64, ((3, 64), (5, 32), (7, 32)), stride=2)
    x = residuals(x, 9, ((3, 96), (5, 32)))
    x = _mix_block(here(), x, 128, ((3, 128), (5, 64), (7, 64)), stride=2)
    x = residuals(x, 16, ((3, 192), (5, 64)))
    x = _mix_block(here(), x, 256, ((3, 256), (5, 256), (7, 256), (9, 256)), stride=2)
    x = residuals(x, 6, ((3, 172), (5, 170), (7, 170)))
    return here().conv_bn(x, 512, 1, prelu=True)


def _mix_block(p: Published, x: Tensor, width: int, splits: tuple[tuple[int, int], ...], *, stride: int) -> Tensor:
    x = p.within("conv.").conv_bn(x, sum(channels for _, channels in splits), 1, prelu=True)
    parts = []
    for number, (part, (kernel, channels)) in enumerate(
        zip(torch.split(x, [channels for _, channels in splits], dim=1), splits, strict=True)
    ):
        key = f"conv_dw.mixed_depthwise_conv.{number}"
        parts.append(p.conv(part, key, channels, kernel, stride=stride, padding=kernel // 2, groups=channels))
    x = torch.cat(parts, dim=1)
    rows = F.adaptive_avg_pool2d(x, (None, 1))
    columns = F.adaptive_avg_pool2d(x, (1, None)).permute(0, 1, 3, 2)
    gate_rows, gate_columns = _gates(p.within("CA."), rows, columns, x.shape)
    x = x * gate_columns * gate_rows
    return p.within("project.").conv_bn(x, width, 1)


def _attention_head(p: Published, x: Tensor) -> Tensor:
    channels = x.shape[1]
    rows = p.within("Linear_h.").conv_bn(x, channels, (1, 7), groups=channels)
    columns = p.within("Linear_w.").conv_bn(x, channels, (7, 1), groups=channels).permute(0, 1, 3, 2)
    gate_rows, gate_columns = _gates(p, rows, columns, x.shape)
    return gate_columns * gate_rows


def _gates(p: Published, rows: Tensor, columns: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    _, channels, height, width = shape
    y = torch.cat([rows, columns], dim=2)
    y = p.bn(p.conv(y, "conv1", max(8, channels // 32), bias=True), "bn1")
    y = y * (F.relu6(y + 3, inplace=True) / 6)
    rows, columns = torch.split(y, [height, width], dim=2)
    gate_rows = p.conv(rows, "conv2", channels, bias=True).sigmoid()
    gate_columns = p.conv(columns.permute(0, 1, 3, 2), "conv3", channels, bias=True).sigmoid()
    return gate_rows.expand(-1, -1, height, width), gate_columns.expand(-1, -1, height, width)
