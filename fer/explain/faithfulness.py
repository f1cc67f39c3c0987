"""Do maps show what the model uses? Deletion and insertion, and what is left of a map when the weights are random.

Deletion, insertion: "RISE: Randomized Input Sampling for Explanation of Black-box Models", Vitali Petsiuk, Abir Das,
Kate Saenko, BMVC 2018, arXiv:1806.07421, section 4.2. Cascading randomization: "Sanity Checks for Saliency Maps",
Julius Adebayo et al., NeurIPS 2018, arXiv:1810.03292, section 3. Pointing game: "Top-down Neural Attention by
Excitation Backprop", Jianming Zhang et al., ECCV 2016, arXiv:1608.00507.

Shapes: B images, S side of the images in pixels, P points of a curve.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fer.models import FerModel, create_model

BLUR_SIDE, BLUR_SIGMA = 11, 5.0
"""Of the Gaussian that insertion starts from, in pixels: that of RISE's code."""


@torch.no_grad()
def deletion_and_insertion(
    model: FerModel, images: Tensor, maps: Tensor, target: Tensor, *, steps: int = 32
) -> tuple[Tensor, Tensor]:
    """The class's probability while pixels go, or come, from the most important to the least: (B,steps+1) each.

    A deleted pixel is 0 in the model's input, the mean color; insertion starts from the blurred image. Among pixels of
    equal importance those further up, then further left come first.

    Args:
        images: float (B,3,S,S), as the model takes them. maps: (B,S,S). target: (B,).
    """
    count = maps[0].numel()
    place = (-maps.flatten(1)).argsort(dim=1, stable=True).argsort(dim=1).view_as(maps)[:, None]
    pixels = images.permute(0, 2, 3, 1).cpu().numpy()
    blurred = torch.from_numpy(
        np.stack([cv2.GaussianBlur(image, (BLUR_SIDE, BLUR_SIDE), BLUR_SIGMA) for image in pixels])
    )
    blurred = blurred.permute(0, 3, 1, 2).to(images)
    curves: list[list[Tensor]] = [[], []]
    for step in range(steps + 1):
        gone = place < round(step * count / steps)
        for curve, changed in zip(
            curves, (images.masked_fill(gone, 0), torch.where(gone, images, blurred)), strict=True
        ):
            curve.append(model(changed).softmax(1).gather(1, target[:, None])[:, 0])
    deletion, insertion = (torch.stack(curve, dim=1) for curve in curves)
    return deletion, insertion


def area(curves: Tensor) -> Tensor:
    """Under each curve, whose points lie evenly between 0 and 1: (B,P) -> (B,)."""
    return torch.trapezoid(curves, dx=1 / (curves.shape[1] - 1), dim=1)


def randomized(model: FerModel, seed: int = 0) -> FerModel:
    """The same architecture with fresh weights, in evaluation mode."""
    return list(cascade(model, seed=seed, steps=1))[-1][1]


def cascade(model: FerModel, *, seed: int = 0, steps: int | None = None) -> Iterator[tuple[str, FerModel]]:
    """The model with ever more fresh weights: from the logits down, layer by layer, until all are.

    Layers are taken in the reverse order of their definition, which is that of the forward pass but for branches. The
    fresh weights are those of a new model, BatchNorm's statistics included.

    Args:
        steps: models to make, over which the layers are spread evenly; None: one for each layer.

    Yields:
        the lowest layer that is random by now, and the model, the same object each time.
    """
    if model.name is None:
        raise ValueError("only a model of `create_model` can be made again")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = create_model(model.name, model.num_classes, **model.options).state_dict()
    changed = deepcopy(model).eval()
    state = changed.state_dict()
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in reversed(state)))
    steps = len(layers) if steps is None else min(steps, len(layers))
    for part in np.array_split(np.array(layers), steps):
        for layer in part.tolist():
            state |= {name: tensor for name, tensor in fresh.items() if name.rpartition(".")[0] == layer}
        changed.load_state_dict(state)
        yield part[-1].item(), changed


def rank_correlation(maps: Tensor, others: Tensor) -> npt.NDArray[np.float64]:
    """Spearman's, of each pair of maps (B,H,H): (B,), from -1 to 1; 0 where one is the same everywhere."""
    ranks = [np.stack([_ranks(one) for one in each.flatten(1).cpu().numpy()]) for each in (maps, others)]
    first, second = (rank - rank.mean(1, keepdims=True) for rank in ranks)
    scale = np.sqrt((first**2).sum(1) * (second**2).sum(1))
    correlation: npt.NDArray[np.float64] = (first * second).sum(1) / np.where(scale > 0, scale, 1)
    return correlation


def _ranks(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Of each value, counted from 1; equal ones share the mean of theirs. SciPy's takes over a second to import."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: npt.NDArray[np.float64] = (counts.cumsum() - (counts - 1) / 2)[place]
    return ranks


def pointing_game(maps: Tensor, boxes: Tensor) -> Tensor:
    """Whether the highest pixel of each map (B,S,S) lies in its box (B,4): x1, y1, x2, y2, half-open. bool (B,).

    Of several highest pixels it is the first; a map without any, all 0, misses.
    """
    highest, place = maps.flatten(1).max(1)
    y, x = place // maps.shape[2], place % maps.shape[2]
    x1, y1, x2, y2 = boxes.unbind(1)
    return (highest > 0) & (x1 <= x) & (x < x2) & (y1 <= y) & (y < y2)
