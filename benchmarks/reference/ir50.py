"""IR-50 cut after three stages as published: github.com/Talented-Q/POSTER_V2, `models/ir50.py`."""

import torch.nn.functional as F
from torch import Tensor

from benchmarks.reference.published import Published

STAGES = (("body1", 3, 64), ("body2", 4, 128), ("body3", 14, 256))


def ir50(p: Published, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B,3,S,S), resized to 112 px -> (B,64,56,56), (B,128,28,28), (B,256,14,14)."""
    x = F.interpolate(x, size=112)
    x = p.prelu(p.bn(p.conv(x, "input_layer.0", 64, 3, padding=1), "input_layer.1"), "input_layer.2")
    outputs = []
    for stage, depth, width in STAGES:
        for unit in range(depth):
            x = _unit(p.within(f"{stage}.{unit}."), x, width, stride=1 if unit else 2)
        outputs.append(x)
    return outputs[0], outputs[1], outputs[2]


def _unit(p: Published, x: Tensor, width: int, *, stride: int) -> Tensor:
    if x.shape[1] == width:
        shortcut = F.max_pool2d(x, 1, stride)
    else:
        shortcut = p.bn(p.conv(x, "shortcut_layer.0", width, stride=stride), "shortcut_layer.1")
    y = p.bn(x, "res_layer.0")
    y = p.prelu(p.conv(y, "res_layer.1", width, 3, padding=1), "res_layer.2")
    y = p.bn(p.conv(y, "res_layer.3", width, 3, stride=stride, padding=1), "res_layer.4")
    return y + shortcut
