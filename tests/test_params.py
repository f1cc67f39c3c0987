"""params.yaml: complete as shipped; an invalid one ends in one line with file and key, and changes nothing."""

import argparse
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml_text
from builders.limits import patience
from builders.projects import RIGHT

from fer import params
from fer.cluster.config import TuneConfig
from fer.cluster.trials import own_values
from fer.commands import check
from fer.config import Config, ConfigError, parse
from fer.training.recipe import list_recipes, load_entry

# ------------------------------------------------------------------------------------------------ as shipped


@pytest.fixture
def shipped(tmp_path: Path, repo_root: Path) -> params.Params:
    """The shipped file, in a folder of its own."""
    shutil.copy(repo_root / "params.yaml", tmp_path)
    return params.load(tmp_path / "params.yaml")


def test_run_is_named_after_its_model_and_a_recipe_of_another_name(shipped: params.Params) -> None:
    names = {shipped.run_name(key) for key in shipped.recipe_names}
    assert {"ddamfn_nano", "ddamfn_small · ddamfn/fer2013"} <= names


def test_shipped_file_is_valid_and_unknown_names_list_the_known(shipped: params.Params, tmp_path: Path) -> None:
    assert shipped.root == tmp_path
    assert shipped.recipe("ddamfn_nano").model == "ddamfn_nano"
    with pytest.raises(ConfigError, match=r"did you mean 'rafdb'.*known: synthetic, "):
        shipped.dataset("raf")
    with pytest.raises(ConfigError, match="did you mean 'ddamfn_small'"):
        shipped.recipe("ddamfn_smal")


def test_every_value_of_the_shipped_file_has_a_comment(repo_root: Path) -> None:
    for number, line in enumerate((repo_root / "params.yaml").read_text().splitlines(), 1):
        key, _, rest = line.strip().partition(":")
        has_value = bool(rest.strip()) and not line.strip().startswith("#")
        if has_value and key not in ("source", "recipe", "title") and not rest.strip().startswith("{"):
            assert "#" in line, f"params.yaml:{number}: {line}"


OTHER_THAN_DEFAULT = {
    "datasets.affectnet7.classes": "the other of the two that papers report on",
    "tune.space": "the ranges in which the five nano models learn; the default suits any recipe",
}
"""Keys of the shipped file whose value is not the default that holds where the key is left out, and why."""


def test_shipped_file_shows_every_key_with_its_default(shipped: params.Params, repo_root: Path) -> None:
    written = yaml_text.load((repo_root / "params.yaml").read_text())
    sections: dict[str, tuple[Config, set[str]]] = {
        # Of a dataset only the common keys are shown; the synthetic ones are examples with values of their own.
        f"datasets.{key}": (config, set(written["datasets"][key]))
        for key, config in shipped.datasets.items()
        if not key.startswith("synthetic")
    }
    for name in ("crop", "shard", "train", "evaluate", "explain", "report", "cluster", "tracking", "tune"):
        config = getattr(shipped, name)
        sections[name] = (config, set(type(config).model_fields))
    other = set()
    for name, (config, keys) in sections.items():
        value = written
        for part in name.split("."):
            value = value[part]
        assert keys <= set(value), f"{name} does not show {keys - set(value)}"
        for key in keys:
            field = type(config).model_fields[key]
            if not field.is_required() and getattr(config, key) != field.get_default(call_default_factory=True):
                other.add(f"{name}.{key}")
    assert other == set(OTHER_THAN_DEFAULT)


def test_off_is_a_string_not_a_boolean(shipped: params.Params) -> None:
    path = shipped.root / "params.yaml"
    path.write_text(path.read_text().replace("duplicates: report", "duplicates: off"))
    assert params.load(path).shard.duplicates == "off"


