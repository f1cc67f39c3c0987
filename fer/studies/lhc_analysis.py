"""What LHC-Net's paper does with its trained networks: sets of runs, blocks taken away, heads compared, cost of heads.

Paper: Pecoraro, Basile, Bono, "Local Multi-Head Channel Self-Attention for Facial Expression Recognition", Information
13(9):419, 2022, sections 2.2 and 3 and the table of Results 1. Where its wording was not at hand the reading is ours
and the docstring says so.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from fer.models import FerModel
from fer.models.lhc_net import LHCBlock, LHCNet
from fer.shards.read import EvalBatches, normalise
from fer.training.loop import compute_logits
from fer.training.metrics import classification_metrics
from fer.training.recipe import Recipe

LOSS_MARGIN = 0.10
"""A run is kept while its training loss is below that of its host by less than this share more (section 3)."""
SHARES = {"Top 40%": 0.40, "Top 25%": 0.25}
"""Of the runs, ranked on the test set: the columns of Results 1."""
_CORRELATED_IMAGES = 64

# ------------------------------------------------------------------------------------------------ sets of runs


def is_kept(train_loss: float, host_loss: float, margin: float = LOSS_MARGIN) -> bool:
    """Whether a run has not diverged: its training loss is below that of the host of the same seed, plus 10 %."""
    return train_loss < host_loss * (1 + margin)


def top_mean(accuracies: Sequence[float], share: float, *, with_best: bool = True) -> float | None:
    """Mean of the best `share` of the runs, the best one among them or left out.

    The number of runs is rounded to the nearest, half upwards, and is at least one; None where leaving out the best
    leaves none. How the paper rounds is not printed. Ranked on the test set, such a mean is above what a new run is to
    be expected to reach, the more so the more runs there are.
    """
    count = max(1, math.floor(share * len(accuracies) + 0.5))
    best = sorted(accuracies, reverse=True)[:count][0 if with_best else 1 :]
    return fmean(best) if best else None


def set_summary(runs: Sequence[Mapping[str, Any]], hosts: Mapping[Any, Mapping[str, Any]]) -> dict[str, Any]:
    """One line of Results 1.

    Args:
        runs: of one set, each with `seed`, `test_accuracy` and `train_loss`.
        hosts: the run of the host by seed. A run whose host is not there is kept.

    Returns:
        `runs` and `rejected` (seeds); over the runs kept: `mean`, `best`, `Top 40%`, `Top 40% w/o best`, `Top 25%`,
        `Top 25% w/o best`, None where there is no run for it; `differences` to the hosts at equal seeds.
    """
    rejected = [
        run["seed"]
        for run in runs
        if run["seed"] in hosts and not is_kept(run["train_loss"], hosts[run["seed"]]["train_loss"])
    ]
    kept = [run for run in runs if run["seed"] not in rejected]
    accuracies = [run["test_accuracy"] for run in kept]
    line: dict[str, Any] = {"runs": len(runs), "rejected": rejected, "accuracies": accuracies}
    line["mean"] = fmean(accuracies) if accuracies else None
    for name, share in SHARES.items():
        line[name] = top_mean(accuracies, share) if accuracies else None
        line[f"{name} w/o best"] = top_mean(accuracies, share, with_best=False) if accuracies else None
    line["Best"] = max(accuracies, default=None)
    line["differences"] = [
        run["test_accuracy"] - hosts[run["seed"]]["test_accuracy"] for run in kept if run["seed"] in hosts
    ]
    return line


# ------------------------------------------------------------------------------------------------ blocks and heads


def probe(model: FerModel, batches: EvalBatches, recipe: Recipe, device: str, *, seed: int) -> dict[str, Any]:
    """A trained LHC-Net without some of its blocks, with some drawn anew, and how alike its heads are.

    Nothing is trained again. The paper finds the first two blocks necessary (section 2.2); what is printed of how it
    found out is only that.

    Args:
        batches: the split that is opened.
        seed: of the weights drawn anew.

    Returns:
        `off` and `reset`: accuracy by the numbers of the blocks, counted from 1, as "1", "3+4+5"; `heads`: of each
        block `heads`, `mean` and `highest` correlation, None for a block with a single head.
    """
    if not isinstance(model, LHCNet):
        return {}
    there = [number for number, block in enumerate(model.lhc, start=1) if isinstance(block, LHCBlock)]
    chosen: list[tuple[int, ...]] = [(number,) for number in there]
    chosen += [tuple(n for n in there if n > 2), tuple(there)] if len(there) > 2 else []

    def accuracy(changed: FerModel) -> float:
        logits, targets, _ = compute_logits(changed, batches, recipe, device)
        return classification_metrics(logits, targets)["accuracy"]

    name = {numbers: "+".join(map(str, numbers)) for numbers in chosen}
    found: dict[str, Any] = {"off": {}, "reset": {}}
    for numbers in chosen:
        found["off"][name[numbers]] = accuracy(switched_off(model, numbers))
        found["reset"][name[numbers]] = accuracy(drawn_anew(model, numbers, seed=seed))
    images = next(iter(batches)).images[:_CORRELATED_IMAGES].to(device)
    found["heads"] = head_correlation(model, normalise(images, model.mean, model.std))
    return found


def switched_off(model: LHCNet, numbers: Sequence[int]) -> LHCNet:
    """A copy whose blocks of these numbers, counted from 1, pass on what they are given."""
    changed = copy.deepcopy(model)
    for number in numbers:
        changed.lhc[number - 1] = torch.nn.Identity()
    return changed


def drawn_anew(model: LHCNet, numbers: Sequence[int], *, seed: int) -> LHCNet:
    """A copy whose blocks of these numbers, counted from 1, have the attention weights of an untrained one."""
    changed = copy.deepcopy(model).cpu()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        changed.reset_blocks(*numbers)
    return changed.to(next(model.parameters()).device)


@torch.no_grad()
def head_correlation(model: LHCNet, images: Tensor) -> list[dict[str, float | int | None]]:
    """How alike the attention of the heads of each block is.

    Pearson's correlation between the attention weights (C x C) of two heads on the same picture, averaged over the
    pictures; then the mean and the highest over the pairs of heads. The paper prints 63 % for LHC-Net, and up to 93 %
    for language models, without the formula.

    Args:
        images: (B, 3, S, S), normalised.
    """
    taken: dict[int, Tensor] = {}
    hooks = [
        block.register_forward_pre_hook(lambda _, inputs, number=number: taken.__setitem__(number, inputs[0]))
        for number, block in enumerate(model.lhc)
        if isinstance(block, LHCBlock)
    ]
    model.eval()
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    lines: list[dict[str, float | int | None]] = []
    for number, x in taken.items():
        block = model.lhc[number]
        assert isinstance(block, LHCBlock)
        pairs = correlations(block.weights(x))
        lines.append(
            {
                "block": number + 1,
                "heads": block.num_heads,
                "mean": fmean(pairs) if pairs else None,
                "highest": max(pairs, default=None),
            }
        )
    return lines


def correlations(weights: Tensor) -> list[float]:
    """Of each pair of heads, averaged over the pictures: (B, n, C, C) -> n (n - 1) / 2 numbers in -1 .. 1."""
    flat = weights.flatten(2).double()
    flat = flat - flat.mean(dim=2, keepdim=True)
    flat = torch.nn.functional.normalize(flat, dim=2)
    means = (flat @ flat.transpose(1, 2)).mean(dim=0)
    return [means[one, other].item() for one, other in combinations(range(weights.shape[1]), 2)]


# ------------------------------------------------------------------------------------------------ equations 21 to 26


def embedding_cost(size: int, channels: int, heads: int, dim: int, *, local: bool, kernel: int = 3) -> int:
    """Multiply-accumulates of a block's queries, keys and values: what local and global heads differ in.

    Local: each head embeds its own band of HW/n positions, for queries and for keys, 2 C (HW/n) d a head. Global: each
    head embeds all of HW. The values are a convolution of the whole map, kernel^2 C^2 HW, either way.

    Args:
        size: H = W of the map.
    """
    positions = size * size
    seen = positions // heads if local else positions
    return 2 * heads * channels * seen * dim + kernel**2 * channels**2 * positions


def efficiency(gain: float, cost: float) -> float:
    """What a block adds by what it costs: A / C_local of local heads, B / C_global of global ones."""
    return gain / cost


def break_even(size: int, channels: int, heads: int, dim: float | None = None, *, kernel: int = 3) -> float:
    """The r of "local heads are the more efficient ones where A > r B": C_local / C_global (equations 21 to 26).

    A is what a block with local heads adds to the accuracy, B what it would add with as many global heads. In full

        r = (2 d + k^2 C) / (2 n d + k^2 C),  and with d = HW / 2n:  r = (HW / n + k^2 C) / (HW + k^2 C)

    The paper prints r = 0.26 for the first two blocks, with d = HW / 2n and n = 8: (392 + 576) / (3136 + 576) = 0.2608.
    Its equations themselves were not at hand, and one figure does not settle them: this account gives it, and others of
    the same terms may. With the products of the scores
    and of the values in it, r would be 0.279 (values cut into bands) or 0.250 (each head attends to whole maps).

    Args:
        dim: d; None for HW / 2n.
    """
    positions = size * size
    d = positions / (2 * heads) if dim is None else dim
    values = kernel**2 * channels
    return (2 * d + values) / (2 * heads * d + values)
