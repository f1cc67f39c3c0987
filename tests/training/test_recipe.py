"""Recipes: complete, checked, and overridden key by key."""

from __future__ import annotations

from pathlib import Path

import pytest

from fer.commands.check import check_training
from fer.config import ConfigError, parse
from fer.io.files import sha256
from fer.models import create_model
from fer.training.optimizer import build_optimizer
from fer.training.recipe import Recipe, TrainStageConfig, list_recipes, load_recipe
from fer.weights.registry import entry


@pytest.mark.parametrize("name", list_recipes())
def test_every_shipped_recipe_is_valid_and_passes_fer_check(name: str) -> None:
    recipe = load_recipe({"recipe": name}, Path(), "params.yaml")
    model = create_model(recipe.model, 7, **recipe.options)
    assert build_optimizer(recipe, model).param_groups
    check_training(recipe)


@pytest.mark.parametrize("name", list_recipes())
def test_no_recipe_lets_batchnorms_drift_that_its_file_has_folded_in(name: str) -> None:
    recipe = load_recipe({"recipe": name}, Path(), "params.yaml")
    found = [source for part, source in recipe.pretrained.items() if part.endswith("landmarks")]
    if recipe.options.get("landmark_bn") == "drift":
        assert found
    assert not [one for one in found for file in entry(one).files if file.name.endswith(".bin")]  # OpenVINO's


def test_a_recipe_survives_being_written_and_read_again() -> None:
    recipe = load_recipe({"recipe": "ddamfn/nano"}, Path(), "params.yaml")
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_overrides_merge_schedule_and_options_and_replace_the_rest() -> None:
    entry = {"recipe": "ddamfn/nano", "epochs": 3, "schedule": {"warmup_epochs": 1.0}, "augment": []}
    recipe = load_recipe(entry, Path(), "params.yaml")
    assert (recipe.epochs, recipe.schedule.warmup_epochs, recipe.augment) == (3, 1.0, [])
    assert recipe.schedule.kind == "cosine"
    assert recipe.batch_size == load_recipe({"recipe": "ddamfn/nano"}, Path(), "params.yaml").batch_size


def test_a_tuned_file_is_a_recipe_with_its_evidence(tmp_path: Path) -> None:
    (tmp_path / "tuned.yaml").write_text("recipe: ddamfn/nano\nlearning_rate: 0.007\nevidence: {trials: 8}\n")
    recipe = load_recipe({"recipe": "tuned.yaml", "epochs": 2}, tmp_path, "params.yaml")
    assert (recipe.learning_rate, recipe.epochs, recipe.model) == (0.007, 2, "ddamfn_nano")


def test_a_pinned_file_is_refused_once_it_has_changed(tmp_path: Path) -> None:
    file = tmp_path / "tuned.yaml"
    file.write_text("recipe: ddamfn/nano\n")
    entry = {"recipe": f"tuned.yaml#{sha256(file)[:8]}"}
    assert load_recipe(entry, tmp_path, "params.yaml").model == "ddamfn_nano"
    file.write_text("recipe: ddamfn/nano\nepochs: 1\n")
    with pytest.raises(ConfigError, match=f"has changed; to use it, write tuned.yaml#{sha256(file)[:8]}"):
        load_recipe(entry, tmp_path, "params.yaml")


def test_recipe_files_that_start_from_each_other_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("recipe: b.yaml\n")
    (tmp_path / "b.yaml").write_text("recipe: a.yaml\n")
    with pytest.raises(ConfigError, match=r"\.yaml: recipe = '.\.yaml': more than 10 files that start from each other"):
        load_recipe({"recipe": "a.yaml"}, tmp_path, "params.yaml", "models.x")


def test_a_loaded_recipe_shares_nothing_with_the_next() -> None:
    load_recipe({"recipe": "ddamfn/nano"}, Path(), "params.yaml").augment.clear()
    assert load_recipe({"recipe": "ddamfn/nano"}, Path(), "params.yaml").augment


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"recipe": "ddamfn/nanno"}, "did you mean 'ddamfn/nano'"),
        ({"recipe": "ddamfn/nano", "epoch": 3}, "did you mean 'epochs'"),
        ({"recipe": "ddamfn/nano", "epochs": 0}, "models.x.epochs = 0"),
        ({"recipe": "ddamfn/nano", "optimizer": "sdg"}, "did you mean 'sgd'"),
        ({"recipe": "ddamfn/nano", "schedule": {"warmup": 1}}, "models.x.schedule.warmup"),
        ({"recipe": "missing.yaml"}, "missing.yaml: no such file"),
        ({"recipe": 3}, "models.x.recipe = 3"),
        ({"recipe": "ddamfn/nano", "epochs": 1, "schedule": {"warmup_epochs": 2}}, "smaller than epochs = 1"),
    ],
)
def test_error_names_file_key_and_remedy(entry: dict[str, object], told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load_recipe(entry, tmp_path, "params.yaml", "models.x")
    assert told in str(error.value)


def test_weight_decay_on_kernels_spares_biases_norms_and_slopes() -> None:
    recipe = load_recipe({"recipe": "ddamfn/nano", "weight_decay_on": "kernels"}, Path(), "params.yaml")
    model = create_model("ddamfn_nano")
    decayed, spared = build_optimizer(recipe, model).param_groups
    assert decayed["weight_decay"] == recipe.weight_decay
    assert spared["weight_decay"] == 0
    assert all(parameter.ndim == 1 for parameter in spared["params"])
    assert sum(len(group["params"]) for group in (decayed, spared)) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("workers", "batches", "at_start", "later"),
    [
        (4, (16,), [4], [4, 2, 1]),
        ({"min": 1, "max": 8}, (48,), [8, 6, 4, 3, 2, 1], [8, 6, 4, 3, 2, 1]),
        ({"min": 2, "max": 8}, (48, 32), [8, 4, 2], [8, 4, 2]),
    ],
)
def test_a_run_has_only_numbers_of_workers_that_divide_its_batches_evenly(
    workers: object, batches: tuple[int, ...], at_start: list[int], later: list[int]
) -> None:
    entry = {"recipe": "ddamfn/nano", "batch_size": batches[0], "stages": [{"batch_size": size} for size in batches]}
    recipe, config = load_recipe(entry, Path(), "params.yaml"), parse(TrainStageConfig, {"workers": workers}, "test")
    assert config.worker_counts(recipe, at_start=True) == at_start
    assert config.worker_counts(recipe) == later
    assert config.model_dump()["workers"] == workers


@pytest.mark.parametrize("workers", [3, {"min": 5, "max": 7}])
def test_a_batch_that_no_number_of_workers_divides_is_refused(workers: object) -> None:
    recipe = load_recipe({"recipe": "ddamfn/nano", "batch_size": 16}, Path(), "params.yaml")
    config = parse(TrainStageConfig, {"workers": workers}, "test")
    with pytest.raises(ValueError, match=f"batch_size = 16 .* {config.workers} workers"):
        config.worker_counts(recipe, at_start=True)


def test_train_section_has_defaults_that_run_anywhere() -> None:
    assert TrainStageConfig().workers == 0
    assert not TrainStageConfig().gpu
