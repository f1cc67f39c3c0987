"""What LHC-Net's paper does with its trained networks: sets of runs, blocks taken away, heads compared, heads weighed.

Paper: Pecoraro, Basile, Bono, "Local Multi-Head Channel Self-Attention for Facial Expression Recognition", Information
13(9):419, 2022, sections 2.2 and 3 and the tables of Results. Where it prints no formula, the docstring says what was
taken.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from fer.evaluation.aggregate import markdown_table, percent
from fer.models import FerModel
from fer.models.lhc_net import PUBLISHED, LHCBlock, LHCNet
from fer.shards.read import EvalBatches, normalize
from fer.training.job import TrainJob
from fer.training.loop import build_model, compute_logits
from fer.training.metrics import classification_metrics
from fer.training.recipe import Recipe

LOSS_MARGIN = 0.10
"""A run is kept while its training loss is below that of the host plus this fraction (section 3)."""
TOP_FRACTIONS = {"Top 40%": 0.40, "Top 25%": 0.25}
"""Of the runs, ranked on the test set: the columns of Results 1."""
_CORRELATED_IMAGES = 64

# ------------------------------------------------------------------------------------------------ sets of runs


def is_kept(train_loss: float, host_loss: float, margin: float = LOSS_MARGIN) -> bool:
    """Whether a run has not diverged: its training loss is below that of the host that it started from, plus 10 %."""
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


def averaged_runs(mean: float, without_best: float, best: float, unit: float = 0.01) -> tuple[int, int | None]:
    """How many runs are behind a printed mean, from the same mean without the best run and that run: least and most.

    k runs of mean m and best b have, without it, the mean (k m - b) / (k - 1): k = (b - without) / (m - without).

    Args:
        unit: last printed digit, by half of which each number may be off.

    Returns:
        the range that rounding leaves; None for the most where the means may be equal.
    """
    gap, step = best - without_best, mean - without_best
    least = math.ceil((gap - unit) / (step + unit) - 1e-9)
    return max(1, least), math.floor((gap + unit) / (step - unit) + 1e-9) if step - unit > 1e-9 else None


def set_summary(
    runs: Sequence[Mapping[str, Any]], host_loss: float, base: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """One line of Results 1.

    Args:
        runs: of one set, each with `row`, `seed`, `test_accuracy` and `train_loss`.
        host_loss: training loss of the host that they started from.
        base: the runs of the set that it is compared with.

    Returns:
        `runs` and `rejected` ("row, seed n"); over the runs kept: `accuracies`, `mean`, `Best`, `Top 40%`,
        `Top 40% w/o best`, `Top 25%`, `Top 25% w/o best`, None where there is no run for it; `differences` to the base,
        seed by seed, each the mean of the runs of this seed.
    """
    kept = [run for run in runs if is_kept(run["train_loss"], host_loss)]
    accuracies = [run["test_accuracy"] for run in kept]
    line: dict[str, Any] = {
        "runs": len(runs),
        "rejected": [f"{run['row']}, seed {run['seed']}" for run in runs if run not in kept],
        "accuracies": accuracies,
        "mean": fmean(accuracies) if accuracies else None,
    }
    for name, fraction in TOP_FRACTIONS.items():
        line[name] = top_mean(accuracies, fraction) if accuracies else None
        line[f"{name} w/o best"] = top_mean(accuracies, fraction, with_best=False) if accuracies else None
    line["Best"] = max(accuracies, default=None)
    ours, theirs = _by_seed(kept), _by_seed([run for run in base if is_kept(run["train_loss"], host_loss)])
    line["differences"] = [accuracy - theirs[seed] for seed, accuracy in ours.items() if seed in theirs]
    return line


def _by_seed(runs: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Mean test accuracy of the runs of each seed."""
    seeds = dict.fromkeys(run["seed"] for run in runs)
    return {seed: fmean(run["test_accuracy"] for run in runs if run["seed"] == seed) for seed in seeds}


