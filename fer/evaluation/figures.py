"""The figures of an evaluation, drawn by matplotlib without a display or global state.

`save` writes SVG that is the same bytes for the same figure: no date, no random ids.
"""

from __future__ import annotations

import functools
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np
import numpy.typing as npt

from fer.io.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")

INK, MUTED, RULE = "#1d2733", "#64707d", "#d5dbe1"
TRAIN, VALIDATION, ACCENT = "#8a97a6", "#1f6fb2", "#d1642a"
SHADES = "Blues"

_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10.0,
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.titlepad": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "text.color": INK,
    "svg.hashsalt": "fer",
    "svg.fonttype": "path",
}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw with the style above, whatever the user's own matplotlibrc says."""

    @functools.wraps(draw)
    def in_style(*args: P.args, **kwargs: P.kwargs) -> Figure:
        # Without a writable home matplotlib uses a temporary folder, and warns; nothing is wrong then.
        logging.getLogger("matplotlib").setLevel(logging.ERROR)
        import matplotlib

        with matplotlib.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return in_style


@styled
def confusion(matrix: npt.NDArray[np.int64], names: Sequence[str], title: str, *, normalized: bool) -> Figure:
    """The confusion matrix: counts, or per cent of each actual class (the diagonal is the recall)."""
    side = 2.4 + 0.58 * len(names)
    figure, axes = blank(side + 0.6, side)
    rows = matrix.sum(axis=1, keepdims=True)
    fractions = np.divide(matrix, rows, out=np.zeros(matrix.shape), where=rows > 0)
    axes.imshow(fractions, cmap=SHADES, vmin=0, vmax=1)
    for (row, column), fraction in np.ndenumerate(fractions):
        text = f"{100 * fraction:.0f}" if normalized else f"{matrix[row, column]}"
        ink = "white" if fraction > 0.55 else INK if matrix[row, column] else MUTED
        axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=9.5)
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), [f"{name}  ({count})" for name, count in zip(names, rows[:, 0], strict=True)])
    axes.set_xlabel("predicted")
    axes.set_ylabel("actual (rows)")
    axes.tick_params(length=0)
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(f"{title}: {'% of each actual class' if normalized else 'counts'}")
    return figure


@styled
def reliability(calibration: Sequence[Mapping[str, Any]], ece: float, title: str) -> Figure:
    """Accuracy against confidence in equal-width bins; a calibrated model lies on the diagonal. Below, the rows."""
    figure, axes = blank(5.2, 5.4, panels=2, heights=(3.2, 1.0))
    upper, lower = axes
    starts = np.array([line["from"] for line in calibration])
    widths = np.array([line["to"] for line in calibration]) - starts
    rows = np.array([line["rows"] for line in calibration])
    filled = rows > 0
    accuracy = np.array([line["accuracy"] if line["rows"] else 0.0 for line in calibration])
    confidence = np.array([line["confidence"] if line["rows"] else 0.0 for line in calibration])
    upper.bar(starts[filled], accuracy[filled], widths[filled] * 0.94, align="edge", color=VALIDATION, alpha=0.55)
    upper.plot([0, 1], [0, 1], color=INK, linewidth=1.0, linestyle=(0, (4, 3)), label="calibrated")
    upper.plot(
        confidence[filled], accuracy[filled], "o", color=ACCENT, markersize=4.5, label="mean confidence of a bin"
    )
    upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
    upper.set_title(f"{title}: reliability, ECE {100 * ece:.1f} %")
    upper.legend(loc="upper left", fontsize=9)
    lower.bar(starts, rows, widths * 0.94, align="edge", color=TRAIN)
    lower.set(xlim=(0, 1), xlabel="confidence (probability of the predicted class)", ylabel="rows")
    return figure


@styled
def recalls(per_class: Sequence[Mapping[str, Any]], balanced: float, title: str) -> Figure:
    """Recall of each class as bars with Wilson's 95 % interval; classes without rows say so."""
    from fer.evaluation.metrics import wilson

    figure, axes = blank(6.4, 1.5 + 0.36 * len(per_class))
    for place, line in enumerate(per_class):
        if not line["rows"]:
            axes.text(0.01, place, "no rows in the split", va="center", color=MUTED, fontsize=9)
            continue
        recall, interval = line["recall"], wilson(round(line["recall"] * line["rows"]), line["rows"])
        axes.barh(place, recall, height=0.62, color=VALIDATION)
        axes.plot([interval.low, interval.high], [place, place], color=INK, linewidth=1.2, solid_capstyle="butt")
        axes.text(1.02, place, f"{100 * recall:.1f} %", va="center", fontsize=9, clip_on=False)
    axes.axvline(balanced, color=ACCENT, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(per_class)), [f"{line['class']}  ({line['rows']})" for line in per_class])
    axes.set_ylim(len(per_class) - 0.45, -0.55)
    axes.set(xlim=(0, 1), xlabel="recall, with 95 % interval; dashed: balanced accuracy")
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_title(f"{title}: recall of each class")
    return figure


@styled
def learning_curves(history: Mapping[str, Sequence[float]], best_epoch: int | None, title: str) -> Figure:
    """Loss and accuracy of training and validation by epoch, the selected epoch marked."""
    figure, axes = blank(9.2, 3.6, panels=2, side_by_side=True)
    for panel, what in zip(axes, ("loss", "accuracy"), strict=True):
        for part, color in (("train", TRAIN), ("val", VALIDATION)):
            if values := history.get(f"{part}_{what}"):
                label = "train" if part == "train" else "validation"
                panel.plot(
                    history["epoch"], values, color=color, linewidth=1.8, marker="o", markersize=2.5, label=label
                )
        if best_epoch is not None:
            panel.axvline(best_epoch, color=ACCENT, linewidth=1.2, linestyle=(0, (4, 3)), label="selected epoch")
        panel.set(xlabel="epoch")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.set_title(f"{title}: {what}" if what == "loss" else what)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=9)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write the figure; the suffix gives the format."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        kind = path.suffix.removeprefix(".")
        figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
    write_atomic(path, buffer.getvalue())


def blank(
    width: float,
    height: float,
    *,
    panels: int = 1,
    side_by_side: bool = False,
    heights: Sequence[float] | None = None,
) -> tuple[Figure, Any]:
    """A figure of so many inches, with its axes (one, or an array of them)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    if panels == 1:
        only: Axes = figure.subplots()
        return figure, only
    shape = (1, panels) if side_by_side else (panels, 1)
    return figure, figure.subplots(*shape, height_ratios=heights)
