"""Published figures, as printed in the works they come from: facts to set our own beside, with where they stand.

`figures.csv`: work, table, row, dataset, setting, metric (accuracy, mean_accuracy, accuracy_margin, test_size), value,
unit, note. "sic", "off-grid" and "claim" in a note mark where a printed figure contradicts its own work, is no multiple
of one test row, or was chosen by its result on the test set.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
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

_SOURCES = {"fer2013": "FER2013", "rafdb": "RAF-DB", "caers": "CAER-S", "aihub": "AI-Hub"}


@dataclass(frozen=True)
class Figure:
    """One accuracy. `value` and `margin` (half the printed range, if any) in 0 .. 1."""

    model: str
    value: float
    margin: float | None
    setting: str
    work: str
    table: str
    note: str


def dataset_name(source: str, classes: int) -> str | None:
    """The name under which a source of images is known in print, None for one that nobody has published on."""
    return f"AffectNet-{classes}" if source == "affectnet" else _SOURCES.get(source)


def figures(dataset: str) -> list[Figure]:
    """The accuracies printed for a dataset, the highest first."""
    rows = [row for row in _rows() if row["dataset"] == dataset]
    margins = {
        (row["work"], row["row"]): float(row["value"]) / 100 for row in rows if row["metric"] == "accuracy_margin"
    }
    found = [
        Figure(
            model=row["row"],
            value=float(row["value"]) / 100,
            margin=margins.get((row["work"], row["row"])),
            setting=row["setting"],
            work=WORKS[row["work"]],
            table=row["table"],
            note=row["note"],
        )
        for row in rows
        if row["metric"] in ("accuracy", "mean_accuracy")
    ]
    return sorted(found, key=lambda figure: -figure.value)


def test_rows(dataset: str) -> int | None:
    """Size of the test split in print, None where it is not given."""
    sizes = [int(row["value"]) for row in _rows() if row["dataset"] == dataset and row["metric"] == "test_size"]
    return sizes[0] if sizes else None


def _rows() -> list[dict[str, str]]:
    text = resources.files("fer.published").joinpath("figures.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))
