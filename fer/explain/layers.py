"""The output of any layer of any model as a map, and the layer that is explained where none is named.

Models keep a map in three layouts: channels first, channels last (`fer.models.dynamic_vit`), or as tokens, with a class
token in front and several levels in a row (`fer.models.poster_v2`). Here all of them are (B,C,L,S,S).

Shapes: B batch, C channels, L levels, S side of the map, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fer.config import nearest
from fer.models.base import FerModel
from fer.models.btn import BTN
from fer.models.dynamic_vit import DynamicViT
from fer.models.poster_v1 import PosterV1
from fer.models.poster_v2 import PosterV2
from fer.models.vit import ViT

LEAST_SIDE = 4
"""A map of fewer places a side says little about where; the nano models' last ones have 2."""

MOST_LEVELS = 3


class Layout(NamedTuple):
    """How a tensor holds a map: to (B,C,L,S,S), and back to the tensor's own shape."""

    side: int
    to_map: Callable[[Tensor], Tensor]
    from_map: Callable[[Tensor], Tensor]


def layout_of(x: Any, model: FerModel) -> Layout | None:
    """The layout of a layer's output; None where it is no square map of more than one place."""
    if not isinstance(x, Tensor):
        return None
    if x.ndim == 4 and x.shape[1] == x.shape[2] > 1 and (x.shape[2] != x.shape[3] or isinstance(model, DynamicViT)):
        return Layout(
            x.shape[1], lambda y: y.permute(0, 3, 1, 2).unsqueeze(2), lambda y: y.squeeze(2).permute(0, 2, 3, 1)
        )
    if x.ndim == 4 and x.shape[2] == x.shape[3] > 1:
        return Layout(x.shape[2], lambda y: y.unsqueeze(2), lambda y: y.squeeze(2))
    if x.ndim == 3 and not isinstance(model, PosterV1):  # an image token of POSTER V1 is no place
        return _of_tokens(x)
    return None


def _of_tokens(x: Tensor) -> Layout | None:
    """Of (B,T,C): T or, behind a class token, T - 1 is a square, or a square of each of two or three levels."""
    for levels in range(1, MOST_LEVELS + 1):
        for first in (0, 1):
            side = math.isqrt((x.shape[1] - first) // levels)
            if side > 1 and levels * side**2 == x.shape[1] - first:
                return _places(x[:, :first], levels, side)
    return None


def _places(class_token: Tensor, levels: int, side: int) -> Layout:
    first = class_token.shape[1]
    return Layout(
        side,
        lambda y: torch.unflatten(y[:, first:].transpose(1, 2), 2, (levels, side, side)),
        lambda y: torch.cat([class_token, y.flatten(2).transpose(1, 2)], dim=1),
    )


@contextmanager
def as_map(model: FerModel, layer: str) -> Iterator[nn.Module]:
    """A module through which the layer's output passes as a map (B,C,L,S,S): what captum and hooks look at.

    Of a layer with several outputs it is the last. The model computes the same.

    Raises:
        ValueError: no such layer; from the forward pass: its output is no map.
    """
    view = nn.Identity()

    def through(module: nn.Module, inputs: Any, output: Any) -> Any:
        last = output[-1] if isinstance(output, tuple) else output
        if (layout := layout_of(last, model)) is None:
            shape = tuple(last.shape) if isinstance(last, Tensor) else type(last).__name__
            raise ValueError(f"layer {layer!r} of {model.name}: its output {shape} is no map; {_remedy(model)}")
        seen = layout.from_map(view(layout.to_map(last)))
        return (*output[:-1], seen) if isinstance(output, tuple) else seen

    handle = find(model, layer).register_forward_hook(through)
    try:
        yield view
    finally:
        handle.remove()


def find(model: FerModel, layer: str) -> nn.Module:
    """The module of that dotted name; ValueError suggests the nearest."""
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if not layer or layer not in modules:
        hint = nearest(layer, list(modules))
        raise ValueError(f"model {model.name!r} has no layer {layer!r}{hint}; {_remedy(model)}")
    return modules[layer]


def _remedy(model: FerModel) -> str:
    return f"its default is {default_layer(model)!r}; `fer.explain.layers.map_layers(model)` lists all that are maps"


def default_layer(model: FerModel) -> str:
    """What is explained where no layer is named: mostly the last map of at least `LEAST_SIDE` places a side.

    Vision transformers, and with them POSTER V2 and BTN, by the tokens that the last block reads, in POSTER V2 those of
    all three levels; POSTER V1, whose tokens are no places, by its image features; a model with a module `features` by
    it; any other by the last module of several layers with such a map.
    """
    poster = model.poster if isinstance(model, BTN) else model
    prefix = "poster." if poster is not model else ""
    for kind, name in ((PosterV2, "vit"), (ViT, "transformer")):
        if isinstance(poster, kind) and (blocks := poster.get_submodule(name).blocks):
            return f"{prefix}{name}.blocks.{len(blocks) - 1}.norm1"  # type: ignore[arg-type]
    if isinstance(model, PosterV1):
        return "image"
    if isinstance(getattr(model, "features", None), nn.Module):
        return "features"
    maps = map_layers(model)
    if not maps:
        raise ValueError(f"model {model.name!r}: none of its layers has a map of more than one place")
    composed = {name: side for name, side in maps.items() if list(model.get_submodule(name).children())} or maps
    return [name for name, side in composed.items() if side >= LEAST_SIDE or side == max(composed.values())][-1]


def map_layers(model: FerModel) -> dict[str, int]:
    """The layers whose outputs are maps, each with its side, in the order in which the forward pass leaves them."""
    sides: dict[str, int] = {}
    batch = 3  # tells a batch of maps from other tensors

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            last = output[-1] if isinstance(output, tuple) else output
            if (layout := layout_of(last, model)) and len(last) == batch:
                sides[name] = layout.side

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            model(torch.zeros(batch, 3, model.input_size, model.input_size, device=next(model.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    return sides
