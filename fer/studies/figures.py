"""The figures of the studies, in the style of `fer.evaluation.figures`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fer.evaluation.aggregate import Spread
from fer.evaluation.figures import ACCENT, INK, MUTED, TRAIN, VALIDATION, blank, styled
from fer.studies.noise import interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def noise(report: Mapping[str, Any], title: str) -> Figure:
    """Accuracy of both series by level of label noise, and their difference; bars are 95 % intervals."""
    figure, (upper, lower) = blank(6.4, 6.4, panels=2, heights=(1.7, 1.0))
    levels = [line["level"] for line in report["levels"]]
    nudge = 0.01 * (max(levels) - min(levels) or 1)
    for key, name, color, shift in zip(
        ("one", "other"), report["series"], (VALIDATION, ACCENT), (-nudge, nudge), strict=True
    ):
        spreads = [line[key] for line in report["levels"]]
        places = [level + shift for level in levels]
        upper.plot(places, [100 * value["mean"] for value in spreads], color=color, marker="o", ms=4, label=name)
        for place, value in zip(places, spreads, strict=True):
            if value["low"] is not None:
                upper.plot([place, place], [100 * value["low"], 100 * value["high"]], color=color, linewidth=1.4)
    upper.set(ylabel="test accuracy, %")
    upper.set_xticks(levels)
    upper.set_title(title)
    upper.legend()
    for level, line in zip(levels, report["levels"], strict=True):
        found = line["difference"]
        ends = interval(found)
        lower.plot([level, level], [100 * ends.low, 100 * ends.high], color=INK, linewidth=1.4)
        lower.plot(level, 100 * found["mean"], "o", color=INK, markersize=5)
    lower.axhline(0, color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
    lower.set_xticks(levels)
    lower.set_xlim(upper.get_xlim())
    one, other = report["series"]
    lower.set(xlabel="wrong training labels, %", ylabel=f"{other} minus\n{one}, points")
    return figure


@styled
def curve(points: Sequence[tuple[float, Spread, float | None]], axis: str, title: str) -> Figure:
    """Test accuracy over an option, with its 95 % interval; hollow, as printed.

    Args:
        points: place, accuracy in 0 .. 1, and the printed one in % or None; rising.
        axis: what the place is.
    """
    figure, axes = blank(6.0, 4.0)
    places = [place for place, _, _ in points]
    axes.plot(places, [100 * ours.mean for _, ours, _ in points], color=ACCENT, marker="o", ms=5, label="here")
    for place, ours, _ in points:
        if ours.low is not None and ours.high is not None:
            axes.plot([place, place], [100 * ours.low, 100 * ours.high], color=ACCENT, linewidth=1.4)
    printed = [(place, value) for place, _, value in points if value is not None]
    if printed:
        style = {"marker": "o", "mfc": "none", "linestyle": (0, (4, 3))}
        axes.plot(*zip(*printed, strict=True), color=MUTED, label="printed", **style)
        axes.legend(fontsize=9)
    axes.set_xticks(places)
    axes.set(xlabel=axis, ylabel="test accuracy, %")
    axes.set_title(title)
    return figure


@styled
def lhc_efficiency(found: Mapping[str, Any], title: str) -> Figure:
    """Equations 21 and 23 for the first two blocks: L1 of the pairs (A, B) with C = 0, beside G1.

    Args:
        found: `fer.studies.lhc_analysis.efficiency()`.
    """
    figure, axes = blank(6.6, 4.2)
    for local, color, label in ((False, TRAIN, "one global head wins"), (True, VALIDATION, "local heads win")):
        places = [place for place, pair in enumerate(found["pairs"]) if pair["local"] == local]
        axes.bar(places, [found["pairs"][place]["L1"] for place in places], color=color, width=0.6, label=label)
    axes.axhline(found["global"], color=INK, linewidth=1.2, linestyle=(0, (4, 3)), label="G1: one global head")
    axes.set_xticks(range(len(found["pairs"])), [f"{pair['A']}, {pair['B']}" for pair in found["pairs"]])
    axes.set(
        xlabel="A, B: sections with one, with two active filters",
        ylabel="L1: parameters for each\ndimension and constraint",
    )
    axes.grid(axis="x", visible=False)
    axes.set_title(title)
    axes.legend(fontsize=9)
    return figure


@styled
def lhc_sets(lines: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Test accuracy of every run that was kept, set by set, with the mean of all and of the best 40 %."""
    figure, axes = blank(6.0, 1.5 + 0.6 * len(lines))
    for place, line in enumerate(lines):
        accuracies = [100 * value for value in line["accuracies"]]
        axes.plot(accuracies, [place] * len(accuracies), "o", color=VALIDATION, alpha=0.5, markersize=5)
        for key, color, label in (("mean", INK, "mean of all"), ("Top 40%", ACCENT, "mean of the best 40 %")):
            if line[key] is not None:
                axes.plot(
                    [100 * line[key]] * 2, [place - 0.25, place + 0.25], color=color, linewidth=1.8,
                    label=None if place else label,
                )  # fmt: skip
    axes.set_yticks(range(len(lines)), [line["row"] for line in lines])
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.set(xlabel="test accuracy, %")
    axes.grid(axis="y", visible=False)
    axes.set_title(title)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=9, loc="best")
    return figure


@styled
def lhc_blocks(plain: float, probes: Mapping[str, Mapping[str, float]], title: str) -> Figure:
    """Test accuracy without each block, and with each de-trained; dashed, of the whole network."""
    names = list(probes["off"])
    figure, axes = blank(7.6, 1.6 + 0.5 * len(names))
    kinds = ((-0.18, "off", VALIDATION, "switched off"), (0.18, "reset", TRAIN, "de-trained"))
    for offset, key, color, label in kinds:
        axes.barh(
            [place + offset for place in range(len(names))], [100 * probes[key][name] for name in names], height=0.34,
            color=color, label=label,
        )  # fmt: skip
    axes.axvline(100 * plain, color=ACCENT, linewidth=1.2, linestyle=(0, (4, 3)), label="whole network")
    axes.set_yticks(range(len(names)), [f"block {name}" for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set(xlabel="test accuracy, %, without further training")
    axes.grid(axis="y", visible=False)
    axes.set_title(title)
    axes.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))  # beside the bars, which fill the axes
    return figure
