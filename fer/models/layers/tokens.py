"""Maps as tokens, and back."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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

    Where the second pads with zeros, the first without its bias would be zero too: it would see padding alone. So the
    weights compose exactly, and the first one's bias becomes a map, the smaller at the border. Composed in float64.
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
