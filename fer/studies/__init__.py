"""The ablation tables of the papers as data: which runs make a table, and what was printed for each row.

One file a table, `<name>.yaml`, run by `fer study <name>`. A row is the study's recipe with other values of some keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeInt, model_validator

from fer.config import Config, ConfigError, nearest, parse, read_yaml
from fer.evaluation.config import TtaName


class Start(Config):
    """Trained runs of other rows, one of which a run starts from."""

    rows: list[str] = Field(min_length=1)
    run: Literal["best", "same_seed"] = Field(
        "best", description="best: by validation accuracy, of all their seeds; same_seed: of the run's own seed"
    )


class Row(Config):
    """One row of a table."""

    row: str = Field(description="as printed")
    published: float | None = Field(None, description="accuracy in %, as printed; null where there is none")
    printed: dict[str, float] = Field(
        default_factory=dict, description="kind lhc_sets: the printed columns of a set, in its first row"
    )
    set: dict[str, Any] = Field(
        default_factory=dict, description="keys of the recipe with their values; a dot leads into schedule and options"
    )
    smoke: dict[str, Any] = Field(default_factory=dict, description="further keys in the smoke mode")
    dataset: str | None = Field(None, description="key of `datasets` in params.yaml; null: the study's")
    stages: int | None = Field(None, ge=1, description="only so many of the recipe's stages; null: all")
    seeds: tuple[NonNegativeInt, NonNegativeInt | None] = Field(
        (0, None), description="slice of the seeds: place of the first, from 0, and of the one after the last"
    )
    start: Start | None = Field(None, description="starts from the weights of a run of rows above; null: from none")
    recipe_of: list[str] = Field(
        default_factory=list, description="has the recipe of the best run of these rows above, with `set` over it"
    )
    against: str | None = Field(None, description="row that it is compared with; null: the study's baseline")
    series: str | None = Field(None, description="kind noise: line of the figure; kind lhc_sets: set of runs")
    level: float | None = Field(None, ge=0, le=100, description="kind noise: wrong training labels in %")

    @property
    def needs(self) -> frozenset[str]:
        """Rows whose runs its own depend on."""
        return frozenset([*(self.start.rows if self.start else []), *self.recipe_of])


class Smoke(Config):
    """The same table in minutes, on the synthetic faces: shows that every row runs, and nothing else."""

    dataset: str = "synthetic"
    datasets: dict[str, str] = Field(default_factory=dict, description="in place of the dataset of a row")
    recipe: str
    set: dict[str, Any] = Field(default_factory=dict)


Kind = Literal["table", "lhc_sets", "lhc_blocks", "noise"]
"""How the runs of a study are read: rows beside a baseline; LHC-Net's sets of runs; its blocks, switched off and
de-trained; or series of models over levels of label noise."""


class Study(Config):
    """A table."""

    title: str
    source: str = Field(description="work and table")
    kind: Kind = "table"
    dataset: str = Field(description="key of `datasets` in params.yaml")
    recipe: str
    set: dict[str, Any] = Field(default_factory=dict, description="keys of the recipe, for all rows")
    baseline: str | None = Field(None, description="row that the others are compared with")
    folds: int | None = Field(None, ge=2, le=100, description="cross-validation over so many folds; null: none")
    tta: TtaName = Field("none", description="reports test accuracy with this test-time augmentation too")
    note: str | None = None
    rows: list[Row] = Field(min_length=1)
    smoke: Smoke

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [row.row for row in self.rows]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"rows that occur twice: {', '.join(twice)}")
        if self.baseline is not None and self.baseline not in names:
            raise ValueError(f"baseline {self.baseline!r}: not a row{nearest(self.baseline, names)}")
        for place, row in enumerate(self.rows):
            if unknown := sorted(row.needs.difference(names[:place])):
                raise ValueError(f"row {row.row!r}: start or recipe_of names {unknown[0]!r}, which is no row above it")
            if row.against is not None and row.against not in names:
                raise ValueError(f"row {row.row!r}: against = {row.against!r}: not a row{nearest(row.against, names)}")
        return self

    @model_validator(mode="after")
    def _kind_has_what_it_needs(self) -> Self:
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


class StudyOptions(Config):
    """Options of `fer study`; None leaves it to the study."""

    smoke: bool = False
    dataset: str | None = None
    recipe: str | None = None
    seeds: tuple[int, ...] = (0,)
    folds: int | None = None
    rows: tuple[str, ...] | None = None
    set: dict[str, Any] = Field(default_factory=dict)
    tta: TtaName | None = None
    workers: int | None = None

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
        own = {"dataset": study.dataset, "recipe": study.recipe}
        changes = [f"{key} {value}" for key in own if (value := getattr(self, key)) not in (None, own[key])]
        changes += [f"{key} = {value}" for key, value in self.set.items()]
        if self.smoke or not changes:
            return None
        return f"Trained here with {', '.join(changes)}; the published results are those of the source."

    def dataset_of(self, study: Study, row: Row) -> str:
        """Key in params.yaml of what a row is trained on; ConfigError for one dataset where rows have their own."""
        if self.dataset is not None:
            if any(one.dataset for one in study.rows):
                raise ConfigError(f"fer study --dataset {self.dataset}: the rows of this study name their own datasets")
            return self.dataset
        own = row.dataset or study.dataset
        return study.smoke.datasets.get(own, study.smoke.dataset) if self.smoke else own


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
