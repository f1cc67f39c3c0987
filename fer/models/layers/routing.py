"""Bi-level routing attention: every region of a map attends only to the regions most like it.

Paper: "BiFormer: Vision Transformer with Bi-Level Routing Attention", Lei Zhu, Xinjiang Wang, Zhanghan Ke, Wayne Zhang,
Rynson Lau, CVPR 2023, arXiv:2303.08810, section 3.2. Original repository: https://github.com/rayleizhu/BiFormer

First every region selects the `topk` regions whose mean key matches its mean query best. Then tokens attend to the
tokens of the selected regions. The selection has no gradient.

Two implementations, which agree to rounding:

* gather: the keys and values of the chosen regions are copied beside each region's queries. Arithmetic in proportion to
  H W topk h w, but many copies and small products. This is the reference path, the one that operations are counted on.
* mask: full attention, with the scores of what was not chosen set to minus infinity. Arithmetic in proportion to
  (H W)^2, but nothing is copied, forth or (as sums of gradients) back.

Shapes: B batch, H height, W width, C channels, R regions per side, h = H/R and w = W/R tokens per side of a region.
"""

import math

import torch
from torch import Tensor, nn

from fer.models.layers.attention import attention, is_countable
from fer.models.layers.conv import DepthwiseConv
from fer.models.layers.linear import FusedLinear

MASK_UP_TO = 256
"""The number of tokens of a map up to which the mask is used.

Time of the mask divided by that of the gather, forward and with the backward pass, measured on one core of an AMD EPYC:
196 tokens, topk 16 of 49: 0.5 and 0.4; topk 2 of 49: 1.7 and 1.2; 784 tokens, topk 4 of 49: 3.8 and 3.1.
"""


class RoutingAttention(nn.Module):
    """Bi-level routing attention with a local term, the depthwise convolution of the values: (B,H,W,C) -> (B,H,W,C).

    The scores are scaled by C^-0.5, the width of all heads together, as published.
    H and W must be multiples of `num_regions`, the number of regions per side; `topk` is 1 to num_regions^2.
    """

    def __init__(self, dim: int, *, num_heads: int, num_regions: int, topk: int, kernel: int = 5) -> None:
        super().__init__()
        assert dim % num_heads == 0
        self.num_heads = num_heads
        self.num_regions = num_regions
        self.topk = topk
        self.qkv = nn.Linear(dim, 3 * dim)
        self.local = DepthwiseConv(dim, kernel)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x)  # (B,H,W,3C)
        queries_and_keys, values = torch.split(qkv, [2 * x.shape[-1], x.shape[-1]], dim=-1)
        chosen = route(queries_and_keys, self.num_regions, self.topk)
        attend = gathered_attention if is_countable() or x.shape[1] * x.shape[2] > MASK_UP_TO else masked_attention
        attended = attend(qkv, chosen, num_heads=self.num_heads, scale=x.shape[-1] ** -0.5)
        out: Tensor = self.proj(self.local(values) + attended)
        return out

    def folded(self) -> nn.Module:
        self.qkv, self.proj = FusedLinear(self.qkv), FusedLinear(self.proj)
        return self

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, num_regions={self.num_regions}, topk={self.topk}"


def route(queries_and_keys: Tensor, num_regions: int, topk: int) -> Tensor:
    """The regions whose mean key is most like a region's mean query: (B,H,W,2C) -> indices (B,R*R,topk).

    Regions are numbered row by row; the most alike comes first. Without gradient.
    """
    regions = _split(queries_and_keys.detach(), num_regions)  # (B,R,h,R,w,2C)
    q, k = regions.mean(2).mean(3).flatten(1, 2).chunk(2, dim=-1)  # (B,R*R,C) each
    return (q @ k.mT).topk(topk, dim=-1).indices


def gathered_attention(
    qkv: Tensor, chosen: Tensor, *, num_heads: int, scale: float, shared: Tensor | None = None
) -> Tensor:
    """Attention of each region to its chosen ones, by copies of their keys and values.

    qkv (B,H,W,3C), chosen (B,R*R,topk) -> (B,H,W,C). shared (B,S,2C): keys and values that all regions attend to.
    """
    batch, height, width = qkv.shape[:3]
    channels, count = qkv.shape[3] // 3, chosen.shape[1]
    side = _side(count)
    grouped = _split(qkv, side).transpose(2, 3).reshape(batch * count, -1, 3 * channels)  # (B*R*R,h*w,3C)
    q, kv = torch.split(grouped, [channels, 2 * channels], dim=-1)
    first = count * torch.arange(batch, device=qkv.device).view(-1, 1, 1)
    kv = kv.index_select(0, (chosen + first).flatten())  # (B*R*R*topk,h*w,2C)
    kv = kv.reshape(batch * count, -1, 2 * channels)  # (B*R*R,topk*h*w,2C)
    if shared is not None:
        kv = torch.cat([kv, shared.repeat_interleave(count, 0)], dim=1)
    k, v = kv.chunk(2, dim=-1)
    q, k, v = (
        torch.unflatten(x, -1, (num_heads, -1)).transpose(1, 2) for x in (q, k, v)
    )  # (B*R*R,heads,tokens,C/heads)
    out = attention(q, k, v, scale=scale).transpose(1, 2)  # (B*R*R,h*w,heads,C/heads)
    out = out.reshape(batch, side, side, height // side, width // side, channels)  # (B,R,R,h,w,C)
    return out.transpose(2, 3).reshape(batch, height, width, channels)


def masked_attention(qkv: Tensor, chosen: Tensor, *, num_heads: int, scale: float) -> Tensor:
    """Attention of each region to its chosen ones, as full attention that the others are masked out of.

    qkv (B,H,W,3C), chosen (B,R*R,topk) -> (B,H,W,C).
    """
    height, width = qkv.shape[1:3]
    q, k, v = torch.unflatten(qkv.flatten(1, 2), -1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B,heads,H*W,C/heads)
    out = attention(q, k, v, routing_bias(chosen, height, width, qkv.dtype), scale=scale)
    return torch.unflatten(out.transpose(1, 2).flatten(2), 1, (height, width))


def routing_bias(chosen: Tensor, height: int, width: int, dtype: torch.dtype) -> Tensor:
    """What to add to the scores of full attention: chosen (B,R*R,topk) -> (B,1,H*W,H*W), 0 or minus infinity."""
    count = chosen.shape[1]
    side = _side(count)
    bias = torch.full((chosen.shape[0], count, count), float("-inf"), dtype=dtype, device=chosen.device)
    bias = bias.scatter(-1, chosen, 0.0)
    h, w = height // side, width // side
    bias = bias.view(-1, side, 1, side, 1, side, 1, side, 1).expand(-1, -1, h, -1, w, -1, h, -1, w)
    return bias.reshape(-1, 1, height * width, height * width)


def _split(x: Tensor, num_regions: int) -> Tensor:
    """Rows and columns by region: (B,H,W,C) -> (B,R,h,R,w,C), a view."""
    return torch.unflatten(torch.unflatten(x, 2, (num_regions, -1)), 1, (num_regions, -1))


def _side(count: int) -> int:
    side = math.isqrt(count)
    assert side * side == count
    return side
