"""LHC-Net: ResNet34v2 with five blocks of local multi-head channel self-attention; LHC-NetC weights the blocks.

Paper: "Local Multi-Head Channel Self-Attention for Facial Expression Recognition"
Authors: Roberto Pecoraro, Valerio Basile, Viviana Bono (and Sara Gallo, arXiv:2111.07224)
Venue: Information 13(9):419, 2022, doi:10.3390/info13090419
Original repository: https://github.com/Bodhis4ttva/LHC_Net

The channels of a map attend to each other. A head covers one horizontal band of the map ("local"), and each query
channel has its own softmax temperature.

Departures from the published code, and why:

* Channels first, and logits where the published code ends in a softmax: every model of the zoo returns logits.
* The heads' linear layers are one tensor and one batched product in place of a loop; `fer.weights.convert` stacks them.
* The temperature divides the queries before the scores are made, not the scores: the same function, without the scores
  in the thousands that half precision cannot hold.
* LHC-NetC's five residual weights are trained alone only with `train_only_controller`: that makes sense with the
  weights of a trained LHC-Net, not from scratch.
* `lhc_net_nano` has residual weights too, small at first: it is trained from scratch, the published networks from a
  trained host.

Shapes: B batch, C channels, H height, W width, n heads, P positions of a band (HW/n), d embedding of a band, N classes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fer.models import resnet34v2
from fer.models.base import at_least_float32
from fer.models.registry import register
from fer.models.resnet34v2 import ResNet34V2, ResNetV2Config

NUM_BLOCKS = 5
"""One after the stem and one after each of the four stages."""

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class LHCConfig:
    """The host network and its LHC blocks, one for each of its levels (stem and stages).

    Attributes:
        num_heads, head_dims, pools, scales, kernels: n, d, p, g and s of each block, the columns of the table "Setup".
        residual_weights: initial w of each block's trained residual weight 1 + tanh(w); None for no such weights.
    """

    host: ResNetV2Config
    num_heads: tuple[int, ...]
    head_dims: tuple[int, ...]
    pools: tuple[int, ...] = (3,) * NUM_BLOCKS
    scales: tuple[float, ...] = (1.0,) * NUM_BLOCKS
    kernels: tuple[int, ...] = (3,) * NUM_BLOCKS
    residual_weights: tuple[float, ...] | None = None


PUBLISHED = LHCConfig(
    host=resnet34v2.PUBLISHED,
    num_heads=(8, 8, 7, 7, 1),
    head_dims=(196, 196, 56, 14, 25),
)

NANO = LHCConfig(
    host=ResNetV2Config(
        input_size=64,
        stem_width=16,
        depths=(1, 1, 1, 1),
        widths=(16, 24, 40, 64),
        hidden=(128, 64),
        drop_rate=0.1,
        bn_momentum=0.1,
        antialias=True,
    ),
    num_heads=(8, 8, 4, 4, 1),
    head_dims=(16, 16, 8, 2, 2),
    # From scratch, blocks of full weight hide the host's features behind what all channels of a map have in common,
    # and the loss stays at chance level for epochs. These start at 1 + tanh(-1.5) = 0.09.
    residual_weights=(-1.5,) * NUM_BLOCKS,
)

SMALL = LHCConfig(
    host=ResNetV2Config(
        input_size=96,
        stem_width=16,
        depths=(2, 2, 2, 2),
        widths=(16, 32, 64, 128),
        hidden=(256, 64),
        drop_rate=0.2,
        bn_momentum=0.1,
        antialias=False,
    ),
    num_heads=(8, 8, 8, 4, 1),
    head_dims=(16, 16, 8, 4, 4),
    residual_weights=(-1.5,) * NUM_BLOCKS,
)
"""For FER2013 from scratch: its 48 px enlarged to 96, so that the maps have 24, 24, 12, 6 and 3 px."""

MEDIUM = LHCConfig(
    host=resnet34v2.MEDIUM,
    num_heads=(8, 8, 8, 4, 1),
    head_dims=(36, 36, 9, 5, 5),
)
"""For FER2013 after its host, as in the published protocol; as there, d is HW / 2n in the first three blocks."""


class HeadwiseLinear(nn.Module):
    """One linear layer per head, in one product: (n,M,P) -> (n,M,d)."""

    def __init__(self, num_heads: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_heads, out_features, in_features))
        self.bias = nn.Parameter(torch.empty(num_heads, out_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Each head by Glorot's uniform distribution, no bias."""
        for weight in self.weight:
            nn.init.xavier_uniform_(weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias[:, None], x, self.weight.transpose(1, 2))


