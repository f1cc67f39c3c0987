"""Charts as SVG text, colored by the page's own style sheet: light, dark and on paper.

The SVG has only classes, no colors: `line a`, `line b`, `line c`, `mark`, `rule`, `column`, `tick`, `dot`, `whisker`.
What a chart shows stands in its label too, in words.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from markupsafe import Markup, escape

WIDTH, HEIGHT = 430, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 34
_SPLITS = {"train": "training", "val": "validation", "test": "test"}
_LETTER, _LINE = 6.6, 13.0  # px, of a point's name


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
    values = [value for line in curves.values() for value in line if math.isfinite(value)]
    epochs = history.get("epoch", [])
    if not epochs or not values:
        return Markup("")
    ticks = nice_ticks(min(values), max(values))
    across = _Scale(epochs[0], max(epochs[-1], epochs[0] + 1), LEFT, WIDTH - RIGHT)
    up = _Scale(min(ticks[0], min(values)), max(ticks[-1], max(values)), HEIGHT - BOTTOM, TOP)
    told = ", ".join(
        f"{_SPLITS[part]} from {_told(curve[0], fraction)} to {_told(curve[-1], fraction)}"
        for part in of
        if (curve := [value for value in curves[names[part]] if math.isfinite(value)])
    )
    selected = "" if best is None else f"; selected epoch {best}"
    parts = [_frame(f"{what} by epoch: {told} in {len(epochs)} epochs{selected}"), *_vertical_axis(ticks, up, fraction)]
    parts += _horizontal_ticks([tick for tick in nice_ticks(epochs[0], epochs[-1], 8) if tick == int(tick)], across)
    if best is not None:
        x = across(best)
        parts.append(f'<line class="mark" x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{HEIGHT - BOTTOM}"/>')
    for name, line in curves.items():
        points = " ".join(
            f"{across(epoch):.1f},{up(value):.1f}"
            for epoch, value in zip(epochs, line, strict=False)
            if math.isfinite(value)
        )
        if points:
            parts.append(f'<polyline class="line {name}" points="{points}"/>')
    parts.append(_label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, "epoch"))
    return Markup("".join([*parts, "</svg>"]))


def reliability(calibration: Sequence[Mapping[str, Any]]) -> Markup:
    """Accuracy against confidence in bins; the dashed diagonal is perfect calibration. Paler bins hold fewer rows."""
    across, up = _Scale(0, 1, LEFT, WIDTH - RIGHT), _Scale(0, 1, HEIGHT - BOTTOM, TOP)
    told = "; ".join(_bin(line) for line in calibration if line["rows"])
    parts = [_frame(f"accuracy by confidence: {told}"), *_vertical_axis([0, 0.25, 0.5, 0.75, 1], up, True)]
    most = max(line["rows"] for line in calibration)
    for line in calibration:
        if line["rows"]:
            x, y = across(line["from"]), up(line["accuracy"])
            width = across(line["to"]) - x - 1
            strength = 0.25 + 0.75 * (line["rows"] / most) ** 0.5
            parts.append(
                f'<rect class="column" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{HEIGHT - BOTTOM - y:.1f}" '
                f'fill-opacity="{strength:.2f}"><title>{escape(_bin(line))}</title></rect>'
            )
    parts.append(f'<line class="mark" x1="{across(0)}" y1="{up(0)}" x2="{across(1)}" y2="{up(1)}"/>')
    parts += _horizontal_ticks([0, 0.25, 0.5, 0.75, 1], across, fraction=True)
    parts.append(_label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, "confidence"))
    return Markup("".join([*parts, "</svg>"]))


@dataclass(frozen=True, kw_only=True)
class Point:
    """One model in a chart: accuracy with its interval, 0 .. 1, at a cost above 0."""

    name: str
    cost: float
    accuracy: float
    low: float
    high: float


def accuracy_by_cost(points: Sequence[Point], what: str) -> Markup:
    """Accuracy against a cost on a logarithmic axis, each point with its interval and name; nothing without points.

    Args:
        what: the cost with its unit.
    """
    if not points:
        return Markup("")
    ticks = nice_ticks(min(point.low for point in points), max(point.high for point in points))
    decades = log_ticks(min(point.cost for point in points), max(point.cost for point in points))
    up = _Scale(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP)
    across = _Scale(math.log10(decades[0]), math.log10(decades[-1]), LEFT, WIDTH - RIGHT)
    told = "; ".join(f"{point.name} {100 * point.accuracy:.1f} % at {point.cost:.3g}" for point in points)
    parts = [_frame(f"accuracy by {what}: {told}"), *_vertical_axis(ticks, up, True)]
    parts += [_label(across(math.log10(tick)), HEIGHT - BOTTOM + 15, f"{tick:,g}") for tick in decades]
    parts.append(_label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, what))
    taken: list[tuple[float, float, float]] = []  # left, right and baseline of the names
    for point in sorted(points, key=lambda one: -one.accuracy):
        x, y, width = across(math.log10(point.cost)), up(point.accuracy), _LETTER * len(point.name)
        low, high = up(point.low), up(point.high)
        parts.append(f'<line class="whisker" x1="{x:.1f}" y1="{low:.1f}" x2="{x:.1f}" y2="{high:.1f}"/>')
        parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>')
        left = x - 8 - width if x > (LEFT + WIDTH) / 2 else x + 8
        baseline = y + 4
        while any(abs(baseline - other) < _LINE and left < end and start < left + width for start, end, other in taken):
            baseline += 1
        taken.append((left, left + width, baseline))
        parts.append(f'<text class="tick" x="{left:.1f}" y="{baseline:.1f}">{escape(point.name)}</text>')
    return Markup("".join([*parts, "</svg>"]))


@dataclass(frozen=True)
class Axis:
    """One of several axes side by side: from `low` at the bottom to `high`, with named ticks.

    absent: whether some line has no value here, and passes below.
    """

    name: str
    low: float
    high: float
    log: bool = False
    ticks: Sequence[tuple[float, str]] = ()
    absent: bool = False


@dataclass(frozen=True)
class Line:
    """One value for each axis, None where there is none; the best line is drawn in another color."""

    name: str
    values: Sequence[float | None]
    best: bool = False


def parallel(axes: Sequence[Axis], lines: Sequence[Line]) -> Markup:
    """Parallel coordinates: a line through all axes for each trial, the later in `lines` the darker."""
    width, bottom = max(2 * WIDTH, 150 * (len(axes) - 1) + LEFT + RIGHT), HEIGHT - BOTTOM - 14
    told = next((f"; best {line.name}" for line in lines if line.best), "")
    parts = [_frame(f"{len(lines)} trials by {', '.join(axis.name for axis in axes)}{told}", width)]
    columns = _Scale(0, max(1, len(axes) - 1), LEFT, width - 60)
    scales = [_Scale(_log(axis.low, axis.log), _log(axis.high, axis.log), bottom, TOP) for axis in axes]
    for index, line in enumerate(lines):
        points = " ".join(
            f"{columns(place):.1f},{bottom + 12 if value is None else scale(_log(value, axis.log)):.1f}"
            for place, (axis, scale, value) in enumerate(zip(axes, scales, line.values, strict=True))
        )
        kind, opacity = ("b", 1.0) if line.best else ("a", 0.25 + 0.75 * index / len(lines))
        parts.append(
            f'<polyline class="line {kind}" stroke-opacity="{opacity:.2f}" points="{points}">'
            f"<title>{escape(line.name)}</title></polyline>"
        )
    for place, (axis, scale) in enumerate(zip(axes, scales, strict=True)):
        x = columns(place)
        parts.append(f'<line class="rule" x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}"/>')
        parts += [
            f'<text class="tick" x="{x + 5:.1f}" y="{scale(_log(tick, axis.log)) + 3.5:.1f}">{escape(text)}</text>'
            for tick, text in axis.ticks
        ]
        if axis.absent:
            parts.append(f'<text class="tick" x="{x + 5:.1f}" y="{bottom + 15}">none</text>')
        parts.append(_label(x, HEIGHT - 4, axis.name))
    return Markup("".join([*parts, "</svg>"]))


def bars(fractions: Mapping[str, float], what: str) -> Markup:
    """Named fractions of a whole as horizontal bars."""
    told = ", ".join(f"{name} {100 * value:.0f} %" for name, value in fractions.items())
    left, step = 12 + _LETTER * max(map(len, fractions), default=0), 24
    parts = [_frame(f"{what}: {told}", height=step * len(fractions) + 8)]
    across = _Scale(0, 1, left, WIDTH - 40)
    for index, (name, value) in enumerate(fractions.items()):
        y = 4 + step * index
        parts.append(f'<text class="tick" x="{left - 7:.1f}" y="{y + 14}" text-anchor="end">{escape(name)}</text>')
        size = across(value) - left
        parts.append(f'<rect class="column" x="{left:.1f}" y="{y + 3}" width="{size:.1f}" height="14"/>')
        parts.append(f'<text class="tick" x="{left + size + 6:.1f}" y="{y + 14}">{100 * value:.0f} %</text>')
    return Markup("".join([*parts, "</svg>"]))


def alone(chart: Markup) -> str:
    """A chart as a file of its own, with the page's style sheet in it."""
    style = resources.files("fer.report").joinpath("templates", "style.css").read_text(encoding="utf-8")
    head, _, rest = str(chart).partition(">")
    return f'{head} xmlns="http://www.w3.org/2000/svg"><style><![CDATA[{style}]]></style>{rest}'


