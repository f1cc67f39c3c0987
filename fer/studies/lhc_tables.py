"""LHC-Net's ablation of blocks as text and as arguments of its figures: blocks left out, heads, efficiency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from fer.evaluation.aggregate import percent
from fer.models.lhc_net import PUBLISHED
from fer.studies.lhc_analysis import break_even

#: By block, a test accuracy in 0 .. 1; once for blocks switched `off`, once for blocks drawn anew (`reset`).
Without = Mapping[str, Mapping[str, float]]


def without_blocks(probes: Sequence[Mapping[str, Any]]) -> Without:
    """Means over the seeds of one row.

    Args:
        probes: of each seed, as `fer.studies.lhc_analysis` measures them.
    """
    return {
        kind: {block: fmean(one[kind][block] for one in probes) for block in probes[0][kind]}
        for kind in ("off", "reset")
    }


def without_blocks_table(rows: Mapping[str, Without]) -> list[str]:
    """Lines of markdown: the test accuracy that each block's absence leaves."""
    return [
        "## Blocks switched off, or drawn anew, in the trained networks",
        "",
        "Test accuracy in %, mean over seeds; nothing is trained again.",
        "",
        "| row | block | switched off | drawn anew |",
        "|---|---|---|---|",
        *(
            f"| {row} | {block} | {percent(off)} | {percent(means['reset'][block])} |"
            for row, means in rows.items()
            for block, off in means["off"].items()
        ),
        "",
    ]


def heads_table(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Lines of markdown: how alike the heads of each block are, mean over seeds.

    Args:
        rows: of each row, the probes of its seeds.
    """

    def mean(seeds: Sequence[Mapping[str, Any]], key: str) -> str:
        # A block of one head has nothing to be correlated with.
        return "-" if seeds[0][key] is None else f"{percent(fmean(one[key] for one in seeds))} %"

    return [
        "## Correlation between heads",
        "",
        "| row | block | heads | mean | highest |",
        "|---|---|---|---|---|",
        *(
            f"| {row} | {seeds[0]['block']} | {seeds[0]['heads']} | {mean(seeds, 'mean')} | {mean(seeds, 'highest')} |"
            for row, probes in rows.items()
            for seeds in zip(*(one["heads"] for one in probes), strict=True)
        ),
        "",
        "Printed (section 2.2): 63 % for LHC-Net, up to 93 % for language models.",
        "",
    ]


def published_efficiency() -> list[dict[str, Any]]:
    """Equations 21 to 26 for the published network's blocks: `block`, `heads`, `dim`, `break_even` of each."""
    setup = zip(PUBLISHED.host.levels(), PUBLISHED.num_heads, PUBLISHED.head_dims, strict=True)
    return [
        {"block": number, "heads": heads, "dim": dim, "break_even": break_even(size, channels, heads, dim)}
        for number, ((channels, size), heads, dim) in enumerate(setup, start=1)
    ]


def efficiency_table(blocks: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of markdown of `published_efficiency()`."""
    return [
        "## Efficiency of local heads (equations 21 to 26)",
        "",
        "Local heads add more for their cost than global ones where A > r B; A and B are what either adds.",
        "",
        "| block | heads | d | r |",
        "|---|---|---|---|",
        *(f"| {one['block']} | {one['heads']} | {one['dim']} | {one['break_even']:.3f} |" for one in blocks),
        "",
        "Printed for the first two blocks: 0.26. The equations are reconstructed: `fer.studies.lhc_analysis`.",
    ]


def efficiency_curves(heads: Sequence[int]) -> tuple[list[dict[str, Any]], list[list[float]]]:
    """`blocks` and `curves` of `study_figures.lhc_break_even`; the second block has the first one's maps and curve."""
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
