"""What LHC-Net's paper does with its trained networks: sets of runs, blocks taken away, heads compared, cost of heads.

Paper: Pecoraro, Basile, Bono, "Local Multi-Head Channel Self-Attention for Facial Expression Recognition", Information
13(9):419, 2022, sections 2.2 and 3 and the table of Results 1. Where its wording was not available the interpretation
is ours, and the docstring says so.
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

from fer.evaluation.aggregate import markdown_table, percent
from fer.models import FerModel
from fer.models.lhc_net import PUBLISHED, LHCBlock, LHCNet
from fer.shards.read import EvalBatches, normalize
from fer.training.loop import compute_logits
from fer.training.metrics import classification_metrics
from fer.training.recipe import Recipe

LOSS_MARGIN = 0.10
"""A run is kept while its training loss is below that of its host plus this fraction (section 3)."""
TOP_FRACTIONS = {"Top 40%": 0.40, "Top 25%": 0.25}
"""Of the runs, ranked on the test set: the columns of Results 1."""
_CORRELATED_IMAGES = 64

# ------------------------------------------------------------------------------------------------ sets of runs


def is_kept(train_loss: float, host_loss: float, margin: float = LOSS_MARGIN) -> bool:
    """Whether a run has not diverged: its training loss is below that of the host of the same seed, plus 10 %."""
    return train_loss < host_loss * (1 + margin)


def top_mean(accuracies: Sequence[float], fraction: float, *, with_best: bool = True) -> float | None:
    """Mean of the best `fraction` of the runs, the best one among them or left out.

    The number of runs is rounded to the nearest, half upwards, and is at least one; None where leaving out the best
    leaves none. How the paper rounds is not printed. Ranked on the test set, such a mean is above what a new run is to
    be expected to reach, the more so the more runs there are.
    """
    count = max(1, math.floor(fraction * len(accuracies) + 0.5))
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
    for name, fraction in TOP_FRACTIONS.items():
        line[name] = top_mean(accuracies, fraction) if accuracies else None
        line[f"{name} w/o best"] = top_mean(accuracies, fraction, with_best=False) if accuracies else None
    line["Best"] = max(accuracies, default=None)
    line["differences"] = [
        run["test_accuracy"] - hosts[run["seed"]]["test_accuracy"] for run in kept if run["seed"] in hosts
    ]
    return line


# ------------------------------------------------------------------------------------------------ blocks and heads


def probe(model: FerModel, batches: EvalBatches, recipe: Recipe, device: str, *, seed: int) -> dict[str, Any]:
    """A trained LHC-Net without some of its blocks, with some re-initialized, and how alike its heads are.

    No further training. The paper finds the first two blocks necessary (section 2.2); what is printed of how it
    found out is only that.

    Args:
        batches: the split that is evaluated.
        seed: of the new weights.

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
        found["reset"][name[numbers]] = accuracy(reinitialized(model, numbers, seed=seed))
    images = next(iter(batches)).images[:_CORRELATED_IMAGES].to(device)
    found["heads"] = head_correlation(model, normalize(images, model.mean, model.std))
    return found


def switched_off(model: LHCNet, numbers: Sequence[int]) -> LHCNet:
    """A copy whose blocks of these numbers, counted from 1, pass on what they are given."""
    changed = copy.deepcopy(model)
    for number in numbers:
        changed.lhc[number - 1] = torch.nn.Identity()
    return changed


def reinitialized(model: LHCNet, numbers: Sequence[int], *, seed: int) -> LHCNet:
    """A copy whose blocks of these numbers, counted from 1, have the attention weights of an untrained one."""
    changed = copy.deepcopy(model).cpu()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        changed.reset_blocks(*numbers)
    return changed.to(next(model.parameters()).device)


