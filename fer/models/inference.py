"""A copy of a model for inference alone: fewer passes over memory, the same logits.

    model = for_inference(model)
    logits = model(x)

A module that can be evaluated with fewer passes has a method `folded(self) -> nn.Module`, which returns its
replacement; the two share no tensor. Most of them fold a BatchNorm into the convolution before it (`layers.conv`).
"""

from collections.abc import Callable
from copy import deepcopy
from types import MethodType
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from fer.models.base import FerModel

IMAGES_A_THREAD = 4
"""Number of float32 images per thread at a time in inference on CPU: the maps of a layer then fit into cache."""

FEWEST_IMAGES = 16
"""The least number at a time; for fewer on one thread, torch does not use oneDNN for 1x1 convolutions."""

_Model = TypeVar("_Model", bound=FerModel)


def for_inference(model: _Model) -> _Model:
    """A copy in evaluation mode, without gradients, BatchNorms folded, the weights in channels-last order.

    It is a model of the same class with the same attributes; its state dict has other keys. Logits agree with
    `model.eval()` up to rounding. `train()` raises RuntimeError. The given model is not changed.
    On CPU it splits a large batch (`_forward_in_parts`), so that a sample's logits must not depend on other samples.
    """
    model = deepcopy(model).eval().requires_grad_(False)
    _fold_children(model)
    model.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.train = MethodType(_refuse_training, model)  # type: ignore[method-assign]
    model.forward = MethodType(_forward_in_parts, model)  # type: ignore[method-assign]
    return model


def _fold_children(module: nn.Module) -> None:
    for name, child in module.named_children():
        fold: Callable[[], nn.Module] | None = getattr(child, "folded", None)
        folded = child if fold is None else fold()
        _fold_children(folded)
        if folded is not child:
            setattr(module, name, folded)


def _forward_in_parts(model: FerModel, x: Tensor) -> Tensor:
    """`forward`, on CPU a few images at a time, so that a layer's input is still in cache."""
    forward = type(model).forward
    part = max(FEWEST_IMAGES, IMAGES_A_THREAD * torch.get_num_threads()) * 4 // x.element_size()
    if x.device.type != "cpu" or torch.compiler.is_compiling() or len(x) <= part:
        return cast(Tensor, forward(model, x))
    return torch.cat([cast(Tensor, forward(model, images)) for images in torch.split(x, part)])


def _refuse_training(model: nn.Module, mode: bool = True) -> nn.Module:
    """Replaces `train` of a model for inference."""
    if mode:
        raise RuntimeError("this model is a copy made by for_inference; train the original model")
    return model