class LHCBlock(nn.Module):
    """x + LHC(x) of a map (B,C,H,W). The attention weights are softmax(S / d^(g+T)) of the scores S, as in the code.

    (The paper's equation 14 prints another numerator than S, whose shape does not fit.)

    channels, size: C and H = W of the map.
    num_heads, head_dim: n, a divisor of HW; and d.
    pool, kernel: sides of the windows of the query's and the key's pooling, and of the value's convolution; odd.
    exponent: the paper's g; the softmax temperature of a query channel is d^(g + T), with its own T in (0, 1).
    residual_weight: initial w, a parameter that makes it x + (1 + tanh(w)) LHC(x) (LHC-NetC); None for none.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        num_heads: int,
        head_dim: int,
        *,
        pool: int = 3,
        kernel: int = 3,
        exponent: float = 1.0,
        residual_weight: float | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.pool = pool
        self.exponent = exponent
        self.embed = HeadwiseLinear(num_heads, size * size // num_heads, head_dim)
        self.temperature = nn.Linear(channels, channels)
        self.value = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)
        self.w = None if residual_weight is None else nn.Parameter(torch.tensor(float(residual_weight)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """First weights of the attention, as Keras draws them by default."""
        self.embed.reset_parameters()
        for layer in (self.temperature, self.value):
            nn.init.xavier_uniform_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        attention = self.attention(x)
        return x + (attention if self.w is None else attention * (1 + self.w.tanh()))

    def attention(self, x: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,C,H,W), channels last in memory."""
        batch, channels, height, width = x.shape
        return self.heads(x).view(batch, height, width, channels).permute(0, 3, 1, 2)

    def heads(self, x: Tensor) -> Tensor:
        """The output of each head, the paper's A_h (equation 16), transposed: (B,C,H,W) -> (B,n,P,C)."""
        batch, channels = x.shape[:2]
        weights = self.weights(x)
        value = _mean_pool(self.value(x), 3).permute(0, 2, 3, 1).reshape(batch, self.num_heads, -1, channels)
        return value @ weights.transpose(2, 3)

    def weights(self, x: Tensor) -> Tensor:
        """The attention weights of each head and query channel: (B,C,H,W) -> (B,n,C,C), the keys last, of sum 1."""
        batch, channels = x.shape[:2]
        heads = self.num_heads
        query = self._bands(_mean_pool(x, self.pool))  # (n,BC,P)
        key = self._bands(F.max_pool2d(x, self.pool, 1, self.pool // 2))
        q = self.embed(query).view(heads * batch, channels, self.head_dim)  # (nB,C,d)
        k = self.embed(key).view(heads * batch, channels, self.head_dim)
        q = q * self._inverse_temperature(q, k)
        weights = torch.softmax(q @ k.transpose(1, 2), dim=-1)  # (nB,C,C)
        return weights.view(heads, batch, channels, channels).transpose(0, 1)

    def _bands(self, x: Tensor) -> Tensor:
        """(B,C,H,W) -> (n,BC,P): each channel cut into n horizontal bands, in row-major order."""
        batch, channels = x.shape[:2]
        return x.reshape(batch * channels, self.num_heads, -1).transpose(0, 1)

    def _inverse_temperature(self, q: Tensor, k: Tensor) -> Tensor:
        """d^-(g+T) of each query: (nB,C,d), (nB,C,d) -> (nB,C,1).

        T = sigmoid(linear(mean of the scores over the keys)); that mean is the query times the mean key.
        """
        scores = (at_least_float32(q) * at_least_float32(k).mean(1, keepdim=True)).sum(-1)  # (nB,C)
        T = torch.sigmoid(at_least_float32(self.temperature(scores.to(q.dtype))))
        return torch.exp(-math.log(self.head_dim) * (self.exponent + T)).unsqueeze(-1).to(q.dtype)


def _mean_pool(x: Tensor, size: int) -> Tensor:
    """Mean over a window of stride 1, of its positions within the map."""
    return F.avg_pool2d(x, size, 1, size // 2, count_include_pad=False)


@register("lhc_net_nano", config=NANO)
@register("lhc_net_small", config=SMALL)
@register("lhc_net_medium", config=MEDIUM)
@register("lhc_net", config=PUBLISHED)
class LHCNet(ResNet34V2):
    """LHC-Net. The blocks follow the stem and each of the four stages.

    blocks: whether each of the five LHC blocks is there; without any the network is its host. The paper (section 2.2)
        finds the first two necessary: 16 of the 31 heads.
    num_heads, head_dims: n and d of each block; None for the configuration's, as published
        (table "Setup LHC blocks") 8, 8, 7, 7, 1 and 196, 196, 56, 14, 25.
    pools, scales, kernels: p, g and s of each block; None for the configuration's, as published 3, 1 and 3 throughout.
    drop_rate, truncate: the host's.

    Paper's table Results 1, FER2013, private test without TTA, best run: ResNet34v2 72.81, LHC-Net 73.39, LHC-NetC
    73.53 (means of the best 40 % of the runs: 72.69, 72.89, 73.04).

    Parameters with 7 classes: 32,396,302 trainable, 4,805,444 of them in the blocks (14.8 %).
    """

    def __init__(
        self,
        num_classes: int = 7,
        *,
        config: LHCConfig,
        blocks: Sequence[bool] | None = None,
        num_heads: Sequence[int] | None = None,
        head_dims: Sequence[int] | None = None,
        pools: Sequence[int] | None = None,
        scales: Sequence[float] | None = None,
        kernels: Sequence[int] | None = None,
        drop_rate: float | None = None,
        truncate: bool = False,
    ) -> None:
        super().__init__(num_classes, config=config.host, drop_rate=drop_rate, truncate=truncate)
        levels = config.host.levels()
        columns = (
            _each("blocks", blocks, [True] * len(levels)),
            _each("num_heads", num_heads, config.num_heads),
            _each("head_dims", head_dims, config.head_dims),
            _each("pools", pools, config.pools),
            _each("scales", scales, config.scales),
            _each("kernels", kernels, config.kernels),
            config.residual_weights or [None] * len(levels),
        )
        self.lhc = nn.ModuleList()
        for number, ((channels, size), on, n, d, p, g, s, w) in enumerate(zip(levels, *columns, strict=True), 1):
            if n < 1 or size * size % n:
                raise ValueError(f"num_heads = {n} of block {number}: a divisor of its {size} x {size} map is allowed")
            if d < 1:
                raise ValueError(f"head_dims = {d} of block {number}: at least 1 is needed")
            for name, side in (("pools", p), ("kernels", s)):
                if side < 1 or side % 2 == 0:
                    raise ValueError(f"{name} = {side} of block {number}: an odd number of at least 1 is needed")
            if g < 0:
                raise ValueError(f"scales = {g} of block {number}: at least 0 is needed")
            options = {"pool": p, "kernel": s, "exponent": g, "residual_weight": w}
            self.lhc.append(LHCBlock(channels, size, n, d, **options) if on else nn.Identity())

    def features(self, x: Tensor) -> Tensor:
        """(B,3,S,S) -> the map after the last block, (B,C,S/32,S/32)."""
        for level, lhc in zip((self.stem, *self.stages), self.lhc, strict=True):
            x = lhc(level(x))
        return x

    def load_host(self, state: Mapping[str, Tensor]) -> None:
        """Loads all weights of the network that the published training continues from; the new ones are kept.

        state: of a ResNet34v2 (the protocol's stage 4), or for LHC-NetC of an LHC-Net (stage 5); of the same
            configuration and number of classes, else ValueError names the keys.
        """
        own = self.state_dict()
        with_blocks = any(key.startswith("lhc.") for key in state)
        new = {key for key in own if key.startswith("lhc.") and (not with_blocks or key.endswith(".w"))}
        faults = [f"missing: {key}" for key in own if key not in state and key not in new]
        faults += [f"unexpected: {key}" for key in state if key not in own]
        faults += [f"another shape: {key}" for key in state if key in own and state[key].shape != own[key].shape]
        if faults:
            raise ValueError("not the weights of this network's host:\n  " + "\n  ".join(faults))
        self.load_state_dict({**own, **state})


@register("lhc_netc", config=PUBLISHED)
class LHCNetC(LHCNet):
    """LHC-NetC: LHC-Net with a trained residual weight 1 + tanh(w) for each block.

    residual_weights: initial w of each block; the published 0, 0, 0, -1, -0.5 weigh the last two by 0.24 and 0.54.
    train_only_controller: freeze all but the five w, BatchNorm included (it stays in evaluation mode), as the published
        stage 5 does with the weights of a trained LHC-Net (`load_host`). Dropout stays on, as it does there.
    The other options are LHC-Net's.

    Parameters with 7 classes: 32,396,307.
    """

    def __init__(
        self,
        num_classes: int = 7,
        *,
        config: LHCConfig,
        blocks: Sequence[bool] | None = None,
        num_heads: Sequence[int] | None = None,
        head_dims: Sequence[int] | None = None,
        pools: Sequence[int] | None = None,
        scales: Sequence[float] | None = None,
        kernels: Sequence[int] | None = None,
        drop_rate: float | None = None,
        truncate: bool = False,
        residual_weights: Sequence[float] = (0.0, 0.0, 0.0, -1.0, -0.5),
        train_only_controller: bool = False,
    ) -> None:
        super().__init__(
            num_classes,
            config=replace(config, residual_weights=tuple(_each("residual_weights", residual_weights, ()))),
            blocks=blocks,
            num_heads=num_heads,
            head_dims=head_dims,
            pools=pools,
            scales=scales,
            kernels=kernels,
            drop_rate=drop_rate,
            truncate=truncate,
        )
        self.train_only_controller = train_only_controller
        if train_only_controller:
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(name.startswith("lhc.") and name.endswith(".w"))
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Training or evaluation mode; a frozen BatchNorm is in evaluation mode always."""
        super().train(mode)
        if self.train_only_controller:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self


def _each(option: str, values: Sequence[_T] | None, default: Sequence[_T]) -> Sequence[_T]:
    """One value per block: the option's, or the default."""
    if values is None:
        return default
    if len(values) != NUM_BLOCKS:
        raise ValueError(f"{option} = {values!r}: one value for each of the {NUM_BLOCKS} LHC blocks is needed")
    return values
