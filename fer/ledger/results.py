"""Our own runs, as the ledger sets them beside printed numbers: finished studies, and evaluated models.

    reports/studies/<name>/results.json     lines of a table: spreads over seeds
    evaluated/<dataset>/<model>/test.json   one model, with its bootstrap intervals

Those of a project, and of the projects below `reproductions/` that `fer reproduce` makes. What is damaged or of another
version is left out here; the report says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from fer import published
from fer.config import read_yaml
from fer.io.files import read_json
from fer.labels import named
from fer.params import FILE_NAME, Params, load
from fer.published import Number
from fer.studies import list_studies

_DAMAGED = (ValueError, OSError, LookupError, TypeError, AttributeError)
"""What reading a file raises that is not what a study or an evaluation writes."""

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
        """0 where it says nothing about the number; the highest for the same row on the same dataset at full size."""
        if self.metric != number.metric:
            return 0
        same_dataset = self.dataset == number.dataset
        if self.table:
            key = (self.work, self.table, self.row, _plain(self.setting))
            same = key == (number.work, number.table, number.row, _plain(number.setting))
            return 0 if not same else 6 if same_dataset and not self.smoke else 1 if self.smoke else 2
        same = same_dataset and not ablation and _plain(number.setting) == _plain(self.setting)
        if not same or _family(self.model) != _family(model):
            return 0
        return 5 if self.model == model else 3

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
    """For a number, the command that would fill its line: the study of its row, or the paper's table."""
    covered: dict[tuple[str, str], str] = {}
    for name in list_studies():
        study = read_yaml(resources.files("fer.studies").joinpath(f"{name}.yaml"))
        covered.setdefault((study.get("work", ""), study.get("table", "")), f"fer study {name}")

    def command(number: Number) -> str:
        table, whole = number.table.removeprefix("Table "), f"fer reproduce {number.work}"
        one = f"{whole} --tables {table}" if table.isdigit() else whole
        return covered.get((number.work, number.table), one)

    return command


def _studies(params: Params) -> Iterator[Run]:
    for path in sorted((params.home / "reports" / "studies").glob("*/results.json")):
        with suppress(*_DAMAGED):
            content = read_json(path)
            study, where = content["study"], f"study {path.parent.name}"
            rows = {row["row"]: row.get("cite") or {} for row in study["rows"]}
            shared: dict[str, Any] = {
                "work": study.get("work") or "lhc_net",
                "table": study.get("table") or "Results 1",
                "smoke": bool(content["options"].get("smoke")),
                "where": where,
            }
            for line in (*content.get("rows", ()), *content.get("classes", ())):
                cite, test, label = rows.get(line["row"], {}), line["test"], line.get("label")
                yield Run(
                    **shared,
                    row=cite.get("row", line["row"]),
                    setting=label or cite.get("setting", study.get("setting") or ""),
                    dataset=line.get("known_as") or str(line.get("dataset", "another dataset")),
                    metric="class_accuracy" if label else "accuracy",
                    value=100 * test["mean"],
                    ends=(_percent(test["low"]), _percent(test["high"])),
                    seeds=test["count"],
                    parameters=line.get("parameters"),
                )
            for line in content.get("sets", ()):
                for column in (name for name in line if name.startswith("Top ") or name == "Best"):
                    if line[column] is not None:
                        name = line.get("series") or line["row"]
                        about = (f"of {line['runs']} runs, ranked on test",)
                        yield Run(
                            **shared, row=name, setting=column, dataset="FER2013", metric="accuracy",
                            value=100 * line[column], seeds=line["runs"], about=about,
                        )  # fmt: skip


def _evaluated(params: Params) -> Iterator[Run]:
    places = (("evaluated", params.root), ("reports/evaluations", params.home))
    for path in (one for place, root in places for one in sorted((root / place).glob("*/*/test.json"))):
        with suppress(*_DAMAGED):
            test, key = read_json(path), path.parent.parent.name
            facts = {entry["key"]: entry["value"] for entry in test["about"]}
            trained = params.root / "trained" / key / path.parent.name / "train.json"
            train = read_json(trained) if trained.is_file() and "kind" not in facts else {}
            dataset = _known(key, params, len(test["per_class"])) or key
            rows, whole = test["rows"], published.test_rows(dataset)
            about = [facts["kind"]] if "kind" in facts else []
            about += [f"{rows:,} of {whole:,} test rows"] if whole and rows != whole else []
            about += ["epoch selected on test"] if train.get("recipe", {}).get("protocol") == "published" else []
            shared: dict[str, Any] = {
                "dataset": dataset,
                "model": train.get("model") or facts["model"],
                "where": path.parent.relative_to(params.home).as_posix(),
                "about": tuple(about),
            }
            for views, part in (("", test), ("TTA yes", test.get("tta") or {})):
                for ours, metric in (("accuracy", "accuracy"), ("balanced_accuracy", "mean_accuracy")):
                    if ours in part:
                        ends = _interval(part, ours)
                        yield Run(**shared, metric=metric, setting=views, value=100 * part[ours], ends=ends)
            for line in test["per_class"]:
                if line["recall"] is not None:
                    name, value = line["class"], 100 * line["recall"]
                    yield Run(**shared, metric="class_accuracy", setting=name, value=value)


def _interval(part: Mapping[str, Any], metric: str) -> tuple[float | None, float | None]:
    """Of a metric in test.json, in %."""
    for line in part.get("intervals", []):
        if line["metric"] == metric:
            return _percent(line["low"]), _percent(line["high"])
    return None, None


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction


def _known(key: str, params: Params, classes: int) -> str | None:
    return published.dataset_name(params.datasets[key].source, classes) if key in params.datasets else None


def _plain(setting: str) -> str:
    """A setting without what is said by the metric; classes by our names."""
    return named(setting) or ("" if setting in ("Avg", "mean over classes", "TTA no") else setting)


def _family(model: str) -> str:
    return _SIZES.sub("", model)


@cache
def _parameters(model: str) -> int:
    import torch

    from fer.models import create_model

    with torch.device("meta"):
        return sum(one.numel() for one in create_model(model).parameters())
