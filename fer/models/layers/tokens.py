"""Maps as tokens, and a plain vision transformer over tokens that is read out at a class token."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fer.models.layers.attention import attention, is_countable
from fer.models.layers.linear import MLP

MLP_RATIO = 4
NORM_EPS = 1e-6


def to_tokens(x: Tensor) -> Tensor:
    """(B,C,H,W) -> (B,H*W,C), contiguous; a view of a map in channels-last order."""
    return x.permute(0, 2, 3, 1).contiguous().flatten(1, 2)


def to_map(x: Tensor, side: int) -> Tensor:
    """(B,S*S,C) -> (B,C,S,S), a view: the map is in channels-last order."""
    return torch.unflatten(x.transpose(1, 2), 2, (side, side))


class Embedding(nn.Sequential):
    """A map of side S as tokens of width D: (B,C,S,S) -> (B,T,D).

    3x3 convolutions of stride 2, none activated, as many as `halvings`; for none, one 1x1 convolution.
    """

    def __init__(self, width: int, dim: int, *, side: int, halvings: int) -> None:
        if halvings:
            super().__init__(*(nn.Conv2d(dim if i else width, dim, 3, 2, 1) for i in range(halvings)))
        else:
            super().__init__(nn.Conv2d(width, dim, 1))
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        return to_tokens(super().forward(x))  # type: ignore[no-untyped-call]

    def folded(self) -> nn.Module:
        """Two convolutions as one of 7x7 and stride 4, with a third of the arithmetic."""
        if len(self) != 2:
            return self
        first, second = self
        assert isinstance(first, nn.Conv2d)
        assert isinstance(second, nn.Conv2d)
        return ComposedEmbedding(first, second, self.side)


class ComposedEmbedding(nn.Module):
    """Two convolutions (3x3, stride 2, padding 1) as one, for maps of side S: (B,C,S,S) -> (B,T,D).

    Where the second pads with zeros, the first without its bias would be zero too: its input would be padding. So the
    weights compose exactly, and the first one's bias becomes a map, smaller at the border. Composed in float64.
    """

    bias: Tensor

    def __init__(self, first: nn.Conv2d, second: nn.Conv2d, side: int) -> None:
        super().__init__()
        assert first.bias is not None
        assert second.bias is not None
        weight = second.weight.detach().double()
        between = first.bias.detach().double().view(1, -1, 1, 1).expand(-1, -1, -(-side // 2), -(-side // 2))
        bias = to_tokens(F.conv2d(between, weight, second.bias.detach().double(), 2, 1))  # (1,T,D)
        self.conv = nn.Conv2d(first.in_channels, second.out_channels, 7, 4, 3, bias=False).to(second.weight)
        with torch.no_grad():
            self.conv.weight.copy_(F.conv_transpose2d(weight, first.weight.detach().double(), stride=2))
        self.register_buffer("bias", bias.to(second.bias))

    def forward(self, x: Tensor) -> Tensor:
        return to_tokens(self.conv(x)) + self.bias


class SelfAttention(nn.Module):
    """Multi-head attention among tokens: (B,T,D) -> (B,T,D)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        assert dim % num_heads == 0
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._heads(self.qkv(x), 3)
        return self._attend(q, k, v)

    def first(self, x: Tensor) -> Tensor:
        """The output of the first token, which attends to all: (B,T,D) -> (B,1,D)."""
        dim, weight, bias = x.shape[-1], self.qkv.weight, self.qkv.bias
        (q,) = self._heads(F.linear(x[:, :1], weight[:dim], bias[:dim]), 1)
        k, v = self._heads(F.linear(x, weight[dim:], bias[dim:]), 2)
        return self._attend(q, k, v)

    def _heads(self, x: Tensor, count: int) -> tuple[Tensor, ...]:
        """(B,T,count*D) -> `count` of (B,K,T,D/K)."""
        return torch.unflatten(x, -1, (count, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = attention(q, k, v, scale=q.shape[-1] ** -0.5)  # (B,K,T,D/K)
        attended: Tensor = self.proj(out.transpose(1, 2).flatten(2))  # (B,T,D)
        return attended


class Block(nn.Module):
    """Pre-norm transformer block (arXiv:2010.11929): (B,T,D) -> (B,T,D)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attention = SelfAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = MLP(dim, MLP_RATIO * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]

    def first(self, x: Tensor) -> Tensor:
        """The first token of `forward` alone: (B,T,D) -> (B,1,D)."""
        x = x[:, :1] + self.attention.first(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class ClassTokenTransformer(nn.Module):
    """Class token in front, learned positions, blocks, LayerNorm; the class token's row: (B,T,D) -> (B,D).

    Without blocks the class token would not depend on the tokens; then their mean is normalized in its place, and
    neither class token nor positions exist.
    """

    def __init__(self, num_tokens: int, dim: int, *, depth: int, num_heads: int) -> None:
        super().__init__()
        if depth:
            self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
            self.positions = nn.Parameter(torch.empty(1, 1 + num_tokens, dim))
            nn.init.trunc_normal_(self.cls_token, std=0.02)
            nn.init.trunc_normal_(self.positions, std=0.02)
        self.blocks = nn.ModuleList(Block(dim, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)

    def forward(self, tokens: Tensor) -> Tensor:
        if not self.blocks:
            return self.norm(tokens.mean(1))  # type: ignore[no-any-return]
        cls_token = self.cls_token.expand(tokens.shape[0], -1, -1)
        x = torch.cat([cls_token, tokens], dim=1) + self.positions  # (B,1+T,D)
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x)
        x = last(x) if is_countable() else last.first(x)  # type: ignore[operator]  # the others are not read
        return self.norm(x[:, 0])  # type: ignore[no-any-return]
