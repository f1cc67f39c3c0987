"""RetinaFace with MobileNet-0.25 as published: github.com/biubug6/Pytorch_Retinaface, `models`, `layers`, `detect.py`.

The network unfolded and one image at a time, its anchors made in loops, suppression by one loop over the boxes.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from math import ceil
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.reference.published import Published

Numbers = npt.NDArray[np.float32]

MIN_SIZES, STEPS, VARIANCE = ((16, 32), (64, 128), (256, 512)), (8, 16, 32), (0.1, 0.2)


class Faces(NamedTuple):
    """(N, 4) boxes, (N, 10) landmarks and (N,) scores, best first, in px of the image."""

    boxes: Numbers
    landmarks: Numbers
    scores: Numbers


def detect(
    tensors: Mapping[str, Tensor],
    image: npt.NDArray[np.uint8],
    *,
    longest_side: int,
    min_score: float,
    interpolation: int = cv2.INTER_LINEAR,
) -> Faces:
    """The faces of one (H, W, 3) uint8 RGB image, which is shrunk to `longest_side` px.

    Thresholds as in detect.py: suppression sees all scores above 0.02, and what is shown is above `min_score`.
    """
    resize = min(1.0, longest_side / max(image.shape[:2]))
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    if resize != 1:
        bgr = cv2.resize(bgr, None, None, fx=resize, fy=resize, interpolation=interpolation)
    pixels = np.asarray(bgr, dtype=np.float32)
    pixels -= (104, 117, 123)
    height, width = pixels.shape[:2]
    with torch.inference_mode():
        x = torch.from_numpy(pixels.transpose(2, 0, 1)).unsqueeze(0)
        location, confidence, points = network(Published(tensors), x)
    priors = anchors(height, width)
    scale = np.array([width, height] * 5, dtype=np.float32)
    boxes = decode(location[0], priors).numpy() * scale[:4] / np.float32(resize)
    landmarks = decode_landmarks(points[0], priors).numpy() * scale / np.float32(resize)
    scores = F.softmax(confidence[0], dim=-1).numpy()[:, 1]
    (chosen,) = np.where(scores > 0.02)
    chosen = chosen[scores[chosen].argsort()[::-1][:5000]]
    chosen = chosen[suppress(boxes[chosen], scores[chosen], 0.4)[:750]]
    chosen = chosen[scores[chosen] > min_score]
    return Faces(boxes[chosen], landmarks[chosen], scores[chosen])


def network(p: Published, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B,3,H,W) BGR less the mean -> offsets of boxes (B,A,4), logits (B,A,2), offsets of landmarks (B,A,10)."""
    maps = _body(p.within("body."), x)
    levels = _pyramid(p.within("fpn."), maps)
    features = [_context(p.within(f"ssh{number}."), level) for number, level in enumerate(levels, start=1)]
    outputs: list[Any] = []
    for head, numbers in (("BboxHead", 4), ("ClassHead", 2), ("LandmarkHead", 10)):
        parts = []
        for number, feature in enumerate(features):
            y = p.conv(feature, f"{head}.{number}.conv1x1", 2 * numbers, bias=True)
            parts.append(y.permute(0, 2, 3, 1).contiguous().view(len(y), -1, numbers))
        outputs.append(torch.cat(parts, dim=1))
    location, confidence, points = outputs
    return location, confidence, points


def _body(p: Published, x: Tensor) -> list[Tensor]:
    x = _conv_bn(p, x, "stage1.0.0", "stage1.0.1", 8, 3, stride=2, slope=0.1)
    maps = []
    stages = (
        ("stage1", 1, ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1))),
        ("stage2", 0, ((128, 2), *[(128, 1)] * 5)),
        ("stage3", 0, ((256, 2), (256, 1))),
    )
    for stage, first, blocks in stages:
        for number, (width, stride) in enumerate(blocks, start=first):
            inner, channels = p.within(f"{stage}.{number}."), x.shape[1]
            x = _conv_bn(inner, x, "0", "1", channels, 3, stride=stride, groups=channels, slope=0.1)
            x = _conv_bn(inner, x, "3", "4", width, 1, slope=0.1)
        maps.append(x)
    return maps


