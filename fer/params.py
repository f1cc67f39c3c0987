"""params.yaml as typed, frozen configuration: read once, validated whole, before any stage touches an output.

The only validation of parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import Field, create_model, model_validator

from fer import plugins
from fer.cluster.config import ClusterConfig, TuneConfig, check_space
from fer.config import Config, ConfigError, keys_of, nearest, parse, read_yaml
from fer.environment import environment
from fer.evaluation.config import EvaluateConfig
from fer.explain.config import ExplainConfig
from fer.faces.config import CropConfig
from fer.io.remote import public_url
from fer.io.storage import is_store
from fer.io.yaml12 import brief
from fer.names import check_keys, check_name
from fer.shards.folds import group_folds
from fer.shards.schema import ShardConfig
from fer.sources.registry import DatasetConfig, dataset_type
from fer.tracking import TrackingConfig
from fer.training.recipe import Recipe, TrainStageConfig, load_entry

FILE_NAME = "params.yaml"
C = TypeVar("C", bound=Config)
V = TypeVar("V")


class PairConfig(Config):
    """One model on one dataset."""

    dataset: str = Field(description="one of `run.datasets`")
    model: str = Field(description="a key of `models`")


class RunConfig(Config):
    """Which datasets and models `dvc repro` runs: every model of `models` on every dataset, and the pairs."""

    datasets: list[str] = Field(min_length=1, description="keys of `datasets`")
    models: list[str] = Field(description="keys of `models`")
    pairs: dict[str, PairConfig] = Field(
        default_factory=dict, description="single combinations; DVC calls their stages train_pair@<name>"
    )

    @model_validator(mode="after")
    def _trains_something(self) -> RunConfig:
        if not self.models and not self.pairs:
            raise ValueError("models and pairs are both empty: name a model")
        return self


class ReportConfig(Config):
    """The content of the report."""

    title: str = Field(
        default="Facial expression recognition", min_length=1, max_length=200, description="heading of the page"
    )
    published_rows: int = Field(
        default=12, ge=0, le=100, description="most published results shown beside a dataset, the best first; 0: all"
    )
    faces_per_cell: int = Field(
        default=6,
        ge=0,
        le=50,
        description="most confident mistakes of each confusion cell, whose faces are in the page; 0: no faces",
    )


class _Plugins(Config):
    """The modules that are imported before the rest of params.yaml is read."""

    plugins: list[Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$", max_length=200)]] = Field(
        default_factory=list,
        description="modules that register models, datasets and recipes of yours: of files in the project's folder, "
        "or installed",
    )


class _Document(_Plugins):
    """params.yaml as written."""

    seed: int = Field(ge=0, lt=2**31)
    run: RunConfig
    datasets: dict[str, DatasetConfig] = Field(min_length=1)
    crop: CropConfig
    shard: ShardConfig
    train: TrainStageConfig
    storage: str | None = None
    models: dict[str, dict[str, Any]] = Field(min_length=1)
    evaluate: EvaluateConfig
    explain: ExplainConfig = ExplainConfig()
    report: ReportConfig
    cluster: ClusterConfig
    tracking: TrackingConfig
    tune: TuneConfig


def _document_type() -> type[_Document]:
    """`_Document` with the datasets of plugins."""
    kind = dataset_type()
    if kind is DatasetConfig:
        return _Document
    datasets = Annotated[dict[str, kind], Field(min_length=1)]  # type: ignore[valid-type]
    return create_model("Document", __base__=_Document, datasets=(datasets, ...))


@dataclass(frozen=True, kw_only=True)
class Params:
    """Everything a stage may need.

    Attributes:
        root: the project's folder, where outputs are written.
        recipes: the complete training recipe of each key under `models`: its recipe file with the overrides applied.
        recipe_names: the recipe that each key under `models` names; "params.yaml" where it names none.
        own: by its place, e.g. "datasets.rafdb.crop", what one dataset or model has instead of a section's values.
        storage: URL of the folder in an object store through which machines that share no folder work; None: they share
            the project's.
        parent: the project whose queued experiment `root` is; None where it is not one.
    """

    root: Path
    seed: int
    run: RunConfig
    datasets: Mapping[str, DatasetConfig]
    crop: CropConfig
    shard: ShardConfig
    train: TrainStageConfig
    recipes: Mapping[str, Recipe]
    evaluate: EvaluateConfig
    explain: ExplainConfig
    report: ReportConfig
    cluster: ClusterConfig
    tracking: TrackingConfig
    tune: TuneConfig
    own: Mapping[str, Mapping[str, Any]]
    recipe_names: Mapping[str, str] = field(default_factory=dict)
    plugins: Sequence[str] = ()
    storage: str | None = None
    parent: Path | None = None

    @property
    def home(self) -> Path:
        """The folder of the user's data, `.work` and a local MLflow store.

        That is `root`, but the project for a queued experiment, whose own folder DVC deletes.
        """
        return self.parent or self.root

    @property
    def queued(self) -> bool:
        """Whether this is a queued experiment of DVC, which shares `home` with others that may run now."""
        return self.parent is not None

    def dataset(self, key: str) -> DatasetConfig:
        """The dataset of that key; ConfigError lists the known ones."""
        return _pick(self.datasets, key, "datasets")

    def recipe(self, key: str) -> Recipe:
        """The recipe of that key under `models`; ConfigError lists the known ones."""
        return _pick(self.recipes, key, "models")

    def crop_of(self, dataset: str) -> CropConfig:
        """The section `crop` as it holds for a dataset."""
        return self._with_own(self.crop, f"datasets.{dataset}.crop")

    def train_of(self, model: str) -> TrainStageConfig:
        """The section `train` as it holds for a key of `models`."""
        return self._with_own(self.train, f"models.{model}.train")

    def tune_of(self, model: str) -> TuneConfig:
        """The section `tune` as it holds for a key of `models`."""
        return self._with_own(self.tune, f"models.{model}.tune")

    def _with_own(self, section: C, place: str) -> C:
        if place not in self.own:
            return section
        values = {**section.model_dump(mode="json"), **self.own[place]}
        return parse(type(section), values, str(self.root / FILE_NAME), place)

    @property
    def combinations(self) -> list[tuple[str, str]]:
        """Dataset and model of all that `run` trains: every model on every dataset, then the pairs."""
        pairs = ((pair.dataset, pair.model) for pair in self.run.pairs.values())
        return [*product(self.run.datasets, self.run.models), *pairs]

    @property
    def run_models(self) -> list[str]:
        """The models of `combinations`, each once."""
        return list(dict.fromkeys(model for _, model in self.combinations))

    def run_name(self, model: str) -> str:
        """What MLflow calls a run: `<model> · <recipe>`; the model alone where it is called as its recipe is.

        MLflow's table shows some twenty characters.
        """
        recipe = self.recipe_names.get(model, FILE_NAME)
        return model if recipe.replace("/", "_") == model else f"{model} · {recipe}"

    def target(self, stage: str, dataset: str, model: str) -> str:
        """What DVC calls the stage of a combination: train@rafdb-btn, or train_pair@<name>."""
        for name, pair in self.run.pairs.items():
            if (pair.dataset, pair.model) == (dataset, model):
                return f"{stage}_pair@{name}"
        return f"{stage}@{dataset}-{model}"


def project_root(start: Path | None = None) -> Path:
    """The nearest folder upwards that holds params.yaml.

    Raises:
        ConfigError: there is none.
    """
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / FILE_NAME).is_file():
            return folder
    raise ConfigError(f"no {FILE_NAME} in {here} or above it: run this inside the project's folder")


def load(path: Path | None = None) -> Params:
    """Reads and validates params.yaml and every recipe that it names.

    Args:
        path: the file; None searches the current folder and upwards.

    Raises:
        ConfigError: a wrong key, type or value anywhere, or an unknown name.
    """
    path = path or project_root() / FILE_NAME
    data, own = _without_crops(read_yaml(path), str(path))
    load_plugins(path, data)
    document = parse(_document_type(), data, str(path))
    check_keys(document.datasets, document.models, str(path))
    root = path.resolve().parent
    parent = _parent(root)
    for kind, names, known in (
        ("datasets", document.run.datasets, document.datasets),
        ("models", document.run.models, document.models),
    ):
        for name in names:
            if name not in known:
                raise ConfigError(
                    f"{path}: run.{kind} names {brief(name)!r}, which is not a key of {kind!r}"
                    f"{nearest(name, list(known))}; known: {', '.join(known)}"
                )
            if names.count(name) > 1:
                raise ConfigError(f"{path}: run.{kind} names {name!r} more than once; each runs once")
    _check_pairs(document, str(path))
    recipes = {}
    for key, entry in document.models.items():
        recipes[key], settings = load_entry(entry, root, f"{path}", f"models.{key}", parent)
        own |= {f"models.{key}.{section}": values for section, values in settings.items()}
    _check_storage(document.storage, str(path))
    fields = {name: getattr(document, name) for name in _Document.model_fields if name != "models"}
    recipe_names = {
        key: str(entry.get("recipe", FILE_NAME)).partition("#")[0] for key, entry in document.models.items()
    }
    loaded = Params(root=root, parent=parent, recipes=recipes, recipe_names=recipe_names, own=own, **fields)
    _check_together(loaded, str(path))
    return loaded


def load_plugins(path: Path | None = None, data: Mapping[str, Any] | None = None) -> None:
    """Imports the installed plugins, and those that params.yaml names; nothing else of it is read.

    Args:
        path: the file; None searches the current folder and upwards, and there may be none.
        data: its content, where it was read already.

    Raises:
        ConfigError: `plugins` is no list of names. PluginError: one of them cannot be imported.
    """
    plugins.load_installed()
    if path is None:
        try:
            path = project_root() / FILE_NAME
        except ConfigError:
            return
    data = read_yaml(path) if data is None else data
    if "plugins" in data:
        root = path.resolve().parent
        names = parse(_Plugins, {"plugins": data["plugins"]}, str(path)).plugins
        plugins.load(names, [folder for folder in (root, _parent(root)) if folder], f"{path}: plugins")


def _without_crops(data: dict[str, Any], where: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The file's content without the key `crop` of its datasets, and those keys' values by place."""
    if not isinstance(data.get("datasets"), dict):
        return data, {}
    datasets, own = dict(data["datasets"]), {}
    for key, entry in datasets.items():
        if isinstance(entry, dict) and "crop" in entry:
            place = f"datasets.{key}.crop"
            own[place] = keys_of("crop", entry["crop"], where, place)
            datasets[key] = {name: value for name, value in entry.items() if name != "crop"}
    return {**data, "datasets": datasets}, own