def test_file_is_found_from_below_and_its_absence_is_clear(
    shipped: params.Params, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shipped.root / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(shipped.root / "a" / "b")
    assert params.project_root() == shipped.root
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    with pytest.raises(ConfigError, match=r"no params\.yaml"):
        params.project_root()


# ------------------------------------------------------------------------------------------------ own settings


def test_a_dataset_and_a_model_have_their_own_settings_over_those_of_the_sections(shipped: params.Params) -> None:
    path = shipped.root / "params.yaml"
    (shipped.root / "mine.yaml").write_text(
        "{model: btn_nano, epochs: 1, batch_size: 8, learning_rate: 0.1, train: {gpu: true, threads: 2},"
        " tune: {space: {learning_rate: {low: 0.1, high: 0.2}}}}"
    )
    yaml_text.edit(path, "datasets.muxspace.crop", {"size": 224})
    yaml_text.edit(path, "models.btn_nano", {"recipe": "mine.yaml", "train": {"threads": 4}, "tune": {"trials": 3}})
    yaml_text.edit(path, "run.models", [])
    yaml_text.edit(path, "run.pairs", {"one": {"dataset": "synthetic", "model": "btn_nano"}})
    loaded = params.load(path)
    assert loaded.crop_of("muxspace") == loaded.crop.model_copy(update={"size": 224})
    assert loaded.crop_of("synthetic") == loaded.crop
    assert loaded.train_of("btn_nano") == loaded.train.model_copy(update={"gpu": True, "threads": 4})
    assert loaded.train_of("ddamfn_nano") == loaded.train
    tune = loaded.tune_of("btn_nano")
    assert (tune.trials, tune.epochs, list(tune.space)) == (3, loaded.tune.epochs, ["learning_rate"])
    assert tune.space["learning_rate"].high == 0.2
    assert loaded.combinations == [("synthetic", "btn_nano")]
    assert loaded.target("train", "synthetic", "btn_nano") == "train_pair@one"
    assert loaded.target("train", "synthetic", "ddamfn_nano") == "train@synthetic-ddamfn_nano"


def test_the_values_of_every_shipped_recipe_lie_in_the_space_that_it_brings(tmp_path: Path) -> None:
    lowest = TuneConfig().space["learning_rate"].low
    assert lowest is not None
    for name in list_recipes():
        recipe, settings = load_entry({"recipe": name}, tmp_path, name)
        if "tune" in settings:
            space = parse(TuneConfig, settings["tune"], name).space
            assert own_values(recipe, space), name
        else:
            assert recipe.learning_rate >= lowest, name


# ------------------------------------------------------------------------------------------------ invalid ones

LEVELS = "".join(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 10))
MERGES = "".join(f"a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * 10)}]}}\n" for level in range(1, 10))

BOMBS: dict[str, tuple[bytes, str]] = {
    "nine levels of ten": (f"a0: &a0 [lol]\n{LEVELS}".encode(), "with its aliases written out"),
    "nine levels of ten, merged": (f"a0: &a0 {{x: 1}}\n{MERGES}".encode(), "with its aliases written out"),
    "a long text, often": (b"a: &a " + b"x" * 99_999 + b"\nb: [" + b"*a, " * 9_999 + b"*a]", "aliases written out"),
    "3,000 lists": (b"seed: " + b"[" * 3_000 + b"]" * 3_000, "nested deeper than 50"),
    "100,000 lists": (b"seed: " + b"[" * 100_000, "nested deeper than 50"),
    "3,000 mappings": (b"{a: " * 3_000, "nested deeper than 50"),
    "3,000 blocks": (b"- " * 3_000, "nested deeper than 50"),
    "6,000 digits": (b"seed: " + b"9" * 6_000, "a number of 6000 digits"),
    "200,000 hexadecimal digits": (b"seed: 0x" + b"f" * 200_000, "a number of 200002 digits"),
    "a circle": (b"run: &a {datasets: *a}", "*a stands for itself"),
    "80 MB": (b"#" * 80_000_000, "larger than 256 KiB"),
    "100,000 values": (b"seed: [" + b"1," * 100_000 + b"1]", "more than 256 KiB"),
}

