"""The content of the report, gathered from the outputs of the other stages. Nothing is left out: what is missing or out
of date is part of the content. Computed here is only what no single stage can: models against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fer import published
from fer.evaluation.output import facts_in
from fer.evaluation.predicted import Predicted, read_predictions
from fer.io.files import read_object, sha256
from fer.lineage import lineage, training_facts, training_history
from fer.models import list_models, model_loss
from fer.params import Params
from fer.report.comparison import Comparison, compare_models
from fer.report.evaluations import Evaluation, Evaluations, collect_evaluations
from fer.report.gallery import Gallery, collect_gallery
from fer.report.rejects import RejectLine, reject_lines
from fer.report.searches import Searches, collect_searches
from fer.report.studies import Studies, collect_studies
from fer.shards.manifest import FILE_NAME, Manifest, digest, load_manifest
from fer.tracking.config import pages_address

_KEYS: dict[str, dict[str, type]] = {
    "val.json": {},
    "test.json": {"about": list, "confusion": list, "intervals": list, "per_class": list},
}
_STAGE = {"val.json": "train", "test.json": "evaluate"}


@dataclass(frozen=True, kw_only=True)
class Result:
    """One model on one dataset.

    Attributes:
        train, validation, test: `training_facts`, val.json, test.json; empty where the stage has not run.
        cost: run.json of the evaluation (`fer.evaluation.speed.cost`); empty where there is none.
        predicted: of the rows of the test split; None where they are not there.
        history: columns of history.csv.
        missing: what has not run yet, and the command that runs it; None when all is there.
        stale: what does not fit together any more, in words.
    """

    dataset: str
    model: str
    train: Mapping[str, Any]
    validation: Mapping[str, Any]
    test: Mapping[str, Any]
    cost: Mapping[str, Any]
    predicted: Predicted | None
    history: Mapping[str, list[float]]
    missing: str | None
    stale: tuple[str, ...]

    @property
    def about(self) -> dict[str, Any]:
        """The facts of the evaluation by name."""
        return facts_in(self.test)

    def interval(self, metric: str) -> Mapping[str, Any] | None:
        """The interval of a metric of the test split."""
        return _named(self.test.get("intervals", []), metric=metric)

    @property
    def selected_on_test(self) -> bool:
        """Whether the epoch was selected on the test split, as published code does."""
        return bool(self.train.get("recipe", {}).get("protocol") == "published")

    @property
    def refit(self) -> bool:
        """Whether validation chose a number of epochs, for which all rows but the test split's were trained on then."""
        return not self.selected_on_test and self.train.get("recipe", {}).get("selection") == "refit"

    @property
    def selection_metric(self) -> str:
        """By which the epoch was selected, in the last stage."""
        recipe = self.train.get("recipe", {})
        default = recipe.get("selection_metric", "accuracy")
        return str(recipe["stages"][-1].get("selection_metric", default) if recipe.get("stages") else default)

    @property
    def training_loss(self) -> str | None:
        """What was minimized, in words, stage by stage; None where it is that of validation, the cross-entropy."""
        recipe = self.train.get("recipe", {})
        described = "; then ".join(dict.fromkeys(_loss({**recipe, **stage}) for stage in recipe.get("stages") or [{}]))
        return None if described == "cross-entropy" else described

    @property
    def protocols(self) -> Mapping[str, Any] | None:
        """See `fer.evaluation.protocols`; None where validation selected the epoch."""
        return self.test.get("protocols")

    def protocol_interval(self, protocol: str) -> Mapping[str, Any] | None:
        """The interval of the accuracy under a protocol."""
        return _named((self.protocols or {}).get("intervals", []), protocol=protocol)

    @property
    def without_duplicates(self) -> Mapping[str, Any]:
        """Metrics of the test rows without a duplicate in training or validation; `note` where they are not known."""
        found: Mapping[str, Any] = self.test.get("without_duplicates", {"note": "not known: of an earlier version"})
        return found

    @property
    def tta(self) -> Mapping[str, Any] | None:
        """The metrics under test-time augmentation; None without."""
        return self.test.get("tta")

    def tta_interval(self, metric: str) -> Mapping[str, Any] | None:
        """The interval of a metric under test-time augmentation."""
        return _named((self.tta or {}).get("intervals", []), metric=metric)

    @property
    def tta_difference(self) -> Mapping[str, Any] | None:
        """What the views change in the accuracy, with its interval; None without."""
        return _named((self.tta or {}).get("difference", []), metric="accuracy")


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One dataset with its results; `manifest` is None where it has not been sharded yet.

    evaluations: of weights of others, and of models that were trained on other data.
    comparisons: of its models on the same test rows.
    """

    key: str
    manifest: Manifest | None
    rejects: tuple[RejectLine, ...]
    digest: str | None
    results: tuple[Result, ...]
    known_as: str | None
    published: tuple[published.Number, ...]
    published_left_out: int
    published_rows: int | None
    evaluations: tuple[Evaluation, ...] = ()
    comparisons: tuple[Comparison, ...] = ()

    @property
    def synthetic(self) -> bool:
        """Whether its images are rendered."""
        return self.manifest is not None and self.manifest.synthetic

    def validation_selected(self, result: Result) -> Result | None:
        """The same run but for its protocol, whose epoch validation selected; None where there is none, or it is it."""

        def rest(one: Result) -> tuple[Any, ...]:
            recipe = {key: value for key, value in one.train["recipe"].items() if key not in ("protocol", "selection")}
            return recipe, one.train.get("seed"), one.train.get("data_digest")

        if not result.selected_on_test and not result.refit:
            return None
        plain = (one for one in self.results if one.train and one.test and not one.selected_on_test and not one.refit)
        return next((one for one in plain if rest(one) == rest(result)), None)

    @property
    def recipe_differences(self) -> tuple[str, ...]:
        """In what its runs differ besides the model, in words."""
        recipes = [result.train["recipe"] for result in self.results if result.train.get("recipe")]
        found = []
        for key in dict.fromkeys(key for recipe in recipes for key in recipe if key not in ("model", "options")):
            values = [recipe.get(key) for recipe in recipes]
            if any(value != values[0] for value in values):
                epochs = f" ({', '.join(map(str, sorted(set(values))))})" if key == "epochs" else ""
                found.append(key.replace("_", " ") + epochs)
        return tuple(found)


@dataclass(frozen=True, kw_only=True)
class Content:
    """Everything on the page.

    Attributes:
        tracking: address of MLflow's pages; None where runs are not recorded.
        ledger: whether reports/ledger.html is there.
    """

    title: str
    datasets: tuple[Dataset, ...]
    lineage: Mapping[str, str]
    files: Mapping[str, str] = field(default_factory=dict)
    studies: Studies = field(default_factory=Studies)
    searches: Searches = field(default_factory=Searches)
    evaluations: Evaluations = field(default_factory=Evaluations)
    gallery: Gallery = field(default_factory=Gallery)
    tracking: str | None = None
    ledger: bool = False

    @property
    def results(self) -> list[Result]:
        """All results in the order of the page."""
        return [result for dataset in self.datasets for result in dataset.results]


def collect(params: Params) -> Content:
    """Every combination of `run` in params.yaml, whatever else has been trained or evaluated, and the studies."""
    pairs = dict.fromkeys(params.combinations)
    for stage in ("trained", "evaluated"):
        for path in sorted((params.root / stage).glob("*/*/*.json")):
            pairs.setdefault((path.parent.parent.name, path.parent.name), None)
    keys = dict.fromkeys([*params.run.datasets, *(dataset for dataset, _ in pairs)])
    evaluations = collect_evaluations(params)
    datasets = tuple(
        _dataset(params, key, [model for dataset, model in pairs if dataset == key], evaluations) for key in keys
    )
    predicted = {
        (result.dataset, result.model): result.predicted
        for dataset in datasets
        for result in dataset.results
        if result.predicted and result.predicted.data_digest == dataset.digest
    }
    weights = {
        (result.dataset, result.model): result.about.get("weights_sha256")
        for dataset in datasets
        for result in dataset.results
    }
    names = ("params.yaml", "dvc.yaml", "dvc.lock")
    files = {name: sha256(path) for name in names if (path := params.root / name).is_file()}
    return Content(
        title=params.report.title,
        datasets=datasets,
        lineage=lineage(params.root),
        files=files,
        studies=collect_studies(params),
        searches=collect_searches(params),
        evaluations=evaluations,
        gallery=collect_gallery(params.root, predicted, weights, params.report.faces_per_cell),
        tracking=pages_address(params.tracking, params.home) if params.tracking.enabled else None,
        ledger=(params.root / "reports" / "ledger.html").is_file(),
    )


def _dataset(params: Params, key: str, models: list[str], evaluations: Evaluations) -> Dataset:
    folder = params.root / "data" / "shards" / key
    manifest = load_manifest(folder) if (folder / FILE_NAME).is_file() else None
    known_as = None
    if manifest and not manifest.synthetic and key in params.datasets:
        known_as = published.dataset_name(params.datasets[key].source, len(manifest.labels))
    works = published.results(known_as) if known_as else []
    shown = works[: params.report.published_rows or None]
    # References stay whatever the limit: human accuracy, and the baseline whose weights are public.
    shown += [work for work in works if work not in shown and (work.margin or work.table == "weights")]
    data_digest = digest(folder) if manifest else None
    results = tuple(_result(params, key, model, data_digest) for model in models)
    predicted = {result.model: result.predicted for result in results if result.predicted}
    return Dataset(
        key=key,
        manifest=manifest,
        rejects=reject_lines(manifest, params.root / "data" / "faces" / key) if manifest else (),
        digest=data_digest,
        results=results,
        known_as=known_as,
        published=tuple(shown),
        published_left_out=len(works) - len(shown),
        published_rows=published.test_rows(known_as) if known_as else None,
        evaluations=tuple(one for one in evaluations.results if one.dataset == key),
        comparisons=compare_models(predicted, params.evaluate, params.seed),
    )


def _result(params: Params, dataset: str, model: str, data_digest: str | None) -> Result:
    trained, evaluated = (params.root / kind / dataset / model for kind in ("trained", "evaluated"))
    target = {stage: params.target(stage, dataset, model) for stage in ("train", "evaluate")}
    train = training_facts(trained, target["train"]) if (trained / "train.json").is_file() else {}
    validation, test = (
        read_object(path, _KEYS[path.name], f"make it again: dvc repro -sf {target[_STAGE[path.name]]}")
        if path.is_file()
        else {}
        for path in (trained / "val.json", evaluated / "test.json")
    )
    missing = None
    if not train:
        missing = f"not trained yet: dvc repro {target['train']}"
    elif not test:
        missing = f"trained, not evaluated yet: dvc repro {target['evaluate']}"
    again, rows = f"make it again: dvc repro -sf {target['evaluate']}", evaluated / "predictions.parquet"
    result = Result(
        dataset=dataset,
        model=model,
        train=train,
        validation=validation,
        test=test,
        cost=read_object(cost, {}, again) if (cost := evaluated / "run.json").is_file() else {},
        predicted=read_predictions(rows, model, again) if test and rows.is_file() else None,
        history=training_history(trained, target["train"]),
        missing=missing,
        stale=(),
    )
    stale = []
    if train and train.get("data_digest") != data_digest:
        stale.append("the data has changed since the model was trained")
    if test and result.selected_on_test and not result.protocols:
        stale.append(
            "the epoch was selected on the test split, and the evaluation does not say so: "
            f"dvc repro -sf {target['evaluate']}"
        )
    weights = trained / "model.safetensors"
    if test and weights.is_file() and result.about.get("weights_sha256") != sha256(weights):
        stale.append("the model has been trained again since the evaluation")
    return Result(**{**vars(result), "stale": tuple(stale)})


def _loss(recipe: Mapping[str, Any]) -> str:
    """What one stage minimizes, in words."""
    model = recipe.get("model")
    parts = [model_loss(model) if model in list_models() else "the model's own"]
    if smoothing := recipe.get("label_smoothing"):
        parts.append(f"labels smoothed by {smoothing:g}")
    if recipe.get("labels") == "soft":
        parts.append("soft labels")
    if recipe.get("class_weights", "none") != "none":
        parts.append("weighted classes")
    if mix := recipe.get("mix"):
        parts.append(str(mix["kind"]))
    return ", ".join(parts)


def _named(lines: Sequence[Mapping[str, Any]], **what: str) -> Mapping[str, Any] | None:
    """The line with these values."""
    return next((line for line in lines if what.items() <= line.items()), None)