def size(model: FerModel) -> dict[str, float]:
    """Columns of Results 2: `keras_parameters`, BatchNorm's statistics among them; `attention_share` of the blocks."""
    state = {
        name: tensor.numel() for name, tensor in model.state_dict().items() if not name.endswith("batches_tracked")
    }
    total, blocks = sum(state.values()), sum(count for name, count in state.items() if name.startswith("lhc."))
    return {"keras_parameters": total, "attention_share": blocks / total}


# ------------------------------------------------------------------------------------------------ blocks and heads


def probe(model: FerModel, job: TrainJob, batches: EvalBatches, recipe: Recipe, device: str) -> dict[str, Any]:
    """A trained LHC-Net without some of its blocks, with some de-trained, and how alike its heads are (section 2.2).

    No further training. The paper finds the first two blocks, 16 of the 31 heads, necessary.

    Args:
        job: that trained it.
        batches: the split that is evaluated.

    Returns:
        `off` and `reset`: accuracy by the numbers of the blocks, counted from 1, as "1", "3+4+5"; `heads`: of each
        block `block`, `heads` and `correlations` of its pairs of heads. All are empty for a network without blocks.
    """
    there = _blocks(model)
    if not isinstance(model, LHCNet) or not there:
        return {"off": {}, "reset": {}, "heads": []}
    first = initial(job)
    chosen: list[tuple[int, ...]] = [(number,) for number in there]
    chosen += [tuple(n for n in there if n > 2), tuple(there)] if len(there) > 2 else []

    def accuracy(changed: FerModel) -> float:
        logits, targets, _ = compute_logits(changed, batches, recipe, device)
        return classification_metrics(logits, targets)["accuracy"]

    found: dict[str, Any] = {"off": {}, "reset": {}}
    for numbers in chosen:
        name = "+".join(map(str, numbers))
        found["off"][name] = accuracy(switched_off(model, numbers))
        found["reset"][name] = accuracy(detrained(model, first, numbers))
    images = next(iter(batches)).images[:_CORRELATED_IMAGES].to(device)
    found["heads"] = head_correlation(model, normalize(images, model.mean, model.std))
    return found


def _blocks(model: FerModel) -> list[int]:
    """Numbers, from 1, of the blocks that are there."""
    if not isinstance(model, LHCNet):
        return []
    return [number for number, block in enumerate(model.lhc, start=1) if isinstance(block, LHCBlock)]


def switched_off(model: LHCNet, numbers: Sequence[int]) -> LHCNet:
    """A copy whose blocks of these numbers, counted from 1, pass on what they are given."""
    changed = copy.deepcopy(model)
    for number in numbers:
        changed.lhc[number - 1] = torch.nn.Identity()
    return changed


def initial(job: TrainJob) -> LHCNet:
    """The network as it was before its blocks were trained: of the first stage with blocks, with its first weights.

    They are a function of the seed (`build_model`), so that they need not be stored.
    """
    models = (build_model(job, stage) for stage in range(len(job.recipe.in_stages)))
    return next(model for model in models if isinstance(model, LHCNet) and _blocks(model))


def detrained(model: LHCNet, first: LHCNet, numbers: Sequence[int]) -> LHCNet:
    """A copy whose blocks of these numbers, counted from 1, have the weights and biases of those of `first`."""
    changed, weights = copy.deepcopy(model), first.state_dict()
    state = changed.state_dict()
    for name in state:
        if name in weights and any(name.startswith(f"lhc.{number - 1}.") for number in numbers):
            state[name].copy_(weights[name])
    return changed


