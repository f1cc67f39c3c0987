"""The ablation tables of the papers as data: which trainings make a table, and what was printed for each row.

One file a table, `<name>.yaml`, run by `fer study <name>`. A row is the study's recipe with other values of some keys.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from fer.config import Config, ConfigError, nearest, parse, read_yaml


class Row(Config):
    """One row of a table."""

    row: str = Field(description="as printed")
    published: float | None = Field(None, description="accuracy in %, as printed; null where there is none")
    set: dict[str, Any] = Field(
        default_factory=dict, description="keys of the recipe with their values; a dot leads into schedule and options"
    )
    smoke: dict[str, Any] = Field(default_factory=dict, description="further keys in the smoke mode")


class Smoke(Config):
    """The same table in minutes, on the synthetic faces: shows that every row runs, and says nothing else."""

    dataset: str = "synthetic"
    recipe: str
    set: dict[str, Any] = Field(default_factory=dict)


class Study(Config):
    """A table."""

    title: str
    source: str = Field(description="work and table")
    dataset: str = Field(description="key of `datasets` in params.yaml")
    recipe: str
    set: dict[str, Any] = Field(default_factory=dict, description="keys of the recipe, for all rows")
    baseline: str | None = Field(None, description="row that the others are compared with")
    folds: int | None = Field(None, ge=2, le=100, description="cross-validation over so many folds; null: none")
    note: str | None = None
    rows: list[Row] = Field(min_length=1)
    smoke: Smoke

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [row.row for row in self.rows]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"rows that occur twice: {', '.join(twice)}")
        if self.baseline is not None and self.baseline not in names:
            raise ValueError(f"baseline {self.baseline!r} is no row{nearest(self.baseline, names)}")
        return self


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