def _check_storage(url: str | None, where: str) -> None:
    """ConfigError for what is no folder in a store; a password in it is not repeated."""
    if url is not None and (not is_store(url) or not urlsplit(url).netloc or set("@?#") & set(url)):
        raise ConfigError(
            f"{where}: storage = {public_url(url)!r}: expected s3://bucket/folder, gs://bucket/folder or "
            "az://container/folder; credentials come from the environment"
        )


def _check_pairs(document: _Document, where: str) -> None:
    """ConfigError where a pair of `run` cannot name a stage, names something unknown, or trains what is trained."""
    run = document.run
    known = {"dataset": run.datasets, "model": list(document.models)}
    seen = dict.fromkeys(product(run.datasets, run.models), "run.datasets and run.models")
    for name, pair in run.pairs.items():
        check_name(name, f"{where}: run.pairs")
        for key, allowed in known.items():
            if (value := getattr(pair, key)) not in allowed:
                section = "run.datasets" if key == "dataset" else "models"
                raise ConfigError(
                    f"{where}: run.pairs.{name}.{key} = {brief(value)!r}: not in {section!r}"
                    f"{nearest(value, allowed)}; there are: {', '.join(allowed)}"
                )
        if other := seen.get((pair.dataset, pair.model)):
            raise ConfigError(f"{where}: run.pairs.{name}: {pair.model} on {pair.dataset} is in {other} already")
        seen[pair.dataset, pair.model] = f"run.pairs.{name}"