@torch.no_grad()
def head_correlation(model: LHCNet, images: Tensor) -> list[dict[str, float | int | None]]:
    """How alike the attention of the heads of each block is.

    Pearson's correlation between the attention weights (C x C) of two heads on the same image, averaged over the
    images; then the mean and the highest over the pairs of heads. The paper prints 63 % for LHC-Net, and up to 93 %
    for language models, without the formula.

    Args:
        images: (B, 3, S, S), normalized.
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
    """Of each pair of heads, averaged over the images: (B, n, C, C) -> n (n - 1) / 2 numbers in -1 .. 1."""
    flat = weights.flatten(2).double()
    flat = flat - flat.mean(dim=2, keepdim=True)
    flat = torch.nn.functional.normalize(flat, dim=2)
    means = (flat @ flat.transpose(1, 2)).mean(dim=0)
    return [means[one, other].item() for one, other in combinations(range(weights.shape[1]), 2)]


# ------------------------------------------------------------------------------------------------ equations 21 to 26


def break_even(size: int, channels: int, heads: int, dim: float | None = None, *, kernel: int = 3) -> float:
    """The r of "local heads are the more efficient ones where A > r B": C_local / C_global (equations 21 to 26).

    C are multiply-accumulates of queries, keys and values. A local head embeds its own band of HW/n positions for
    queries and for keys, 2 C (HW/n) d; a global one all of HW. The values are a convolution of the map, k^2 C^2 HW.

    A is what a block with local heads adds to the accuracy, B what it would add with as many global heads. In full

        r = (2 d + k^2 C) / (2 n d + k^2 C),  and with d = HW / 2n:  r = (HW / n + k^2 C) / (HW + k^2 C)

    The paper prints r = 0.26 for the first two blocks, with d = HW / 2n and n = 8: (392 + 576) / (3136 + 576) = 0.2608.
    The equations themselves were not available, and one number does not determine them: these terms give it, and others
    may. With the products of the scores and of the values, r would be 0.279 (values cut into bands) or 0.250 (each head
    attends to whole maps).

    Args:
        dim: d; None for HW / 2n.
    """
    positions = size * size
    d = positions / (2 * heads) if dim is None else dim
    values = kernel**2 * channels
    return (2 * d + values) / (2 * heads * d + values)


# ------------------------------------------------------------------------------------------------ for people


def published_efficiency() -> list[dict[str, Any]]:
    """Equations 21 to 26 for the published network's blocks: `block`, `heads`, `dim`, `break_even` of each."""
    setup = zip(PUBLISHED.host.levels(), PUBLISHED.num_heads, PUBLISHED.head_dims, strict=True)
    return [
        {"block": number, "heads": heads, "dim": dim, "break_even": break_even(size, channels, heads, dim)}
        for number, ((channels, size), heads, dim) in enumerate(setup, start=1)
    ]


def efficiency_curves(heads: Sequence[int]) -> tuple[list[dict[str, Any]], list[list[float]]]:
    """`blocks` and `curves` of `fer.studies.figures.lhc_break_even`, but for block 2, which equals block 1."""
    setup = zip(published_efficiency(), PUBLISHED.host.levels(), strict=True)
    levels = [(one, level) for one, level in setup if one["block"] != 2]
    blocks = [
        {
            "name": f"block {one['block']}: {channels} maps of {size} x {size}",
            "heads": one["heads"],
            "value": one["break_even"],
        }
        for one, (channels, size) in levels
    ]
    return blocks, [[break_even(size, channels, n) for n in heads] for _, (channels, size) in levels]


def without_blocks(probes: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Test accuracy by block, once for blocks switched `off`, once for re-initialized ones (`reset`).

    Args:
        probes: of each seed of a row; the accuracies are means over them.
    """
    return {
        kind: {block: fmean(one[kind][block] for one in probes) for block in probes[0][kind]}
        for kind in ("off", "reset")
    }


def block_tables(
    without: Mapping[str, Mapping[str, Mapping[str, float]]],
    probes: Mapping[str, Sequence[Mapping[str, Any]]],
    efficiency: Sequence[Mapping[str, Any]],
) -> list[str]:
    """Lines of markdown: the accuracy without each block, how alike its heads are, and where local heads pay.

    Args:
        without: of each row, `without_blocks` of its probes. probes: of each row, one of each seed.
        efficiency: `published_efficiency()`.
    """

    def mean(seeds: Sequence[Mapping[str, Any]], key: str) -> str:
        # A block of one head has nothing to be correlated with.
        return "-" if seeds[0][key] is None else f"{percent(fmean(one[key] for one in seeds))} %"

    return [
        "## Blocks switched off, or re-initialized, in the trained networks",
        "",
        "Test accuracy in %, mean over seeds, without further training.",
        "",
        *markdown_table(
            ("row", "block", "switched off", "re-initialized"),
            (
                (row, block, percent(off), percent(means["reset"][block]))
                for row, means in without.items()
                for block, off in means["off"].items()
            ),
        ),
        "",
        "## Correlation between heads",
        "",
        *markdown_table(
            ("row", "block", "heads", "mean", "highest"),
            (
                (row, str(seeds[0]["block"]), str(seeds[0]["heads"]), mean(seeds, "mean"), mean(seeds, "highest"))
                for row, found in probes.items()
                for seeds in zip(*(one["heads"] for one in found), strict=True)
            ),
        ),
        "",
        "Printed (section 2.2): 63 % for LHC-Net, up to 93 % for language models.",
        "",
        "## Efficiency of local heads (equations 21 to 26)",
        "",
        "Local heads add more for their cost than global ones where A > r B; A and B are what either adds.",
        "",
        *markdown_table(
            ("block", "heads", "d", "r"),
            ((f"{one['block']}", f"{one['heads']}", f"{one['dim']}", f"{one['break_even']:.3f}") for one in efficiency),
        ),
        "",
        "Printed for the first two blocks: 0.26. The equations are reconstructed: `fer.studies.lhc_analysis`.",
    ]
