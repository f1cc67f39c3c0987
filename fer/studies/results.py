"""What is made of the runs of a study: a table and figures, each kind of study its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from fer import published
from fer.config import ConfigError
from fer.evaluation import figures
from fer.evaluation.aggregate import Spread, markdown_table, percent, spread
from fer.published import Number
from fer.studies import Kind, Row, Study, StudyOptions, lhc_analysis, noise
from fer.studies import figures as study_figures
from fer.studies.cell import Cell, Plan

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
    "is not below the host's plus 10 %."
)
_VIEWS_NOTE = (
    "The run of each set with the best validation accuracy, where the paper takes the best on the test set; as "
    "parameters count all numbers that Keras stores, BatchNorm's statistics among them."
)
MEAN_OF_CLASSES = "mean of the classes"
CLASS_NAMES: Mapping[str, tuple[str, ...]] = {"happiness": ("Happy",), "sadness": ("Sad", "Sadness")}
"""Printed names of classes; others are printed as they are called here."""
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
    drawn = {}
    if study.axis is not None:
        for dataset in dict.fromkeys(line["dataset"] for line in table):
            lines = [line for line in table if line["dataset"] == dataset]
            levels = {row.row: row.level for row in study.rows}
            points = sorted((levels[line["row"]] or 0.0, line["test"], line["published"]) for line in lines)
            title = _titled(f"{study.title} ({_shown(lines[0])})", options)
            drawn[f"curve-{dataset}"] = study_figures.curve(points, study.axis, title)
    if study.draw:
        drawn |= _of_runs(study, options, plan, results)
    return Report(markdown(study, options, table), {"rows": plain}, drawn)


def _of_runs(study: Study, options: StudyOptions, plan: Plan, results: Results) -> dict[str, Figure]:
    """The figures of single runs that the study asks for, of the first of each row and dataset."""
    first: dict[tuple[str, str], tuple[Cell, Mapping[str, Any]]] = {}
    for cell, one in zip(plan.cells, results, strict=True):
        first.setdefault((cell.row, cell.dataset), (cell, one))
    drawn: dict[str, Figure] = {}
    for (row, dataset), (cell, result) in first.items():
        name, title = re.sub(r"\W+", "_", f"{row} {dataset}"), _titled(f"{row}, {cell.known_as or dataset}", options)
        if "confusion" in study.draw:
            labels, predicted = plan.predictions(cell)
            matrix = np.zeros((len(cell.job.labels),) * 2, np.int64)
            np.add.at(matrix, (labels, predicted), 1)
            drawn[f"confusion-{name}"] = figures.confusion(matrix, cell.job.labels, title, normalized=True)
        if "training" in study.draw and "history" in result:  # which results of an earlier version lack
            drawn[f"training-{name}"] = figures.learning_curves(result["history"], result["best_epoch"], title)
    return drawn


def summarize(study: Study, options: StudyOptions, results: Results) -> list[dict[str, Any]]:
    """A line for each row and dataset with results, dataset by dataset.

    Each has spreads over its cells, their difference pair by pair to the row that it is compared with, and the printed
    accuracy.
    """
    known_as = {one["dataset"]: one["known_as"] for one in results}
    cells: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for one in results:
        cells.setdefault((one["row"], one["dataset"]), []).append(one)
    lines = []
    for dataset in known_as:
        for row in options.chosen(study):
            if not (own := cells.get((row.row, dataset))):
                continue
            against = study.compared_with(row)
            base = {(one["seed"], one["fold"]): one["test_accuracy"] for one in cells.get((against or "", dataset), [])}
            pairs = [one["test_accuracy"] - base[pair] for one in own if (pair := (one["seed"], one["fold"])) in base]
            augmented = [one["test_tta_accuracy"] for one in own if "test_tta_accuracy" in one]
            lines.append(
                {
                    "row": row.row,
                    "dataset": dataset,
                    "known_as": known_as[dataset],
                    "published": study.printed(row, dataset, known_as[dataset]),
                    "test": spread([one["test_accuracy"] for one in own]),
                    "validation": spread([one["val_accuracy"] for one in own]) if "val_accuracy" in own[0] else None,
                    "difference": asdict(spread(pairs)) if pairs else None,
                    "against": against if pairs else None,
                    **{name: own[0].get(name) for name in ("parameters", "gmacs", "kept_mb", "peak_memory_mb")},
                    "printed_costs": {} if options.smoke else _printed_costs(study, row, known_as[dataset]),
                    "seconds": sum(one["seconds"] for one in own),
                    "selected_on_test": "protocols" in own[0],
                }
            )
            if all(one.get("protocols", {}).get("validation") for one in own):
                accuracies = [one["protocols"]["validation"]["accuracy"] for one in own]
                lines[-1]["validation_selected"] = spread(accuracies)
            if augmented:
                gains = [value - one["test_accuracy"] for value, one in zip(augmented, own, strict=True)]
                lines[-1] |= {"tta": spread(augmented), "tta_gain": spread(gains)}
    return lines


def _printed_costs(study: Study, row: Row, known_as: str | None) -> dict[str, str]:
    """What the table prints of a row's parameters and operations, which are those of all datasets."""
    found = {
        metric: study.number(row, known_as, metric) or study.number(row, "", metric) for metric in ("params", "flops")
    }
    return {metric: f" [{one.printed} {one.unit}]" for metric, one in found.items() if one is not None}


