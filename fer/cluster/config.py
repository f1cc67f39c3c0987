"""Which cluster the work runs on, and how a search over parameters uses it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from fer.config import Config, ConfigError
from fer.io.yaml12 import brief
from fer.training.recipe import Recipe, vary

_NOT_SEARCHED = ("epochs", "pretrained", "start_from", "protocol", "selection", "cross_validation", "stages")
"""Keys of a recipe that are equal for all trials: `tune.epochs` is the value of the first."""


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
        description="how long a stage waits for workers that the autoscaler of the cluster adds; 0: not at all",
    )


class SearchRange(Config):
    """What a search may choose for one parameter: a range of numbers, or one of a list."""

    low: float | None = Field(default=None, description="lower end")
    high: float | None = Field(default=None, description="upper end")
    log: bool = Field(default=False, description="draw evenly on a logarithmic scale")
    choices: list[int | float | str | bool] | None = Field(
        default=None, min_length=1, max_length=1000, description="the values to choose from"
    )

    @model_validator(mode="after")
    def _one_form(self) -> SearchRange:
        if self.choices is not None:
            if self.low is not None or self.high is not None or self.log:
                raise ValueError("give either choices, or low and high, not both")
        elif self.low is None or self.high is None or not self.low < self.high:
            raise ValueError("give choices, or low and high with low < high")
        elif self.log and self.low <= 0:
            raise ValueError("log needs low > 0")
        return self


class TuneConfig(Config):
    """A search with Optuna for the proposals and ASHA for stopping the poor ones early."""

    trials: int = Field(default=8, ge=1, le=100_000, description="how many sets of parameters are tried")
    epochs: int = Field(default=6, ge=1, le=10_000, description="epochs of a trial that is not stopped")
    grace_epochs: int = Field(default=2, ge=1, le=10_000, description="epochs before a trial may be stopped")
    reduction_factor: int = Field(default=3, ge=2, le=100, description="one in so many trials continues at each rung")
    workers_per_trial: int = Field(default=1, description="training workers of one trial; 1")
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
    space: dict[str, SearchRange] = Field(
        default={
            "learning_rate": SearchRange(low=1e-4, high=1e-2, log=True),
            "weight_decay": SearchRange(low=1e-6, high=1e-2, log=True),
        },
        min_length=1,
        description="recipe key (dotted where nested) -> what it may be",
    )

    @field_validator("workers_per_trial")
    @classmethod
    def _one_worker(cls, workers: int) -> int:
        if workers != 1:
            raise ValueError(
                "a trial is one worker; set 1, and give it more CPUs with train.threads where the trials are few"
            )
        return workers

    @model_validator(mode="after")
    def _keys_are_searched(self) -> TuneConfig:
        for name in self.space:
            if name.partition(".")[0] in _NOT_SEARCHED:
                raise ValueError(f"space.{brief(name)}: is the same for all trials, so it cannot be searched")
        return self

    @model_validator(mode="after")
    def _grace_within_epochs(self) -> TuneConfig:
        if self.grace_epochs > self.epochs:
            raise ValueError(f"grace_epochs = {self.grace_epochs}: must be at most epochs = {self.epochs}")
        return self


def check_space(recipe: Recipe, config: TuneConfig, where: str, place: str = "tune") -> None:
    """ConfigError where a key of `tune.space` is unknown to a recipe, or a value of its range is rejected there.

    Args:
        where: file that the space comes from. place: dotted path of the section in it.
    """
    for name, span in config.space.items():
        low, high = float(span.low or 0), float(span.high or 0)
        # Somewhere between the ends, so that no whole number is met where only whole numbers are right.
        for value in span.choices or (low, high, low + (high - low) / 2**0.5):
            try:
                vary(recipe, {name: value, "epochs": config.epochs}, "a recipe")
            except ConfigError as error:
                hint = "; for whole numbers give choices" if span.choices is None else ""
                reason = "; ".join(str(error).splitlines())
                raise ConfigError(f"{where}: {place}.space.{brief(name)}: {reason}{hint}") from None
