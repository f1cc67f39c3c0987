"""Our own runs, as the ledger sets them beside printed numbers: finished studies, and evaluated models.

    reports/studies/<name>/results.json           lines of a table: spreads over seeds
    evaluated/<dataset>/<model>/test.json         one model, with its bootstrap intervals
    reports/evaluations/<dataset>/*/test.json     weights that `fer evaluate` scored

Those of a project, and of the projects below `reproductions/` that `fer reproduce` makes. What is damaged or of another
version is left out here; the report says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from fer import published
from fer.config import read_yaml
from fer.evaluation.output import facts_in
from fer.io.files import read_json
from fer.labels import named
from fer.ledger.counts import create
from fer.params import FILE_NAME, Params, load
from fer.published import Number
from fer.shards.manifest import load_manifest
from fer.studies import list_studies

_DAMAGED = (ValueError, OSError, LookupError, TypeError, AttributeError)
"""What reading a file raises that is not what a study or an evaluation writes."""

_MEAN = "mean of the classes"
"""A line of a study of classes."""

_METRICS = {None: "accuracy", _MEAN: "mean_accuracy"}
"""By the label of a line; others are classes."""

_SIZES = re.compile(r"_(nano|tiny|small|base|large)$")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One of our accuracies.

    Attributes:
        work, table, row, setting: those of the printed number; of an evaluated model empty, but for the setting.
        dataset: as in print, or the key of ours where nobody has published on it.
        metric: accuracy, mean_accuracy or class_accuracy.
        value: in %; `ends` of its interval, where there is one.
        seeds: runs that it is the mean of.
        model: name in the registry, of an evaluated model. parameters: of a study's.
        about: what else differs from the paper.
    """

    dataset: str
    metric: str
    setting: str
    value: float
    where: str
    ends: tuple[float | None, float | None] = (None, None)
    seeds: int = 1
    work: str = ""
    table: str = ""
    row: str = ""
    model: str = ""
    parameters: int | None = None
    smoke: bool = False
    about: tuple[str, ...] = ()

    def nearness(self, number: Number, model: str, ablation: bool) -> int:
        """0 where it says nothing about the number; the highest for the same line of the same table at full size.

        An evaluated model, or the same row of another table, stands for a main result, never for a line of an ablation.
        """
        if self.metric != number.metric or _plain(self.setting) != _plain(number.setting):
            return 0
        here = self.dataset == number.dataset
        if (self.work, self.table, self.row) == (number.work, number.table, number.row):
            return 1 + here if self.smoke else 6 if here else 2
        if ablation or not here or self.smoke:
            return 0
        if self.work:
            return 4 if (self.work, self.row) == (number.work, number.row) else 0
        return 0 if _family(self.model) != _family(model) else 5 if self.model == model else 3

    def scale(self, model: str) -> str:
        """full, small or nano, by the model that the paper has."""
        if self.smoke or self.model.endswith("_nano"):
            return "nano"
        if self.model:
            return "full" if self.model == model else "small"
        return "full" if self.parameters is None or 2 * self.parameters >= _parameters(model) else "small"

    def differences(self, number: Number, model: str) -> list[str]:
        """What differs from the paper, in words."""
        found = [] if self.dataset == number.dataset else [f"on {self.dataset}"]
        if self.model and self.model != model:
            found.append(f"model {self.model}")
        return [*found, *(["smoke run"] if self.smoke else []), *self.about]


def measured(params: Params) -> list[Run]:
    """The runs of a project."""
    projects = [params]
    for path in sorted((params.home / "reproductions").glob(f"*/{FILE_NAME}")):
        with suppress(ValueError, OSError):
            projects.append(load(path))
    return [run for project in projects for run in (*_studies(project), *_evaluated(project))]


