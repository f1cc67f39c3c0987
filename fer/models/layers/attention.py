"""Softmax attention, fused or written out so that it can be counted; and cross-attention between two maps."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fer.models.layers.linear import linear

_written_out = False


@contextmanager
def countable() -> Iterator[None]:
    """The reference path: inside, `attention` is two matrix products with a softmax between them.

    For `torch.utils.flop_counter`, which does not count the CPU's fused kernel. `layers.routing` then attends by
    copies, as the published code does, and not by masks, which take more arithmetic. The results agree to rounding.
    For the whole process, not per thread; a graph exported inside keeps the reference path.
    """
    global _written_out
    before, _written_out = _written_out, True
    try:
        yield
    finally:
        _written_out = before


def is_countable() -> bool:
    """Whether the reference path is active."""
    return _written_out


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *, scale: float) -> Tensor:
    """softmax(scale * q k^T + bias) v over the last two axes: q (...,Q,D), k (...,K,D), v (...,K,E) -> (...,Q,E).

    bias: added to the scores, broadcast to (...,Q,K).
    """
    if not _written_out:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    scores = (q * scale) @ k.transpose(-2, -1)  # (...,Q,K)
    if bias is not None:
        scores = scores + bias
    return torch.softmax(scores, dim=-1) @ v


class RelativePositionBias(nn.Module):
    """Swin's learned bias (arXiv:2103.14030) on the attention among S x S positions: () -> (1,K,S*S,S*S).

    `table` is ((2S-1)^2, K): its row (dy + S-1) * (2S-1) + dx + S-1 is the bias, a head, of a query that lies dy rows
    below and dx columns to the right of the key. No index of S^4 entries is needed: along each axis the biases of one
    query are a window of the table, backwards.
    """

    def __init__(self, side: int, num_heads: int) -> None:
        super().__init__()
        self.side = side
        self.table = nn.Parameter(torch.empty((2 * side - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self) -> Tensor:
        side, offsets = self.side, 2 * self.side - 1
        table = self.table.t().view(-1, offsets, offsets)  # (K,2S-1,2S-1)
        windows = table.unfold(1, side, 1).unfold(2, side, 1)  # (K,S,S,S,S): query row and column, then key's, reversed
        return windows.flip(3, 4).flatten(3, 4).flatten(1, 2)[None]  # (1,K,S*S,S*S); of 3 axes no kernel is fused

    def folded(self) -> nn.Module:
        """The bias computed once, from the table as it is now."""
        return Constant(self())


class Constant(nn.Module):
    """A tensor in place of the module that computes it: () -> the tensor."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value.detach())

    def forward(self) -> Tensor:
        return self.value


class CrossAttention(nn.Module):
    """Multi-head attention of the tokens of one source to those of another: (B,Q,C), (B,M,C) -> (B,Q,C).

    project_query: whether the queries pass a linear layer, as keys and values do.
    side: where given, every score has a learned bias by relative position; then Q = M = side^2.
    layer_scale: of the last layer, see `linear`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        project_query: bool,
        side: int | None = None,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        assert dim % num_heads == 0
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.query = nn.Linear(dim, dim) if project_query else None
        self.key_value = nn.Linear(dim, 2 * dim)
        self.position_bias = RelativePositionBias(side, num_heads) if side is not None else None
        self.proj = linear(dim, dim, layer_scale)

    def forward(self, query: Tensor, context: Tensor) -> Tensor:
        if self.query is not None:
            query = self.query(query)
        q = torch.unflatten(query, -1, (self.num_heads, -1)).transpose(1, 2)  # (B,K,Q,C/K)
        key_value = torch.unflatten(self.key_value(context), -1, (2, self.num_heads, -1))  # (B,M,2,K,C/K)
        k, v = key_value.permute(2, 0, 3, 1, 4)  # (B,K,M,C/K) each
        bias = self.position_bias() if self.position_bias is not None else None
        out = attention(q, k, v, bias, scale=self.scale)
        attended: Tensor = self.proj(out.transpose(1, 2).flatten(2))  # (B,Q,C)
        return attended
