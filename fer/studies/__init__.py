"""The tables of the papers as data: which runs make a table, and where its printed numbers stand.

One file a table, `<name>.yaml`, run by `fer study <name>`. A row is the study's recipe with other values of some keys,
a column a dataset. Printed numbers are in `fer.published`, found by work, table, row and dataset: never by a copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeInt, field_validator, model_validator

from fer import published
from fer.config import Config, ConfigError, nearest, parse, read_yaml
from fer.evaluation.config import TtaName
from fer.training.recipe import Recipe, load_recipe, vary


class Cite(Config):
    """Under which names `fer.published` has a row's numbers."""

    row: str | None = Field(None, description="null: the row's own name")
    setting: str | None = Field(None, description="null: whichever, where only one is printed")


class Start(Config):
    """Trained runs of other rows, one of which a run starts from."""

    rows: list[str] = Field(min_length=1)
    run: Literal["best", "same_seed"] = Field(
        "best", description="best: by validation accuracy, of all their seeds; same_seed: of the run's own seed"
    )


class Row(Config):
    """One row of a table."""

    row: str = Field(description="as printed")
    cite: Cite = Cite()
    published: float | None = Field(None, description="in a study of one's own: accuracy in %, for its own datasets")
    datasets: dict[str, str] = Field(default_factory=dict, description="dataset -> recipe, in place of the study's")
    set: dict[str, Any] = Field(
        default_factory=dict, description="keys of the recipe with their values; a dot leads into schedule and options"
    )
    smoke: dict[str, Any] = Field(default_factory=dict, description="further keys in the smoke mode, `recipe` too")
    same_as: str | None = Field(None, description="row that trains the same in the smoke mode, and is meant to")
    against: str | None = Field(None, description="row that it is compared with; null: the baseline")
    stages: int | None = Field(None, ge=1, description="only so many of the recipe's stages; null: all")
    seeds: list[NonNegativeInt | None] = Field(
        default_factory=lambda: [0, None],
        min_length=2,
        max_length=2,
        description="slice of the seeds: place of the first, from 0, and of the one after the last; null: all the rest",
    )
    start: Start | None = Field(None, description="starts from the weights of a run of rows above; null: from none")
    recipe_of: list[str] = Field(
        default_factory=list, description="has the recipe of the best run of these rows above, with `set` over it"
    )
    series: str | None = Field(None, description="kind noise: line of the figure; kind lhc_sets: set of runs")
    level: float | None = Field(None, ge=0, description="place on the axis; kind noise: wrong training labels in %")

    @property
    def needs(self) -> frozenset[str]:
        """Rows whose runs its own depend on."""
        return frozenset([*(self.start.rows if self.start else []), *self.recipe_of])


class Smoke(Config):
    """The same table in minutes, on the synthetic faces: shows that every row runs, and nothing else."""

    dataset: str = "synthetic"
    datasets: dict[str, str] = Field(default_factory=dict, description="in place of a dataset; others: `dataset`")
    recipe: str
    set: dict[str, Any] = Field(default_factory=dict)


Kind = Literal["table", "classes", "lhc_sets", "lhc_blocks", "noise"]
"""How the runs of a study are read: rows beside a baseline; the same and the accuracy of every class; LHC-Net's sets of
runs; its blocks, switched off and de-trained; or series of models over levels of label noise."""


