"""The page: reports/index.html, one file that needs nothing else, online or off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fer.published import WORKS
from fer.report import charts
from fer.report.collect import Content, Dataset, Result
from fer.report.evaluations import Evaluation
from fer.shards.schema import SPLITS

if TYPE_CHECKING:
    import jinja2


def environment() -> jinja2.Environment:
    """The templates of this package, with the filters below."""
    import jinja2

    engine = jinja2.Environment(
        loader=jinja2.PackageLoader("fer.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    engine.filters |= {
        "percent": percent,
        "number": number,
        "duration": duration,
        "short": short,
        "points": points,
    }
    return engine


def render(content: Content) -> str:
    """The page; a function of its content alone."""
    engine = environment()
    return engine.get_template("report.html").render(
        content=content,
        charts=charts,
        class_lines=class_lines,
        ladder=ladder,
        splits=SPLITS,
        style=engine.get_template("style.css").render(),
    )


def percent(fraction: float | None, digits: int = 1) -> str:
    """0.6571 -> 65.7; a dash for nothing."""
    return "–" if fraction is None else f"{100 * fraction:.{digits}f}"


def points(difference: float | None, digits: int = 1) -> str:
    """0.0123 -> +1.2, with its sign; a dash for nothing."""
    return "–" if difference is None else f"{100 * difference:+.{digits}f}".replace("-", "−")


def number(value: float | None) -> str:
    """1234567 -> 1,234,567; a dash for nothing."""
    return "–" if value is None else f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """Seconds as `45 s`, `12 min 5 s` or `3 h 20 min`; a dash for nothing."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def short(digest: str | None) -> str:
    """The first twelve digits of a digest; a dash for nothing."""
    return "–" if not digest else digest[:12]


def class_lines(labels: Sequence[str], histogram: Mapping[str, Sequence[int]]) -> list[dict[str, Any]]:
    """Each class with its rows, its fraction of every split, and that relative to the largest class of the split."""
    lines: list[dict[str, Any]] = []
    for index, label in enumerate(labels):
        splits = {
            split: {
                "rows": counts[index],
                "fraction": counts[index] / max(1, sum(counts)),
                "of_largest": counts[index] / max(1, *counts),
            }
            for split, counts in histogram.items()
        }
        lines.append({"name": label, "splits": splits})
    return lines


def ladder(dataset: Dataset) -> list[dict[str, Any]]:
    """Our results and the published ones of a dataset on one scale, the best first.

    Each line has name, value, low, high (a margin or interval, or None), ours, where and note. A run whose
    epoch was selected on the test split has a line for each protocol, one with test-time augmentation a line for that.
    """
    lines = [line for result in dataset.results if result.test for line in _ours(result)]
    lines += [_measured(one) for one in dataset.evaluations if one.published and "classes" not in one.test]
    for work in dataset.published:
        margin = work.margin
        lines.append(
            {
                "name": work.row,
                "value": work.fraction,
                "low": work.fraction - margin if margin else None,
                "high": work.fraction + margin if margin else None,
                "ours": False,
                "where": f"{WORKS[work.work]}, {work.table}",
                "note": "; ".join(text for text in (work.setting, work.note) if text),
            }
        )
    return sorted(lines, key=lambda line: -line["value"])


def _measured(one: Evaluation) -> dict[str, Any]:
    """The line of published weights on our test rows."""
    interval = one.interval("accuracy") or {}
    printed = f"; printed {percent(one.about['printed'], 2)} %" if one.about.get("printed") else ""
    return {
        "name": f"{one.name}, published weights",
        "value": one.test["accuracy"],
        "low": interval.get("low"),
        "high": interval.get("high"),
        "ours": True,
        "where": "this report",
        "note": f"{one.test['rows']:,} test rows{printed}; {one.about.get('protocol') or 'protocol not known'}",
    }


def _ours(result: Result) -> list[dict[str, Any]]:
    """The lines of one of our results."""
    rows = f"{result.test['rows']:,} test rows"
    optimistic = "all other rows trained on, epoch selected on the test split, as published code does: optimistic"
    found = [(result.model, result.test["accuracy"], result.interval("accuracy"), "epoch selected on validation")]
    if result.selected_on_test:
        found[0] = (*found[0][:3], optimistic)
    if result.refit:
        found[0] = (
            *found[0][:3],
            "number of epochs selected on validation, then all rows but the test split's trained on",
        )
    if result.protocols and (chosen := result.protocols["validation"]):
        name, note = f"{result.model}, validation-selected", f"epoch {chosen['epoch']}"
        found.append((name, chosen["accuracy"], result.protocol_interval("validation"), note))
    if result.tta:
        name, note = f"{result.model}, {result.tta['name']} views", "test-time augmentation"
        if result.selected_on_test:
            note += f"; {optimistic}"
        found.append((name, result.tta["accuracy"], result.tta_interval("accuracy"), note))
    return [
        {
            "name": name,
            "value": value,
            "low": (interval or {}).get("low"),
            "high": (interval or {}).get("high"),
            "ours": True,
            "where": "this report",
            "note": f"{rows}; {note}",
        }
        for name, value, interval, note in found
    ]