def commands() -> Callable[[Number], str]:
    """For a number, the command that would fill its line: the study of its table, or the paper's preset."""
    covered: dict[tuple[str, str], str] = {}
    for name in list_studies():
        study = read_yaml(resources.files("fer.studies").joinpath(f"{name}.yaml"))
        for place in _places(study):
            covered.setdefault(place, f"fer study {name}")

    def command(number: Number) -> str:
        table, whole = number.table.removeprefix("Table "), f"fer reproduce {number.work}"
        one = f"{whole} --tables {table}" if table.isdigit() else whole
        return covered.get((number.work, number.table), one)

    return command


def _places(study: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Work and table of a study; LHC-Net's kinds have theirs."""
    if study.get("work"):
        return [(study["work"], study["table"])]
    tables = {"lhc_sets": ("Results 1", "Results 2"), "lhc_blocks": ("text 2.2",)}
    return [("lhc_net", table) for table in tables.get(study.get("kind") or "", ())]


def _studies(params: Params) -> Iterator[Run]:
    for path in sorted((params.home / "reports" / "studies").glob("*/results.json")):
        with suppress(*_DAMAGED):
            content = read_json(path)
            study, options, lines = content["study"], content["options"], content.get("rows", ())
            recipe, changed = options.get("recipe"), options.get("set") or {}
            for work, table in _places(study)[:1]:
                shared: dict[str, Any] = {
                    "work": work,
                    "smoke": bool(options["smoke"]),
                    "where": f"study {path.parent.name}",
                    "about": (*([f"recipe {recipe}"] if recipe else ()), *(f"{k} = {v}" for k, v in changed.items())),
                }
                yield from _of_sets(content.get("sets", ()), shared, parameters=0 if recipe else None)
                cites = {row["row"]: row.get("cite") or {} for row in study["rows"]}
                of_row = {(line["row"], line.get("dataset")): line for line in lines}
                folded = any(one.get("fold") is not None for one in content.get("cells", ()))
                for row, value in content.get("head_correlation", {}).items():
                    whole = next(line for line in lines if line["row"] == row)
                    about = {"metric": "head_correlation", "setting": "", "table": table, "row": row}
                    dataset = whole.get("known_as") or str(whole.get("dataset"))
                    yield Run(**shared, **about, dataset=dataset, value=100 * value, seeds=whole["test"]["count"])
                for line in (*lines, *content.get("classes", ())):
                    cite, label = cites[line["row"]], line.get("label")
                    test = line["validation" if folded else "test"]  # a paper's folds are its validation
                    whole, row = of_row[line["row"], line.get("dataset")], cite.get("row") or line["row"]
                    yield Run(
                        **shared,
                        table=table,
                        row=row,
                        setting=label or cite.get("setting") or study.get("setting") or _only_setting(work, table, row),
                        dataset=whole.get("known_as")
                        or _known(str(line.get("dataset")), params)
                        or str(line["dataset"]),
                        metric=_METRICS.get(label, "class_accuracy"),
                        value=100 * test["mean"],
                        ends=(_percent(test["low"]), _percent(test["high"])),
                        seeds=test["count"],
                        parameters=whole.get("parameters"),
                    )

                for cell in (one for one in content["cells"] if one.get("fold") is not None):
                    yield Run(
                        **{**shared, "about": (*shared["about"], "accuracy on the fold that is held out")},
                        table=table,
                        row=cites[cell["row"]].get("row") or cell["row"],
                        setting=f"Fold {cell['fold'] + 1}",
                        dataset=cell.get("known_as")
                        or _known(str(cell.get("dataset")), params)
                        or str(cell["dataset"]),
                        metric="accuracy",
                        value=100 * cell["val_accuracy"],
                        parameters=cell["parameters"],
                    )


def _only_setting(work: str, table: str, row: str) -> str:
    """The setting of a row's printed accuracies, where all have the same."""
    settings = {number.setting for number in published.numbers(work=work, table=table, row=row, metric="accuracy")}
    return settings.pop() if len(settings) == 1 else ""


def _of_sets(sets: Iterable[Mapping[str, Any]], shared: dict[str, Any], parameters: int | None) -> Iterator[Run]:
    """LHC-Net's sets of runs: Results 1, means of the best of them; Results 2, the best one by validation."""
    for line in sets:
        columns = {name: line[name] for name in line if name.startswith("Top ") or name == "Best"}
        for table, values, how in (
            ("Results 1", columns, "ranked on test, as printed"),
            ("Results 2", line.get("views", {}), "best run by validation"),
        ):
            for setting, value in values.items():
                if value is not None:
                    yield Run(
                        **{**shared, "about": (*shared["about"], how)},
                        table=table,
                        row=line["row"],
                        setting=setting,
                        dataset=line.get("known_as") or line.get("dataset", "FER2013"),
                        metric="accuracy",
                        value=100 * value,
                        seeds=line["runs"],
                        parameters=parameters,
                    )


def _evaluated(params: Params) -> Iterator[Run]:
    places = ((params.root, "evaluated"), (params.home, "reports/evaluations"))
    for path in (one for root, place in places for one in sorted((root / place).glob("*/*/test.json"))):
        with suppress(*_DAMAGED):
            test, key, name = read_json(path), path.parent.parent.name, path.parent.name
            facts = facts_in(test)
            shards, trained = params.root / "data" / "shards" / key, params.root / "trained" / key / name / "train.json"
            if (shards / "manifest.json").is_file() and load_manifest(shards).synthetic:
                continue
            train = read_json(trained) if "kind" not in facts and trained.is_file() else {}
            dataset = _known(key, params, len(test["per_class"])) or key
            if facts.get("trained_on") not in (None, key, dataset):
                continue  # of another dataset, which no table here has
            rows, whole, unseen = test["rows"], published.test_rows(dataset), test.get("without_duplicates", {})
            about = [facts["kind"]] if "kind" in facts else []
            about += [f"{rows:,} of {whole:,} test rows"] if whole and rows != whole else []
            about += ["epoch selected on test"] if train.get("recipe", {}).get("protocol") == "published" else []
            where = "/".join(path.parts[-4:-1])
            if "accuracy" in unseen:
                share, size = 100 * unseen["accuracy"], unseen["rows"]
                where += f" ({share:.2f} % on the {size:,} rows that show no photo of training)"
            shared: dict[str, Any] = {
                "dataset": dataset,
                "model": train.get("model") or facts["model"],
                "where": where,
                "about": tuple(about),
            }
            for views, part in (("", test), ("TTA yes", test.get("tta") or {})):
                for ours, metric in (("accuracy", "accuracy"), ("balanced_accuracy", "mean_accuracy")):
                    if ours in part:
                        ends = _interval(part, ours)
                        yield Run(**shared, metric=metric, setting=views, value=100 * part[ours], ends=ends)
            for line in test["per_class"]:
                if line["recall"] is not None:
                    value = 100 * line["recall"]
                    yield Run(**shared, metric="class_accuracy", setting=line["class"], value=value)


def _interval(part: Mapping[str, Any], metric: str) -> tuple[float | None, float | None]:
    """Of a metric in test.json, in %."""
    for line in part.get("intervals", []):
        if line["metric"] == metric:
            return _percent(line["low"]), _percent(line["high"])
    return None, None


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction


def _known(key: str, params: Params, classes: int | None = None) -> str | None:
    """The name in print of a dataset of params.yaml; of AffectNet by the number of classes, else by its entry."""
    if key not in params.datasets:
        return None
    config = params.datasets[key]
    return published.dataset_name(config.source, classes or int(getattr(config, "classes", 7)))


def _plain(setting: str) -> str:
    """A setting without what is said by the metric; classes by our names."""
    return named(setting) or ("" if setting in ("Avg", "mean over classes", "TTA no", _MEAN) else setting)


def _family(model: str) -> str:
    return _SIZES.sub("", model)


@cache
def _parameters(model: str) -> int:
    return sum(one.numel() for one in create(model).parameters())