@torch.no_grad()
def head_correlation(model: LHCNet, images: Tensor) -> list[dict[str, Any]]:
    """How alike the outputs of the heads of each block are.

    Pearson's correlation between the outputs A_h (equation 16, C x HW/n) of two heads on the same image, averaged over
    the images, for each pair of heads. The paper compares "by simple correlation between the output of the heads", and
    prints no formula.

    Args:
        images: (B, 3, S, S), normalized.

    Returns:
        for each block `block`, its number from 1, `heads`, and `correlations`, those of its n (n - 1) / 2 pairs.
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
    lines: list[dict[str, Any]] = []
    for number, x in taken.items():
        block = model.lhc[number]
        assert isinstance(block, LHCBlock)
        lines.append({"block": number + 1, "heads": block.num_heads, "correlations": correlations(block.heads(x))})
    return lines


def correlations(outputs: Tensor) -> list[float]:
    """Of each pair of heads, averaged over the images: (B, n, P, C) -> n (n - 1) / 2 numbers in -1 .. 1."""
    flat = outputs.flatten(2).double()
    flat = flat - flat.mean(dim=2, keepdim=True)
    flat = torch.nn.functional.normalize(flat, dim=2)
    means = (flat @ flat.transpose(1, 2)).mean(dim=0)
    return [means[one, other].item() for one, other in combinations(range(outputs.shape[1]), 2)]


# ------------------------------------------------------------------------------------------------ equations 21 to 26


@dataclass(frozen=True)
class Efficiency:
    """Free parameters of the embedding for each constraint: a dimension's share, and a relationship's.

    `by_dimension` is G1 or L1, `by_relationship` G2 or L2.
    """

    by_dimension: Fraction
    by_relationship: Fraction


def global_head(positions: int, dim: int) -> Efficiency:
    """G1 and G2 (equations 21, 22) of one head of d = `dim` that sees all HW = `positions` of a map."""
    return Efficiency(Fraction(positions * dim, 3 * (positions + dim) * 2), Fraction(1, 6))


def local_heads(positions: int, dim: int, heads: int, one: int, both: int) -> Efficiency:
    """L1 and L2 (equations 23, 24) of n = `heads` local heads, each of a section of HW / n positions.

    Two filters are to be combined. A = `one` of the sections can only activate one of them, B = `both` can activate
    both, and the remaining C = n - A - B none.

    Raises:
        ValueError: A + B is not in 1 .. n.
    """
    if one < 0 or both < 0 or not 1 <= one + both <= heads:
        raise ValueError(f"A = {one}, B = {both}: A + B must be in 1 .. {heads}")
    section = Fraction(positions, heads)
    share = section * dim / (section + dim)
    dimension = (one * share / 2 + both * share / (3 * 2)) / (one + both)
    return Efficiency(dimension, (Fraction(one, 2) + Fraction(both, 6)) / (one + both))


def threshold(positions: int, dim: int, heads: int) -> Fraction:
    """The r of "L1 > G1 exactly where A > r B".

    L1 / G1 = (3 A + B) / (k (A + B)), with k = n (HW / n + d) / (HW + d). For d = HW / 2n and n = 8, as in the first
    two blocks, k = 144 / 102 and r = 7 / 27, printed as 0.26.
    """
    k = Fraction(positions + heads * dim, positions + dim)
    return (k - 1) / (3 - k)


def sections(heads: int) -> list[tuple[int, int, int]]:
    """All (A, B, C) with A + B + C = n and A + B > 0, by A, then B."""
    return [(a, b, heads - a - b) for a in range(heads + 1) for b in range(heads + 1 - a) if a + b]


def efficiency() -> dict[str, Any]:
    """Equations 21 to 26 for the published network.

    Returns:
        `global`: G1 of the first two blocks; `pairs`: of those with C = 0 `A`, `B`, `L1`, `L2` and whether `local`
        heads win by L1, as in the paper's figure; `combinations` of (A, B, C) in all, and the `global_wins` among them;
        `blocks`: `block`, `heads`, `dim` and `threshold` of each.
    """
    setup = list(zip(PUBLISHED.host.levels(), PUBLISHED.num_heads, PUBLISHED.head_dims, strict=True))
    (_, side), heads, dim = setup[0]
    whole = global_head(side * side, dim)
    local = {(a, b, c): local_heads(side * side, dim, heads, a, b) for a, b, c in sections(heads)}
    return {
        "global": float(whole.by_dimension),
        "pairs": [
            {
                "A": a,
                "B": b,
                "L1": float(one.by_dimension),
                "L2": float(one.by_relationship),
                "local": one.by_dimension > whole.by_dimension,
            }
            for (a, b, c), one in local.items()
            if c == 0
        ],
        "combinations": len(local),
        "global_wins": sum(one.by_dimension < whole.by_dimension for one in local.values()),
        "blocks": [
            {"block": number, "heads": n, "dim": d, "threshold": float(threshold(side * side, d, n))}
            for number, ((_, side), n, d) in enumerate(setup, start=1)
        ],
    }


# ------------------------------------------------------------------------------------------------ for people


def without_blocks(probes: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Test accuracy by block, once for blocks switched `off`, once for de-trained ones (`reset`).

    Args:
        probes: of each seed of a row; the accuracies are means over them.
    """
    return {
        kind: {block: fmean(one[kind][block] for one in probes) for block in probes[0][kind]}
        for kind in ("off", "reset")
    }


