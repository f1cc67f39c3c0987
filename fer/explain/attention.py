"""The attention that models compute themselves, recorded from outside: without the recorder nothing is kept or slower.

    recorded = attention_maps(model, images)
    recorded["fusions.2.attention"].map

Figures 4 and 13 of POSTER V2, 6 of BTN. Fused kernels never hold the weights, so that they are computed again here from
the inputs of the attention layers; agreement with the model's own output is tested.

Shapes: B batch, K heads, C channels, N classes, Q queries, M keys, R regions per side, S side of a map.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fer.models.base import FerModel
from fer.models.btn import BTN, BatchBranch
from fer.models.ddamfn import DualDirectionHead
from fer.models.layers.attention import CrossAttention
from fer.models.layers.routing import RoutingAttention, route
from fer.models.lhc_net import LHCBlock
from fer.models.poster_v1 import PosterV1
from fer.models.vit import RoutedSelfAttention


@dataclass(frozen=True, kw_only=True)
class Attention:
    """What one layer attends to.

    Attributes:
        kind, weights, map:
            cross     (B,K,Q,M), of sum 1 over the keys; map (B,K,S,S): the mean over the queries, which are landmarks
                      but in the other stream of POSTER V1; None where the keys are its image tokens, no places
            direction (B,C,S,S), DDAMFN's attention map of one head, each weight the product of one of its row and one
                      of its column; map (B,1,S,S): the mean over the channels
            routing   int64 (B,R*R,topk), the regions that each region keeps; map (B,1,R,R): by how many of all regions
                      a region is kept, from 0 to 1
            channel   (B,K,C,C), LHC-Net's attention of each channel to all, of sum 1 over the last; no map
            class     (B,N,S,S), BTN's embedding E of each class; map the same
    """

    kind: Literal["cross", "direction", "routing", "channel", "class"]
    weights: Tensor
    map: Tensor | None


@torch.no_grad()
def attention_maps(model: FerModel, images: Tensor) -> dict[str, Attention]:
    """The attention of every layer that has one of the kinds above, by its dotted name; empty for other models.

    BTN's training branch is run as well, though no prediction depends on it.

    Args:
        model: in evaluation mode.
        images: float (B,3,S,S), as the model takes them.
    """
    recorded: dict[str, Attention] = {}

    def recorder(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if isinstance(module, CrossAttention):
                # The image tokens of POSTER V1 are slices of channels.
                placed = not (isinstance(model, PosterV1) and ".landmarks." not in name)
                recorded[name] = _cross(module, *inputs, batch=len(images), placed=placed)
            elif isinstance(module, DualDirectionHead):
                recorded[name] = Attention(kind="direction", weights=output, map=output.mean(1, keepdim=True))
            elif isinstance(module, LHCBlock):
                recorded[name] = Attention(kind="channel", weights=module.weights(*inputs), map=None)
            elif isinstance(module, RoutingAttention | RoutedSelfAttention):
                recorded[name] = _routing(module, *inputs)
            else:
                recorded[name] = Attention(kind="class", weights=output, map=output)

        return hook

    kinds = (CrossAttention, DualDirectionHead, LHCBlock, RoutingAttention, RoutedSelfAttention)
    found: list[tuple[str, nn.Module]] = [(name, one) for name, one in model.named_modules() if isinstance(one, kinds)]
    branch = model.branch if isinstance(model, BTN) else None
    if isinstance(branch, BatchBranch):
        found.append(("branch.class_maps", branch.class_maps))
    handles = [module.register_forward_hook(recorder(name)) for name, module in found]
    try:
        logits = model(images)
        if isinstance(model, BTN) and isinstance(branch, BatchBranch):
            branch(model.poster.fuse(images), logits)
    finally:
        for handle in handles:
            handle.remove()
    return recorded


def _cross(module: CrossAttention, query: Tensor, context: Tensor, *, batch: int, placed: bool) -> Attention:
    """Of (B,Q,C) and (B,M,C); or of the W windows of each image, (B*W,Q,C) and (B*W,M,C)."""
    query = query if module.query is None else module.query(query)
    q = torch.unflatten(query, -1, (module.num_heads, -1)).transpose(1, 2)  # (B,K,Q,C/K)
    keys = module.key_value(context)[..., : query.shape[-1]]
    k = torch.unflatten(keys, -1, (module.num_heads, -1)).transpose(1, 2)
    bias = 0 if module.position_bias is None else module.position_bias()
    weights = torch.softmax(module.scale * q @ k.mT + bias, dim=-1)  # (B,K,Q,M)
    if not placed:
        return Attention(kind="cross", weights=weights, map=None)
    side = math.isqrt(weights.shape[-1])
    received = torch.unflatten(weights.mean(2)[..., -(side**2) :], -1, (side, side))  # without a class token in front
    across = math.isqrt(len(weights) // batch)
    windows = torch.unflatten(received, 0, (batch, across, across))  # (B,S/W,S/W,K,W,W)
    return Attention(kind="cross", weights=weights, map=windows.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3))


def _routing(module: RoutingAttention | RoutedSelfAttention, x: Tensor) -> Attention:
    """Of a map (B,H,W,C), or of a class token and patches (B,1+T,C)."""
    queries_and_keys = module.qkv(x)[..., : 2 * x.shape[-1]]
    if isinstance(module, RoutedSelfAttention):
        queries_and_keys = torch.unflatten(queries_and_keys[:, 1:], 1, (module.side, module.side))
    chosen = route(queries_and_keys, module.num_regions, module.topk)  # (B,R*R,topk)
    count = chosen.shape[1]
    kept = torch.zeros(len(chosen), count, device=x.device).scatter_add_(
        1, chosen.flatten(1), torch.ones(len(chosen), chosen[0].numel(), device=x.device)
    )
    return Attention(
        kind="routing", weights=chosen, map=(kept / count).view(-1, 1, module.num_regions, module.num_regions)
    )
