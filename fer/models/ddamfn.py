"""DDAMFN, the dual-direction attention mixed feature network.

Paper: "A Dual-Direction Attention Mixed Feature Network for Facial Expression Recognition"
Authors: Saining Zhang, Yuhang Zhang, Ye Zhang, Yufei Wang, Zhigang Song
Venue: Electronics 12(17):3595, 2023, doi:10.3390/electronics12173595
Original repository: https://github.com/SainingZhang/DDAMFN

MFN features, several dual-direction attention heads whose maps are merged by their maximum, a global depthwise
convolution and a linear classifier. A second loss term makes the heads' maps differ.

Departures from the published code, and why:

* Parameters that the published modules construct and never use are left out (81,422 with two heads and 7 classes): the
  7x7 convolution within each head, a BatchNorm on the logits, and MFN's. `fer.weights.convert` drops them by name.
* The attention loss can be the published code's (default) or the paper's equation: see `attention_loss`.
* `drop_rate` applies dropout before the classifier; the default 0 is the published network.
* `num_heads=0`, the paper's ablation without attention, leaves the features unweighted.
* Widths, depths, stem stride and input size are one configuration: `ddamfn_small` and `ddamfn_nano` are the same code.
* The published training starts from an MFN trained on MS-Celeb-1M; here the backbone is `features`, of the same layout
  in MFN and DDAMFN, so that converted MFN weights load into it.

Shapes: B batch, C channels, S side of the final map, K heads, N classes.
"""

from functools import reduce
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fer.models.base import FerModel, TrainOutput, at_least_float32, cross_entropy
from fer.models.layers.conv import ConvBNAct, global_depthwise
from fer.models.mfn import NANO, PUBLISHED, CoordinateGate, MFNConfig, MFNFeatures, Stage
from fer.models.registry import register

MAX_HEADS = 4
"""The most heads in the paper's ablation."""

ATTENTION_LOSSES = ("code", "paper")

FLOAT64_EPSILON = 2.220446049250313e-16
"""What the published code adds to the denominator of the attention loss."""

SMALL = MFNConfig(
    input_size=48,
    stem_width=24,
    stem_stride=2,
    stages=(
        Stage(width=48, down=((3, 24), (5, 12), (7, 12)), depth=3, residual=((3, 54), (5, 18))),
        Stage(width=96, down=((3, 64), (5, 32), (7, 32)), depth=5, residual=((3, 108), (5, 36))),
    ),
    out_width=256,
)


class DualDirectionHead(nn.Module):
    """One attention head (paper, section 2): (B,C,S,S) -> attention map (B,C,S,S) in (0, 1).

    Coordinate attention, with a learned weight per position in place of the mean over each row and each column.
    """

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.profile_h = ConvBNAct(channels, channels, (1, size), groups=channels, act=False)
        self.profile_w = ConvBNAct(channels, channels, (size, 1), groups=channels, act=False)
        self.gate = CoordinateGate(channels)

    def forward(self, x: Tensor) -> Tensor:
        gate_h, gate_w = self.gate(self.profile_h(x), self.profile_w(x))  # (B,C,S,1), (B,C,1,S)
        attention: Tensor = gate_w * gate_h
        return attention


@register("ddamfn_nano", config=NANO)
@register("ddamfn_small", config=SMALL)
@register("ddamfn", config=PUBLISHED)
class DDAMFN(FerModel):
    """DDAMFN. `aux["attention"]` in training: the heads' maps, (B,K,C,S,S); no entry without heads.

    num_heads: 0 to 4; 2 is the paper's best (Table 4).
    attention_loss, attention_loss_weight: definition (see the function) and weight of the second loss term.
    drop_rate: dropout probability before the classifier.

    Parameters, published configuration with two heads: 4,105,999 for 7 classes, 4,106,512 for 8.
    """

    loss_is = "cross-entropy and attention loss"

    def __init__(
        self,
        num_classes: int = 7,
        *,
        config: MFNConfig,
        num_heads: int = 2,
        attention_loss: str = "code",
        attention_loss_weight: float = 0.1,
        drop_rate: float = 0.0,
    ) -> None:
        if num_heads not in range(MAX_HEADS + 1):
            raise ValueError(f"ddamfn: num_heads = {num_heads!r}: 0 to {MAX_HEADS} is allowed")
        if attention_loss not in ATTENTION_LOSSES:
            raise ValueError(f"ddamfn: attention_loss = {attention_loss!r}: one of {ATTENTION_LOSSES} is allowed")
        if attention_loss_weight < 0:
            raise ValueError(f"ddamfn: attention_loss_weight = {attention_loss_weight}: 0 or more is allowed")
        super().__init__(num_classes, input_size=config.input_size)
        self.attention_loss = attention_loss
        self.attention_loss_weight = attention_loss_weight
        self.features = MFNFeatures(config)
        self.heads = nn.ModuleList(DualDirectionHead(config.out_width, config.map_size) for _ in range(num_heads))
        self.pool = global_depthwise(config.out_width, config.map_size)
        self.drop = nn.Dropout(drop_rate)
        self.fc = nn.Linear(config.out_width, num_classes)

    def forward(self, x: Tensor) -> Tensor | TrainOutput:
        x = self.features(x)  # (B,C,S,S)
        maps = [head(x) for head in self.heads]
        if maps:
            x = x * reduce(torch.maximum, maps)
        logits = self.fc(self.drop(self.pool(x).flatten(1)))  # (B,N)
        if not self.training:
            return logits  # type: ignore[no-any-return]
        return TrainOutput(logits, {"attention": torch.stack(maps, dim=1)} if maps else {})

    def loss(self, output: TrainOutput, targets: Tensor) -> Tensor:
        """Cross-entropy + attention_loss_weight * attention loss (paper, section 2.3; ablation in Table 5)."""
        loss = cross_entropy(output.logits, targets)
        if "attention" not in output.aux:
            return loss
        return loss + self.attention_loss_weight * attention_loss(output.aux["attention"], self.attention_loss)


def attention_loss(maps: Tensor, definition: str = "code") -> Tensor:
    """Similarity of the heads' maps: maps (B,K,C,S,S) -> scalar, 0 for fewer than two heads.

    With MSE(i,k) the mean square difference of the maps of two heads over all other axes:

        "code":  K (K-1) / 2 / sum over i < k of MSE(i,k)
        "paper": 1 / sum over i, k != i of MSE(i,k)

    The code's value is K (K-1) times the paper's. It is the default because the published weight of 0.1, and with it
    every published accuracy, was found with the code's.
    """
    maps = at_least_float32(maps)
    pairs = list(combinations(maps.unbind(1), 2))
    if not pairs:
        return maps.new_zeros(())
    total = torch.stack([F.mse_loss(a, b) for a, b in pairs]).sum() + FLOAT64_EPSILON
    return len(pairs) / total if definition == "code" else 1 / (2 * total)