YAML: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "expected a mapping"),
    "blank": (b"\n# nothing\n", "expected a mapping"),
    "null": (b"null", "expected a mapping"),
    "a list": (b"- seed: 0", "expected a mapping"),
    "a text": (b"seed", "expected a mapping"),
    "unclosed": (b"run: [a", "line 1"),
    "tabs": (b"run:\n\tmodels: [a]", "line 2"),
    "two colons": (b"seed: 0\nrun: a: b", "line 2"),
    "two documents": (f"{RIGHT}---\nseed: 1\n".encode(), "a second document"),
    "a key twice": (f"{RIGHT}seed: 1\n".encode(), "line 13: key 'seed' is given more than once"),
    "a key twice beside a merge": (b"a: &a {b: 1}\nc: {<<: *a, d: 1, d: 2}", "key 'd' is given more than once"),
    "an anchor twice": (b"a: &a 1\nb: &a 2", "anchor &a"),
    "an alias of nothing": (b"seed: *nothing", "*nothing"),
    "a circle of merges": (b"a: &a {<<: *a}", "*a stands for itself"),
    "a merge of a text": (b"a: &a x\nb: {<<: *a}", "for merging"),
    "Python's tag": (b"seed: !!python/object/apply:os.system ['touch PWNED']", "tags are not read"),
    "another tag": (b"seed: !!binary aGk=", "tags are not read"),
    "another version": (b"%YAML 1.1\n---\nseed: 0", "1.2"),
    "NUL": (b"seed: \0", "line 1: control character"),
    "NUL, escaped": (b'report: {title: "a\\0b"}', "control character"),
    "a bell": (b'report: {title: "\\a"}', "control character"),
    "an escape sequence": (b'report: {title: "\\e[31m"}', "control character"),
    "half a character": (b'report: {title: "\\ud800"}', "half of a character"),
    "a pair of halves": (b'report: {title: "\\ud83d\\ude00"}', "half of a character"),
    "Latin-1": ("report: {title: é}".encode("latin-1"), "no UTF-8"),
    "UTF-16": (RIGHT.encode("utf-16"), "no UTF-8"),
    "a date that is none": (b"seed: 2024-13-45", "month"),
    "a number that is none": (b"seed: -_", "number"),
    "no number": (b"seed: .nan", "seed = nan"),
    "an infinite number": (b"seed: -.inf", "seed = -inf"),
    "65 bits": (b"seed: 36893488147419103232", "seed = 36893488147419103232"),
    "a truth as key": (b"true: 1", "a key that is no text"),
    "nothing as key": (b": 1", "a key that is no text"),
    "a list as key": (b"[a, b]: 1", "a key that is no text"),
    "a fraction as key": (b"1.5: 1", "a key that is no text"),
    "a number and a text": (b'{datasets: {01: {}, "1": {}}}', "one key"),
    "bytes": (bytes(range(256)), "no UTF-8"),
}

