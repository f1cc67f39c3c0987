"""RetinaFace with MobileNet-0.25: the network, and the same network with less work in it.

"RetinaFace: Single-Shot Multi-Level Face Localisation in the Wild", Deng, Guo, Ververas, Kotsia, Zafeiriou, CVPR 2020.
Published PyTorch code and weights: github.com/biubug6/Pytorch_Retinaface, without the mesh decoder of the paper.

Departures from the published code, and why:
- none in `Network`, whose modules carry the published names, so that the published state dict loads as it is;
- `FoldedNetwork` computes the same with BatchNorm folded into the convolutions, convolutions of the same input
  merged, and RGB input instead of BGR by reversed kernels. It differs by rounding.

Shapes: B images, H x W px, C cells of 2 anchors each. A level of stride s has ceil(H / s) x ceil(W / s) cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fer.models.compat import has_onednn, onednn_conv, onednn_pack
from fer.models.layers.conv import fold_conv_bn

STRIDES = (8, 16, 32)
ANCHOR_SIDES = ((16.0, 32.0), (64.0, 128.0), (256.0, 512.0))
"""Sides in px of the two square anchors of a cell, for each level."""

MEAN_RGB = (123.0, 117.0, 104.0)
"""Subtracted from the pixels, which are 0..255."""

_ANCHORS = 2  # per cell
_CLASSES, _BOX, _POINTS = 2, 4, 10  # outputs per anchor
_WIDTH = 64  # of the pyramid
_SLOPE = 0.1  # of every leaky ReLU


class Raw(NamedTuple):
    """The network's output for every anchor: levels from fine to coarse, cells row by row, the smaller anchor first.

    Attributes:
        scores: (B, C, 2, 2) logits of background and face.
        boxes: (B, C, 2, 4), landmarks: (B, C, 2, 10): offsets to be decoded by the anchors.
    """

    scores: Tensor
    boxes: Tensor
    landmarks: Tensor


def _conv_bn(inputs: int, outputs: int, kernel: int = 3, *, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


def _leaky() -> nn.Module:
    return nn.LeakyReLU(_SLOPE, inplace=True)


def _separable(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    depthwise = _conv_bn(inputs, inputs, stride=stride, groups=inputs)
    return nn.Sequential(*depthwise, _leaky(), *_conv_bn(inputs, outputs, 1), _leaky())


class _Body(nn.Module):
    """MobileNetV1 at a quarter of its width; (B,3,H,W) -> maps of strides 8, 16, 32 with 64, 128, 256 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(
            nn.Sequential(*_conv_bn(3, 8, stride=2), _leaky()),
            _separable(8, 16),
            _separable(16, 32, 2),
            _separable(32, 32),
            _separable(32, 64, 2),
            _separable(64, 64),
        )
        self.stage2 = nn.Sequential(_separable(64, 128, 2), *(_separable(128, 128) for _ in range(5)))
        self.stage3 = nn.Sequential(_separable(128, 256, 2), _separable(256, 256))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fine = self.stage1(x)
        middle = self.stage2(fine)
        return fine, middle, self.stage3(middle)


class _Pyramid(nn.Module):
    """Feature pyramid: coarse maps are added to the finer ones; each level gets 64 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.output1 = nn.Sequential(*_conv_bn(64, _WIDTH, 1), _leaky())
        self.output2 = nn.Sequential(*_conv_bn(128, _WIDTH, 1), _leaky())
        self.output3 = nn.Sequential(*_conv_bn(256, _WIDTH, 1), _leaky())
        self.merge1 = nn.Sequential(*_conv_bn(_WIDTH, _WIDTH), _leaky())
        self.merge2 = nn.Sequential(*_conv_bn(_WIDTH, _WIDTH), _leaky())

    def forward(self, maps: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        fine, middle, coarse = self.output1(maps[0]), self.output2(maps[1]), self.output3(maps[2])
        middle = self.merge2(middle + F.interpolate(coarse, size=middle.shape[2:]))
        fine = self.merge1(fine + F.interpolate(middle, size=fine.shape[2:]))
        return fine, middle, coarse


class _Context(nn.Module):
    """SSH: three receptive fields side by side, 3x3, 5x5 and 7x7, the larger ones out of chained 3x3."""

    def __init__(self) -> None:
        super().__init__()
        half, quarter = _WIDTH // 2, _WIDTH // 4
        self.conv3X3 = nn.Sequential(*_conv_bn(_WIDTH, half))
        self.conv5X5_1 = nn.Sequential(*_conv_bn(_WIDTH, quarter), _leaky())
        self.conv5X5_2 = nn.Sequential(*_conv_bn(quarter, quarter))
        self.conv7X7_2 = nn.Sequential(*_conv_bn(quarter, quarter), _leaky())
        self.conv7x7_3 = nn.Sequential(*_conv_bn(quarter, quarter))

    def forward(self, x: Tensor) -> Tensor:
        five = self.conv5X5_1(x)
        seven = self.conv7x7_3(self.conv7X7_2(five))
        return F.relu(torch.cat([self.conv3X3(x), self.conv5X5_2(five), seven], dim=1))


class _Head(nn.Module):
    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.conv1x1 = nn.Conv2d(_WIDTH, _ANCHORS * numbers, 1)

    def forward(self, x: Tensor) -> Tensor:
        return _by_anchor(_by_cell(self.conv1x1(x)))


def _by_cell(x_BNHW: Tensor) -> Tensor:
    """-> (B, H * W, N)."""
    return x_BNHW.permute(0, 2, 3, 1).flatten(1, 2)


def _by_anchor(x_BCN: Tensor) -> Tensor:
    """-> (B, C, 2, N / 2)."""
    return x_BCN.view(*x_BCN.shape[:2], _ANCHORS, -1)


class Network(nn.Module):
    """The published network: (B,3,H,W) float32 BGR, 0..255 less the mean -> `Raw`."""

    def __init__(self) -> None:
        super().__init__()
        self.body = _Body()
        self.fpn = _Pyramid()
        self.ssh1, self.ssh2, self.ssh3 = _Context(), _Context(), _Context()
        self.ClassHead = nn.ModuleList(_Head(_CLASSES) for _ in STRIDES)
        self.BboxHead = nn.ModuleList(_Head(_BOX) for _ in STRIDES)
        self.LandmarkHead = nn.ModuleList(_Head(_POINTS) for _ in STRIDES)

    def forward(self, x: Tensor) -> Raw:
        levels = self.fpn(self.body(x))
        maps = [context(level) for context, level in zip((self.ssh1, self.ssh2, self.ssh3), levels, strict=True)]
        heads = (self.ClassHead, self.BboxHead, self.LandmarkHead)
        return Raw(*(torch.cat([head(x) for head, x in zip(kind, maps, strict=True)], dim=1) for kind in heads))


class FoldedNetwork(nn.Module):
    """`network` in evaluation mode, for (B,3,H,W) float32 RGB on the CPU; faster channels-last."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        network = deepcopy(network).eval()
        self.body, self.fpn = _folded(network.body), _folded(network.fpn)
        self.contexts = nn.ModuleList(_FoldedContext(c) for c in (network.ssh1, network.ssh2, network.ssh3))
        heads = zip(network.ClassHead, network.BboxHead, network.LandmarkHead, strict=True)
        self.heads = nn.ModuleList(FusedConv([head.conv1x1 for head in level]) for level in heads)  # type: ignore[misc]
        first = self.body.stage1[0][0]  # type: ignore[index]
        first.weight.data = first.weight.data.flip(1)  # type: ignore[union-attr]
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for module in self.modules():
            if isinstance(module, FusedConv):
                module.pack()

    def forward(self, x: Tensor) -> Raw:
        levels = zip(self.contexts, self.heads, self.fpn(self.body(x)), strict=True)
        joined_BCN = torch.cat([_by_cell(head(context(level))) for context, head, level in levels], dim=1)
        parts = torch.split(joined_BCN, [_ANCHORS * numbers for numbers in (_CLASSES, _BOX, _POINTS)], dim=-1)
        return Raw(*map(_by_anchor, parts))


