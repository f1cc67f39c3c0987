"""`fer check`: validates params.yaml, and prints the complete recipe of each model."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from fer import params
from fer.config import ConfigError, nearest
from fer.console import add_json_option, log, print_json
from fer.io import yaml12
from fer.stages.plan import checked_items

if TYPE_CHECKING:
    from fer.training.recipe import Recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How the recipes are printed."""
    add_json_option(parser)


def main(args: argparse.Namespace) -> None:
    """Prints each model's complete recipe as YAML; a mistake raises an error that names it."""
    from fer.training.learner import slow_precision

    loaded = params.load()
    where = str(loaded.root / params.FILE_NAME)
    for key in loaded.run.datasets:
        if getattr(loaded.dataset(key), "path", "") is None and not (loaded.root / "data" / "raw" / key).is_dir():
            raise ConfigError(f"{where}: datasets.{key}.path = null: this dataset needs your own copy; set its path")
    for key, recipe in loaded.recipes.items():
        try:
            check_training(recipe)
        except ValueError as error:
            raise ConfigError(f"{where}: models.{key}: {error}") from None
        if warning := slow_precision(recipe, loaded.train_of(key).gpu) if key in loaded.run_models else None:
            log.warning("%s: models.%s.%s", where, key, warning)
    _check_searched_options(loaded, where)
    checked_items(loaded)
    recipes = {key: loaded.recipe(key).model_dump(mode="json") for key in loaded.run_models}
    runs = {dataset: [m for d, m in loaded.combinations if d == dataset] for dataset in loaded.run.datasets}
    if args.json:
        print_json({"params": where, "recipes": recipes, "runs": runs})
        return
    for key, complete in recipes.items():
        print(f"# models.{key}, complete:\n{yaml12.dump({key: complete})}")
    print("\n".join(f"{dataset}: {', '.join(models) or 'data alone'}" for dataset, models in runs.items()))
    print(f"{where} is valid. Next: dvc repro; `fer doctor` says what this machine lacks for it")


def check_training(recipe: Recipe) -> None:
    """Builds the model, the stages and the augmentation of a recipe, without memory for the weights.

    Raises:
        ValueError: the model, its options or parts, `trainable`, a stage or a transform is refused.
    """
    import torch

    from fer.models import create_model
    from fer.training.learner import carry_over, freeze_all_but
    from fer.training.recompute import recompute_activations
    from fer.transforms.reference import Augmenter
    from fer.weights.parts import WHOLE, key_of, list_parts
    from fer.weights.registry import register

    weights = None
    for number, stage in enumerate(recipe.in_stages):
        with torch.device("meta"):
            model = create_model(stage.model, **stage.options)
        if number == 0:
            parts, known = list_parts(model), list(register())
            for part, source in stage.sources.items():
                if part not in (WHOLE, *parts):
                    raise ValueError(
                        f"pretrained.{part}: {model.name} has no such part; its parts: {', '.join(parts) or 'none'}"
                    )
                if source not in known and "/" not in source and "." not in source:  # a path may not exist yet
                    raise ValueError(
                        f"{key_of(part)} = {source!r}: not a name of `fer weights list`{nearest(source, known)}"
                    )
        freeze_all_but(model, stage.trainable)
        if stage.gradient_checkpointing:
            recompute_activations(model)
        if weights is not None:
            carry_over(model, weights)
        weights = model.state_dict()
        Augmenter(stage.augment, model.input_size)


def _check_searched_options(loaded: params.Params, where: str) -> None:
    """ConfigError where a space names an option that its model lacks, or that of `tune` one that no model has."""
    from fer.models import model_options

    options = {key: model_options(recipe.last.model) for key, recipe in loaded.recipes.items()}
    places = {f"models.{key}.tune": (loaded.tune_of(key), set(options[key])) for key in options}
    spaces = {place: pair for place, pair in places.items() if "space" in loaded.own.get(place, {})}
    for place, (config, known) in {"tune": (loaded.tune, set().union(*options.values())), **spaces}.items():
        for name in config.space:
            section, _, option = name.partition(".")
            if section == "options" and option.partition(".")[0] not in known:
                hint = nearest(option, sorted(known))
                raise ConfigError(f"{where}: {place}.space.{name}: no model here has this option{hint}")