VALUES: list[tuple[str, Any, str | tuple[str, ...]]] = [
    ("sede", 1, ("'sede'", "did you mean 'seed'")),
    ("train.worker", 2, ("'train.worker'", "did you mean 'workers'")),
    ("train.workers", -1, ("train.workers = -1", "greater than or equal to 0")),
    ("train.workers", "2", "train.workers = '2'"),
    ("a\nb", 1, "a\\nb"),
    ("x" * 2_000, 1, "xxx ..."),
    ("seed", None, "seed = None"),
    ("seed", -1, "seed = -1"),
    ("seed", 2**31, "seed = 2147483648"),
    ("seed", "0", "seed = '0'"),
    ("seed", True, "seed = True"),
    ("seed", {"a": 1}, "seed = {'a': 1}"),
    ("seed", "x" * 50_000, "seed = 'xxx"),
    ("run", None, "run = None"),
    ("run.datasets", [], "run.datasets = []"),
    ("run.datasets", ["toy", "toy"], "run.datasets names 'toy' more than once"),
    ("run.models", ["nano", "nano"], "run.models names 'nano' more than once"),
    ("run.models", ["nanno"], ("nanno", "did you mean 'nano'")),
    ("run.datasets", ["tooy"], ("tooy", "did you mean 'toy'")),
    ("run.datasets", ["a;touch PWNED;"], "run.datasets"),
    ("run.models", "nano", "run.models = 'nano'"),
    ("run.models", [], "run: models and pairs are both empty"),
    ("run.pairs", {"a;b": {"dataset": "toy", "model": "nano"}}, "run.pairs: 'a;b'"),
    ("run.pairs", {"a": {"dataset": "tooy", "model": "nano"}}, ("run.pairs.a.dataset = 'tooy'", "did you mean 'toy'")),
    ("run.pairs", {"a": {"dataset": "toy", "model": "nanno"}}, ("run.pairs.a.model = 'nanno'", "did you mean 'nano'")),
    ("run.pairs", {"a": {"dataset": "toy", "model": "nano"}}, ("run.pairs.a: nano on toy", "run.datasets")),
    ("run.pairs", {"a": {"dataset": "toy"}}, "run.pairs.a.model"),
    ("datasets", {}, "datasets = {}"),
    ("datasets.toy.crop", 3, "datasets.toy.crop = 3"),
    ("datasets.toy.crop", {"sise": 64}, ("datasets.toy.crop.sise", "did you mean 'size'")),
    ("datasets.toy.crop", {"size": 10**9}, "datasets.toy.crop.size = 1000000000"),
    ("datasets.toy.source", "fer2031", ("datasets.toy", "fer2031", "fer2013")),
    ("datasets.toy.sceens", 3, ("'datasets.toy.sceens' - did you mean 'scenes'?; allowed here: ", "test_fraction")),
    (
        "datasets.toy",
        {"source": "synth"},
        "datasets.toy.source = 'synth': unknown - did you mean 'synthetic'?; allowed",
    ),
    ("datasets.toy", {"scenes": 3}, "key 'datasets.toy.source' is missing"),
    (
        "datasets.toy",
        {"source": "table", "columns": {"path": "a", "lable": "b"}},
        "unknown key 'datasets.toy.columns.lable' - did you mean 'label'?; allowed here: box, label, ",
    ),
    ("datasets.toy.strength", 9.0, "strength = 9.0"),
    ("datasets.toy.scenes", 0, "datasets.toy.scenes = 0"),
    ("datasets.toy.scenes", 10**12, "scenes = 1000000000000"),
    ("datasets.toy.test_fraction", 1.0, "test_fraction = 1.0"),
    ("datasets.toy.test_fraction", 0.0, "test_fraction = 0.0"),
    ("datasets.toy.train_subjects", 10**15, "train_subjects = 1000000000000000"),
    ("datasets.toy.face_size", [200, 100], "face_size"),
    ("datasets.toy", {"source": "muxspace", "test_fraction": 0}, "test_fraction = 0"),
    ("datasets.toy", {"source": "folders", "test_fraction": 1.0}, "test_fraction = 1.0"),
    ("datasets.toy", {"source": "fer2013"}, "datasets.toy.path = null"),
    ("datasets.toy", {"source": "folders", "path": ""}, "path = ''"),
    ("datasets.toy", {"source": "table", "classes": {"0": "angerr"}}, "did you mean 'anger'"),
    ("crop.size", 10**9, "crop.size = 1000000000"),
    ("crop.min_face_size", 1e300, "crop.min_face_size = 1e+300"),
    ("shard.folds", 1, "shard.folds = 1"),
    ("shard.parts_per_fold", 10**9, "shard.parts_per_fold"),
    ("shard.duplicates", False, "shard.duplicates = False"),
    ("train.workers", 3, ("models.nano.batch_size = 64", "3 workers")),
    ("train.workers", 10**6, "train.workers = 1000000"),
    ("train.workers", "2", "train.workers = '2'"),
    ("train.workers", {"min": 0, "max": 2}, "train.workers.min = 0"),
    ("train.workers", {"min": 1, "maxx": 2}, ("train.workers.maxx", "did you mean 'max'")),
    ("train.workers", {"min": 4, "max": 2}, ("train.workers: min = 4", "max = 2")),
    ("train.workers", {"min": 5, "max": 7}, ("models.nano.batch_size = 64", "5 to 7 workers")),
    ("train.threads", 10**6, "train.threads = 1000000"),
    ("train.collective_timeout_seconds", 10**12, "train.collective_timeout_seconds"),
    ("models", {}, "models = {}"),
    ("models.nano", [], "models.nano = []"),
    ("models.nano.recipe", None, "models.nano.recipe = None"),
    ("models.nano.recipe", "ddamfn/nanno", ("models.nano.recipe", "ddamfn/nano")),
    ("models.nano.train", 3, "models.nano.train = 3"),
    ("models.nano.train", {"worker": 1}, ("models.nano.train.worker", "did you mean 'workers'")),
    ("models.nano.train", {"workers": 3}, ("models.nano.batch_size = 64", "3 workers")),
    ("models.nano.tune", [], "models.nano.tune = []"),
    ("models.nano.tune", {"grace_epochs": 99}, "models.nano.tune: grace_epochs = 99"),
    ("models.nano.tune", {"space": {"learning_rat": {"low": 0.1, "high": 0.2}}}, "models.nano.tune.space.learning_rat"),
    ("models.nano.tune", {"space": {"options.num_head": {"choices": [1]}}}, "models.nano.tune.space.options.num_head"),
    ("models.nano.epoch", 3, ("models.nano.epoch", "did you mean 'epochs'")),
    ("models.nano.epochs", 0, "models.nano.epochs = 0"),
    ("models.nano.recipe", "../../etc/passwd", "models.nano.recipe = '../../etc/passwd'"),
    ("models.nano.recipe", "absent.yaml", "absent.yaml: no such file"),
    ("models.nano.recipe", "params.yaml", "params.yaml"),
    ("models.nano.batch_size", 2**63 - 1, "models.nano.batch_size = 9223372036854775807"),
    ("models.nano.batch_size", 0, "models.nano.batch_size = 0"),
    ("models.nano.eval_batch_size", 10**9, "models.nano.eval_batch_size"),
    ("models.nano.epochs", 10**9, "models.nano.epochs"),
    ("models.nano.patience", 10**9, "models.nano.patience"),
    ("models.nano.learning_rate", "1e-3", "models.nano.learning_rate = '1e-3'"),
    ("models.nano.gradient_clip", 1e300, "models.nano.gradient_clip"),
    ("models.nano.schedule", 3, "models.nano.schedule = 3"),
    ("models.nano.schedule", {"kind": "cosin"}, "did you mean 'cosine'"),
    ("models.nano.augment", [{"name": "Rotat"}], "did you mean 'Rotate'"),
    ("models.nano.augment", [{"name": "Rotate", "options": 3, "limit": 1}], "models.nano.augment.0.options = 3"),
    ("models.nano.augment", [{"name": "Rotate", "limit": "much"}], "models.nano: augment: Rotate"),
    ("models.nano.model", "ddamfn_nanno", "did you mean 'ddamfn_nano'"),
    ("models.nano.options", {"heads": 3}, "models.nano: unknown option"),
    ("models.nano.options", {"num_heads": "two"}, "num_heads = 'two'"),
    ("models.nano.options", {"num_heads": -1}, "num_heads = -1"),
    ("models.nano", {"recipe": "poster_v2/nano", "options": {"vit_depth": "two"}}, "vit_depth = 'two'"),
    ("models.nano", {"recipe": "poster_v2/nano", "options": {"drop_path_rate": [1]}}, "drop_path_rate = [1]"),
    ("models.nano.options", {"num_heads": 10**9}, "options.num_heads = 1000000000"),
    ("models.nano.trainable", ["nothing.*"], "models.nano: trainable: nothing.*"),
    ("models.nano.pretrained", {"backbonne": "x"}, "pretrained.backbonne"),
    ("models.nano.pretrained", {"features": "mfn_mscelebb"}, "pretrained.features = 'mfn_mscelebb'"),
    ("models.nano.start_from", "mfn_mscelebb", "start_from = 'mfn_mscelebb'"),
    ("models.nano.stages", [{"epochs": -1}], "models.nano: stages[1]: epochs = -1"),
    ("models.nano.stages", [{}, {"options": {"num_heads": 1}}], "models.nano: stages"),
    ("models.nano.stages", [{"stages": []}], "stages[1]"),
    ("models.nano.cross_validation", {"folds": 5, "fold": 5}, "models.nano.cross_validation"),
    ("models.nano.cross_validation", {"folds": 20}, "models.nano.cross_validation: folds = 20"),
    ("models.nano.cross_validation", {"folds": 2, "repeat": 999}, "models.nano.cross_validation: repeat = 999"),
    ("evaluate.batch_size", 2**62, "evaluate.batch_size"),
    ("evaluate.pose_bins", [0, 10, 1e300], "evaluate.pose_bins.2 = 1e+300"),
    ("evaluate.pose_bins", [10, 0], "pose_bins must rise"),
    ("report.title", "x" * 10_000, "report.title = 'xxx"),
    ("cluster.cpus", 0, "cluster.cpus = 0"),
    ("cluster.object_store_mb", 10**12, "cluster.object_store_mb"),
    ("tracking.uri", 5000, "tracking.uri = 5000"),
    ("storage", "/mnt/shared", "storage"),
    ("storage", "s3://me:secret@bucket/team", "storage"),
    ("tune.workers_per_trial", 0, "tune.workers_per_trial = 0"),
    ("tune.workers_per_trial", 7, "tune: batch_size = 64 cannot be divided evenly among workers_per_trial = 7"),
    (
        "tune",
        {"workers_per_trial": 2, "space": {"batch_size": {"choices": [64, 9]}}},
        "tune.space.batch_size: batch_size = 9",
    ),
    (
        "tune",
        {"workers_per_trial": 2, "space": {"batch_size": {"low": 2, "high": 6, "integer": True}}},
        "batch_size = 3",
    ),
    ("tune.trials", 10**12, "tune.trials"),
    ("tune.max_concurrent", 10**12, "tune.max_concurrent"),
    ("tune.time_budget_minutes", 1e12, "tune.time_budget_minutes"),
    ("tune.grace_epochs", 100, "grace_epochs = 100"),
    ("tune.space", {}, "tune.space = {}"),
    ("tune.space", {"learning_rat": {"low": 0.1, "high": 0.2}}, "did you mean 'learning_rate'"),
    ("tune.space", {"schedule.gama": {"low": 0.1, "high": 0.2}}, "tune.space.schedule.gama"),
    ("tune.space", {"options.num_head": {"choices": [1, 2]}}, "did you mean 'num_heads'"),
    ("tune.space", {"learning_rate": {"low": 0.2, "high": 0.1}}, "low < high"),
    ("tune.space", {"learning_rate": {"low": 0, "high": 0.1, "log": True}}, "log needs low > 0"),
    ("tune.space", {"learning_rate": {"low": 1, "high": 100}}, "tune.space.learning_rate"),
    ("tune.space", {"batch_size": {"low": 16, "high": 64}}, "for whole numbers: integer: true"),
    ("tune.space", {"batch_size": {"choices": [32, 2**40]}}, "tune.space.batch_size"),
    ("tune.space", {"batch_size": {"low": 8.5, "high": 64, "integer": True}}, "integer needs whole numbers"),
    (
        "tune.space",
        {"momentum": {"low": 0, "high": 0.9, "when": {"optimizer": "sgd"}}},
        "space.momentum.when: optimizer",
    ),
    (
        "tune.space",
        {"optimizer": {"choices": ["sgd"]}, "momentum": {"low": 0, "high": 0.9, "when": {"optimizer": "adam"}}},
        "space.momentum.when: optimizer",
    ),
    (
        "tune",
        {"method": "grid", "space": {"learning_rate": {"low": 0.1, "high": 0.2}}},
        "space.learning_rate has no choices",
    ),
    (
        "tune",
        {"method": "grid", "space": {name: {"choices": list(range(1, 200))} for name in ("accumulate", "batch_size")}},
        "more than 10,000 combinations",
    ),
    ("tune", {"cost": "gmacs"}, "set stopping: none"),
    ("tune", {"cost": "gmacs", "stopping": "none", "metric": "val_loss"}, "set metric to an accuracy"),
    ("tune.space", {"optimizer": {"choices": ["adam", "adamm"]}}, "tune.space.optimizer"),
    ("tune.space", {"epochs": {"choices": [1, 2]}}, "space.epochs"),
    ("tune.space", {"cross_validation.fold": {"choices": [0, 1]}}, "space.cross_validation.fold"),
]