def _log(value: float, log: bool) -> float:
    return math.log10(value) if log else value


def log_ticks(low: float, high: float) -> list[float]:
    """Numbers 1, 2 or 5 times a power of ten that span low .. high, both above 0; powers alone where they are many."""
    powers = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 2)
    steps = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    first = max(index for index, step in enumerate(steps) if step <= low * (1 + 1e-9))
    last = min(index for index, step in enumerate(steps) if step >= high * (1 - 1e-9) and index > first)
    if last - first > 6:
        return [10.0**power for power in powers]
    return steps[first : last + 1]


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most `most` + 1 round numbers that span low .. high (steps of 1, 2 or 5 times a power of ten)."""
    if high <= low:
        high = low + 1
    raw = (high - low) / most
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]


def _told(value: float, fraction: bool) -> str:
    return f"{100 * value:.1f} %" if fraction else f"{value:.3g}"


def _bin(line: Mapping[str, Any]) -> str:
    return f"confidence {100 * line['confidence']:.0f} %, accuracy {100 * line['accuracy']:.0f} %, {line['rows']} rows"


def _frame(title: str, width: float = WIDTH, height: float = HEIGHT) -> str:
    size, told = f"0 0 {width:g} {height:g}", escape(title)
    return f'<svg viewBox="{size}" role="img" aria-label="{told}"><title>{told}</title>'


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
