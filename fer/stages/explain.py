"""The explain stage: where in some test faces a trained model sees the evidence for what it predicts.

    explained/<dataset>/<model>/      appears complete, by rename
        explain.json    the faces, and for each method how faithful its maps are: deletion, insertion, beside maps of
                        random numbers; their rank correlation with the maps of the same model with random weights
        maps.npz        of each method float32 (faces,S,S), from 0 to 1; of the model's own attention
                        `attention/<layer>`, float32 (faces,heads,s,s); `mistakes`, uint8 (mistakes,S,S): Grad-CAMs of
                        the most confident mistakes of the evaluation, for the report
        faces.png       each face beside its maps

Nothing is chosen by these results. Faces are explained for the class that the model predicts.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fer.console import log
from fer.evaluation.output import facts_in, read
from fer.explain.config import ExplainConfig
from fer.io.files import sha256, write_atomic, write_json
from fer.outputs import EVALUATED, EXPLAINED
from fer.params import Params
from fer.processes import lock
from fer.shards.read import ShardSet
from fer.stages.evaluate import check_training, open_shards
from fer.tracking import open_run
from fer.weights.store import load_model, read_info

SPLIT = "test"
_BATCH = 16


def run(params: Params, dataset: str, model_key: str) -> Path:
    """Explains trained/<dataset>/<model_key>/ and publishes explained/<dataset>/<model_key>/.

    Returns:
        The published folder.

    Raises:
        ValueError: unknown keys, shards or weights that cannot be used, or a layer that the model lacks.
    """
    params.dataset(dataset)
    params.recipe(model_key)
    trained, final = params.root / "trained" / dataset / model_key, EXPLAINED.folder(params.root, dataset, model_key)
    shards = open_shards(params, dataset, f"trained/{dataset}/{model_key}")
    weights = (trained / "model.safetensors").resolve()
    facts = check_training(trained, weights, shards, params.target("train", dataset, model_key))
    with lock(params.root / ".work" / f"explain-{dataset}-{model_key}.lock"):
        mistakes = _mistakes(params.root, dataset, model_key, weights, params.explain.mistakes_per_cell)
        content, maps, figure = explain(params.explain, shards, weights, f"{model_key} on {dataset}", mistakes)
        with EXPLAINED.publish(final) as folder:
            from fer.evaluation.figures import save

            write_json(folder / "explain.json", content)
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **maps)  # type: ignore[arg-type]
            write_atomic(folder / "maps.npz", buffer.getvalue())
            save(figure, folder / "faces.png")
        with open_run(
            params.tracking, params.home, checkout=params.root, experiment=dataset, run_name=params.run_name(model_key),
            key=str(facts.get("fingerprint") or sha256(weights)), params={},
            tags={"dataset": dataset, "model": read_info(weights).model}, join=True,
            run_id=facts.get("mlflow_run_id"),
        ) as record:  # fmt: skip
            for method, found in content["methods"].items():
                record.log_metrics({f"explain_{method}_{name}": value for name, value in found.items()})
            record.log_artifact(final / "explain.json", "explanations")
            record.log_artifact(final / "faces.png", "explanations")
    told = (
        f"{method} deletion {found['deletion']:.3f} (random {content['random']['deletion']:.3f}), insertion "
        f"{found['insertion']:.3f} ({content['random']['insertion']:.3f}), rank correlation with random weights "
        f"{found['rank_correlation_randomized']:.2f}"
        for method, found in content["methods"].items()
    )
    log.info(
        f"explain {model_key} on {dataset}: {len(content['faces'])} faces at {content['layer']}: {'; '.join(told)} -> "
        f"{final.relative_to(params.root)}"
    )
    return final


def explain(
    config: ExplainConfig, shards: ShardSet, weights: Path, title: str, mistakes: npt.NDArray[np.int64]
) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]], Any]:
    """explain.json, maps.npz and the figure of faces.png.

    Args:
        mistakes: rows of the split.
    """
    import torch

    from fer.explain.attention import attention_maps
    from fer.explain.cam import attribute, enlarged
    from fer.explain.faithfulness import area, deletion_and_insertion, randomized, rank_correlation
    from fer.explain.layers import default_layer, find
    from fer.explain.sheet import Row, sheet
    from fer.shards.read import ModelInput, levels_at, normalize

    torch.set_num_threads(config.threads)
    model, _ = load_model(weights, labels=shards.labels)
    layer = config.layer or default_layer(model)
    try:
        find(model, layer)
    except ValueError as error:
        raise ValueError(f"params.yaml: explain.layer = {config.layer!r}: {error}") from None
    split = shards.split(SPLIT)
    rows = chosen(split.labels(), config)
    spec = ModelInput.of(model)
    pixels = levels_at(split, rows, spec)
    images = normalize(torch.from_numpy(pixels), model.mean, model.std)
    with torch.no_grad():
        probabilities = model(images).softmax(1)
    confidence, predicted = probabilities.max(1)

    def faithful(maps: torch.Tensor) -> dict[str, float]:
        curves = deletion_and_insertion(model, images, maps, predicted, steps=config.steps)
        return {name: float(area(curve).mean()) for name, curve in zip(("deletion", "insertion"), curves, strict=True)}

    methods: dict[str, dict[str, float]] = {}
    maps: dict[str, npt.NDArray[np.float32]] = {}
    fresh = randomized(model, config.seed)
    for method in config.methods:
        found = attribute(model, images, method, target=predicted, layer=layer)
        control = attribute(fresh, images, method, target=predicted, layer=layer)
        maps[method] = found.maps.numpy()
        methods[method] = {
            **faithful(found.maps),
            "rank_correlation_randomized": float(rank_correlation(found.raw, control.raw).mean()),
        }
    random = torch.rand(images[:, 0].shape, generator=torch.Generator().manual_seed(config.seed))
    attentions = {name: one for name, one in attention_maps(model, images).items() if one.map is not None}
    columns = dict(maps)
    if attentions:
        name, one = list(attentions.items())[-1]
        assert one.map is not None
        columns[f"{one.kind} {name}"] = enlarged(one.map.mean(1), model.input_size).numpy()
    labels, ids = split.labels()[rows], split.sample_ids()
    faces = [
        {
            "sample_id": ids[row],
            "label": shards.labels[label],
            "predicted": shards.labels[guess],
            "probability": probability,
        }
        for row, label, guess, probability in zip(
            rows.tolist(), labels.tolist(), predicted.tolist(), confidence.tolist(), strict=True
        )
    ]
    shown = [
        Row(
            image=pixels[number].round().astype(np.uint8),
            maps={name: values[number] for name, values in columns.items()},
            text=f"{face['label']}, predicted {face['predicted']} {100 * face['probability']:.0f} %",
            is_right=face["label"] == face["predicted"],
        )
        for number, face in enumerate(faces)
    ]
    content: dict[str, Any] = {
        "layer": layer,
        "methods": methods,
        "random": faithful(random),
        "attention": {name: one.kind for name, one in attentions.items()},
        "config": config.model_dump(mode="json"),
        "data_digest": shards.digest,
        "weights_sha256": sha256(weights),
        "faces": faces,
    }
    if len(mistakes):
        # A few at a time: a large model keeps much for its backward pass.
        parts = np.split(mistakes, range(_BATCH, len(mistakes), _BATCH))
        levels = [normalize(torch.from_numpy(levels_at(split, part, spec)), model.mean, model.std) for part in parts]
        heat = torch.cat([attribute(model, x, layer=layer).maps for x in levels])
        maps["mistakes"] = (255 * heat).round().to(torch.uint8).numpy()
        content["mistakes"] = [ids[row] for row in mistakes.tolist()]
    maps |= {f"attention/{name}": one.map.numpy() for name, one in attentions.items() if one.map is not None}
    return content, maps, sheet(shown, f"{title}: {layer}")


def _mistakes(root: Path, dataset: str, model: str, weights: Path, most: int) -> npt.NDArray[np.int64]:
    """Rows of the split: the most confident mistakes of each cell; none without an evaluation of the weights."""
    from fer.evaluation.predicted import mistakes_by_cell, read_predictions

    folder = root / EVALUATED.parent / dataset / model
    if not most or facts_in(read(folder)).get("weights_sha256") != sha256(weights):
        return np.empty(0, np.int64)
    return mistakes_by_cell(read_predictions(folder / "predictions.parquet", model), most)


def chosen(labels: npt.NDArray[np.int64], config: ExplainConfig) -> npt.NDArray[np.int64]:
    """Rows of every class by the seed, in the order of the classes; all of a class that has fewer."""
    found = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        random = np.random.default_rng([config.seed, int(label)])
        found.append(np.sort(random.choice(rows, min(config.faces_per_class, len(rows)), replace=False)))
    return np.concatenate(found)
