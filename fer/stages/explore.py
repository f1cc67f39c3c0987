"""`fer explore DATASET MODEL ...`: evaluated models on the same test faces, side by side, outside of DVC.

reports/explored/<dataset>/<models>/  appears complete, by rename
    features.csv, features.svg        t-SNE and PCA of the features of some faces
    hard_cases.csv, hard_cases.png    faces that some models get right and others wrong; of two models and more
    mistakes.csv, mistakes.png        the most confident mistakes of each model
    action_units.csv                  what goes with mistakes; of drawn faces
    explored.json                     intra-class and inter-class distances, and what was compared
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer import params as parameters
from fer.console import log, require_range
from fer.io.files import FileError, sha256, write_atomic, write_json
from fer.names import LONGEST
from fer.outputs import EVALUATED, EXPLORED
from fer.params import Params
from fer.processes import lock
from fer.tracking import open_run

if TYPE_CHECKING:
    from fer.evaluation.predicted import Predicted
    from fer.explain.features import Distances
    from fer.shards.read import ShardSet, ShardSplit

_SHEET = 48  # faces of a sheet
_FEWEST, _MOST = 10, 20_000


@dataclass(frozen=True)
class _Model:
    """An evaluated model: its predictions, and the weights that made them."""

    predicted: Predicted
    weights: Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which models, on how many faces."""
    parser.add_argument("dataset", metavar="DATASET", help="key of `datasets` in params.yaml")
    parser.add_argument("models", nargs="+", metavar="MODEL", help="keys of `models`, evaluated on that dataset")
    parser.add_argument("--name", metavar="NAME", help="of the folder of the results (default: after the models)")
    parser.add_argument(
        "--faces", type=int, default=2000, metavar="N", help="of t-SNE and PCA (2000); everything else is of all"
    )


def main(args: argparse.Namespace) -> None:
    """Compares them."""
    run(parameters.load(), args.dataset, args.models, faces=args.faces, name=args.name)


def run(params: Params, dataset: str, models: Sequence[str], *, faces: int = 2000, name: str | None = None) -> Path:
    """Writes reports/explored/<dataset>/<name>/.

    Args:
        faces: how many of the test split are projected, a choice by their ids.
        name: of the folder; None: the models', joined by dashes.

    Returns:
        the folder.

    Raises:
        ValueError: unknown keys, models that were not evaluated, or on other data than the shards at hand.
    """
    from fer.evaluation.figures import save
    from fer.evaluation.summary import SPLIT
    from fer.shards.read import ShardSet

    require_range("faces", faces, _FEWEST, _MOST)
    if twice := sorted({model for model in models if models.count(model) > 1}):
        raise ValueError(f"MODEL {twice[0]}: given more than once")
    joined = "-".join(models)
    if name is None and len(joined) > LONGEST:
        raise ValueError(f"the folder would be called {joined}: give a shorter --name")
    params.dataset(dataset)
    for model in models:
        params.recipe(model)
    final = EXPLORED.folder(params.root, dataset, name or joined)
    shards = ShardSet.open((params.root / "data" / "shards" / dataset).resolve())
    given = [_open(params, dataset, model, shards) for model in models]
    split, predicted = shards.split(SPLIT), [one.predicted for one in given]
    with lock(params.root / ".work" / f"explore-{dataset}-{final.name}.lock"), EXPLORED.publish(final) as folder:
        _hard_cases(folder, split, predicted)
        _action_units(params, dataset, shards, folder, predicted)
        found, figure = _features(params, split, given, faces, folder, f"{shards.manifest.dataset}, test")
        save(figure, folder / "features.svg")
        identity = {
            "dataset": dataset,
            "models": list(models),
            "split": SPLIT,
            "synthetic": shards.manifest.synthetic,
            "data_digest": shards.digest,
            "weights_sha256": {model: sha256(one.weights) for model, one in zip(models, given, strict=True)},
            "faces": faces,
            "seed": params.seed,
        }
        numbers = {model: of.to_dict() for model, of in found.items()}
        about = {"distance": "1 minus the cosine", "classes": list(shards.labels), "distances": numbers}
        write_json(folder / "explored.json", {**identity, **about})
    _record(params, dataset, final, identity, found)
    for model, of in found.items():
        log.info(f"{model}: intra-class distance {of.intra:.3f}, inter-class {of.inter:.3f}, ratio {of.ratio:.3f}")
    log.info(f"explore {', '.join(models)} on {dataset} -> {final.relative_to(params.root)}")
    return final


def _open(params: Params, dataset: str, model: str, shards: ShardSet) -> _Model:
    """An evaluated model, after checking that predictions, weights and shards belong together."""
    from fer.evaluation.output import facts_in, read
    from fer.evaluation.predicted import read_predictions

    folder, weights = params.root / EVALUATED.parent / dataset / model, params.root / "trained" / dataset / model
    weights, target = weights / "model.safetensors", params.target("evaluate", dataset, model)
    facts, again = facts_in(read(folder)), f"run `dvc repro {target}`"
    if not facts or not weights.is_file():
        raise FileError(f"{weights if facts else folder / 'test.json'}: no such file; {again}")
    if facts.get("weights_sha256") != sha256(weights):
        raise FileError(f"{folder}: is of other weights than {weights}; {again}")
    predicted = read_predictions(folder / "predictions.parquet", model)
    if predicted.data_digest != shards.digest:
        raise FileError(f"{folder}: is of other data than {shards.folder} holds now; {again}")
    return _Model(predicted, weights)


