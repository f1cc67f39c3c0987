"""What a run does, as data: the recipe of a model, and the options of the train stage.

Recipes are package data, `fer/recipes/<file>.yaml`, one section each; `ddamfn/nano` names the section `nano` of
`ddamfn.yaml`. `params.yaml` names one for every model and may override any of its keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from fer.config import Config, ConfigError, keys_of, nearest, parse, read_yaml
from fer.io.files import below, sha256
from fer.io.yaml12 import brief
from fer.transforms.reference import AugmentSpec

MOST_EPOCHS = 10_000
MOST_IMAGES = 65_536
"""Of a batch: 50 times what any published recipe of these models takes, and 9 GB of pixels."""

_MOST_OPTION = 10_000
"""Of a number among a model's options, which count blocks, heads, classes of tokens, channels or pixels."""

SETTINGS = ("train", "tune")
"""Sections of params.yaml of which a recipe or an entry under `models` may hold other values for its model."""

_MOST_FILES = 10
"""Recipe files that start from each other; more go round in a circle."""


class Schedule(Config):
    """How the learning rate changes from `Recipe.learning_rate`; see `fer.training.schedule`."""

    kind: Literal["constant", "cosine", "step", "exponential"] = "cosine"
    warmup_epochs: float = Field(0.0, ge=0, description="epochs of linear rise from 0; fractions are allowed")
    gamma: float = Field(0.1, gt=0, le=1, description="step, exponential: factor of each decay")
    step_epochs: int = Field(10, ge=1, le=MOST_EPOCHS, description="step: epochs between two decays")
    final_fraction: float = Field(0.0, ge=0, le=1, description="cosine: rate at the end, as a fraction of the first")


class SamConfig(Config):
    """Sharpness-aware minimization, see `fer.training.sam`. The defaults are those of the published code."""

    rho: float = Field(0.05, gt=0, le=10, description="length of the step towards the worst loss nearby")
    adaptive: bool = Field(False, description="scales the step by the size of each weight (ASAM)")
    gradient: Literal["global", "local"] = Field(
        "global", description="local: each worker steps by its own images' gradient, which saves an exchange"
    )
    dropout: Literal["redrawn", "same"] = Field("redrawn", description="same: the second pass drops what the first did")
    batch_norm: Literal["both", "first"] = Field("both", description="passes that update BatchNorm's statistics")


class Mix(Config):
    """Training on mixtures of two images, see `fer.training.targets.mix_images`."""

    kind: Literal["mixup", "cutmix"]
    alpha: float = Field(0.2, gt=0, le=10, description="of the Beta distribution of the proportions; 1: uniform")
    p: float = Field(1.0, ge=0, le=1, description="fraction of the updates on mixtures")


class CrossValidation(Config):
    """One run of a cross-validation over the folds of the shards; see `fer.shards.folds`."""

    folds: int = Field(ge=2, le=100)
    fold: int = Field(0, ge=0, description="that is held out, and chooses the epoch; below `folds`")
    repeat: int = Field(0, ge=0, lt=1000, description="another grouping of the shards' folds")

    @model_validator(mode="after")
    def _fold_is_there(self) -> Self:
        if self.fold >= self.folds:
            raise ValueError(f"fold = {self.fold}: must be below folds = {self.folds}")
        return self