def _parent(root: Path) -> Path | None:
    """The project where a queued experiment was started (`dvc exp run --queue`, `--temp`); None elsewhere.

    DVC runs it in a copy of the repository below the project's .dvc/tmp, and names the project in DVC_ROOT.
    """
    if (home := environment().dvc_root) is None or not root.is_relative_to(home.resolve() / ".dvc" / "tmp"):
        return None
    copy = next(folder for folder in (root, *root.parents) if (folder / ".dvc").is_dir())
    parent = home.resolve() / root.relative_to(copy)
    return parent if parent != root and (parent / FILE_NAME).is_file() else None


def _check_together(params: Params, where: str) -> None:
    """ConfigError where parts are valid on their own, but not together, or a stage that `run` selects refuses them."""
    for dataset in params.datasets:
        params.crop_of(dataset)
    for key in params.recipes:
        params.train_of(key)
        config, place = params.tune_of(key), f"models.{key}.tune"
        if "space" in params.own.get(place, {}):
            check_space(params.recipe(key), config, where, place)
    for key in params.run_models:
        train = params.train_of(key)
        if train.most_workers:
            try:
                train.worker_counts(params.recipe(key), at_start=True)
            except ValueError as error:
                own = "which an entry `train` of the model may hold too"
                raise ConfigError(f"{where}: models.{key}.{error}, {own}") from None
        for recipe in params.recipe(key).in_stages:
            if (held := recipe.cross_validation) is not None:
                try:
                    group_folds(params.shard.folds, held.folds, held.repeat)
                except ValueError as error:
                    raise ConfigError(f"{where}: models.{key}.cross_validation: {error}") from None
    refused: ConfigError | None = None
    for key in dict.fromkeys([*params.run_models, *params.recipes]):
        try:
            check_space(params.recipe(key), params.tune, where)
            return
        except ConfigError as error:  # a search space of one model's options is invalid for another
            refused = refused or error
    if refused is not None:
        raise refused


def _pick(known: Mapping[str, V], key: str, section: str) -> V:
    if key not in known:
        hint = nearest(key, list(known))
        raise ConfigError(f"{FILE_NAME}: {section} has no {key!r}{hint}; known: {', '.join(known)}")
    return known[key]