def markdown(study: Study, options: StudyOptions, table: Sequence[Mapping[str, Any]]) -> str:
    """The table for people: of several datasets first all accuracies beside each other, then each dataset's own."""
    text = _heading(study, options)
    datasets = {line["dataset"]: [one for one in table if one["dataset"] == line["dataset"]] for line in table}
    if len(datasets) > 1:
        found = {(line["row"], line["dataset"]): line for line in table}
        names = [row.row for row in study.rows if any((row.row, name) in found for name in datasets)]
        header = ["test accuracy, % [published]", *(_shown(lines[0]) for lines in datasets.values())]
        rows = [[name, *(_beside(found.get((name, dataset))) for dataset in datasets)] for name in names]
        text += [*markdown_table(header, rows), ""]
    for lines in datasets.values():
        text += [f"## {_shown(lines[0])}", ""] if len(datasets) > 1 else []
        text += _of_dataset(study, options, lines)
    on_test = any(line["selected_on_test"] for line in table)
    return "\n".join([*text, *(("", _PUBLISHED_PROTOCOL) if on_test else ())]).rstrip() + "\n"


def _of_dataset(study: Study, options: StudyOptions, table: Sequence[Mapping[str, Any]]) -> list[str]:
    against = {line["against"] for line in table} - {None}
    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "row": lambda line: str(line["row"]),
        "test accuracy, %": lambda line: _mean(line["test"]),
        "95 % interval of the mean": lambda line: _bounds(line["test"]),
        "n": lambda line: str(line["test"].count),
        "validation, %": lambda line: _mean(line["validation"]) if line["validation"] else "-",
    }
    if against:
        name = f"against {next(iter(against))}" if len(against) == 1 else "against"
        columns[f"{name}, points"] = lambda line: (
            _against(line["difference"]) + (f" {line['against']}" if line["against"] and len(against) > 1 else "")
        )
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
    costs = any(line["printed_costs"] for line in table)
    columns["parameters [published]" if costs else "parameters"] = lambda line: (
        f"{line['parameters']:,}{line['printed_costs'].get('params', '')}"
    )
    if costs:
        columns["GMACs [published FLOPs]"] = lambda line: (
            f"{_number(line['gmacs'])}{line['printed_costs'].get('flops', '')}"
        )
    if len({line["kept_mb"] for line in table}) > 1:
        columns["kept for the backward pass, MB an image"] = lambda line: _number(line["kept_mb"])
    if any(line["peak_memory_mb"] for line in table):
        columns["peak GPU memory, MB"] = lambda line: _number(line["peak_memory_mb"])
    printed = any(line["published"] is not None for line in table)
    if printed:
        of = " of the folds' validation" if options.folds or study.folds else ""
        columns[f"published{of}, %"] = lambda line: _number(line["published"])
    text = markdown_table(columns, ([write(line) for write in columns.values()] for line in table))
    if not printed and not options.smoke and study.kind == "table":
        text += ["", f"The source prints no accuracy for {_shown(table[0])}."]
    if cited := [f"{one.row} {one.value:g}" for one in study.cited(table[0]["known_as"] or "")]:
        text += ["", f"In the same table, not trained here: {'; '.join(cited)} %."]
    return [*text, ""]