# ------------------------------------------------------------------------------------------------ the parts


def _hard_cases(folder: Path, split: ShardSplit, models: Sequence[Predicted]) -> None:
    from fer.evaluation.predicted import disagreements, mistakes
    from fer.explain.contact_sheet import captions, faces_of, sheet

    one = models[0]
    columns = ["sample_id", "label", *(f"{name}_{of.name}" for of in models for name in ("predicted", *one.classes))]

    def line(row: int) -> list[Any]:
        shown = [[of.classes[of.predicted[row]], *of.probabilities[row]] for of in models]
        return [one.sample_ids[row], one.classes[one.labels[row]], *(value for values in shown for value in values)]

    def draw(rows: Sequence[int], of: Sequence[Predicted], file: str) -> None:
        images = faces_of(split, [one.sample_ids[row] for row in rows])
        write_atomic(folder / file, sheet(images, [captions(row, of) for row in rows]))

    if len(models) > 1:
        rows = disagreements(models).tolist()
        write_csv(folder / "hard_cases.csv", columns, map(line, rows))
        draw(rows[:_SHEET], models, "hard_cases.png")
    of_each = {of.name: mistakes(of).tolist() for of in models}
    lines = ([name, rank, *line(row)] for name, rows in of_each.items() for rank, row in enumerate(rows, start=1))
    write_csv(folder / "mistakes.csv", ["model", "rank", *columns], lines)
    most = list(dict.fromkeys(row for rows in of_each.values() for row in rows[: _SHEET // len(models)]))
    draw(most, models, "mistakes.png")


def _action_units(params: Params, dataset: str, shards: ShardSet, folder: Path, models: Sequence[Predicted]) -> None:
    """The table of drawn faces; none for others, nor where params.yaml does not draw these faces."""
    from fer.explain.action_units import conditions, drawn_faces, error_rates
    from fer.sources.synthetic import SyntheticConfig, SyntheticSource
    from fer.synth.expressions import EXPRESSIONS

    config = params.dataset(dataset)
    if not isinstance(config, SyntheticConfig) or shards.manifest.generator != SyntheticSource.generator:
        return
    one = models[0]
    try:
        drawn = drawn_faces(config, params.seed, one.sample_ids)
    except (ValueError, IndexError):  # no such scene, or one with fewer faces
        drawn = []
    if [EXPRESSIONS[face.clean_label] for face in drawn] != [one.classes[label] for label in one.labels]:
        raise ValueError(
            f"{shards.folder}: holds other faces than datasets.{dataset} and seed = {params.seed} in params.yaml draw; "
            f"run `dvc repro {params.target('evaluate', dataset, one.name)}`"
        )
    masks = conditions(drawn, config.strength, params.evaluate.pose_bins)
    rows = [{"model": of.name, **line} for of in models for line in error_rates(masks, of.labels, ~of.correct)]
    write_csv(folder / "action_units.csv", list(rows[0]), (row.values() for row in rows))


def _features(
    params: Params, split: ShardSplit, models: Sequence[_Model], faces: int, folder: Path, title: str
) -> tuple[dict[str, Distances], Any]:
    """Distances of each model over all faces; the figure; features.csv."""
    import numpy as np

    from fer.console import progress
    from fer.explain.features import distances, draw, embed_split, projections
    from fer.hashing import stable_hash
    from fer.weights.store import load_model

    config, ids, labels = params.evaluate, split.sample_ids(), split.labels()
    order = sorted(range(split.rows), key=lambda row: stable_hash("features", params.seed, ids[row]))
    chosen = np.sort(np.array(order[:faces]))
    panels, found, device = {}, {}, "cuda" if config.gpu else "cpu"
    with progress(len(models), "features", "model") as bar:
        for one in models:
            network, _ = load_model(one.weights, labels=tuple(split.label_names))
            features = embed_split(
                network.to(device), split, batch_size=config.batch_size, threads=config.threads, device=device
            )
            name = one.predicted.name
            found[name] = distances(features, labels, len(split.label_names))
            panels[name] = projections(features[chosen], params.seed)
            bar.update(1)
    lines = (
        [model, ids[row], split.label_names[labels[row]], *(x for of in places.values() for x in of[at].tolist())]
        for model, places in panels.items()
        for at, row in enumerate(chosen)
    )
    write_csv(folder / "features.csv", ["model", "sample_id", "label", "tsne_1", "tsne_2", "pca_1", "pca_2"], lines)
    return found, draw(panels, found, labels[chosen], split.label_names, title)


def _record(params: Params, dataset: str, folder: Path, identity: dict[str, Any], found: dict[str, Distances]) -> None:
    """Adds it to MLflow: the distances of each model, and all files but the sheets: faces stay on this disk."""
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    with open_run(
        params.tracking, params.home, checkout=params.root, experiment=f"explore {dataset}", run_name=folder.name,
        key=key, params=identity, tags={"fer.kind": "explore", "dataset": dataset}, join=True,
    ) as tracked:  # fmt: skip
        for model, of in found.items():
            tracked.log_metrics({f"{model}_intra_distance": of.intra, f"{model}_inter_distance": of.inter})
        for file in sorted(path for path in folder.iterdir() if path.suffix != ".png"):
            tracked.log_artifact(file)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Writes a table, numbers to four decimals."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([f"{cell:.4f}" if isinstance(cell, float) else cell for cell in row] for row in rows)
    write_atomic(path, text.getvalue())
