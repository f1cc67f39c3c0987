"""What is made of the runs of a study: a table and figures, each kind of study its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from fer.config import ConfigError
from fer.evaluation.aggregate import Spread, markdown_table, percent, spread
from fer.studies import Kind, Study, StudyOptions, lhc_analysis, noise
from fer.studies import figures as study_figures
from fer.studies.cell import Plan

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Results = Sequence[Mapping[str, Any]]
_SMOKE = "**Smoke run: small models on synthetic faces. It shows that every row runs, and nothing else.**"
_PUBLISHED_PROTOCOL = (
    "Test accuracy is that of the epoch selected on the test split, with all other rows trained on (protocol: "
    "published), above what the model reaches on other images; with selection: refit the validation-selected test "
    "accuracy is beside it."
)
_SET_NOTE = (
    "In brackets: as printed. The columns rank the runs on the test set, as the paper does, so that they are above "
    "what one more run would reach; the mean of all, and the last column, are not. Left out: runs whose training loss "
    "is not below that of their host plus 10 %."
)
_SET_COLUMNS = ("Top 40%", "Top 40% w/o best", "Top 25%", "Top 25% w/o best", "Best")


@dataclass(frozen=True)
class Report:
    """A finished study, for people and for results.json.

    Attributes:
        content: goes into results.json beside the cells.
        figures: by file name without its suffix.
    """

    markdown: str
    content: dict[str, Any]
    figures: Mapping[str, Figure] = field(default_factory=dict)


def read(study: Study, options: StudyOptions, plan: Plan, results: Results) -> Report:
    """Reads finished cells, `results` in the order of `plan.cells`, as the study's kind says."""
    return _KINDS[study.kind](study, options, plan, results)


# ------------------------------------------------------------------------------------------------ rows of a table


def _table(study: Study, options: StudyOptions, plan: Plan, results: Results) -> Report:
    table = summarize(study, options, results)
    plain = [
        {key: asdict(value) if isinstance(value, Spread) else value for key, value in row.items()} for row in table
    ]
    return Report(markdown(study, options, table), {"rows": plain})


def summarize(study: Study, options: StudyOptions, results: Results) -> list[dict[str, Any]]:
    """A line for each row with results: spreads over its cells, their difference to the baseline's pair by pair."""
    by_row = {row.row: [one for one in results if one["row"] == row.row] for row in options.chosen(study)}
    base = {(one["seed"], one["fold"]): one["test_accuracy"] for one in by_row.get(study.baseline or "", [])}
    lines = []
    for row in options.chosen(study):
        if not (cells := by_row[row.row]):
            continue
        pairs = [one["test_accuracy"] - base[one["seed"], one["fold"]] for one in cells if base]
        augmented = [one["test_tta_accuracy"] for one in cells if "test_tta_accuracy" in one]
        lines.append(
            {
                "row": row.row,
                "published": row.published,
                "test": spread([one["test_accuracy"] for one in cells]),
                "validation": spread([one["val_accuracy"] for one in cells]) if "val_accuracy" in cells[0] else None,
                "difference": asdict(spread(pairs)) if pairs and row.row != study.baseline else None,
                "parameters": cells[0]["parameters"],
                "seconds": sum(one["seconds"] for one in cells),
            }
        )
        lines[-1]["selected_on_test"] = "protocols" in cells[0]
        if all(one.get("protocols", {}).get("validation") for one in cells):
            accuracies = [one["protocols"]["validation"]["accuracy"] for one in cells]
            lines[-1]["validation_selected"] = spread(accuracies)
        if augmented:
            gains = [value - one["test_accuracy"] for value, one in zip(augmented, cells, strict=True)]
            lines[-1] |= {"tta": spread(augmented), "tta_gain": spread(gains)}
    return lines


def markdown(study: Study, options: StudyOptions, table: Sequence[Mapping[str, Any]]) -> str:
    """The table for people."""
    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "row": lambda line: str(line["row"]),
        "test accuracy, %": lambda line: _mean(line["test"]),
        "95 % interval of the mean": lambda line: _bounds(line["test"]),
        "n": lambda line: str(line["test"].count),
        "validation, %": lambda line: _mean(line["validation"]) if line["validation"] else "-",
        "against the baseline, points": lambda line: _against(line["difference"]),
    }
    if any("validation_selected" in line for line in table):
        columns["validation-selected test, %"] = lambda line: (
            _mean(line["validation_selected"]) if "validation_selected" in line else "-"
        )
    if study.tta != "none":
        columns |= {
            f"test with {study.tta} views, %": lambda line: _mean(line["tta"]),
            "95 % interval": lambda line: _bounds(line["tta"]),
            "gain, points": lambda line: _against(asdict(line["tta_gain"])),
        }
    columns |= {
        "parameters": lambda line: f"{line['parameters']:,}",
        "published, %": lambda line: "-" if line["published"] is None else f"{line['published']:g}",
    }
    lines = _heading(study, options)
    lines += markdown_table(columns, ([text(line) for text in columns.values()] for line in table))
    return (
        "\n".join([*lines, *(("", _PUBLISHED_PROTOCOL) if any(line["selected_on_test"] for line in table) else ())])
        + "\n"
    )