def _classes(study: Study, options: StudyOptions, plan: Plan, results: Results) -> Report:
    """The table, and for each dataset the accuracy of every class and their mean, beside the printed ones."""
    base = _table(study, options, plan, results)
    rows = {row.row: row for row in options.chosen(study)}
    recalls: dict[tuple[str, str], list[list[float]]] = {}
    names: dict[str, list[str]] = {}
    for cell in plan.cells:
        labels, predicted = plan.predictions(cell)
        present = np.unique(labels)  # a class without test images has no accuracy
        classes = [float((predicted[labels == one] == one).mean()) for one in present]
        recalls.setdefault((cell.dataset, cell.row), []).append([*classes, fmean(classes)])
        names[cell.dataset] = [*(cell.job.labels[one] for one in present), MEAN_OF_CLASSES]
    text, found = [base.markdown], []
    for dataset, columns in names.items():
        known_as = next(cell.known_as for cell in plan.cells if cell.dataset == dataset)
        lines = []
        for name, row in rows.items():
            if not (runs := recalls.get((dataset, name))):
                continue
            texts = [name]
            for label, accuracies in zip(columns, zip(*runs, strict=True), strict=True):
                ours, printed = spread(accuracies), _printed_class(study, row, known_as, label)
                about = {"row": name, "dataset": dataset, "label": label, "published": printed and printed.value}
                texts.append(_beside({**about, "test": ours}))
                found.append({**about, "test": asdict(ours)})
            lines.append(texts)
        lines += [
            [f"{rival}, cited", *("-" if (value := cited.get(label)) is None else f"[{value:g}]" for label in columns)]
            for rival, cited in _cited_classes(study, known_as, columns).items()
        ]
        text += [f"## Accuracy of every class, {known_as or dataset}, % [published]", ""]
        text += [*markdown_table(["row", *columns], lines), ""]
    return Report("\n".join(text).rstrip() + "\n", {**base.content, "classes": found}, base.figures)


def _printed_class(study: Study, row: Row, known_as: str | None, label: str) -> Number | None:
    """The printed accuracy of a class; papers call happiness Happy and sadness Sad or Sadness."""
    if label == MEAN_OF_CLASSES:
        return study.number(row, known_as, "mean_accuracy")
    names = CLASS_NAMES.get(label, (label.capitalize(),))
    return next((one for name in names if (one := study.number(row, known_as, "class_accuracy", name))), None)


def _cited_classes(study: Study, known_as: str | None, labels: Sequence[str]) -> dict[str, dict[str, float]]:
    """By model, by class: what the table prints of models that are no rows here."""
    found: dict[str, dict[str, float]] = {}
    for label in labels:
        names = CLASS_NAMES.get(label, (label.capitalize(),))
        metric = "mean_accuracy" if label == MEAN_OF_CLASSES else "class_accuracy"
        for one in study.cited(known_as or "", metric):
            if one.setting in names or label == MEAN_OF_CLASSES:
                found.setdefault(one.row, {})[label] = one.value
    return found


def _heading(study: Study, options: StudyOptions) -> list[str]:
    lines = [f"# {study.title}", "", f"{study.source}."]
    return [*lines, *(line for note in _notes(study, options) for line in ("", note)), ""]


def _notes(study: Study, options: StudyOptions) -> list[str]:
    left_out = [name for name in study.datasets if options.dataset and name not in options.dataset]
    columns = f"Datasets of the table that were not trained on: {', '.join(left_out)}." if left_out else None
    notes = (_SMOKE if options.smoke else None, options.departure(study), columns, study.note)
    return [note for note in notes if note]


def _shown(line: Mapping[str, Any]) -> str:
    """A line's dataset for people."""
    return str(line["known_as"] or line["dataset"])