class Recipe(Config):
    """A whole run but for its data, seed and machine."""

    model: str = Field(description="name in the registry, `fer.models.list_models()`")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the model")
    pretrained: dict[str, str] = Field(
        default_factory=dict,
        description="part of the model -> weights it starts from: a name in `fer weights list`, or a path",
    )
    start_from: str | None = Field(
        None,
        description="weights that the whole model starts from: a name in `fer weights list`, or the path of weights of "
        "this project or of its authors; null: random ones",
    )
    epochs: int = Field(ge=1, le=MOST_EPOCHS)
    batch_size: int = Field(ge=1, le=MOST_IMAGES, description="images of one update, over all workers together")
    eval_batch_size: int = Field(256, ge=1, le=MOST_IMAGES, description="images of one forward pass of validation")
    optimizer: Literal["adam", "adamw", "sgd"] = "adamw"
    learning_rate: float = Field(gt=0, le=10)
    weight_decay: float = Field(0.0, ge=0, le=1)
    weight_decay_on: Literal["all", "kernels"] = Field(
        "all", description="kernels: spares biases, norms and PReLU slopes, whatever has one dimension"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd only")
    betas: tuple[float, float] = Field((0.9, 0.999), description="adam and adamw only")
    schedule: Schedule = Schedule()
    labels: Literal["hard", "soft"] = Field(
        "hard", description="soft: class probabilities from several annotators, where the dataset has them"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    class_weights: Literal["none", "inverse", "effective"] = Field(
        "none", description="weights of the loss, 1 in the mean: by 1 / rows of the class, or by their effective number"
    )
    mix: Mix | None = Field(None, description="mixup or cutmix; null: images as they are")
    sam: SamConfig | None = Field(None, description="sharpness-aware minimization: two passes an update; null: without")
    accumulate: int = Field(
        1,
        ge=1,
        description="parts that a worker's slice of a batch is computed in, one after the other, to save memory",
    )
    gradient_checkpointing: bool = Field(
        False, description="recomputes activations in the backward pass: less memory, a third more time, same bits"
    )
    gradient_clip: float | None = Field(
        None, gt=0, le=1e6, description="largest norm of the whole gradient; null: no limit"
    )
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="decay of a moving average of the weights, which is then validated and kept"
    )
    patience: int | None = Field(
        None,
        ge=1,
        le=MOST_EPOCHS,
        description="epochs without a better selection metric after which it stops; null: all epochs",
    )
    sampler: Literal["shuffle", "balanced"] = "shuffle"
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = True
    compile: bool = Field(False, description="torch.compile: minutes at the start, faster steps; other last digits")
    augment: list[AugmentSpec] = Field(default_factory=list)
    selection_metric: Literal["accuracy", "balanced_accuracy", "loss"] = Field(
        "accuracy", description="of the split that chooses the epoch"
    )
    protocol: Literal["validation", "published"] = Field(
        "validation",
        description="split that chooses the epoch. published: the test split, and all other rows are trained on, as "
        "published code does it; the results are then labeled so",
    )
    selection: Literal["best", "refit"] = Field(
        "best",
        description="refit: the best epoch on validation only says how many there are; then all rows but the test "
        "split's are trained on from the first weights. With protocol: published, both results are known",
    )
    cross_validation: CrossValidation | None = Field(
        None, description="another split of the development rows into training and validation; null: the shards' own"
    )
    trainable: list[str] | None = Field(
        None, min_length=1, description="patterns of the names of the parameters that are trained; null: all"
    )
    stages: list[dict[str, Any]] = Field(
        default_factory=list,
        description="stages one after the other, each from the best weights of the one before: recipe keys with "
        "other values. A later stage's model may have parts that the earlier one's lacks",
    )

    @model_validator(mode="after")
    def _plausible(self) -> Self:
        if self.schedule.warmup_epochs >= self.epochs:
            raise ValueError(f"schedule.warmup_epochs must be smaller than epochs = {self.epochs}")
        if self.accumulate > self.batch_size:
            raise ValueError(f"accumulate = {self.accumulate} parts cannot be made of batch_size = {self.batch_size}")
        if self.compile and self.gradient_checkpointing:
            raise ValueError("compile and gradient_checkpointing exclude each other: torch.compile decides by itself")
        for name, option in self.options.items():
            numbers = option if isinstance(option, list) else [option]
            if any(isinstance(one, int | float) and abs(one) > _MOST_OPTION for one in numbers):
                raise ValueError(
                    f"options.{brief(name)} = {brief(repr(option))}: numbers up to {_MOST_OPTION} are allowed"
                )
        if self.cross_validation and (self.protocol, self.selection) != ("validation", "best"):
            key = "selection: refit" if self.selection == "refit" else "protocol: published"
            raise ValueError(f"cross_validation holds a fold out, and {key} trains on all rows: leave one of them out")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError("betas must lie in [0, 1)")
        self.in_stages  # noqa: B018 - an error in a stage is one in the recipe
        return self

    @property
    def sources(self) -> dict[str, str]:
        """Part of the model -> the weights it starts from; under "" those of the whole model (`fer.weights.parts`)."""
        return ({} if self.start_from is None else {"": self.start_from}) | self.pretrained

    @property
    def in_stages(self) -> list[Recipe]:
        """The complete recipe of each stage; itself where there is only one."""
        if not self.stages:
            return [self]
        base = self.model_dump(mode="json", exclude={"stages"})
        made = []
        for number, stage in enumerate(self.stages, start=1):
            if fixed := {"stages", "pretrained", "start_from", "protocol", "selection"} & set(stage):
                raise ValueError(f"stages[{number}]: {', '.join(sorted(fixed))} holds for all stages alike")
            own = base if "model" not in stage else {**base, "options": {}}  # options are a model's own
            try:
                made.append(parse(Recipe, overlaid(own, stage), f"stages[{number}]"))
            except ConfigError as error:
                raise ValueError("; ".join(str(error).splitlines())) from None
        return made

    @property
    def last(self) -> Recipe:
        """The recipe of the last stage, whose model is the result."""
        return self.in_stages[-1]


_MOST_WORKERS = 1024


class WorkerRange(Config):
    """As many training workers as the cluster has room for, now and later."""

    min: int = Field(ge=1, le=_MOST_WORKERS, description="with room for fewer, a run waits for cluster.wait_minutes")
    max: int = Field(ge=1, le=_MOST_WORKERS, description="workers where there is room for all")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min = {self.min}: must be at most max = {self.max}")
        return self

    def __str__(self) -> str:
        return f"{self.min} to {self.max}"


def _form_of_workers(value: object) -> str:
    return "<range>" if isinstance(value, Mapping | WorkerRange) else "<number>"


class TrainStageConfig(Config):
    """Section `train` of params.yaml: where and how a run is executed; `Recipe` says what it does."""

    workers: Annotated[
        Annotated[int, Field(ge=0, le=_MOST_WORKERS), Tag("<number>")] | Annotated[WorkerRange, Tag("<range>")],
        Discriminator(_form_of_workers),
    ] = Field(
        0,
        description="data-parallel Ray workers; 0 trains in this process, without Ray; {min: 1, max: 8}: as many as "
        "the cluster has room for",
    )
    threads: int = Field(1, ge=1, le=256, description="CPU threads of one worker; other counts give other bits")
    gpu: bool = Field(False, description="one GPU a worker")
    checkpoint_every_steps: int = Field(
        200, ge=1, le=10_000_000, description="updates between checkpoints; each epoch ends with one"
    )
    max_failures: int = Field(2, ge=0, le=1000, description="lost workers after which the run fails")
    collective_timeout_seconds: int = Field(
        300,
        ge=1,
        le=7 * 24 * 3600,
        description="a worker that is silent for so long, while others wait for it, counts as lost",
    )

    @property
    def fewest_workers(self) -> int:
        """Workers that it starts with at least."""
        return self.workers if isinstance(self.workers, int) else self.workers.min

    @property
    def most_workers(self) -> int:
        """Workers where there is room for all."""
        return self.workers if isinstance(self.workers, int) else self.workers.max

    def worker_counts(self, recipe: Recipe, *, at_start: bool = False) -> list[int]:
        """The numbers of workers that a run may have, the largest first: all divide its batches evenly.

        A fixed number is that at the start, and any up to it after a loss.

        Raises:
            ValueError: there is none.
        """
        least = self.fewest_workers if at_start or isinstance(self.workers, WorkerRange) else 1
        batches = [part.batch_size for part in recipe.in_stages]
        found = [n for n in range(self.most_workers, least - 1, -1) if not any(batch % n for batch in batches)]
        if not found:
            told = ", ".join(map(str, sorted(set(batches))))
            raise ValueError(
                f"batch_size = {told} cannot be divided evenly among {self.workers} workers; change it or train.workers"
            )
        return found


DECISIVE = {"workers", "threads", "gpu"}
"""Keys of `TrainStageConfig` on which the bits of a result depend."""


def list_recipes() -> list[str]:
    """The recipes that come with the package and with plugins, as `file/section`, sorted."""
    return sorted(_known())


def register_recipes(package: str) -> None:
    """Makes the .yaml files of a plugin's package known as recipes, `file/section`, as those of `fer.recipes` are.

    Raises:
        ValueError: a name that is taken.
    """
    if taken := sorted(_known().keys() & _of_package(package).keys()):
        raise ValueError(f"recipe {taken[0]!r} is registered already")
    _PACKAGES.append(package)


_PACKAGES = ["fer.recipes"]


def _known() -> Mapping[str, Mapping[str, Any]]:
    return {name: content for package in _PACKAGES for name, content in _of_package(package).items()}


@cache
def _of_package(package: str) -> Mapping[str, Mapping[str, Any]]:
    """The recipes of a package, read once: every entry under `models` asks for them."""
    files = [entry for entry in resources.files(package).iterdir() if entry.name.endswith(".yaml")]
    return {
        f"{entry.name.removesuffix('.yaml')}/{section}": content
        for entry in files
        for section, content in read_yaml(entry).items()
    }


def load_recipe(
    entry: Mapping[str, Any], root: Path, where: str, prefix: str = "", parent: Path | None = None
) -> Recipe:
    """The complete recipe of an entry under `models` in params.yaml.

    Args:
        entry: `recipe`, the one to start from, and any of its keys with another value; `schedule` and `options` are
            merged key by key, all others replaced whole. `recipe` is `file/section` of the package's recipes, or the
            path of a .yaml file below `root`, which holds an entry again (and `evidence`, which is for people). With
            `#` and the first digits of its SHA-256 behind it, another content is refused: DVC sees the params alone.
        root: the project's folder.
        where: the file the entry stands in, for the error's text.
        prefix: dotted path of the entry inside that file.
        parent: where files that `root` lacks are looked for.

    Raises:
        ConfigError: names the file, the key and the value.
    """
    return load_entry(entry, root, where, prefix, parent)[0]


def load_entry(
    entry: Mapping[str, Any], root: Path, where: str, prefix: str = "", parent: Path | None = None
) -> tuple[Recipe, dict[str, Any]]:
    """The same, with the keys of each of `SETTINGS` that the entry, or the recipe it starts from, gives; unchecked."""
    return _parse(_resolve(entry, root, where, prefix, parent), where, prefix)


def _parse(values: Mapping[str, Any], where: str, prefix: str) -> tuple[Recipe, dict[str, Any]]:
    place = f"{prefix}." if prefix else ""
    own = {key: keys_of(key, values[key], where, place + key) for key in SETTINGS if key in values}
    return parse(Recipe, {key: value for key, value in values.items() if key not in own}, where, prefix), own


def _resolve(
    entry: Mapping[str, Any],
    root: Path,
    where: str,
    prefix: str,
    parent: Path | None,
    above: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The keys of an entry laid over those of the recipe it names; an error in a file names that file."""
    if "recipe" not in entry:
        return dict(entry)
    name, place = entry["recipe"], f"{where}: {prefix + '.' if prefix else ''}recipe"
    if not isinstance(name, str):
        raise ConfigError(f"{place} = {name!r}: expected file/section of a recipe, or the path of a .yaml file")
    name, _, pinned = name.partition("#")
    if name.endswith(".yaml"):
        if len(above) == _MOST_FILES:
            raise ConfigError(f"{place} = {name!r}: more than {_MOST_FILES} files that start from each other")
        path = below(name, root, parent)
        content = read_yaml(path)
        if pinned and not (found := sha256(path)).startswith(pinned):
            raise ConfigError(f"{place} = '{name}#{pinned}': the file has changed; to use it, write {name}#{found[:8]}")
        content.pop("evidence", None)
        base, file, section = _resolve(content, root, name, "", parent, (*above, name)), name, ""
    else:
        known = _known()
        if name not in known:
            listing = f"known: {', '.join(sorted(known))}"
            raise ConfigError(f"{place} = {brief(name)!r}: no such recipe{nearest(name, sorted(known))}; {listing}")
        stem, _, section = name.partition("/")
        base, file = dict(known[name]), f"recipe {stem}.yaml"
    _parse(base, file, section)
    base = overlaid(base, entry)
    del base["recipe"]
    return base


def overlaid(base: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of `base` with those of `entry` over them.

    `schedule`, `options` and the `SETTINGS` are merged key by key, all others replaced whole.
    """
    result = dict(base)
    for key, value in entry.items():
        merged = key in ("schedule", "options", *SETTINGS) and isinstance(value, Mapping)
        result[key] = {**result.get(key, {}), **value} if merged else value
    return result


def vary(recipe: Recipe, values: Mapping[str, Any], where: str) -> Recipe:
    """A recipe with other values of some keys; a dot leads into `schedule` and `options`.

    Raises:
        ConfigError: an unknown recipe key, or a value that it refuses.
    """
    keys = recipe.model_dump(mode="json")
    for name, value in values.items():
        inner = keys
        *path, last = name.split(".")
        for part in path:
            if not isinstance(inner.get(part), dict):
                raise ConfigError(f"{where}: unknown recipe key {name!r}")
            inner = inner[part]
        inner[last] = value
    return parse(Recipe, keys, where)