def block_tables(
    without: Mapping[str, Mapping[str, Mapping[str, float]]], probes: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[str]:
    """Lines of markdown: the accuracy without each block, and how alike its heads are.

    Args:
        without: of each row, `without_blocks` of its probes. probes: of each row, one of each seed.
    """
    heads = {row: {one["block"]: one["heads"] for one in found[0]["heads"]} for row, found in probes.items()}

    def left(row: str, blocks: str) -> str:
        away = sum(heads[row][int(number)] for number in blocks.split("+"))
        return f"{sum(heads[row].values()) - away} of {sum(heads[row].values())}"

    return [
        "## Blocks switched off, or de-trained, in the trained networks",
        "",
        "Test accuracy in %, mean over seeds, without further training. De-trained: with the weights that the block "
        "had before its training.",
        "",
        *markdown_table(
            ("row", "block", "heads left", "switched off", "de-trained"),
            (
                (row, block, left(row, block), percent(off), percent(means["reset"][block]))
                for row, means in without.items()
                for block, off in means["off"].items()
            ),
        ),
        "",
        "## Correlation between the outputs of heads",
        "",
        *markdown_table(("row", "block", "heads", "mean", "highest"), _correlation_rows(probes)),
        "",
        "Printed (section 2.2): 63 % for LHC-Net, up to 93 % for language models.",
    ]


def _correlation_rows(probes: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[tuple[str, ...]]:
    """For each block, and for all of them together; a block of one head has nothing to be correlated with."""
    lines: list[tuple[str, ...]] = []
    for row, found in probes.items():
        blocks = list(zip(*(one["heads"] for one in found), strict=True))
        everything = [pair for seeds in blocks for one in seeds for pair in one["correlations"]]
        named = [
            (str(seeds[0]["block"]), seeds[0]["heads"], [p for one in seeds for p in one["correlations"]])
            for seeds in blocks
        ]
        for block, heads, pairs in (*named, ("all", sum(count for _, count, _ in named), everything)):
            mean, highest = (f"{percent(value)} %" for value in (fmean(pairs), max(pairs))) if pairs else ("-", "-")
            lines.append((row, block, str(heads), mean, highest))
    return lines


def efficiency_tables(found: Mapping[str, Any]) -> list[str]:
    """Lines of markdown: equations 21 to 26, of `efficiency()`."""
    whole = found["global"]
    return [
        "## Efficiency of local heads (equations 21 to 26)",
        "",
        "Of the 8 sections of the first two blocks' maps, A can activate one of two filters, B both. Free parameters "
        f"for each constraint, by dimension (L1; G1 = {whole:.2f}) and by relationship (L2; G2 = {1 / 6:.3f}):",
        "",
        *markdown_table(
            ("A", "B", "L1", "L1 / G1", "L2", "in favor of"),
            (
                (
                    *(str(one["A"]), str(one["B"]), f"{one['L1']:.2f}", f"{one['L1'] / whole:.3f}", f"{one['L2']:.3f}"),
                    "local heads" if one["local"] else "one global head",
                )
                for one in found["pairs"]
            ),
        ),
        "",
        f"With sections that activate neither (C > 0) there are {found['combinations']} combinations of A, B and C; "
        f"the global head has the higher value in {found['global_wins']} of them, not in two alone as the text has it.",
        "",
        "By dimension local heads win where A > r B:",
        "",
        *markdown_table(
            ("block", "heads", "d", "r"),
            (
                (f"{one['block']}", f"{one['heads']}", f"{one['dim']}", f"{one['threshold']:.3f}")
                for one in found["blocks"]
            ),
        ),
        "",
        "Printed for the first two blocks: 0.26.",
    ]