def _heading(study: Study, options: StudyOptions) -> list[str]:
    lines = [f"# {study.title}", "", f"{study.source}."]
    return [*lines, *(line for note in _notes(study, options) for line in ("", note)), ""]


def _notes(study: Study, options: StudyOptions) -> list[str]:
    return [note for note in (_SMOKE if options.smoke else None, options.departure(study), study.note) if note]


def _mean(value: Spread) -> str:
    return percent(value.mean) + (f" ± {percent(value.std)}" if value.std is not None else "")


def _bounds(value: Spread) -> str:
    return "-" if value.low is None else f"{percent(value.low)} to {percent(value.high)}"


def _against(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return "-"
    interval = "" if value["low"] is None else f" ({100 * value['low']:+.2f} to {100 * value['high']:+.2f})"
    return f"{100 * value['mean']:+.2f}{interval}"


def _titled(title: str, options: StudyOptions) -> str:
    return f"{title} (smoke run)" if options.smoke else title


# ------------------------------------------------------------------------------------------------ other kinds


def _noise(study: Study, options: StudyOptions, plan: Plan, results: Results) -> Report:
    found: dict[tuple[str, float], noise.Correctness] = {}
    for row in options.chosen(study):
        assert row.series is not None
        assert row.level is not None
        cells = sorted((cell for cell in plan.cells if cell.row == row.row), key=lambda cell: cell.job.seed)
        predictions = [plan.predictions(cell) for cell in cells]
        correct = np.stack([labels == predicted for labels, predicted in predictions])
        seeds = tuple(cell.job.seed for cell in cells)
        found[row.series, row.level] = noise.Correctness(seeds=seeds, labels=predictions[0][0], correct=correct)
    one, other = study.series()
    whole = [level for level in study.levels() if (one, level) in found and (other, level) in found]
    if not whole:
        raise ConfigError(f"fer study --rows: {one} and {other} are compared level by level, and no level has both")
    pairs = [(found[one, level], found[other, level]) for level in whole]
    report = {
        "series": [one, other],
        "levels": [{"level": level, **noise.compare(*pair)} for level, pair in zip(whole, pairs, strict=True)],
        "growth": noise.growth(pairs[0], pairs[-1]) if len(whole) > 1 else None,
    }
    text = "\n".join([*_heading(study, options), noise.markdown(report)])
    return Report(text, report, {"noise": study_figures.noise(report, _titled("Label noise", options))})


def _lhc_sets(study: Study, options: StudyOptions, plan: Plan, results: Results) -> Report:
    hosts = {one["seed"]: one for one in results if one["row"] == study.baseline}
    lines, rows = [], []
    for row in options.chosen(study):
        runs = [one for one in results if one["row"] == row.row]
        line = {"row": row.row, "printed": row.printed, **lhc_analysis.set_summary(runs, hosts)}
        lines.append(line)
        differences = line["differences"] if row.row != study.baseline else []
        rows.append(
            [
                *(row.row, str(line["runs"]), str(len(line["rejected"])), percent(line["mean"])),
                *(f"{percent(line[name])} [{row.printed.get(name, '-')}]" for name in _SET_COLUMNS),
                _against(asdict(spread(differences)) if differences else None),
            ]
        )
    header = ["set", "runs", "left out", "mean, %", *(f"{name}, %" for name in _SET_COLUMNS)]
    text = [*_heading(study, options), *markdown_table([*header, "against the host at equal seeds, points"], rows)]
    figure = study_figures.lhc_sets(lines, _titled("LHC-Net: sets of runs", options))
    return Report("\n".join([*text, "", _SET_NOTE]) + "\n", {"sets": lines}, {"sets": figure})


def _lhc_blocks(study: Study, options: StudyOptions, plan: Plan, results: Results) -> Report:
    base = _table(study, options, plan, results)
    probes: dict[str, list[Mapping[str, Any]]] = {}
    for row in options.chosen(study):
        found = [one["probes"] for one in results if one["row"] == row.row]
        if found and found[0]["off"]:  # a network without blocks has nothing to switch off
            probes[row.row] = found
    without = {row: lhc_analysis.without_blocks(found) for row, found in probes.items()}
    efficiency = lhc_analysis.published_efficiency()
    text = [base.markdown, *lhc_analysis.block_tables(without, probes, efficiency)]
    heads = range(1, 17)
    blocks, curves = lhc_analysis.efficiency_curves(heads)
    figures = {"efficiency": study_figures.lhc_break_even(blocks, heads, curves, "LHC-Net: where local heads pay")}
    if probes:
        first = next(iter(probes))
        plain = fmean(one["test_accuracy"] for one in results if one["row"] == first)
        figures["blocks"] = study_figures.lhc_blocks(plain, without[first], _titled(first, options))
    return Report("\n".join(text) + "\n", {**base.content, "break_even": efficiency}, figures)


_KINDS: dict[Kind, Callable[[Study, StudyOptions, Plan, Results], Report]] = {
    "table": _table,
    "lhc_sets": _lhc_sets,
    "lhc_blocks": _lhc_blocks,
    "noise": _noise,
}