class _FoldedContext(nn.Module):
    """`_Context` in three convolutions."""

    def __init__(self, context: _Context) -> None:
        super().__init__()
        self.widths = _WIDTH // 2, _WIDTH // 4
        three, five, seven = (_folded(m)[0] for m in (context.conv3X3, context.conv5X5_2, context.conv7x7_3))  # type: ignore[index]
        inner_five, inner_seven = (_folded(m)[0] for m in (context.conv5X5_1, context.conv7X7_2))  # type: ignore[index]
        self.first, self.second = FusedConv([three, inner_five]), FusedConv([five, inner_seven])
        self.third = seven

    def forward(self, x: Tensor) -> Tensor:
        three, five = torch.split(self.first(x), list(self.widths), dim=1)
        five, seven = torch.split(self.second(F.leaky_relu(five, _SLOPE)), self.widths[1], dim=1)
        seven = self.third(F.leaky_relu(seven, _SLOPE))
        return F.relu_(torch.cat([three, five, seven], dim=1))


class FusedConv(nn.Conv2d):
    """Convolutions of the same input as one, their channels concatenated, and a leaky ReLU if `leaky`; for inference.

    Once packed, it runs oneDNN's fused kernel with the weights in its own order: one pass over memory instead of two or
    three, and a tenth less time than with weights that are reordered at every call. The results are the same.
    """

    def __init__(self, convs: Sequence[nn.Conv2d], *, leaky: bool = False) -> None:
        first, outputs = convs[0], sum(conv.out_channels for conv in convs)
        super().__init__(
            first.in_channels,
            outputs,
            first.kernel_size,  # type: ignore[arg-type]
            first.stride,  # type: ignore[arg-type]
            first.padding,  # type: ignore[arg-type]
            groups=first.groups,
        )
        with torch.no_grad():
            self.weight.copy_(torch.cat([conv.weight for conv in convs]))
            self.bias.copy_(torch.cat([conv.bias for conv in convs if conv.bias is not None]))  # type: ignore[union-attr]
        self.leaky = leaky
        self._packed: tuple[Any, ...] | None = None

    def pack(self) -> None:
        """Reorders the weights, which must not change any more, for oneDNN, where torch has it."""
        if has_onednn():
            self._packed = onednn_pack(self, leaky=_SLOPE if self.leaky else None)

    def forward(self, x: Tensor) -> Tensor:
        if self._packed is not None:
            return onednn_conv(x, self._packed)
        y = super().forward(x)
        return F.leaky_relu_(y, _SLOPE) if self.leaky else y


def _folded(module: nn.Module) -> nn.Module:
    """The module with every sequence of convolution, BatchNorm and leaky ReLU as a `FusedConv`."""
    if isinstance(module, nn.Sequential):
        kept: list[nn.Module] = []
        for part in module:
            if isinstance(part, nn.BatchNorm2d):
                conv = kept.pop()
                assert isinstance(conv, nn.Conv2d)
                kept.append(FusedConv([fold_conv_bn(conv, part)]))
            elif isinstance(part, nn.LeakyReLU):
                assert isinstance(kept[-1], FusedConv)
                kept[-1].leaky = True
            else:
                kept.append(_folded(part))
        return nn.Sequential(*kept)
    for name, child in module.named_children():
        setattr(module, name, _folded(child))
    return module
