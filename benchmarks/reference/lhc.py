"""ResNet34v2, LHC-Net and LHC-NetC as published, in channels-first order.

github.com/Bodhis4ttva/LHC_Net, `Lib/LHC_Net.py`; the host network is that of the PyPI package image-classifiers 1.0.0.
TensorFlow's own layout is channels-last: torch's CPU convolutions run this faster than a transcription of that.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.reference.published import Published

STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))
"""Units and width of each stage."""

MODULES = ((8, 196), (8, 196), (7, 56), (7, 14), (1, 25))
"""Heads and head width of each LHC module: after the stem and after each stage."""


def from_keras(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keras' kernels, (height, width, in, out) and (in, out), in torch's order."""
    return {
        key: weight.permute(3, 2, 0, 1).contiguous()
        if weight.dim() == 4
        else weight.t().contiguous()
        if weight.dim() == 2
        else weight
        for key, weight in weights.items()
    }


def resnet34v2(p: Published, x: Tensor, *, num_classes: int = 7) -> Tensor:
    """(B,3,224,224), pixels 0..255 -> logits (B,N)."""
    x = _stem(p, x, ("bn_data", "conv0", "bn0"))
    for stage, (depth, width) in enumerate(STAGES, 1):
        for unit in range(1, depth + 1):
            shortcut = "sc" if unit == 1 else None
            x = _unit(p.within(f"stage{stage}_unit{unit}_"), x, width, shortcut, stride=_stride(stage, unit))
    return _head(p, x, "bn1", num_classes)


def lhc_net(p: Published, x: Tensor, *, num_classes: int = 7, controlled: bool = False) -> Tensor:
    """(B,3,224,224), pixels 0..255 -> logits (B,N). `controlled`: LHC-NetC, a scalar for each module."""

    def attend(x: Tensor, number: int, prefix: str) -> Tensor:
        attention = _lhc(p.within(f"{prefix}LHC_Module/"), x, *MODULES[number])
        if controlled:
            attention = attention * (1 + torch.tanh(p.tensor(f"controller{number + 1}/w", fill=0.0)))
        return x + attention

    x = attend(_stem(p.within("conv1/"), x, ("bn1", "conv1", "bn2")), 0, "conv1/")
    for stage, (depth, width) in enumerate(STAGES, 1):
        for unit in range(1, depth + 1):
            shortcut = "convId" if unit == 1 else None
            x = _unit(p.within(f"conv{stage + 1}_{unit}/"), x, width, shortcut, stride=_stride(stage, unit))
        x = attend(x, stage, f"conv{stage + 1}_{depth}/")
    return _head(p, x, "bn", num_classes)


def _stride(stage: int, unit: int) -> int:
    return 2 if stage > 1 and unit == 1 else 1


def _bn(p: Published, x: Tensor, key: str, *, scale: bool = True) -> Tensor:
    return p.bn(x, key, eps=2e-5, momentum=0.01, scale=scale)


def _stem(p: Published, x: Tensor, names: tuple[str, str, str]) -> Tensor:
    data, conv, bn = names
    x = F.pad(_bn(p, x, data, scale=False), (3, 3, 3, 3))
    x = F.relu(_bn(p, p.conv(x, conv, 64, 7, stride=2), bn))
    return F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2)


def _unit(p: Published, x: Tensor, width: int, shortcut: str | None, *, stride: int) -> Tensor:
    """Pre-activation residual unit; `shortcut` names the 1x1 convolution of a stage's first."""
    y = F.relu(_bn(p, x, "bn1"))
    if shortcut is not None:
        x = p.conv(y, shortcut, width, stride=stride)
    y = p.conv(F.pad(y, (1, 1, 1, 1)), "conv1", width, 3, stride=stride)
    y = F.relu(_bn(p, y, "bn2"))
    return p.conv(F.pad(y, (1, 1, 1, 1)), "conv2", width, 3) + x


def _lhc(p: Published, x: Tensor, heads: int, head_width: int) -> Tensor:
    """Local multi-head channel self-attention: (B,C,H,W) -> (B,C,H,W)."""
    batch, channels, height, width = x.shape

    def split(t: Tensor) -> Tensor:
        return t.reshape(batch, channels, heads, -1).permute(0, 2, 1, 3)  # (B,heads,C,H*W/heads)

    def project(t: Tensor) -> Tensor:
        projected = [p.linear(t[:, head], f"Wqk/{head}", head_width).unsqueeze(1) for head in range(heads)]
        return torch.cat(projected, dim=1)  # (B,heads,C,head width)

    query = project(split(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)))
    key = project(split(F.max_pool2d(x, 3, 1, 1)))
    value = p.conv(x, "Wv", channels, 3, padding=1, bias=True)
    value = split(F.avg_pool2d(value, 3, 1, 1, count_include_pad=False))
    scores = query @ key.transpose(-2, -1)  # (B,heads,C,C)
    power = torch.sigmoid(p.linear(scores.mean(dim=3), "Wp", channels)).unsqueeze(-1)
    scores = scores / torch.pow(torch.full((), float(head_width), device=x.device), 1 + power)
    out = torch.softmax(scores, dim=3) @ value
    return out.permute(0, 2, 1, 3).reshape(batch, channels, height, width)


def _head(p: Published, x: Tensor, bn: str, num_classes: int) -> Tensor:
    x = F.relu(_bn(p, x, bn)).mean(dim=(2, 3))
    x = F.dropout(F.relu(p.linear(x, "fc1", 4096)), 0.4, p.training)
    x = F.dropout(F.relu(p.linear(x, "fc2", 1024)), 0.4, p.training)
    return p.linear(x, "fc3", num_classes)
