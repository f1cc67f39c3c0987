"""Published numbers, as printed in the works they come from: facts to set our own beside, and what is wrong with them.

`numbers.csv` holds every number that the text of the five works prints, and one measured on published weights:

    value("btn", "Table 6", "lambda=2.0", "RAF-DB")  # 92.54
    [number.value for number in numbers(work="ddamfn", table="Table 9", metric="accuracy")]

(work, table, row, dataset, setting, metric) names one number. `table` is also the section of the text it stands in.
"sic", "off-grid" and "claim" in a note: the number contradicts its own work, is no multiple of one test row, or was
chosen by its result on the test set.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources

WORKS = {
    "btn": "BTN (2024)",
    "ddamfn": "DDAMFN (2023)",
    "dynamic_attention": "Dynamic attention",
    "lhc_net": "LHC-Net (2021)",
    "mini_xception": "mini-Xception",
    "poster_v2": "POSTER V2 (2023)",
}
"""Where the tables stand; the rows of a table may be other people's models."""

PAPERS = ("btn", "lhc_net", "poster_v2", "ddamfn", "dynamic_attention")
"""The works whose every printed number is here."""

_SOURCES = {"fer2013": "FER2013", "rafdb": "RAF-DB", "caers": "CAER-S", "aihub": "AI-Hub"}


@dataclass(frozen=True, kw_only=True)
class Number:
    """One printed number.

    Attributes:
        setting: what else names it: class, fold, batch size, "TTA yes", "against EAC"; empty for most.
        printed: as it stands in print, without separators of thousands.
        unit: "%", "points", "M", "G", "count", "px", ...; "1" for a plain number.
        listed: whether the report sets it beside ours: one for each model and dataset.
    """

    work: str
    table: str
    row: str
    dataset: str
    setting: str
    metric: str
    printed: str
    unit: str
    note: str
    listed: bool

    @property
    def value(self) -> float:
        """In `unit`."""
        return float(self.printed)

    @property
    def fraction(self) -> float:
        """An accuracy in 0 .. 1."""
        return self.value / 100

    @property
    def margin(self) -> float | None:
        """Half the printed range of an accuracy, in 0 .. 1; None where none is printed."""
        printed = value(self.work, self.table, self.row, self.dataset, f"{self.metric}_margin", self.setting)
        return None if printed is None else printed / 100


def numbers(
    *,
    work: str | None = None,
    table: str | None = None,
    row: str | None = None,
    dataset: str | None = None,
    metric: str | None = None,
    setting: str | None = None,
) -> Iterator[Number]:
    """The numbers with these values, in the order of print; all of them without any."""
    given = {"work": work, "table": table, "row": row, "dataset": dataset, "metric": metric, "setting": setting}
    sought = {name: text for name, text in given.items() if text is not None}
    return (one for one in _all().values() if all(getattr(one, name) == text for name, text in sought.items()))


def value(work: str, table: str, row: str, dataset: str, metric: str = "accuracy", setting: str = "") -> float | None:
    """One number in its unit (accuracies in %); None where none is printed."""
    found = _all().get((work, table, row, dataset, setting, metric))
    return None if found is None else found.value


def dataset_name(source: str, classes: int) -> str | None:
    """The name under which a source of images is known in print, None for one that nobody has published on."""
    return f"AffectNet-{classes}" if source == "affectnet" else _SOURCES.get(source)


def results(dataset: str) -> list[Number]:
    """The accuracies that the report lists for a dataset, the highest first."""
    return sorted((one for one in numbers(dataset=dataset) if one.listed), key=lambda one: -one.value)


def test_rows(dataset: str) -> int | None:
    """Size of the test split in print, None where it is not given."""
    return next((int(one.value) for one in numbers(dataset=dataset, metric="test_size")), None)


@cache
def _all() -> dict[tuple[str, ...], Number]:
    """By (work, table, row, dataset, setting, metric)."""
    text = resources.files("fer.published").joinpath("numbers.csv").read_text(encoding="utf-8")
    found = {}
    for line in csv.DictReader(text.splitlines()):
        key = ("work", "table", "row", "dataset", "setting", "metric")
        found[tuple(line[name] for name in key)] = Number(
            **{name: line[name] for name in (*key, "unit", "note")},
            printed=line["value"],
            listed=line["listed"] == "yes",
        )
    return found
