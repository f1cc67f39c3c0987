"""The map of the ledger: which rule checks which printed number.

A rule of `map.yaml` names the numbers that it checks, by work, table, row, dataset, setting and metric, and the check.
The first rule that fits a number is its own.

    recipe            a setting, against the recipes of ours that claim it: those of the paper's text and of its code
    model             a dimension, against an attribute or option of our model
    count             the size of a dataset, a split or a class, against the counts in our registry of datasets
    cost              parameters and operations of a model of ours, counted as the paper counts (`published_costs`)
    difference        a gain, loss or saving, computed again from the table that it is of
    computed          a function of `fer.ledger.checks`
    result            an accuracy, against our runs
    cited, not reproducible
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Literal

from pydantic import Field

from fer.config import Config, parse, read_yaml
from fer.published import Number

Verdict = Literal["equal", "differs", "measured", "not run", "cited", "not reproducible"]
_FIELDS = ("work", "table", "row", "dataset", "setting", "metric")


class Rule(Config):
    """One entry of map.yaml; of the fields that name numbers, those left out fit any."""

    check: Literal["recipe", "model", "count", "cost", "difference", "computed", "result", "cited", "not reproducible"]
    work: str | None = None
    table: str | list[str] | None = None
    row: str | list[str] | None = None
    dataset: str | list[str] | None = None
    setting: str | list[str] | None = None
    metric: str | list[str] | None = None
    recipes: tuple[str, ...] = Field((), description="recipe: the paper's first, whose value decides")
    stage: int | None = Field(None, ge=1, description="recipe: of several stages")
    model: str | None = Field(None, description="model, cost, result: name in the registry, of the published size")
    path: str | None = Field(None, description="recipe, model: where the value is; difference: metric of the table")
    of: str | None = Field(None, description="difference: the table")
    other: str | None = Field(None, description="difference: the other row, where the setting does not name it")
    ablation: bool = Field(False, description="result: only a run of this very line counts")
    call: str | None = Field(None, description="computed: name of the function")
    why: str = Field("", description="of a difference, or why it is neither compared nor run")

    def fits(self, number: Number) -> bool:
        """Whether it names this number."""
        for name in _FIELDS:
            given = getattr(self, name)
            if given is not None and getattr(number, name) not in ([given] if isinstance(given, str) else given):
                return False
        return True


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a number.

    Attributes:
        ours: our number, in the unit of the printed one; empty where there is none.
        low, high: the interval of `ours`. seeds: runs that it is of.
        scale: of a run: full, small, nano; "-" where nothing had to run.
        how: what was compared, or computed, in words and numbers.
        differs: what differs from the paper; of "not run", the reason.
    """

    verdict: Verdict
    ours: str = ""
    low: float | None = None
    high: float | None = None
    seeds: int | None = None
    scale: str = "-"
    how: str = ""
    differs: str = ""


def load_map() -> list[Rule]:
    """The rules in their order."""
    entries = read_yaml(resources.files("fer.ledger").joinpath("map.yaml"))["rules"]
    return [parse(Rule, entry, f"fer/ledger/map.yaml: rules[{index}]") for index, entry in enumerate(entries)]


def rule_of(number: Number, rules: Sequence[Rule]) -> Rule:
    """The first rule that fits; ValueError where none does."""
    for rule in rules:
        if rule.fits(number):
            return rule
    raise ValueError(f"fer/ledger/map.yaml: no rule for {number}")
