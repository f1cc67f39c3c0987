"""results.json of a study, validated, and as lines of one table whatever the study's kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, ConfigDict, Field

from fer.config import Config, ConfigError, parse
from fer.evaluation.aggregate import Spread, spread
from fer.params import Params
from fer.studies import Row, Study, StudyOptions, noise, row_recipe

MOST_FOLDS = 10_000
_Fraction = Annotated[float, Field(ge=0, le=1)]
_Differences = list[Annotated[float, Field(ge=-1, le=1)]]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row of a study's table.

    Attributes:
        synthetic: whether it was trained and tested on rendered faces.
        selected_on_test: whether its recipe selects the epoch on the test split; None where that is unknown by now.
        published: accuracy in %, as printed.
        test, validation, tta: accuracies over its runs, 0 .. 1, the last with test-time augmentation; None where there
            is none.
        difference: to what the row is compared with; tta_gain: of the augmentation, run by run.
        validation_selected: test accuracy after as many epochs as validation chose, where test selected them.
        against: row that `difference` is to, where it is not the study's baseline.
        dataset: it was trained on, by its name in print or its key; empty where the table has one.
        note: in words.
    """

    name: str
    synthetic: bool
    selected_on_test: bool | None
    published: float | None
    test: Spread | None
    validation: Spread | None = None
    difference: Spread | None = None
    tta: Spread | None = None
    tta_gain: Spread | None = None
    validation_selected: Spread | None = None
    parameters: int | None = None
    against: str | None = None
    dataset: str = ""
    note: str = ""


class _Part(Config):
    """A part of results.json: what is named must be right, the rest is ignored."""

    model_config = ConfigDict(extra="ignore")


class _Spread(_Part):
    count: int = Field(ge=1, le=10**6)
    mean: float = Field(ge=-1, le=1)
    std: float | None
    low: float | None
    high: float | None

    @property
    def value(self) -> Spread:
        return Spread(self.count, self.mean, self.std, self.low, self.high)


class _Row(_Part):
    row: str
    dataset: str | None = None
    known_as: str | None = None
    against: str | None = None
    published: float | None
    test: _Spread
    validation: _Spread | None = None
    difference: _Spread | None
    tta: _Spread | None = None
    tta_gain: _Spread | None = None
    # Under its former name in results of older versions.
    validation_selected: _Spread | None = Field(None, validation_alias=AliasChoices("validation_selected", "honest"))
    parameters: int = Field(ge=0, le=10**15)


class _Class(_Part):
    row: str
    dataset: str
    label: str
    published: float | None
    test: _Spread


class _Set(_Part):
    row: str
    printed: dict[str, float]
    runs: int = Field(ge=0, le=10**6)
    rejected: list[str]
    accuracies: list[_Fraction]
    differences: _Differences
    top_40: _Fraction | None = Field(alias="Top 40%")
    top_40_but_best: _Fraction | None = Field(alias="Top 40% w/o best")
    top_25: _Fraction | None = Field(alias="Top 25%")
    top_25_but_best: _Fraction | None = Field(alias="Top 25% w/o best")
    best: _Fraction | None = Field(alias="Best")


class _Ends(_Part):
    low: float
    high: float


class _Difference(_Spread):
    bootstrap: _Ends
    detectable: float | None


class _Level(_Part):
    level: float
    one: _Spread
    other: _Spread
    difference: _Difference


class _Cell(_Part):
    row: str
    key: str


