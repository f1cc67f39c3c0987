"""The plan stage: is all that `dvc repro` is about to do right, and what has changed that DVC cannot see?

    data/plan/<stage>/<item>.json   what each item of each other stage depends on; appears complete, by rename

DVC itself compares the outputs of earlier stages, and the sections of params.yaml that hold for all. Here stand the
digest of the code (`fer.stages.closure`), of data and weights outside the project, and what is an item's own: its
dataset and crop, its recipe with the values of the file that it names, and of `train` what decides bits. It runs first
and every time: a name that is refused reaches no shell, and no output of others is removed.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from fer.config import ConfigError
from fer.io.files import FileError, write_json
from fer.outputs import EVALUATED, EXPLAINED, FACES, PLAN, RAW, SHARDS, STATISTICS, TRAINED
from fer.params import Params
from fer.stages.closure import Code
from fer.training.recipe import DECISIVE, Recipe

_OF_DATASET = {"download": (RAW,), "crop": (FACES,), "shard": (SHARDS, STATISTICS)}
_OF_MODEL = {"train": (TRAINED,), "evaluate": (EVALUATED,), "explain": (EXPLAINED,)}


def checked_items(params: Params) -> list[tuple[str, ...]]:
    """(stage, dataset) or (stage, dataset, model) of all of `params.run`, once their outputs' places are checked.

    Raises:
        FileError: a folder or file that is not ours to replace.
    """
    items = []
    for stages, keys in (
        (_OF_DATASET, [(dataset,) for dataset in params.run.datasets]),
        (_OF_MODEL, params.combinations),
    ):
        for (stage, outputs), names in product(stages.items(), keys):
            for output in outputs:
                output.folder(params.root, *names)
            items.append((stage, *names))
    return items


def run(params: Params) -> Path:
    """Checks where the stages of `params.run` write, and writes what they depend on.

    Returns:
        the folder data/plan.

    Raises:
        ValueError: an output that is not ours to replace, or data that may not be read.
    """
    items = checked_items(params)
    planned = list(plan(params, items, Code()))
    final = PLAN.folder(params.root)
    with PLAN.publish(final) as out:
        for (stage, *names), content in planned:
            write_json(out / stage / f"{'-'.join(names)}.json" if names else out / f"{stage}.json", content)
    return final


def plan(params: Params, items: list[tuple[str, ...]], code: Code) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """What each item, and the report, depends on beyond parameters and outputs of other stages."""
    from fer.sources.origin import origin_digest
    from fer.sources.registry import get_source

    for stage, *names in items:
        content: dict[str, Any]
        if stage in ("download", "crop"):
            config, crop = params.dataset(names[0]), params.crop_of(names[0])
            reader = type(get_source(config, params.seed)).__module__
            if stage == "download":
                content = {"code": code.digest(stage, reader=reader)}
                content["origin"] = origin_digest(names[0], config, params.root, params.home)
            else:
                content = {"code": code.digest(stage, reader=reader, detector=crop.detector)}
                content["detector"] = _detector_digest(crop.detector)
                content["crop"] = crop.model_dump(mode="json")
            content["dataset"] = config.model_dump(mode="json")
        elif stage == "shard":
            content = {"code": code.digest(stage)}
        else:
            recipe = params.recipe(names[1])
            content = {"code": code.digest(stage, recipes=[recipe])}
            if stage == "train":
                content["recipe"] = recipe.model_dump(mode="json")
                content["train"] = params.train_of(names[1]).model_dump(include=DECISIVE)
                content["pretrained"] = _pretrained(params, recipe, TRAINED.folder(params.root, *names))
            elif stage == "explain":
                content["explain"] = params.explain.model_dump(mode="json")
        yield (stage, *names), content
    yield ("report",), {"code": code.digest("report", recipes=[params.recipe(key) for key in params.run_models])}


def _detector_digest(detector: str) -> str | None:
    """Of the one file of weights that the crop stage accepts; None where it needs none."""
    if detector == "annotated":
        return None
    from fer.faces.weights import PUBLISHED  # imports torch, which takes seconds
    from fer.weights.registry import entry

    (file,) = entry(PUBLISHED[detector]).files
    return file.sha256


def _pretrained(params: Params, recipe: Recipe, result: Path) -> dict[str, list[str]] | None:
    """What the model and parts of it start from; None where a file is not there, which the train stage refuses."""
    if not recipe.sources:
        return {}
    from fer.weights.parts import key_of, locate

    for part, source in recipe.sources.items():
        if (params.root / source).resolve().is_relative_to(result.resolve()):
            raise ConfigError(f"{key_of(part)} = {source!r}: the run would replace it; copy it to another place first")
    try:
        return {source.part: list(source.identity) for source in locate(recipe.sources, params.root, params.parent)}
    except FileError:
        return None