def _beside(line: Mapping[str, Any] | None) -> str:
    """Ours, and in brackets the printed number."""
    if line is None:
        return "-"
    return _mean(line["test"]) + ("" if line["published"] is None else f" [{_number(line['published'])}]")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


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
        if not cells:
            continue
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
    """Sets A, B and C (section 3): B and C are one set, which is compared with A, the first series."""
    hosts = [one for one in results if one["row"] == study.baseline]
    if not hosts:
        raise ConfigError(f"{study.title}: no seed of {study.baseline!r} is finished; run the study again")
    host = max(hosts, key=lambda one: float(one["val_accuracy"]))
    found = {name: study.runs_of(name, results) for name in study.series()}
    base, *others = study.series()
    lines, rows, second = [], [], []
    for name, runs in found.items():
        if not runs:
            continue
        printed = _printed_set(name, runs[0]["known_as"])
        line = lhc_analysis.set_summary(runs, host["train_loss"], found[base] if name in others else ())
        best = max(runs, key=lambda one: float(one["val_accuracy"]))
        views = {"TTA no": best["test_accuracy"], "TTA yes": best.get("test_tta_accuracy")}
        about = {name: runs[0][name] for name in ("dataset", "known_as")}
        lines.append({"row": name, **about, "printed": printed, **line, "views": views})
        rows.append(
            [
                *(name, str(line["runs"]), str(len(line["rejected"])), percent(line["mean"])),
                *(f"{percent(line[column])} [{printed.get(column, '-')}]" for column in _SET_COLUMNS),
                _against(asdict(spread(line["differences"])) if line["differences"] else None),
            ]
        )
        sizes = {"params": f"{best['keras_parameters'] / 1e6:.1f}", "attention_share": percent(best["attention_share"])}
        ours = {column: percent(value) for column, value in views.items()} | sizes
        second.append([name, *(f"{text} [{printed.get(column, '-')}]" for column, text in ours.items())])
    header = ["set", "runs", "left out", "mean, %", *(f"{name}, %" for name in _SET_COLUMNS)]
    text = [*_heading(study, options), _origins(host, results), ""]
    text += markdown_table([*header, f"against {base} at equal seeds, points"], rows)
    text += ["", _SET_NOTE, "", "## With views (Results 2)", "", _VIEWS_NOTE, ""]
    names = ("model", "plain, %", f"with {study.tta} views, %", "parameters, M", "of them attention, %")
    text += markdown_table(names, second)
    figure = study_figures.lhc_sets(lines, _titled("LHC-Net: sets of runs", options))
    return Report("\n".join(text) + "\n", {"sets": lines, "host": host["key"]}, {"sets": figure})


def _printed_set(name: str, known_as: str | None) -> dict[str, float]:
    """What Results 1 and 2 print for a set: accuracies and shares in %, parameters in M."""
    if known_as is None:
        return {}
    found = {column: ("Results 1", "accuracy", column) for column in _SET_COLUMNS}
    found |= {setting: ("Results 2", "accuracy", setting) for setting in ("TTA no", "TTA yes")}
    found |= {metric: ("Results 2", metric, "TTA no") for metric in ("params", "attention_share")}
    values = {
        key: published.value("lhc_net", table, name, known_as, metric, setting)
        for key, (table, metric, setting) in found.items()
    }
    return {key: value for key, value in values.items() if value is not None}


def _origins(host: Mapping[str, Any], results: Results) -> str:
    """Which host and which setting were taken, in words."""
    taken = next((one["recipe_of"] for one in results if "recipe_of" in one), None)
    text = f"The host: {host['row']}, seed {host['seed']}, {percent(host['test_accuracy'])} % on test."
    return text + (f" The best setting: {taken}." if taken else "")


def _lhc_blocks(study: Study, options: StudyOptions, plan: Plan, results: Results) -> Report:
    base = _table(study, options, plan, results)
    probes: dict[str, list[Mapping[str, Any]]] = {}
    for row in options.chosen(study):
        found = [one["probes"] for one in results if one["row"] == row.row]
        if found and found[0]["off"]:  # a network without blocks has nothing to switch off
            probes[row.row] = found
    without = {row: lhc_analysis.without_blocks(found) for row, found in probes.items()}
    efficiency = lhc_analysis.efficiency()
    text = [base.markdown, *lhc_analysis.block_tables(without, probes), "", *lhc_analysis.efficiency_tables(efficiency)]
    figures = {"efficiency": study_figures.lhc_efficiency(efficiency, "LHC-Net: where local heads pay")}
    if probes:
        first = next(iter(probes))
        plain = fmean(one["test_accuracy"] for one in results if one["row"] == first)
        figures["blocks"] = study_figures.lhc_blocks(plain, without[first], _titled(first, options))
    pairs = {
        row: [value for one in seeds for block in one["heads"] for value in block["correlations"]]
        for row, seeds in probes.items()
    }
    alike = {row: fmean(values) for row, values in pairs.items() if values}
    content = {**base.content, "head_correlation": alike, "efficiency": efficiency}
    return Report("\n".join(text) + "\n", content, figures)


_KINDS: dict[Kind, Callable[[Study, StudyOptions, Plan, Results], Report]] = {
    "table": _table,
    "classes": _classes,
    "lhc_sets": _lhc_sets,
    "lhc_blocks": _lhc_blocks,
    "noise": _noise,
}