class StudyFile(_Part):
    """results.json, as far as the page needs it."""

    study: Study
    options: StudyOptions
    cells: list[_Cell] = Field(min_length=1)
    rows: list[_Row] = Field(default_factory=list)
    classes: list[_Class] = Field(default_factory=list)
    wrong: list[str] = Field(default_factory=list)
    sets: list[_Set] = Field(default_factory=list)
    series: list[str] = Field(default_factory=list)
    levels: list[_Level] = Field(default_factory=list)

    @property
    def folds(self) -> int | None:
        """Of the cross-validation; None without one."""
        return self.options.folds or self.study.folds

    def columns(self, row: Row) -> Sequence[str]:
        """Keys of the datasets that a row was trained on."""
        return list(self.options.columns(self.study, row))

    @property
    def compared_with(self) -> str | None:
        """What the differences are to, in words; None where nothing is compared."""
        if self.study.kind == "lhc_sets":
            return f"{self.study.series()[0]} at equal seeds"
        if self.study.kind == "noise":
            return f"{self.series[0]} at equal seeds"
        return self.study.baseline or ("another row" if any(row.against for row in self.rows) else None)

    def lines(self, params: Params) -> list[Line]:
        """The table, as the study's kind has it."""
        rows = {row.series or row.row: row for row in reversed(self.study.rows)} if self.sets else {}
        rows |= {row.row: row for row in self.study.rows}
        read = {"lhc_sets": self._of_sets, "noise": self._of_levels}.get(self.study.kind, self._of_rows)
        return [
            Line(name=name, **{**self._about(rows[name], params, found.pop("key", None)), **found})
            for name, found in read()
        ]

    def class_tables(self) -> list[tuple[str, list[str], list[tuple[str, list[tuple[float, float | None]]]]]]:
        """By dataset: the classes, and of each row the mean accuracy of each (0 .. 1) with the printed one (%)."""
        tables = []
        for dataset in dict.fromkeys(one.dataset for one in self.classes):
            own = [one for one in self.classes if one.dataset == dataset]
            rows = {row: [one for one in own if one.row == row] for row in dict.fromkeys(one.row for one in own)}
            lines = [(row, [(one.test.mean, one.published) for one in found]) for row, found in rows.items()]
            tables.append((dataset, list(dict.fromkeys(one.label for one in own)), lines))
        return tables

    def rankings(self) -> tuple[list[str], list[tuple[str, list[tuple[float | None, float | None]]]]]:
        """LHC-Net's sets of runs: names of the columns; and of each set, ours (0 .. 1) and the printed one (%)."""
        fields = {name: field.alias for name, field in _Set.model_fields.items() if field.alias}
        lines = [
            (one.row, [(getattr(one, name), one.printed.get(str(alias))) for name, alias in fields.items()])
            for one in self.sets
        ]
        return [str(alias) for alias in fields.values()], lines

    def _of_rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        names = ("test", "validation", "difference", "tta", "tta_gain", "validation_selected")
        several = len({row.dataset for row in self.rows}) > 1
        for row in self.rows:
            spreads = {name: one.value for name in names if (one := getattr(row, name)) is not None}
            about = {"parameters": row.parameters, "published": row.published, "key": row.dataset}
            shown = (row.known_as or row.dataset or "") if several else ""
            against = row.against if row.against != self.study.baseline else None
            yield row.row, {**spreads, **about, "dataset": shown, "against": against}

    def _of_sets(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for one in self.sets:
            yield (
                one.row,
                {
                    "test": spread(one.accuracies) if one.accuracies else None,
                    "difference": spread(one.differences) if one.differences else None,
                    "published": one.printed.get("Best"),
                    "note": f"{len(one.rejected)} of {one.runs} runs left out" if one.rejected else "",
                },
            )

    def _of_levels(self) -> Iterator[tuple[str, dict[str, Any]]]:
        names = {(row.series, row.level): row.row for row in self.study.rows}
        one, other = self.series
        for level in self.levels:
            yield names[one, level.level], {"test": level.one.value}
            ends, mean = noise.interval(level.difference.model_dump()), level.difference.mean
            yield (
                names[other, level.level],
                {
                    "test": level.other.value,
                    "difference": Spread(level.difference.count, mean, None, ends.low, ends.high),
                    "note": noise.verdict(level.model_dump(), one, other),
                },
            )

    def _about(self, row: Row, params: Params, dataset: str | None) -> dict[str, Any]:
        """What a row trained, whatever its results. `dataset`: its key; None: the row's first."""
        key = dataset or self.columns(row)[0]
        source = params.datasets[key].source if key in params.datasets else None
        return {
            "published": row.published,
            "synthetic": source == "synthetic",
            "selected_on_test": _selected_on_test(self.study, row, self.options, params.home, dataset),
        }


def read_study_file(content: Any, where: str) -> StudyFile:
    """results.json. Raises ConfigError, a ValueError, where it is not what `fer study` writes; `where` names it."""
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: expected the results of a study, found {type(content).__name__}")
    file = parse(StudyFile, content, where)
    if mistake := _mistake(file):
        raise ConfigError(f"{where}: {mistake}")
    return file


def _mistake(file: StudyFile) -> str | None:
    """What does not fit together, in words; None where all does."""
    study, known = file.study, {row.row for row in file.study.rows}
    if study.kind == "lhc_sets":
        known |= set(study.series())
    tables: dict[str, tuple[str, Sequence[Any]]] = {"lhc_sets": ("sets", file.sets), "noise": ("levels", file.levels)}
    name, lines = tables.get(study.kind, ("rows", file.rows))
    if not lines:
        return f"{name}: empty or missing, for a study of kind {study.kind}"
    named = {one.row for lines in (file.rows, file.classes, file.sets, file.cells) for one in lines}
    if unknown := sorted((named | set(file.options.rows or ())) - known):
        return f"a result of {unknown[0]!r}, which is not a row of `study`"
    if (file.folds or 0) > MOST_FOLDS:
        return f"options.folds: more than {MOST_FOLDS:,}"
    if study.kind == "noise":
        if file.series != study.series():
            return f"series = {file.series}: expected {study.series()}, as in `study`"
        if extra := sorted({line.level for line in file.levels} - set(study.levels())):
            return f"levels: a result at {extra[0]:g}, where `study` has no row"
        if any(line.difference.count > 1 and line.difference.detectable is None for line in file.levels):
            return "levels: difference.detectable is null, though there are several seeds"
    return None


def _selected_on_test(study: Study, row: Row, options: StudyOptions, root: Path, dataset: str | None) -> bool | None:
    """Whether the row's recipe has the published protocol, by the recipes as they are now; None where one is gone."""
    try:
        return row_recipe(study, row, options, root, dataset).protocol == "published"
    except (ValueError, KeyError):
        return None
