"""Which cluster the work runs on, and how a search over parameters uses it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from fer.config import Config, ConfigError
from fer.io.yaml12 import brief
from fer.training.recipe import Recipe, vary

_NOT_SEARCHED = ("epochs", "pretrained", "start_from", "protocol", "selection", "cross_validation", "stages")
"""Keys of a recipe that are equal for all trials: `tune.epochs` is the value of the first."""

COSTS = ("latency_ms", "gmacs", "parameters")
"""Of `fer.evaluation.speed.cost_of`, what a search may make small."""

_LARGEST_GRID = 10_000


class ClusterConfig(Config):
    """The Ray cluster. The environment variable RAY_ADDRESS wins over `address`."""

    address: str | None = Field(
        default=None, description="host:port, ray://host:port or auto of a running cluster; null starts a local one"
    )
    cpus: int | None = Field(
        default=None, ge=1, le=4096, description="CPUs of the local cluster; null takes all that the process may use"
    )
    object_store_mb: int = Field(
        default=512,
        ge=80,
        le=1_000_000,
        description="shared memory of the local cluster in MiB; only short results lie there",
    )
    dashboard: bool = Field(default=False, description="start Ray's dashboard with the local cluster")
    crop_workers: int | None = Field(
        default=None,
        ge=0,
        le=4096,
        description="crop tasks at once; null: all CPUs of the cluster; 0: one process, no Ray",
    )
    wait_minutes: float = Field(
        default=0.0,
        ge=0,
        le=1440,
        description="how long a stage waits for workers that join, or that an autoscaler adds; 0: not at all",
    )


Value = int | float | str | bool | None


class SearchRange(Config):
    """What a search may choose for one parameter: a range of numbers, or one of a list."""

    low: float | None = Field(default=None, description="lower end")
    high: float | None = Field(default=None, description="upper end, which may be chosen too")
    log: bool = Field(default=False, description="draw evenly on a logarithmic scale")
    integer: bool = Field(default=False, description="whole numbers only")
    choices: list[Value] | None = Field(
        default=None, min_length=1, max_length=1000, description="the values to choose from"
    )
    when: dict[str, list[Value]] = Field(
        default={}, description="keys above it -> choices of theirs; with others the parameter keeps the recipe's value"
    )

    @field_validator("when", mode="before")
    @classmethod
    def _lists(cls, when: object) -> object:
        return {key: x if isinstance(x, list) else [x] for key, x in when.items()} if isinstance(when, dict) else when

    @model_validator(mode="after")
    def _one_form(self) -> SearchRange:
        if self.choices is not None:
            if self.low is not None or self.high is not None or self.log or self.integer:
                raise ValueError("give either choices, or low and high, not both")
        elif self.low is None or self.high is None or not self.low < self.high:
            raise ValueError("give choices, or low and high with low < high")
        elif self.log and self.low <= 0:
            raise ValueError("log needs low > 0")
        elif self.integer and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError("integer needs whole numbers as low and high")
        return self

    def exists(self, values: Mapping[str, Any]) -> bool:
        """Whether the parameter is searched where those above it have these values."""
        return all(key in values and values[key] in allowed for key, allowed in self.when.items())

    def holds(self, value: object) -> bool:
        """Whether the value is one that may be chosen."""
        if self.choices is not None or not isinstance(value, int | float):
            return value in (self.choices or [])
        return float(self.low or 0) <= value <= float(self.high or 0) and not (self.integer and value % 1)


class TuneConfig(Config):
    """A search: what proposes the trials, what stops the poor ones early, and how the winner is confirmed."""

    method: Literal["tpe", "grid", "pbt"] = Field(
        default="tpe",
        description="tpe: Optuna proposes by what it has seen; grid: every combination of the choices; pbt: a "
        "population, of which the worst continue from the best with parameters changed",
    )
    trials: int = Field(
        default=8, ge=1, le=100_000, description="how many sets of parameters tpe tries; pbt: members of the population"
    )
    epochs: int = Field(default=6, ge=1, le=10_000, description="epochs of a trial that is not stopped")
    stopping: Literal["asha", "median", "none"] = Field(
        default="asha",
        description="asha: the best of each rung continue; median: those below the median of the others end",
    )
    grace_epochs: int = Field(
        default=2, ge=1, le=10_000, description="epochs before a trial may be stopped; pbt: epochs of a generation"
    )
    reduction_factor: int = Field(default=3, ge=2, le=100, description="asha: one in so many continues at each rung")
    seeds: int = Field(
        default=3, ge=0, le=100, description="further seeds under which the winner and the recipe as it is are trained"
    )
    workers_per_trial: int = Field(
        default=1, ge=1, le=1024, description="data-parallel workers of one trial, with train.threads CPUs each"
    )
    max_concurrent: int | None = Field(
        default=None, ge=1, le=4096, description="trials at once; null: as many as the CPUs hold"
    )
    time_budget_minutes: float | None = Field(
        default=None,
        gt=0,
        le=525_600,
        description="the search ends after so long, with what it has by then; null: no limit",
    )
    metric: Literal["val_accuracy", "val_balanced_accuracy", "val_loss"] = Field(
        default="val_balanced_accuracy", description="what decides; always of the validation split"
    )
    cost: Literal["latency_ms", "gmacs", "parameters"] | None = Field(
        default=None, description="what is to be small besides, of one image on one core; null: the metric alone"
    )
    space: dict[str, SearchRange] = Field(
        default={
            "learning_rate": SearchRange(low=1e-4, high=1e-2, log=True),
            "weight_decay": SearchRange(low=1e-6, high=1e-2, log=True),
        },
        min_length=1,
        description="recipe key (dotted where nested) -> what it may be",
    )

    @model_validator(mode="after")
    def _keys_are_searched(self) -> TuneConfig:
        above: dict[str, SearchRange] = {}
        for name, span in self.space.items():
            if name.partition(".")[0] in _NOT_SEARCHED:
                raise ValueError(f"space.{brief(name)}: is the same for all trials, so it cannot be searched")
            for key, allowed in span.when.items():
                if key not in above or above[key].choices is None or not all(map(above[key].holds, allowed)):
                    raise ValueError(f"space.{brief(name)}.when: {brief(key)} is no key above it with these choices")
            above[name] = span
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> TuneConfig:
        if self.grace_epochs > self.epochs:
            raise ValueError(f"grace_epochs = {self.grace_epochs}: must be at most epochs = {self.epochs}")
        if self.cost and self.stopping != "none":
            raise ValueError(
                f"cost = {self.cost}: set stopping: none, since the cheapest trials would be stopped for their accuracy"
            )
        if self.cost and self.metric == "val_loss":
            raise ValueError(f"cost = {self.cost}: set metric to an accuracy")
        if self.method == "pbt":
            if self.cost or self.stopping != "none" or "patience" in self.space or self.trials < 2:
                raise ValueError("method = pbt: needs trials >= 2 and stopping: none, and no cost or space.patience")
            if self.epochs % self.grace_epochs:
                raise ValueError(
                    f"method = pbt: epochs = {self.epochs} are no whole number of generations of grace_epochs = "
                    f"{self.grace_epochs}"
                )
        if self.method == "grid":
            ranges = [name for name, span in self.space.items() if span.choices is None]
            if ranges:
                raise ValueError(f"method = grid: space.{brief(ranges[0])} has no choices")
            if len(self.grid) > _LARGEST_GRID:
                raise ValueError(f"method = grid: more than {_LARGEST_GRID:,} combinations")
        return self

    @property
    def grid(self) -> list[dict[str, Value]]:
        """Every combination of the choices, each once; cut off beyond the largest one allowed."""
        found: list[dict[str, Value]] = [{}]
        for name, span in self.space.items():
            found = [
                values | more
                for values in found
                for more in ([{name: one} for one in span.choices or []] if span.exists(values) else [{}])
            ][: _LARGEST_GRID + 1]
        return found

    @property
    def planned(self) -> int:
        """How many sets of parameters are tried; of a population, in all its generations."""
        return len(self.grid) if self.method == "grid" else self.trials * self.generations

    @property
    def generations(self) -> int:
        """Of a population; 1 for other methods."""
        return self.epochs // self.grace_epochs if self.method == "pbt" else 1


def check_space(recipe: Recipe, config: TuneConfig, where: str, place: str = "tune") -> None:
    """ConfigError where a key of `tune.space` is unknown to a recipe, or a value of its range is rejected there.

    A batch that the workers of a trial cannot share evenly is rejected too.

    Args:
        where: file that the space comes from. place: dotted path of the section in it.
    """
    if config.method == "pbt" and recipe.stages:
        raise ConfigError(f"{where}: {place}.method = pbt: the recipe has stages of its own")
    epochs = config.epochs // config.generations
    batches = config.space.get("batch_size")
    if batches is None or batches.when:
        _check_batches(recipe, config.workers_per_trial, f"{where}: {place}: ")
    given: dict[str, dict[str, Any]] = {}  # of each key: the first values with which it exists, and they themselves
    for name, span in config.space.items():
        given[name] = {k: v for key, allowed in span.when.items() for k, v in (given[key] | {key: allowed[0]}).items()}
        low, high = float(span.low or 0), float(span.high or 0)
        # Between the ends, so that no whole number is met where only whole numbers are right.
        numbers = (low, high, low + (1 if span.integer else (high - low) / 2**0.5))
        for value in span.choices or (map(int, numbers) if span.integer else numbers):
            try:
                changed = vary(recipe, given[name] | {name: value, "epochs": epochs}, "a recipe")
                if name == "batch_size":
                    _check_batches(changed, config.workers_per_trial)
            except ConfigError as error:
                hint = "; for whole numbers: integer: true" if span.choices is None and not span.integer else ""
                reason = "; ".join(str(error).splitlines())
                raise ConfigError(f"{where}: {place}.space.{brief(name)}: {reason}{hint}") from None


def _check_batches(recipe: Recipe, workers: int, where: str = "") -> None:
    for part in recipe.in_stages:
        if part.batch_size % workers:
            raise ConfigError(
                f"{where}batch_size = {part.batch_size} cannot be divided evenly among workers_per_trial = {workers}"
            )
