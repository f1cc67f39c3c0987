"""The searches that `fer tune` left, for the page and MLflow: the trials, what each parameter does, what to believe.

    tuned/<dataset>/<model>.json    one each

Whoever wrote a file here, the page is made: what cannot be used is left out, and reported.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from markupsafe import Markup
from pydantic import Field

from fer.cluster.config import SearchRange, Value
from fer.config import Config, parse
from fer.io.files import FileError, read_json
from fer.params import Params
from fer.report import charts

_ENDED = ("finished", "stopped early")


class TrialRow(Config):
    """A trial as `fer.cluster.trials.Trial` has it, with the values that were chosen for it."""

    number: int
    key: str
    values: dict[str, Value]
    status: str
    epochs: int
    best: float | None
    best_epoch: int
    seconds: float
    reason: str
    cost: float | None
    run_id: str | None
    parent: int | None = None


class Confirmed(Config):
    """Results under several seeds: `fer.evaluation.aggregate.Spread`."""

    count: int
    mean: float
    std: float | None
    low: float | None
    high: float | None


class SearchFile(Config):
    """What a search found, `tuned/<dataset>/<model>.json`.

    Attributes:
        best: the winner's result in the search, the best of many under one seed.
        front: numbers of the trials of the Pareto front, where there is a cost.
        confirmed: what the winner, and the recipe as it is, reached under further seeds; gain: the difference seed by
            seed, above 0 where the winner is better.
        importance: see `fer.cluster.proposals.importance`.
        budget: section `tune` but for the space.
        trials: those of the search first, then those under further seeds.
    """

    best_trial: int
    best: float
    metric: str
    cost: str | None
    front: list[int]
    confirmed: dict[Literal["winner", "recipe", "gain"], Confirmed]
    importance: dict[str, float]
    seed: int
    data_digest: str
    fingerprint: str
    budget: dict[str, Any]
    space: list[tuple[str, SearchRange]] = Field(min_length=1)
    trials: list[TrialRow]

    @property
    def searched(self) -> list[TrialRow]:
        """The trials of the search."""
        return [trial for trial in self.trials if "seed" not in trial.values]

    @property
    def ranked(self) -> list[TrialRow]:
        """Those with a result, the worst first."""
        found = [trial for trial in self.searched if trial.status in _ENDED and trial.best is not None]
        return sorted(found, key=lambda one: (one.best or 0.0) * (-1 if self.metric == "val_loss" else 1))

    @property
    def conclusion(self) -> list[str]:
        """What the further seeds say about the winner, a line each; nothing without them."""
        lines = []
        for key, name in (("winner", "the winner"), ("recipe", "the recipe as it is")):
            if one := self.confirmed.get(key):  # type: ignore[call-overload]
                std = "" if one.std is None else f" ± {one.std:.4f}"
                seeds = f"{one.count} more seed{'' if one.count == 1 else 's'}"
                own = f"; in the search {self.best:.4f}" if key == "winner" else ""
                lines.append(f"{name}, {seeds}: {self.metric} {one.mean:.4f}{std}{own}")
        if gain := self.confirmed.get("gain"):
            interval = "" if gain.low is None else f", 95 % interval {gain.low:+.4f} to {gain.high:+.4f}"
            doubt = "" if (gain.low or 0) > 0 else "; not shown to be better"
            lines.append(f"the winner is better by {gain.mean:+.4f} in the mean of the seeds{interval}{doubt}")
        return lines


def charts_of(found: SearchFile) -> dict[str, Markup]:
    """Name -> chart: `trials`, `importance` where it is known, `front` where there is a cost."""
    if not found.ranked:
        return {}
    axes = [_axis(name, span, found.ranked) for name, span in found.space]
    results = [trial.best or 0.0 for trial in found.ranked]
    ticks = charts.nice_ticks(min(results), max(results))
    axes.append(
        charts.Axis(found.metric.removeprefix("val_"), ticks[0], ticks[-1], ticks=[(x, f"{x:g}") for x in ticks])
    )
    lines = [
        charts.Line(
            f"trial {trial.number}: {trial.best:.4f}",
            [*(_place(span, trial.values.get(name)) for name, span in found.space), trial.best],
            trial.number == found.best_trial,
        )
        for trial in found.ranked
    ]
    drawn = {"trials": charts.parallel(axes, lines)}
    if found.importance:
        drawn["importance"] = charts.bars(found.importance, "importance of the parameters")
    if found.cost:
        points = [
            charts.Point(
                name=f"trial {trial.number}" if trial.number in found.front else "", cost=trial.cost,
                accuracy=trial.best, low=trial.best, high=trial.best,
            )
            for trial in found.ranked
            if trial.cost and trial.best is not None
        ]  # fmt: skip
        drawn["front"] = charts.accuracy_by_cost(points, found.cost)
    return drawn


def _axis(name: str, span: SearchRange, trials: list[TrialRow]) -> charts.Axis:
    absent = any(name not in trial.values for trial in trials)
    if span.choices is not None:
        ticks = [(float(index), f"{choice}") for index, choice in enumerate(span.choices)]
        return charts.Axis(name, 0, max(1, len(ticks) - 1), ticks=ticks, absent=absent)
    low, high = float(span.low or 0), float(span.high or 0)
    values = charts.log_ticks(low, high) if span.log else charts.nice_ticks(low, high)
    ticks = [(value, f"{value:g}") for value in values if low <= value <= high] or [
        (low, f"{low:g}"),
        (high, f"{high:g}"),
    ]
    return charts.Axis(name, low, high, log=span.log, ticks=ticks, absent=absent)


def _place(span: SearchRange, value: Value) -> float | None:
    """Where on its axis a value lies; None where the parameter did not exist."""
    if span.choices is not None:
        return float(span.choices.index(value)) if value in span.choices else None
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


@dataclass(frozen=True, kw_only=True)
class Search:
    """A search on the page."""

    dataset: str
    model: str
    file: SearchFile
    charts: dict[str, Markup]


@dataclass(frozen=True, kw_only=True)
class Searches:
    """All of them; `problems`: what could not be used, and why, in words."""

    results: tuple[Search, ...] = ()
    problems: tuple[str, ...] = ()


def collect_searches(params: Params) -> Searches:
    """The contents of tuned/; empty where there is nothing."""
    results: list[Search] = []
    problems: list[str] = []
    for path in sorted((params.root / "tuned").glob("*/*.json")):
        try:
            content = read_json(path)
            if not isinstance(content, dict) or "space" not in content:
                raise FileError(f"{path}: not what `fer tune` writes now; run the search again")
            file = parse(SearchFile, content, str(path))
            results.append(Search(dataset=path.parent.name, model=path.stem, file=file, charts=charts_of(file)))
        except (ValueError, OSError) as error:
            problems.append(str(error).splitlines()[0].replace(f"{params.root}/", ""))
    return Searches(results=tuple(results), problems=tuple(problems))
