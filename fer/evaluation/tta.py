"""Test-time augmentation: the prediction is the mean of the probabilities over several views of an image.

`lhc` is the published one of LHC-Net (Pecoraro, Basile, Bono 2021, code TTA.py): 59 fixed views beside the image
itself, which counts three times. `lhc_paper` is that of its text (section 3), which differs in one number: it rotates
the zoomed views by 0.4 rad, "again", where the code rotates them by 0.15.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from fer.evaluation.config import TtaName
from fer.models import FerModel

_PUBLISHED_SIZE = 224
_ZOOMED_ROTATION = {"lhc": 0.15, "lhc_paper": 0.4}
_IDENTITY_WEIGHT = 3


@dataclass(frozen=True, kw_only=True)
class View:
    """One view of an image: mirrored, then zoomed, then shifted, then rotated.

    Attributes:
        zoom: side of the central part that is enlarged to the whole, as a fraction; 1 is all of it.
        rotation: radians, counter-clockwise about the center.
        right, down: shift in px.
        flip: whether it is mirrored.
    """

    zoom: float = 1.0
    rotation: float = 0.0
    right: float = 0.0
    down: float = 0.0
    flip: bool = False

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        """float (B, C, H, W) -> the same. Bilinear without antialiasing; the border is repeated."""
        x_BCHW = x_BCHW.flip(-1) if self.flip else x_BCHW
        x_BCHW = _zoomed(x_BCHW, self.zoom) if self.zoom != 1 else x_BCHW
        x_BCHW = _sampled(x_BCHW, 0.0, self.right, self.down) if self.right or self.down else x_BCHW
        return _sampled(x_BCHW, self.rotation, 0.0, 0.0) if self.rotation else x_BCHW


def views(name: TtaName, size: int) -> list[tuple[View, int]]:
    """The views of images of `size` px with their weights; the first is the image itself.

    Shifts of LHC-Net's are 10 px at the published 224, and the same fraction of any other size.
    """
    if name == "none":
        return [(View(), 1)]
    if name == "flip":
        return [(View(), 1), (View(flip=True), 1)]
    step = 10 * size / _PUBLISHED_SIZE
    shifted = [
        View(rotation=rotation, right=right, down=down, flip=flip)
        for rotation, right, down, flip in product((0, 0.4, -0.4), (0, step, -step), (0, step, -step), (False, True))
    ]
    turn = _ZOOMED_ROTATION[name]
    zoomed = [
        View(zoom=0.9, rotation=rotation, flip=flip) for rotation, flip in product((0, turn, -turn), (False, True))
    ]
    first, *others = shifted
    return [(first, _IDENTITY_WEIGHT), *((view, 1) for view in (*others, *zoomed))]


@torch.no_grad()
def predict_views(
    model: Callable[[Tensor], Tensor], x_BCHW: Tensor, weighted: Sequence[tuple[View, int]]
) -> tuple[Tensor, Tensor]:
    """Logits of images, and the mean prediction over all their views.

    Args:
        model: (B, C, H, W) -> logits (B, N).
        weighted: views with their weights; the first must be the image itself.

    Returns:
        logits (B, N) of the images as they are, and the logarithm (B, N) of the weighted mean of the probabilities.
    """
    plain: Tensor | None = None
    total = torch.zeros(())
    for view, weight in weighted:
        logits = model(view(x_BCHW)).float()
        plain = logits if plain is None else plain
        total = total.to(logits.device) + weight * logits.softmax(dim=1)
    assert plain is not None
    return plain, (total / sum(weight for _, weight in weighted)).log()


class WithViews(FerModel):
    """A trained model that predicts from all views of an image: (B, 3, S, S) -> logarithms of probabilities (B, N)."""

    def __init__(self, model: FerModel, name: TtaName) -> None:
        super().__init__(
            model.num_classes, input_size=model.input_size, mean=model.mean, std=model.std, resize=model.resize,
            truncate=model.truncate,
        )  # fmt: skip
        self.model = model
        self._weighted = views(name, model.input_size)

    def forward(self, x: Tensor) -> Tensor:
        return predict_views(self.model, x, self._weighted)[1]


def _zoomed(x_BCHW: Tensor, fraction: float) -> Tensor:
    """The central part, enlarged."""
    height, width = x_BCHW.shape[-2:]
    top, left = (int((side - side * fraction) / 2) for side in (height, width))
    part = x_BCHW[..., top : height - top, left : width - left]
    return F.interpolate(part, (height, width), mode="bilinear", align_corners=False)


def _sampled(x_BCHW: Tensor, rotation: float, right: float, down: float) -> Tensor:
    """Rotated about the center and shifted. Where each pixel comes from is computed in float64."""
    height, width = x_BCHW.shape[-2:]
    rows = torch.arange(height, dtype=torch.float64, device=x_BCHW.device)[:, None] - (height - 1) / 2
    columns = torch.arange(width, dtype=torch.float64, device=x_BCHW.device)[None] - (width - 1) / 2
    cosine, sine = math.cos(rotation), math.sin(rotation)
    x = (cosine * columns - sine * rows + (width - 1) / 2 - right).clamp(0, width - 1)
    y = (sine * columns + cosine * rows + (height - 1) / 2 - down).clamp(0, height - 1)
    left, top = x.floor().long(), y.floor().long()
    beside, below = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
    across, along = (x - left).to(x_BCHW.dtype), (y - top).to(x_BCHW.dtype)
    upper = x_BCHW[..., top, left] * (1 - across) + x_BCHW[..., top, beside] * across
    lower = x_BCHW[..., below, left] * (1 - across) + x_BCHW[..., below, beside] * across
    return upper * (1 - along) + lower * along
