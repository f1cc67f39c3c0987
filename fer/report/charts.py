"""Line charts and reliability diagrams as SVG text, colored by the page's own style sheet: light, dark and on paper.

The SVG has only classes, no colors: `line a`, `line b`, `line c`, `mark`, `rule`, `column`, `tick`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

WIDTH, HEIGHT = 430, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 34


@dataclass(frozen=True)
class _Scale:
    """A linear axis from data to px."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def lines(
    history: Mapping[str, Sequence[float]],
    what: str,
    best: int | None,
    *,
    fraction: bool,
    of: Collection[str] = ("train", "val", "test"),
) -> Markup:
    """Training and validation `what` ("loss", "accuracy") by epoch, the selected epoch marked; test where it was read.

    fraction: whether the values are fractions, shown in per cent. of: the splits that are drawn, on one axis.
    """
    names = {"train": "a", "val": "b", "test": "c"}
    curves = {names[part]: history.get(f"{part}_{what}", []) for part in of}
    values = [value for curve in curves.values() for value in curve if math.isfinite(value)]
    epochs = history.get("epoch", [])
    if not epochs or not values:
        return Markup("")
    ticks = nice_ticks(min(values), max(values))
    across = _Scale(epochs[0], max(epochs[-1], epochs[0] + 1), LEFT, WIDTH - RIGHT)
    up = _Scale(min(ticks[0], min(values)), max(ticks[-1], max(values)), HEIGHT - BOTTOM, TOP)
    parts = [_frame(f"{what} by epoch"), *_vertical_axis(ticks, up, fraction)]
    parts += _horizontal_ticks([tick for tick in nice_ticks(epochs[0], epochs[-1], 8) if tick == int(tick)], across)
    if best is not None:
        x = across(best)
        parts.append(f'<line class="mark" x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{HEIGHT - BOTTOM}"/>')
    for name, curve in curves.items():
        points = " ".join(
            f"{across(epoch):.1f},{up(value):.1f}"
            for epoch, value in zip(epochs, curve, strict=False)
            if math.isfinite(value)
        )
        if points:
            parts.append(f'<polyline class="line {name}" points="{points}"/>')
    parts.append(_label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, "epoch"))
    return Markup("".join([*parts, "</svg>"]))


def reliability(calibration: Sequence[Mapping[str, Any]]) -> Markup:
    """Accuracy against confidence in bins; the dashed diagonal is perfect calibration. Paler bins hold fewer rows."""
    across, up = _Scale(0, 1, LEFT, WIDTH - RIGHT), _Scale(0, 1, HEIGHT - BOTTOM, TOP)
    parts = [_frame("accuracy by confidence"), *_vertical_axis([0, 0.25, 0.5, 0.75, 1], up, True)]
    most = max(line["rows"] for line in calibration)
    for line in calibration:
        if line["rows"]:
            x, y = across(line["from"]), up(line["accuracy"])
            width = across(line["to"]) - x - 1
            strength = 0.25 + 0.75 * (line["rows"] / most) ** 0.5
            sure, right = (f"{name} {100 * line[name]:.0f} %" for name in ("confidence", "accuracy"))
            tip = f"{sure}, {right}, {line['rows']} rows"
            parts.append(
                f'<rect class="column" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{HEIGHT - BOTTOM - y:.1f}" '
                f'fill-opacity="{strength:.2f}"><title>{escape(tip)}</title></rect>'
            )
    parts.append(f'<line class="mark" x1="{across(0)}" y1="{up(0)}" x2="{across(1)}" y2="{up(1)}"/>')
    parts += _horizontal_ticks([0, 0.25, 0.5, 0.75, 1], across, fraction=True)
    parts.append(_label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, "confidence"))
    return Markup("".join([*parts, "</svg>"]))


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most `most` + 1 round numbers that span low .. high (steps of 1, 2 or 5 times a power of ten)."""
    if high <= low:
        high = low + 1
    raw = (high - low) / most
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]


def _frame(title: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>'


def _vertical_axis(ticks: Sequence[float], up: _Scale, fraction: bool) -> list[str]:
    parts = []
    for tick in ticks:
        y = up(tick)
        text = f"{100 * tick:.0f} %" if fraction else f"{tick:g}"
        parts.append(f'<line class="rule" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 7}" y="{y + 3.5:.1f}" text-anchor="end">{text}</text>')
    return parts


def _horizontal_ticks(ticks: Sequence[float], across: _Scale, *, fraction: bool = False) -> list[str]:
    shown = [tick for tick in ticks if across.low <= tick <= across.high]
    return [
        _label(across(tick), HEIGHT - BOTTOM + 15, f"{100 * tick:.0f} %" if fraction else f"{tick:g}") for tick in shown
    ]


def _label(x: float, y: float, text: str) -> str:
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{escape(text)}</text>'
