"""Models by datasets: each model on the test split of each dataset, over the classes that both have.

    reports/evaluations/<dataset>/<name>/     the evaluation of each pair (fer.stages.score)
    reports/matrix/                           appears complete, by rename
        matrix.json, matrix.csv    a line for each pair: its metrics, or why it was skipped
        matrix.md                  the tables

A pair that was evaluated before is not computed again, so that a stopped matrix resumes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fer.console import log
from fer.evaluation.aggregate import markdown_table, percent
from fer.evaluation.classes import ExtraClasses
from fer.io.files import write_atomic, write_json
from fer.outputs import MATRIX
from fer.params import Params
from fer.stages.evaluate import open_shards
from fer.stages.score import Weights, score

METRICS = ("accuracy", "balanced_accuracy")
COLUMNS = (
    "weights", "kind", "trained_on", "selected_on_test", "dataset", "own_dataset", "synthetic", "skipped", "classes",
    "rows", *(f"{metric}{end}" for metric in METRICS for end in ("", "_low", "_high")), "without_duplicates_rows",
    "without_duplicates_accuracy",
)  # fmt: skip


def run(params: Params, datasets: Sequence[str], weights: Sequence[Weights], extra: ExtraClasses = "left_out") -> Path:
    """Evaluates every pair that is not there yet, and writes reports/matrix.

    Args:
        datasets: of expressions, with shards.

    Returns:
        its folder.

    Raises:
        ValueError: as `fer.stages.score.score`; too few shared classes are no error, but a line of the table.
    """
    final = MATRIX.folder(params.root)
    lines = []
    for dataset in datasets:
        shards = open_shards(params, dataset, "WEIGHTS")
        for one in weights:
            line = {
                "weights": one.name,
                "kind": one.about["kind"],
                "trained_on": one.about["trained_on"],
                "selected_on_test": one.about["selected_on_test"],
                "dataset": dataset,
                "own_dataset": one.trained_on(params, dataset),
                "synthetic": shards.manifest.synthetic,
                "skipped": one.refusal(shards),
            }
            if line["skipped"]:
                log.info(f"evaluate {one.name} on {dataset}: skipped: {line['skipped']}")
            else:
                line |= _measured(score(params, dataset, shards, one, extra)[1])
            lines.append({column: line.get(column) for column in COLUMNS})
    with MATRIX.publish(final) as folder:
        write_json(folder / "matrix.json", {"extra": extra, "lines": lines})
        write_atomic(folder / "matrix.csv", _csv(lines))
        write_atomic(folder / "matrix.md", "\n".join(tables(lines)) + "\n")
    log.info(f"matrix: {len(weights)} models on {len(datasets)} datasets -> {final.relative_to(params.root)}")
    return final


def _measured(summary: Mapping[str, Any]) -> dict[str, Any]:
    intervals = {line["metric"]: line for line in summary["intervals"]}
    unseen, every_class = summary["without_duplicates"], [line["class"] for line in summary["per_class"]]
    return {
        "classes": len(summary.get("classes", {}).get("shared", every_class)),
        "rows": summary["rows"],
        **{metric: summary[metric] for metric in METRICS},
        **{f"{metric}_{end}": intervals[metric][end] for metric in METRICS for end in ("low", "high")},
        "without_duplicates_rows": unseen.get("rows"),
        "without_duplicates_accuracy": unseen.get("accuracy"),
    }


def _csv(lines: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def tables(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown: a table for each metric, models down and datasets across, and what was skipped."""
    datasets = list(dict.fromkeys(line["dataset"] for line in lines))
    by_weights: dict[str, dict[str, Mapping[str, Any]]] = {}
    for line in lines:
        by_weights.setdefault(line["weights"], {})[line["dataset"]] = line
    out = ["# Models by datasets", ""]
    for metric in METRICS:
        rows = (
            [_title(next(iter(of.values()))), *(_cell(of[dataset], metric) for dataset in datasets)]
            for of in by_weights.values()
        )
        out += [f"## Test {metric.replace('_', ' ')}, %", "", *markdown_table(["model", *datasets], rows), ""]
    if synthetic := list(dict.fromkeys(line["dataset"] for line in lines if line["synthetic"])):
        out.append(f"SYNTHETIC, says nothing about accuracy on people: {', '.join(synthetic)}.\n")
    out.append(
        "In brackets: the interval over test rows. /n: the number of classes, shared by model and dataset. **Bold**: "
        "the dataset that the model was trained on."
    )
    skipped = (line for line in lines if line["skipped"])
    out += [f"\n{line['weights']} on {line['dataset']}: skipped, {line['skipped']}." for line in skipped]
    return out


def _title(line: Mapping[str, Any]) -> str:
    notes = [line["kind"]] if line["kind"] != "own weights" else []
    notes += ["epoch selected on test"] if line["selected_on_test"] else []
    return str(line["weights"]) + (f" ({'; '.join(notes)})" if notes else "")


def _cell(line: Mapping[str, Any], metric: str) -> str:
    if line["skipped"]:
        return "-"
    value = f"**{percent(line[metric])}**" if line["own_dataset"] else percent(line[metric])
    return f"{value} [{percent(line[f'{metric}_low'])}, {percent(line[f'{metric}_high'])}] /{line['classes']}"
