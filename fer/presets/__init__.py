"""The papers as data: which datasets and crops a paper uses, and which study fills each of its tables and figures.

One file a paper, `<paper>.yaml`, run by `fer reproduce <paper>`.
"""

from __future__ import annotations

from importlib import resources
from typing import Any, Self

from pydantic import Field, model_validator

from fer.config import Config, ConfigError, nearest, parse, read_yaml


class DatasetPreset(Config):
    """A dataset of the paper."""

    entry: dict[str, Any] = Field(description="under `datasets` of params.yaml; the paths are the user's")
    layout: str = Field(description="of the drawn faces of the smoke mode, `fer synth dataset --layout`")
    detect: bool = Field(False, description="its faces are found by crop.detector")
    train: int = Field(ge=1, description="training images that the paper states, for the estimate of time")


class Exhibit(Config):
    """A table or figure of the paper, and what fills it."""

    name: str = Field(description="as printed, and as in fer/published/numbers.csv where it prints numbers")
    title: str
    studies: list[str] = Field(default_factory=list, description="that fill it: names of `fer study`")
    ledger: bool = Field(False, description="settings, sizes or costs, which `fer ledger` compares without training")
    omitted: str | None = Field(None, description="why nothing fills it")

    @model_validator(mode="after")
    def _is_filled(self) -> Self:
        if bool(self.studies or self.ledger) == bool(self.omitted):
            raise ValueError(f"{self.name}: give studies or ledger, or else the reason in `omitted`")
        return self


class Preset(Config):
    """A paper."""

    title: str
    note: str | None = None
    datasets: dict[str, DatasetPreset]
    crop: dict[str, Any] = Field(default_factory=dict, description="section `crop` of params.yaml, as the paper crops")
    seeds: list[int] = Field([0], min_length=1, description="each row is trained once a seed")
    exhibits: list[Exhibit] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [one.name for one in self.exhibits]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"exhibits that occur twice: {', '.join(twice)}")
        return self

    def chosen(self, names: list[str] | None) -> list[Exhibit]:
        """The named tables and figures, all where None; "5" is "Table 5". ConfigError where one does not exist."""
        if names is None:
            return self.exhibits
        known = {one.name.lower(): one for one in self.exhibits}
        found = {}
        for name in names:
            exhibit = known.get(f"table {name}".lower()) or known.get(name.lower())
            if exhibit is None:
                known_names = [one.name for one in self.exhibits]
                raise ConfigError(
                    f"fer reproduce --tables: no table or figure {name!r}{nearest(name, known_names)}; "
                    f"known: {', '.join(known_names)}"
                )
            found[exhibit.name] = exhibit
        return list(found.values())


def list_presets() -> list[str]:
    """Names of the papers, sorted."""
    files = resources.files("fer.presets").iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in files if entry.name.endswith(".yaml"))


def load_preset(name: str) -> Preset:
    """The preset of a paper.

    Raises:
        ConfigError: there is none, or it is wrong; names the file, the key and the value.
    """
    if name not in (known := list_presets()):
        raise ConfigError(f"no paper {name!r}{nearest(name, known)}; known: {', '.join(known)}")
    return parse(Preset, read_yaml(resources.files("fer.presets").joinpath(f"{name}.yaml")), f"fer/presets/{name}.yaml")
