"""BiFormer as published: github.com/rayleizhu/BiFormer, `models/biformer.py`, `ops/bra_legacy.py`, `models/_common.py`.

The network behind `dynamic_vit`. Regions are cut before the projections; the keys and values that a region attends to
are gathered, once for every region that chose them.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.reference.published import Published


@dataclass(frozen=True, kw_only=True)
class Size:
    """Depth and width of each stage; regions a side; regions attended to in the first three stages."""

    depths: tuple[int, int, int, int]
    widths: tuple[int, int, int, int]
    regions: int = 7
    topk: tuple[int, int, int] = (1, 4, 16)


TINY = Size(depths=(2, 2, 8, 2), widths=(64, 128, 256, 512))
SMALL = Size(depths=(4, 4, 18, 4), widths=(64, 128, 256, 512))
BASE = Size(depths=(4, 4, 18, 4), widths=(96, 192, 384, 768))


def biformer(p: Published, x: Tensor, size: Size, *, num_classes: int = 7) -> Tensor:
    """(B,3,S,S) -> logits (B,N); S / 32 must be a multiple of the regions a side."""
    for stage, (depth, width) in enumerate(zip(size.depths, size.widths, strict=True)):
        down = p.within(f"downsample_layers.{stage}.")
        if stage == 0:
            x = down.conv(x, "0", width // 2, 3, stride=2, padding=1, bias=True)
            x = F.gelu(down.bn(x, "1"))
            x = down.bn(down.conv(x, "3", width, 3, stride=2, padding=1, bias=True), "4")
        else:
            x = down.bn(down.conv(x, "0", width, 3, stride=2, padding=1, bias=True), "1")
        for number in range(depth):
            block = p.within(f"stages.{stage}.{number}.")
            x = x + block.conv(x, "pos_embed", width, 3, padding=1, groups=width, bias=True)
            x = x.permute(0, 2, 3, 1)  # (B,H,W,C)
            y = block.layer_norm(x, "norm1", eps=1e-6)
            attn = block.within("attn.")
            x = x + (_routed(attn, y, size.regions, size.topk[stage]) if stage < 3 else _full(attn, y))
            y = block.linear(block.layer_norm(x, "norm2", eps=1e-6), "mlp.0", 3 * width)
            x = x + block.linear(F.gelu(y), "mlp.3", width)
            x = x.permute(0, 3, 1, 2)  # (B,C,H,W)
    x = p.bn(x, "norm")
    return p.linear(x.flatten(2).mean(-1), "head", num_classes)


def _routed(p: Published, x: Tensor, side: int, topk: int) -> Tensor:
    """Bi-level routing attention: (B,H,W,C) -> (B,H,W,C)."""
    batch, height, width, channels = x.shape
    h, w, count, heads = height // side, width // side, side * side, channels // 32
    x = x.reshape(batch, side, h, side, w, channels).permute(0, 1, 3, 2, 4, 5).reshape(batch, count, h, w, channels)
    query, keys_values = torch.split(p.linear(x, "qkv.qkv", 3 * channels), [channels, 2 * channels], dim=-1)
    query_tokens = query.reshape(batch, count, h * w, channels)
    tokens = keys_values.reshape(batch * count, h, w, 2 * channels).permute(0, 3, 1, 2)
    tokens = tokens.permute(0, 2, 3, 1).reshape(batch, count, h * w, 2 * channels)
    query_region = query.mean([2, 3])
    key_region = keys_values[..., :channels].mean([2, 3])

    value_map = keys_values[..., channels:].reshape(batch, side, side, h, w, channels)
    value_map = value_map.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, height, width).contiguous()
    lepe = p.conv(value_map, "lepe", channels, 5, padding=2, groups=channels, bias=True).permute(0, 2, 3, 1)

    affinity = (query_region.detach() * channels**-0.5) @ key_region.detach().transpose(-2, -1)
    affinity, chosen = torch.topk(affinity, k=topk, dim=-1)  # (B,R*R,K)
    torch.softmax(affinity, dim=-1)  # the routing weights, which hard routing does not use
    gathered = torch.gather(
        tokens.view(batch, 1, count, h * w, 2 * channels).expand(-1, count, -1, -1, -1),
        dim=2,
        index=chosen.view(batch, count, topk, 1, 1).expand(-1, -1, -1, h * w, 2 * channels),
    )  # (B,R*R,K,h*w,2C)
    keys, values = torch.split(gathered, [channels, channels], dim=-1)
    keys = keys.reshape(batch * count, topk * h * w, heads, 32).permute(0, 2, 3, 1)
    values = values.reshape(batch * count, topk * h * w, heads, 32).permute(0, 2, 1, 3)
    queries = query_tokens.reshape(batch * count, h * w, heads, 32).permute(0, 2, 1, 3)
    weights = torch.softmax((queries * channels**-0.5) @ keys, dim=-1)
    out = (weights @ values).reshape(batch, side, side, heads, h, w, 32)
    out = out.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, height, width, channels)
    return p.linear(out + lepe, "wo", channels)


def _full(p: Published, x: Tensor) -> Tensor:
    """Attention over all positions with 8 heads: (B,H,W,C) -> (B,H,W,C)."""
    batch, height, width, channels = x.shape
    heads, head_width = 8, channels // 8
    x = x.reshape(batch, height * width, channels)
    qkv = p.linear(x, "qkv", 3 * channels, bias=False).reshape(batch, -1, 3, heads, head_width).permute(2, 0, 3, 1, 4)
    query, key, value = qkv
    lepe = x.transpose(1, 2).reshape(batch, channels, height, width)
    lepe = p.conv(lepe, "lepe", channels, 5, padding=2, groups=channels, bias=True).flatten(2).transpose(1, 2)
    weights = ((query @ key.transpose(-2, -1)) * head_width**-0.5).softmax(dim=-1)
    out = (weights @ value).transpose(1, 2).reshape(batch, -1, channels)
    return p.linear(out + lepe, "proj", channels).reshape(batch, height, width, channels)