NAMES = ["../x", "../../../precious", "/abs", "a;touch PWNED", "$(touch PWNED)", "-x", "a\nb", "x" * 65, "${x}", "TWIN"]
"""Keys of datasets and models that would become paths, shell words or options, or the same folder as `twin`."""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project among a user's files, none of which may change."""
    root = tmp_path / "home" / "work" / "project"
    root.mkdir(parents=True)
    for place in (tmp_path, tmp_path / "home", root.parent, root.parent / "precious"):
        place.mkdir(exist_ok=True)
        (place / "precious.txt").write_text(f"of {place.name}")
    monkeypatch.chdir(root)
    before = _snapshot(tmp_path)
    yield root
    (root / "params.yaml").unlink()
    assert _snapshot(tmp_path) == before


def _snapshot(folder: Path) -> dict[str, str | None]:
    return {str(path): path.read_text() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def _edited(dotted: str, value: Any) -> bytes:
    document = yaml_text.load(RIGHT)
    *parents, last = dotted.split(".") if "\n" not in dotted else [dotted]
    place = document
    for parent in parents:
        place = place[parent]
    place[last] = value
    return yaml_text.dump(document).encode()


def _error(project: Path, content: bytes) -> str:
    """The error of `fer check`: a printable line for each mistake, which names the file."""
    (project / "params.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        check.main(argparse.Namespace(json=False))
    for line in str(caught.value).splitlines():
        assert "params.yaml" in line or "absent.yaml" in line
        assert line.isprintable()
        assert len(line) < 2_000
    return str(caught.value)


def test_file_that_the_invalid_ones_are_made_of_is_valid(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "params.yaml").write_text(RIGHT)
    check.main(argparse.Namespace(json=False))
    assert "toy" in capsys.readouterr().out


@pytest.mark.parametrize("case", YAML)
def test_invalid_yaml_is_rejected_in_one_line(project: Path, case: str) -> None:
    content, part = YAML[case]
    assert part in _error(project, content)


@pytest.mark.parametrize(("key", "value", "parts"), VALUES, ids=lambda value: repr(value)[:40])
def test_invalid_value_is_rejected_in_one_line_with_its_key(
    project: Path, key: str, value: Any, parts: str | tuple[str, ...]
) -> None:
    error = _error(project, _edited(key, value))
    assert all(part in error for part in ([parts] if isinstance(parts, str) else parts)), error


@pytest.mark.parametrize("case", BOMBS)
def test_yaml_bomb_is_rejected_with_little_memory(project: Path, case: str) -> None:
    content, part = BOMBS[case]
    tracemalloc.start()
    try:
        assert part in _error(project, content)
        assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    finally:
        tracemalloc.stop()


def test_command_ends_with_one_line_and_1(project: Path) -> None:
    (project / "params.yaml").write_bytes(_edited("run.datasets", ["a;touch PWNED;"]))
    ended = subprocess.run(
        [sys.executable, "-c", "from fer.cli import main; main()", "check"],
        cwd=project,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=patience(60),
    )
    assert ended.returncode == 1, ended.stdout
    (line,) = ended.stdout.splitlines()
    assert "params.yaml" in line
    assert "a;touch PWNED;" in line


@pytest.mark.parametrize("section", ["datasets", "models"])
@pytest.mark.parametrize("name", NAMES)
def test_hostile_key_is_rejected_before_anything_else_is_used(project: Path, section: str, name: str) -> None:
    document = yaml_text.load(RIGHT)
    (known,) = document[section]
    document[section] |= {"twin": document[section][known], name: document[section][known]}
    document["run"][section] = [known, name]
    assert f"params.yaml: {section}: " in _error(project, yaml_text.dump(document).encode())