def _pyramid(p: Published, maps: list[Tensor]) -> list[Tensor]:
    one, two, three = (_conv_bn(p, x, f"output{n}.0", f"output{n}.1", 64, 1, slope=0.1) for n, x in enumerate(maps, 1))
    two = two + F.interpolate(three, size=[two.size(2), two.size(3)], mode="nearest")
    two = _conv_bn(p, two, "merge2.0", "merge2.1", 64, 3, slope=0.1)
    one = one + F.interpolate(two, size=[one.size(2), one.size(3)], mode="nearest")
    return [_conv_bn(p, one, "merge1.0", "merge1.1", 64, 3, slope=0.1), two, three]


def _context(p: Published, x: Tensor) -> Tensor:
    three = _conv_bn(p, x, "conv3X3.0", "conv3X3.1", 32, 3)
    inner = _conv_bn(p, x, "conv5X5_1.0", "conv5X5_1.1", 16, 3, slope=0.1)
    five = _conv_bn(p, inner, "conv5X5_2.0", "conv5X5_2.1", 16, 3)
    inner = _conv_bn(p, inner, "conv7X7_2.0", "conv7X7_2.1", 16, 3, slope=0.1)
    seven = _conv_bn(p, inner, "conv7x7_3.0", "conv7x7_3.1", 16, 3)
    return F.relu(torch.cat([three, five, seven], dim=1))


def _conv_bn(
    p: Published,
    x: Tensor,
    conv: str,
    norm: str,
    width: int,
    kernel: int,
    *,
    stride: int = 1,
    groups: int = 1,
    slope: float | None = None,
) -> Tensor:
    x = p.bn(p.conv(x, conv, width, kernel, stride=stride, padding=kernel // 2, groups=groups), norm)
    return x if slope is None else F.leaky_relu(x, slope, inplace=True)


def anchors(height: int, width: int) -> Tensor:
    """(A, 4): centre x, y, width and height as fractions of the image's."""
    made: list[float] = []
    for step, sizes in zip(STEPS, MIN_SIZES, strict=True):
        for i, j in product(range(ceil(height / step)), range(ceil(width / step))):
            for size in sizes:
                made += [(j + 0.5) * step / width, (i + 0.5) * step / height, size / width, size / height]
    return torch.tensor(made).view(-1, 4)


def decode(location: Tensor, priors: Tensor) -> Tensor:
    """(A, 4) offsets -> x1, y1, x2, y2 as shares."""
    centre = priors[:, :2] + location[:, :2] * VARIANCE[0] * priors[:, 2:]
    sides = priors[:, 2:] * torch.exp(location[:, 2:] * VARIANCE[1])
    corner = centre - sides / 2
    return torch.cat([corner, corner + sides], dim=1)


def decode_landmarks(points: Tensor, priors: Tensor) -> Tensor:
    """(A, 10) offsets -> five x, y as shares."""
    pairs = [priors[:, :2] + points[:, n : n + 2] * VARIANCE[0] * priors[:, 2:] for n in range(0, 10, 2)]
    return torch.cat(pairs, dim=1)


def suppress(boxes: Numbers, scores: Numbers, most_overlap: float) -> list[int]:
    """Greedy suppression; a box from pixel a to pixel b is b - a + 1 px long."""
    x1, y1, x2, y2 = boxes.T
    areas = (x2 - x1 + 1) * (y2 - y1 + 1)
    order = scores.argsort()[::-1]
    kept: list[int] = []
    while order.size > 0:
        best, rest = order[0], order[1:]
        kept.append(int(best))
        width = np.maximum(0.0, np.minimum(x2[best], x2[rest]) - np.maximum(x1[best], x1[rest]) + 1)
        height = np.maximum(0.0, np.minimum(y2[best], y2[rest]) - np.maximum(y1[best], y1[rest]) + 1)
        shared = width * height
        order = rest[shared / (areas[best] + areas[rest] - shared) <= most_overlap]
    return kept
