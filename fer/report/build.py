"""The report stage: reports/index.html, one file that needs nothing else, online or off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fer.console import log
from fer.io.files import write_atomic
from fer.params import Params
from fer.report import charts
from fer.report.collect import Content, Dataset, Result, collect
from fer.shards.schema import SPLITS


def run_report(params: Params) -> Path:
    """Writes reports/index.html from data/shards, trained, evaluated, and studies where there are; returns its path."""
    content = collect(params)
    path = params.root / "reports" / "index.html"
    write_atomic(path, render(content))
    done = sum(1 for result in content.results if not result.missing)
    log.info(f"report: {done} of {len(content.results)} results -> {path.relative_to(params.root)}")
    for result in content.results:
        for trouble in (*([result.missing] if result.missing else []), *result.stale):
            log.warning("%s on %s: %s", result.model, result.dataset, trouble)
    for trouble in content.studies.troubles:
        log.warning("left out of the report: %s", trouble)
    return path


def render(content: Content) -> str:
    """The page; a function of its content alone."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fer.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "number": number,
        "duration": duration,
        "short": short,
        "points": points,
    }
    return environment.get_template("report.html").render(
        content=content,
        charts=charts,
        class_lines=class_lines,
        ladder=ladder,
        splits=SPLITS,
        style=environment.get_template("style.css").render(),
    )


def percent(share: float | None, digits: int = 1) -> str:
    """0.6571 -> 65.7; a dash for nothing."""
    return "–" if share is None else f"{100 * share:.{digits}f}"


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
    """Each class with its rows, its share of every split, and that share as a part of the largest one in the split."""
    lines: list[dict[str, Any]] = []
    for index, label in enumerate(labels):
        splits = {
            split: {
                "rows": counts[index],
                "share": counts[index] / max(1, sum(counts)),
                "of_largest": counts[index] / max(1, *counts),
            }
            for split, counts in histogram.items()
        }
        lines.append({"name": label, "splits": splits})
    return lines


def ladder(dataset: Dataset) -> list[dict[str, Any]]:
    """Our results and the published figures of a dataset on one scale, the best first.

    Each line has name, value, low, high (a margin or interval, or None), ours, where and note. A training whose epoch
    the test split chose has a line for each protocol, one that was judged by several views a line with them.
    """
    lines = [line for result in dataset.results if result.test for line in _ours(result)]
    for figure in dataset.published:
        margin = figure.margin
        lines.append(
            {
                "name": figure.model,
                "value": figure.value,
                "low": figure.value - margin if margin else None,
                "high": figure.value + margin if margin else None,
                "ours": False,
                "where": f"{figure.work}, {figure.table}",
                "note": "; ".join(text for text in (figure.setting, figure.note) if text),
            }
        )
    return sorted(lines, key=lambda line: -line["value"])


def _ours(result: Result) -> list[dict[str, Any]]:
    """The lines of one of our results."""
    rows = f"{result.test['rows']:,} test rows"
    chosen = "epoch chosen on the test split, as published code does: optimistic"
    found = [(result.model, result.test["accuracy"], result.interval("accuracy"), "epoch selected on validation")]
    if result.chosen_on_test:
        found[0] = (*found[0][:3], chosen)
    if result.protocols:
        honest = result.protocols["validation"]
        name, note = f"{result.model}, honest", f"epoch {honest['epoch']}, which validation would have chosen"
        found.append((name, honest["accuracy"], result.protocol_interval("validation"), note))
    if result.tta:
        name, note = f"{result.model}, {result.tta['name']} views", "test-time augmentation"
        if result.chosen_on_test:
            note += f"; {chosen}"
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