class Study(Config):
    """A table.

    A study of one dataset may have `dataset` and `recipe` in place of `datasets`, its rows a `dataset`.
    """

    title: str
    work: str | None = Field(None, description="key of `fer.published.WORKS`; null: a study of one's own")
    table: str = Field("", description="as in `fer.published`")
    source: str = Field("", description="in words; empty: work and table")
    kind: Kind = "table"
    datasets: dict[str, str] = Field(min_length=1, description="key of `datasets` in params.yaml -> recipe")
    set: dict[str, Any] = Field(default_factory=dict, description="keys of the recipe, for all rows")
    baseline: str | None = Field(None, description="row that the others are compared with")
    axis: str | None = Field(None, description="what the rows' `level` is: accuracy is drawn over it; null: no figure")
    draw: list[Literal["confusion", "training"]] = Field(
        default_factory=list,
        description="of each row's first run: confusion matrix, course of the training",
    )
    folds: int | None = Field(None, ge=2, le=100, description="cross-validation over so many folds; null: none")
    tta: TtaName = Field("none", description="reports test accuracy with this test-time augmentation too")
    note: str | None = None
    rows: list[Row] = Field(min_length=1)
    smoke: Smoke

    @model_validator(mode="before")
    @classmethod
    def _whole_form(cls, data: Any) -> Any:
        """The short form of a study of one dataset written out, and the source in words."""
        if not isinstance(data, dict):
            return data
        data = dict(data)
        if isinstance(data.get("dataset"), str) and isinstance(recipe := data.get("recipe"), str):
            data["datasets"] = {data.pop("dataset"): data.pop("recipe")}
            rows = data["rows"] if isinstance(data.get("rows"), list) else []
            data["rows"] = [
                {**{key: value for key, value in row.items() if key != "dataset"}, "datasets": {row["dataset"]: recipe}}
                if isinstance(row, dict) and isinstance(row.get("dataset"), str)
                else row
                for row in rows
            ]
        if not data.get("source") and isinstance(work := data.get("work"), str):
            data["source"] = f"{published.WORKS.get(work, work)}, {data.get('table', '')}"
        return data

    @model_validator(mode="after")
    def _source_is_known(self) -> Self:
        if self.work is not None and self.work not in published.WORKS:
            raise ValueError(f"work = {self.work!r}{nearest(self.work, list(published.WORKS))}: not in fer.published")
        if not self.source:
            raise ValueError("source: missing; or name `work` and `table` of fer.published")
        return self

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [row.row for row in self.rows]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"rows that occur twice: {', '.join(twice)}")
        named = {"baseline": self.baseline}
        for place, row in enumerate(self.rows):
            named |= {f"{row.row}: against": row.against, f"{row.row}: same_as": row.same_as}
            if unknown := sorted(row.needs.difference(names[:place])):
                raise ValueError(f"row {row.row!r}: start or recipe_of names {unknown[0]!r}, which is no row above it")
        for key, name in named.items():
            if name is not None and name not in names:
                raise ValueError(f"{key} {name!r}: not a row{nearest(name, names)}")
        return self

    @model_validator(mode="after")
    def _kind_has_what_it_needs(self) -> Self:
        if self.axis is not None and any(row.level is None for row in self.rows):
            raise ValueError("axis: each row needs a level, its place on it")
        if self.kind == "lhc_sets":
            loose = [row.row for row in self.rows if row.series is None]
            if self.baseline is None or loose != [self.baseline]:
                raise ValueError("kind lhc_sets: needs a baseline, the host, and a series for each of the other rows")
        if self.kind == "noise":
            places = [(row.series, row.level) for row in self.rows]
            if any(None in place for place in places) or len(set(places)) < len(places):
                raise ValueError("kind noise: each row needs a series and a level, and no two the same of both")
            series, levels = self.series(), self.levels()
            if len(series) != 2 or len(places) != 2 * len(levels):
                raise ValueError("kind noise: compares two series, each with a row at every level")
        return self

    def series(self) -> list[str]:
        """The names of the series, in order of their rows; the first is what the others are compared with."""
        return list(dict.fromkeys(row.series for row in self.rows if row.series is not None))

    def runs_of(self, series: str, results: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Of results, each with its `row`, those of the rows of a series."""
        rows = {row.row for row in self.rows if row.series == series}
        return [one for one in results if one["row"] in rows]

    def levels(self) -> list[float]:
        """Kind noise: the levels, rising."""
        return sorted({row.level for row in self.rows if row.level is not None})

    def compared_with(self, row: Row) -> str | None:
        """The row whose results a row's are compared with; None where it is compared with none."""
        other = row.against or self.baseline
        return None if other == row.row else other

    def number(
        self, row: Row, dataset: str | None, metric: str = "accuracy", setting: str | None = None
    ) -> published.Number | None:
        """The printed number of a row for a dataset, by its name in print; None where there is none, or several."""
        if self.work is None or dataset is None:
            return None
        found = list(
            published.numbers(
                work=self.work, table=self.table, row=row.cite.row or row.row, dataset=dataset, metric=metric,
                setting=setting or row.cite.setting,
            )
        )  # fmt: skip
        return found[0] if len(found) == 1 else None

    def printed(self, row: Row, dataset: str, known_as: str | None) -> float | None:
        """The printed accuracy of a row in %, of that dataset alone.

        Args:
            dataset, known_as: its key in params.yaml, and its name in print.
        """
        number = self.number(row, known_as)
        own = row.published if dataset in (row.datasets or self.datasets) else None
        return own if number is None else number.value

    def cited(self, dataset: str, metric: str = "accuracy") -> Iterator[published.Number]:
        """What the table prints for a dataset, by its name in print, of models that are no rows here."""
        rows = {row.cite.row or row.row for row in self.rows}
        if self.work is not None:
            of_table = published.numbers(work=self.work, table=self.table, dataset=dataset, metric=metric)
            yield from (number for number in of_table if number.row not in rows)


class StudyOptions(Config):
    """Options of `fer study`; None leaves it to the study."""

    smoke: bool = False
    dataset: tuple[str, ...] | None = None
    recipe: str | None = None
    seeds: tuple[int, ...] = (0,)
    folds: int | None = Field(None, ge=2)
    rows: tuple[str, ...] | None = None
    set: dict[str, Any] = Field(default_factory=dict)
    tta: TtaName | None = None
    workers: int | None = None
    workers_per_cell: int = Field(1, ge=1, le=4096)

    @model_validator(mode="after")
    def _workers_are_on_ray(self) -> Self:
        if self.workers == 0 and self.workers_per_cell > 1:
            raise ValueError(f"workers_per_cell = {self.workers_per_cell}: needs Ray, so workers cannot be 0")
        return self

    @field_validator("seeds")
    @classmethod
    def _seeds_are_runs(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value) or not all(0 <= seed < 2**31 for seed in value):
            raise ValueError(f"give each seed once, from 0 to {2**31 - 1}")
        return value

    @field_validator("dataset", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    def chosen(self, study: Study) -> list[Row]:
        """The requested rows and those that they depend on; ConfigError where one does not exist."""
        if self.rows is None:
            return study.rows
        names = [row.row for row in study.rows]
        if unknown := [name for name in self.rows if name not in names]:
            raise ConfigError(
                f"fer study --rows: no row {unknown[0]!r}{nearest(unknown[0], names)}; the rows: {', '.join(names)}"
            )
        required = set(self.rows)
        for row in reversed(study.rows):  # what a row needs stands above it
            required.update(row.needs if row.row in required else ())
        return [row for row in study.rows if row.row in required]

    def seeds_of(self, row: Row) -> tuple[int, ...]:
        """The seeds of a row's runs."""
        return self.seeds[slice(*row.seeds)]

    def departure(self, study: Study) -> str | None:
        """What a person changed of the study, so that the published results are of another run; None: nothing."""
        others = [name for name in self.dataset or () if name not in study.datasets]
        changes = [f"dataset {', '.join(others)}"] if others else []
        changes += [f"recipe {self.recipe}"] if self.recipe not in (None, *study.datasets.values()) else []
        changes += [f"{key} = {value}" for key, value in self.set.items()]
        if self.smoke or not changes:
            return None
        return f"Trained here with {', '.join(changes)}; the published results are those of the source."

    def columns(self, study: Study, row: Row) -> Mapping[str, str]:
        """Keys in params.yaml of what a row is trained on -> the recipe of each.

        A dataset that is none of the study's is trained by the recipe of the first.

        Raises:
            ConfigError: a dataset is chosen for a study whose rows differ by theirs.
        """
        own = row.datasets or study.datasets
        if self.dataset is not None:
            if study.kind == "noise":
                chosen = " ".join(self.dataset)
                raise ConfigError(f"fer study --dataset {chosen}: the rows of this study name their own datasets")
            known = {name for one in study.rows for name in one.datasets} | set(study.datasets)
            first = next(iter(own.values()))
            own = {name: own.get(name, first) for name in self.dataset if name in own or name not in known}
        elif self.smoke:
            own = {study.smoke.datasets.get(name, study.smoke.dataset): recipe for name, recipe in own.items()}
        recipe = self.recipe or (row.smoke.get("recipe", study.smoke.recipe) if self.smoke else None)
        return {name: recipe or own[name] for name in own}


def list_studies() -> list[str]:
    """Names of the studies that come with the package, sorted."""
    files = resources.files("fer.studies").iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in files if entry.name.endswith(".yaml"))


def load_study(name: str, root: Path) -> Study:
    """A study of the package by its name, or a file of the user's by its path below `root`.

    Raises:
        ConfigError: there is none, or it is wrong; names the file, the key and the value.
    """
    if name.endswith(".yaml"):
        return parse(Study, read_yaml(root / name), name)
    known = list_studies()
    if name not in known:
        raise ConfigError(f"no study {name!r}{nearest(name, known)}; known: {', '.join(known)}")
    return parse(Study, read_yaml(resources.files("fer.studies").joinpath(f"{name}.yaml")), f"fer/studies/{name}.yaml")


def row_recipe(study: Study, row: Row, options: StudyOptions, root: Path, dataset: str | None = None) -> Recipe:
    """The complete recipe of a row for one of its datasets; None: the first."""
    where, columns = f"study row {row.row!r}", options.columns(study, row)
    base = columns[dataset or next(iter(columns))]
    recipe = load_recipe({"recipe": base}, root, where)
    smoke = {key: value for key, value in {**study.smoke.set, **row.smoke}.items() if key != "recipe"}
    values = {**study.set, **row.set, **(smoke if options.smoke else {}), **options.set}
    if "model" in values and "options" not in values:
        values = {"options": {}, **values}  # options are a model's own
    if row.start:
        values |= {"pretrained": {}, "start_from": None}  # its weights come from another run
    made = vary(recipe, values, where)
    if row.stages is None:
        return made
    if row.stages > len(made.stages):
        raise ConfigError(f"{where}: stages = {row.stages}, the recipe {base!r} has {len(made.stages)}")
    return vary(made, {"stages": made.stages[: row.stages]}, where)
