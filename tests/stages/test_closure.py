"""The code that a result depends on is computed: all that decides it, and little else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml_text

from fer import params as parameters
from fer.models import list_models
from fer.models.registry import _entry
from fer.sources.registry import READERS
from fer.stages.closure import LEFT_OUT, REGISTRIES, ROOT, Code, left_out
from fer.stages.plan import plan
from fer.training.recipe import Recipe, list_recipes, load_recipe

STAGES = ("download", "crop", "shard", "train", "evaluate", "explain", "report", "tune", "study")


@pytest.fixture(scope="module")
def code() -> Code:
    return Code()


@pytest.fixture(scope="module")
def recipes() -> dict[str, Recipe]:
    return {name: load_recipe({"recipe": name}, ROOT, "") for name in list_recipes()}


def a_package(root: Path, **files: str) -> Code:
    """`fer` in a folder, with these files; "__" in a name stands for "/"."""
    (root / "fer").mkdir(exist_ok=True)
    for name, text in files.items():
        path = root / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for folder in [path for path in (root / "fer").rglob("*") if path.is_dir()] + [root / "fer"]:
        if not (folder / "__init__.py").exists():
            (folder / "__init__.py").write_text('"""Empty."""\n')
    return Code(root)


# ------------------------------------------------------------------------------------------------ how it follows


@pytest.mark.parametrize(
    "statement",
    [
        "import fer.rooms.b",
        "from fer.rooms import b",
        "from fer.rooms.b import thing",
        "def f():\n    from fer.rooms.b import thing",
        "def f():\n    import importlib\n    return importlib.import_module('fer.rooms.b')",
        "from fer.rooms.exported import thing",
        "from ..fer.rooms import b",
    ],
)
def test_imports_are_followed_wherever_they_stand(statement: str, tmp_path: Path) -> None:
    made = a_package(
        tmp_path,
        pipelines__shard=statement,
        fer__rooms__b="from fer.seeds import seed\n",
        fer__seeds="",
        fer__unused="",
        fer__rooms__exported____init__="from fer.rooms.b import thing\n",
    )
    (tmp_path / "fer/rooms/exported/__init__.py").write_text("from fer.rooms.b import thing\nfrom fer import unused\n")
    assert set(made.closure("shard")) == {"pipelines/shard.py", "fer/rooms/b.py", "fer/seeds.py"}


def test_imports_for_type_checkers_and_observers_are_not_followed(tmp_path: Path) -> None:
    made = a_package(
        tmp_path,
        pipelines__shard="if TYPE_CHECKING:\n    from fer.a import A\nfrom fer.console import log\n",
        fer__a="",
        fer__console="from fer import b\n",
        fer__b="",
    )
    assert set(made.closure("shard")) == {"pipelines/shard.py"}


def test_a_package_that_computes_counts_with_its_modules(tmp_path: Path) -> None:
    made = a_package(tmp_path, pipelines__shard="from fer.room.a import f\n", fer__room__a="")
    (tmp_path / "fer/room/__init__.py").write_text("LIMIT = 3\n")
    assert "fer/room/__init__.py" in made.closure("shard")


def test_files_beside_the_code_count_for_what_reads_them(tmp_path: Path) -> None:
    made = a_package(tmp_path, pipelines__shard="from importlib import resources\nresources.files('fer.tables')\n")
    (tmp_path / "fer/tables").mkdir()
    (tmp_path / "fer/tables/a.csv").write_text("1")
    before = made.digest("shard")
    assert "fer/tables/a.csv" in made.closure("shard")
    (tmp_path / "fer/tables/a.csv").write_text("2")
    assert Code(tmp_path).digest("shard") != before


def test_an_import_that_cannot_be_followed_is_refused(tmp_path: Path) -> None:
    made = a_package(tmp_path, pipelines__shard="\nimport importlib\nimportlib.import_module(name)\n")
    with pytest.raises(ValueError, match=r"pipelines/shard\.py:\d: "):
        made.closure("shard")


# ------------------------------------------------------------------------------------------------ what changes a digest

TEXT = '''"""Doc."""
from fer import a  # why

LIMIT = 3


class C:
    """Doc of
    two lines."""

    x = 1  # a number
    """Doc of x."""

    def f(self):
        # nothing
        return f"{self.x} # {'#'}" + \'\'\'
        two  # lines
        \'\'\'
'''


@pytest.mark.parametrize(
    ("change", "changes"),
    [
        (lambda text: text.replace("why", "because"), False),
        (lambda text: text.replace("  # a number", ""), False),
        (lambda text: text.replace("        # nothing\n", ""), False),
        (lambda text: text.replace("Doc of\n    two lines.", "Longer\n\n    words, # three lines."), False),
        (lambda text: text.replace('    """Doc of x."""\n', ""), False),
        (lambda text: text.replace("LIMIT = 3\n\n\n", "\n\nLIMIT = 3\n"), False),
        (lambda text: text.replace("LIMIT = 3", "LIMIT = 4"), True),
        (lambda text: text.replace("{self.x} #", "{self.x} !"), True),
        (lambda text: text.replace("two  # lines", "two  # other lines"), True),
        (lambda text: text.replace("        two", "\n        two"), True),
        (lambda text: text.replace("'#'", "'!'"), True),
    ],
)
def test_digest_changes_with_code_and_not_with_words(
    change: Callable[[str], str], changes: bool, tmp_path: Path
) -> None:
    before = a_package(tmp_path, pipelines__shard=TEXT, fer__a="").digest("shard")
    assert change(TEXT) != TEXT
    assert (a_package(tmp_path, pipelines__shard=change(TEXT)).digest("shard") != before) == changes


def test_digest_is_the_same_in_another_folder(tmp_path: Path, code: Code) -> None:
    for name in ("fer", "pipelines"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    assert Code(tmp_path).digest("shard") == code.digest("shard")


# ------------------------------------------------------------------------------------------------ this project


def test_what_is_left_out_and_what_is_a_registry_exists_and_has_a_reason() -> None:
    for entries in (*LEFT_OUT.values(), REGISTRIES):
        for path, reason in entries.items():
            assert (ROOT / path).exists(), path
            assert len(reason) > 5, path
    assert set(LEFT_OUT) <= {"", *STAGES}


def test_the_hash_behind_weights_and_order_counts_wherever_it_is_used(code: Code, recipes: dict[str, Recipe]) -> None:
    for stage in ("download", "crop", "shard", "train", "evaluate", "explain", "tune", "study"):
        found = code.closure(stage, reader="fer.sources.synthetic", recipes=[recipes["btn/nano"]])
        assert "fer/hashing.py" in found, stage


def test_every_model_is_followed_by_its_name_alone(code: Code, recipes: dict[str, Recipe]) -> None:
    base = recipes["ddamfn/nano"]
    shipped = {name: module for name in list_models() if (module := _entry(name).builder.__module__).startswith("fer.")}
    for name, module in shipped.items():
        found = code.closure("train", recipes=[base.model_copy(update={"model": name})])
        assert module.replace(".", "/") + ".py" in found
    assert "fer/models/ddamfn.py" not in code.closure("train", recipes=[recipes["btn/nano"]])
    assert "fer/models/btn.py" not in code.closure("train", recipes=[base])


def test_every_reader_is_followed_by_its_dataset_alone(code: Code) -> None:
    modules = {reader.__module__ for reader in READERS.values()}  # type: ignore[attr-defined]
    for stage in ("download", "crop"):
        for module in modules:
            assert module.replace(".", "/") + ".py" in code.closure(stage, reader=module)
        assert "fer/sources/caers.py" not in code.closure(stage, reader="fer.sources.rafdb")
    assert not [path for path in code.closure("shard") if path.startswith("fer/sources")]


def test_a_detector_is_followed_by_its_name_alone(code: Code) -> None:
    found = {name: set(code.closure("crop", detector=name)) for name in ("annotated", "retinaface", "yunet")}
    assert {"fer/faces/retinaface.py", "fer/faces/retinaface_network.py", "fer/models/layers/conv.py"} <= (
        found["retinaface"] - found["annotated"] - found["yunet"]
    )
    assert found["yunet"] - found["annotated"] == {"fer/faces/yunet.py"}


def test_published_weights_are_followed_where_a_recipe_names_them(code: Code, recipes: dict[str, Recipe]) -> None:
    plain = code.closure("train", recipes=[recipes["btn/nano"]])
    assert "fer/transforms/forms.py" in plain
    assert "fer/weights/published.py" not in plain
    paper = code.closure("train", recipes=[recipes["btn/paper_rafdb"]])
    assert {"fer/weights/published.py", "fer/weights/layouts/backbones.py", "fer/models/ir.py"} <= set(paper)
    assert "fer/weights/layouts/poster_v1.py" not in paper


def test_no_stage_lists_code_and_none_depends_on_the_circumstances_of_a_run() -> None:
    stages = yaml_text.load((ROOT / "dvc.yaml").read_text())["stages"]
    for name, stage in stages.items():
        deps, name = stage.get("do", stage).get("deps", []), name.removesuffix("_pair")
        assert not [path for path in deps if path.startswith(("fer", "pipelines"))], name
        assert name == "plan" or [path for path in deps if path.startswith(f"data/plan/{name}")], name
        assert not [path for path in deps if path.endswith("/run.json")], name


# ------------------------------------------------------------------------------------------------ the plan


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkout")
    for name in ("fer", "pipelines"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "params.yaml", root)
    folders = {"source": "folders", "path": "photos", "label_space": "basic7"}
    yaml_text.edit(root / "params.yaml", "datasets.mine", folders)
    yaml_text.edit(
        root / "params.yaml", "run", {"datasets": ["synthetic", "mine"], "models": ["btn_nano", "ddamfn_nano"]}
    )
    return root


def planned(root: Path) -> dict[str, str]:
    params = parameters.load(root / "params.yaml")
    items = [(stage, dataset) for stage in ("download", "crop", "shard") for dataset in params.run.datasets]
    items += [(stage, "mine", model) for stage in ("train", "evaluate", "explain") for model in params.run.models]  # type: ignore[misc]
    return {"-".join(item): json.dumps(content) for item, content in plan(params, items, Code(root))}


@pytest.fixture(scope="module")
def before(checkout: Path) -> dict[str, str]:
    return planned(checkout)


EXPLANATIONS = {"explain-mine-btn_nano", "explain-mine-ddamfn_nano"}
BTN = {"train-mine-btn_nano", "evaluate-mine-btn_nano", "explain-mine-btn_nano", "report"}
EVERY_MODEL = BTN | EXPLANATIONS | {"train-mine-ddamfn_nano", "evaluate-mine-ddamfn_nano"}


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("fer/models/btn.py", BTN),
        ("fer/models/layers/attention.py", BTN),
        ("fer/sources/folders.py", {"download-mine", "crop-mine"}),
        ("fer/synth/paint.py", {"download-synthetic", "crop-synthetic"}),
        ("fer/sources/rafdb.py", set()),
        ("fer/models/lhc_net.py", set()),
        ("fer/training/sam.py", {"train-mine-btn_nano", "train-mine-ddamfn_nano"}),
        ("fer/models/base.py", EVERY_MODEL),
        ("fer/shards/duplicates.py", {"shard-synthetic", "shard-mine"}),
        ("fer/evaluation/tta.py", EXPLANATIONS | {"evaluate-mine-btn_nano", "evaluate-mine-ddamfn_nano", "report"}),
        ("fer/explain/cam.py", EXPLANATIONS),
        ("fer/report/charts.py", {"report"}),
        ("fer/published/numbers.csv", {"report"}),
        ("fer/tracking/run.py", set()),
        ("pipelines/shard.py", {"shard-synthetic", "shard-mine"}),
    ],
)
def test_an_edit_changes_the_plan_of_what_depends_on_it_alone(
    file: str, expected: set[str], checkout: Path, before: dict[str, str]
) -> None:
    path = checkout / file
    text = path.read_text()
    try:
        path.write_text(f"{text}\nCHANGED = True\n")
        after = planned(checkout)
    finally:
        path.write_text(text)
    assert {item for item in before if before[item] != after[item]} == expected
    assert all(left_out(file, stage) is None for stage in {item.partition("-")[0] for item in expected})


def test_a_remark_changes_no_plan(checkout: Path, before: dict[str, str]) -> None:
    path = checkout / "fer/models/btn.py"
    text = path.read_text()
    try:
        path.write_text(f"{text}\n# A remark.\n")
        assert planned(checkout) == before
    finally:
        path.write_text(text)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("crop.jpeg_quality", 90, {"crop-mine", "crop-synthetic"}),
        ("datasets.mine.crop", {"size": 64}, {"crop-mine"}),
        ("datasets.mine.test_fraction", 0.3, {"crop-mine", "download-mine"}),
        ("models.btn_nano.epochs", 3, {"train-mine-btn_nano"}),
        ("models.btn_nano.train", {"threads": 3}, {"train-mine-btn_nano"}),
        ("models.btn_nano.train", {"checkpoint_every_steps": 7, "max_failures": 0}, set()),
        ("models.btn_nano.tune", {"trials": 2, "space": {"learning_rate": {"low": 0.1, "high": 0.2}}}, set()),
        ("train.workers", 1, {"train-mine-btn_nano", "train-mine-ddamfn_nano"}),
        ("explain.steps", 8, EXPLANATIONS),
        ("train.collective_timeout_seconds", 7, set()),
    ],
)
def test_an_edit_in_params_changes_the_plan_of_the_items_whose_result_it_decides(
    key: str, value: object, expected: set[str], checkout: Path
) -> None:
    before, path = planned(checkout), checkout / "params.yaml"
    text = path.read_text()
    try:
        yaml_text.edit(path, key, value)
        after = planned(checkout)
    finally:
        path.write_text(text)
    assert {item for item in before if before[item] != after[item]} == expected


def test_an_edited_recipe_file_changes_the_plan_of_its_runs_alone(checkout: Path) -> None:
    section = {"model": "btn_nano", "epochs": 1, "batch_size": 8, "learning_rate": 0.1}
    (checkout / "mine.yaml").write_text(yaml_text.dump(section))
    yaml_text.edit(checkout / "params.yaml", "models.btn_nano", {"recipe": "mine.yaml"})
    before = planned(checkout)
    (checkout / "mine.yaml").write_text(yaml_text.dump({**section, "epochs": 2}))
    after = planned(checkout)
    assert {item for item in before if before[item] != after[item]} == {"train-mine-btn_nano"}
