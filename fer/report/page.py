"""The page: reports/index.html, one file that needs nothing else, online or off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from fer.published import WORKS
from fer.report import charts
from fer.report.collect import Content, Dataset, Result
from fer.report.evaluations import Evaluation
from fer.report.html import environment, percent
from fer.shards.schema import SPLITS


def render(content: Content) -> str:
    """The page; a function of its content alone."""
    return environment("fer.report").get_template("report.html").render(
        content=content, charts=charts, class_lines=class_lines, ladder=ladder, splits=SPLITS, board=board,
        cost_points=cost_points, measured_on=measured_on,
    )  # fmt: skip


def board(results: Sequence[Result]) -> list[tuple[Result, dict[str, Any]]]:
    """Results with the values by which the leaderboard sorts them, the most accurate first, those without one last."""
    lines = []
    for result in results:
        train, own = result.train, result.train.get("train") or {}
        seconds, workers = train.get("seconds"), fmean(train.get("workers") or [max(1, own.get("workers", 1))])
        values = {
            "dataset": result.dataset,
            "model": result.model,
            **{name: result.test.get(name) for name in ("accuracy", "balanced_accuracy", "macro_f1", "ece", "rows")},
            "parameters": train.get("parameters"),
            "gmacs": result.cost.get("gmacs"),
            "latency_ms": result.cost.get("latency_ms"),
            "training": None
            if seconds is None
            else seconds * workers * (1 if own.get("gpu") else own.get("threads", 1)),
            "epoch": train.get("best_epoch"),
        }
        lines.append((result, values))
    return sorted(lines, key=lambda line: -line[1]["accuracy"] if line[1]["accuracy"] is not None else 1)


def cost_points(results: Sequence[Result], cost: str) -> list[charts.Point]:
    """The evaluated results of a dataset by a key of `fer.evaluation.speed.cost`."""
    return [
        charts.Point(
            name=result.model, cost=result.cost[cost], accuracy=result.test["accuracy"],
            low=interval["low"], high=interval["high"],
        )
        for result in results
        if result.cost.get(cost) and (interval := result.interval("accuracy"))
    ]  # fmt: skip


def measured_on(results: Sequence[Result]) -> list[str]:
    """Where the latencies were measured, each machine once."""
    return list(dict.fromkeys(result.cost["hardware"] for result in results if result.cost))


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
