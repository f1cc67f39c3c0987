"""Class activation maps: which places of a layer's map speak for a class.

"Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", R. R. Selvaraju et al., ICCV 2017,
arXiv:1610.02391; by captum. "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks",
Haofan Wang et al., CVPR Workshops 2020, arXiv:1910.01279, algorithm 1; captum lacks it.

Shapes: B batch, C channels of the layer, H side of its map, S side of the images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from fer.explain.config import Method
from fer.explain.layers import as_map, default_layer, find
from fer.models.base import FerModel

MASKED_AT_ONCE = 64
"""Masked images of a forward pass of Score-CAM."""


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """Maps of some images.

    Attributes:
        maps: float32 (B,S,S), each from 0 to 1; all 0 where nothing speaks for the class.
        raw: float32 (B,H,H), at least 0, as the method gives it.
        target: int64 (B,), the classes explained.
        method, layer: how, and of which layer.
    """

    maps: Tensor
    raw: Tensor
    target: Tensor
    method: Method
    layer: str


def attribute(
    model: FerModel,
    images: Tensor,
    method: Method = "grad_cam",
    *,
    target: int | Tensor | None = None,
    layer: str | None = None,
) -> Attribution:
    """Where in the images the evidence for a class lies.

    Args:
        model: in evaluation mode; no copy of `for_inference`, which has no gradients.
        images: float (B,3,S,S), as the model takes them, on its device.
        target: the class, of all or of each (B,); None: the predicted one.
        layer: dotted name of a module whose output is a map; None: `default_layer`.

    Raises:
        ValueError: an unknown method or layer, a layer without a map, a class that the model lacks, or a model in
            training mode or for inference alone.
    """
    if method not in METHODS:
        raise ValueError(f"method = {method!r}: one of {', '.join(get_args(Method))} is known")
    if model.training or "train" in vars(model):
        raise ValueError("the model is in training mode or a copy for inference; give the model itself, after eval()")
    layer = default_layer(model) if layer is None else layer
    find(model, layer)
    if target is None:
        with torch.no_grad():
            target = model(images).argmax(1)
    target = torch.as_tensor(target, device=images.device).expand(len(images))
    if len(images) and not 0 <= int(target.min()) <= int(target.max()) < model.num_classes:
        raise ValueError(f"target = {target.tolist()}: the model has classes 0 to {model.num_classes - 1}")
    raw = METHODS[method](model, images.detach(), target, layer).float()
    return Attribution(maps=enlarged(raw, images.shape[-1]), raw=raw, target=target, method=method, layer=layer)


def grad_cam(model: FerModel, images: Tensor, target: Tensor, layer: str) -> Tensor:
    """(B,H,H): the channels weighted by the mean gradient of the class's logit, added up, and what is negative cut."""
    from captum.attr import LayerGradCam

    with as_map(model, layer) as view, torch.enable_grad():
        found = LayerGradCam(model, view).attribute(images.clone().requires_grad_(), target)
    assert isinstance(found, Tensor)  # (B,1,L,H,H)
    return found.detach().sum((1, 2)).relu()


@torch.no_grad()
def score_cam(model: FerModel, images: Tensor, target: Tensor, layer: str) -> Tensor:
    """(B,H,H): the channels weighted by the softmax of the class's logits of images masked by each, and added up.

    What a mask hides is 0 in the model's input, the mean color. The paper subtracts the logit of a baseline image from
    all of them, which the softmax cancels. Channels that are the same everywhere mask nothing, and are left out.
    """
    from captum.attr import LayerActivation

    with as_map(model, layer) as view:
        activations = LayerActivation(model, view).attribute(images)
    assert isinstance(activations, Tensor)  # (B,C,L,H,H)
    found = []
    for image, channels, label in zip(images, activations.sum(2), target.tolist(), strict=True):
        channels = channels[channels.flatten(1).amax(1) > channels.flatten(1).amin(1)]
        masks = enlarged(channels, images.shape[-1])
        logits = [model(image * part[:, None])[:, label] for part in torch.split(masks, MASKED_AT_ONCE)]
        weights = torch.cat([channels.new_empty(0), *logits]).softmax(0)
        found.append((weights[:, None, None] * channels).sum(0).relu())
    return torch.stack(found)


METHODS: Mapping[Method, Callable[[FerModel, Tensor, Tensor, str], Tensor]] = {
    "grad_cam": grad_cam,
    "score_cam": score_cam,
}


def enlarged(raw: Tensor, size: int) -> Tensor:
    """(N,H,H) -> (N,size,size), bilinearly, each from 0 to 1; of one that is the same everywhere 0."""
    maps = F.interpolate(raw[:, None], (size, size), mode="bilinear", align_corners=False)[:, 0]
    low, high = maps.flatten(1).amin(1)[:, None, None], maps.flatten(1).amax(1)[:, None, None]
    return (maps - low) / (high - low).where(high > low, 1.0)
