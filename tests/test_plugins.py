"""A module of the user adds models, datasets and recipes; an edit of it re-trains what it registers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml_text
from builders.limits import patience
from builders.projects import REPOSITORY, TOY, environment, make_project

from fer import params as parameters
from fer import plugins
from fer.cluster.config import ClusterConfig
from fer.cluster.session import connect
from fer.models import create_model, registry
from fer.sources import registry as sources
from fer.stages import train
from fer.stages.closure import Code
from fer.stages.plan import plan
from fer.training import recipe as recipes

NET = """
from my_layers import head
from fer.models import FerModel, TrainOutput, register

@register("my_net")
class MyNet(FerModel):
    def __init__(self, num_classes: int = 7, *, width: int = 4) -> None:
        super().__init__(num_classes, input_size=16)
        self.head = head(width, num_classes)

    def forward(self, x):
        logits = self.head(x)
        return TrainOutput(logits, {}) if self.training else logits
"""
LAYERS = """
from torch import nn

def head(width, classes):
    return nn.Sequential(nn.Conv2d(3, width, 3, 2), nn.Flatten(), nn.Linear(width * 49, classes))
"""
MY_NET = {"my_net.py": NET, "my_layers.py": LAYERS}
READER = """
from typing import Literal
from fer.sources.folders import FoldersConfig, FoldersSource
from fer.sources.registry import register

class LabConfig(FoldersConfig):
    source: Literal["lab"]
    box: tuple[int, int] = (0, 1)

@register(LabConfig)
class LabSource(FoldersSource):
    title = "the lab's"
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project whose plugins are forgotten afterwards."""
    for module, name in (
        (plugins, "_loaded"), (plugins, "_folders"), (registry, "_REGISTRY"),
        (sources, "READERS"), (recipes, "_PACKAGES"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, getattr(module, name).copy())
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield make_project(tmp_path, epochs=1, recipe={**TOY, "model": "my_net", "options": {"width": 3}})
    for name in [name for name in sys.modules if name.partition(".")[0] in ("my_net", "my_layers", "lab")]:
        del sys.modules[name]


def write(root: Path, names: list[str], files: Mapping[str, str]) -> None:
    """Files of the project, and the plugins that params.yaml names."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    yaml_text.edit(root / "params.yaml", "plugins", names)


def planned(root: Path) -> str:
    params = parameters.load(root / "params.yaml")
    return json.dumps(list(plan(params, [("train", "tiny", "toy"), ("evaluate", "tiny", "toy")], Code())))


def test_a_model_in_the_projects_folder_is_trained_and_trained_again_when_its_code_changes(project: Path) -> None:
    write(project, ["my_net"], MY_NET)
    params = parameters.load(project / "params.yaml")
    assert list(params.plugins) == ["my_net"]
    train.run(params, "tiny", "toy")
    assert json.loads((project / "trained/tiny/toy/train.json").read_text())["recipe"]["model"] == "my_net"

    closure = Code().closure("train", recipes=[params.recipe("toy")])
    assert {"my_net.py", "my_layers.py", "fer/models/base.py"} <= set(closure)
    assert not [path for path in closure if path.startswith("fer/models/ddamfn")]
    before = planned(project)
    for name, text in MY_NET.items():
        write(project, ["my_net"], {name: text + "\n# a remark\n"})
        assert planned(project) == before
        write(project, ["my_net"], {name: text + "\nCHANGED = 1\n"})
        assert planned(project) != before
        write(project, ["my_net"], {name: text})


def test_the_code_of_a_model_of_ours_is_the_same_with_plugins_and_without(project: Path) -> None:
    recipe = recipes.load_recipe({"recipe": "ddamfn/nano"}, project, "")
    before = Code().digest("train", recipes=[recipe])
    write(project, ["my_net"], MY_NET)
    parameters.load(project / "params.yaml")
    assert Code().digest("train", recipes=[recipe]) == before


def test_a_package_may_import_its_own_files_relatively_and_register_computed_names(project: Path) -> None:
    text = NET.replace("from my_layers", "from .layers").replace('@register("my_net")', '@register("my_" + "net")')
    write(project, ["lab.net"], {"lab/net.py": text, "lab/layers.py": LAYERS})
    params = parameters.load(project / "params.yaml")
    assert create_model("my_net", width=2).options == {"width": 2}
    assert {"lab/net.py", "lab/layers.py"} <= set(Code().closure("train", recipes=[params.recipe("toy")]))


def test_a_dataset_of_a_plugin_is_read_and_its_values_are_checked(project: Path) -> None:
    write(project, ["lab"], {"lab.py": READER})
    yaml_text.edit(project / "params.yaml", "datasets.tiny", {"source": "lab", "box": [2, 3], "label_space": "basic8"})
    dataset = parameters.load(project / "params.yaml").dataset("tiny")
    reader = sources.get_source(dataset, seed=0)
    assert (dataset.box, type(reader).__name__, len(reader.label_space.labels)) == ((2, 3), "LabSource", 8)
    assert "lab.py" in Code().closure("crop", reader=type(reader).__module__)
    yaml_text.edit(project / "params.yaml", "datasets.tiny.box", "wide")
    with pytest.raises(parameters.ConfigError, match=r"datasets\.tiny.*box = 'wide'"):
        parameters.load(project / "params.yaml")


def test_recipes_of_a_plugin_are_known_by_their_file_and_section(project: Path) -> None:
    register = "from fer.training.recipe import register_recipes\nregister_recipes('lab')\n"
    write(project, ["my_net", "lab"], {**MY_NET, "lab/__init__.py": register})
    section = {"model": "my_net", "epochs": 2, "batch_size": 8, "learning_rate": 0.1}
    (project / "lab" / "mine.yaml").write_text(yaml_text.dump({"quick": section}))
    yaml_text.edit(project / "params.yaml", "models.toy", {"recipe": "mine/quick", "epochs": 3})
    assert parameters.load(project / "params.yaml").recipe("toy").epochs == 3


def test_the_examples_of_the_documentation_work(project: Path) -> None:
    text = (REPOSITORY / "docs" / "plugins.md").read_text("utf-8")
    files = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", text, re.DOTALL))
    assert set(files) == {"my_net.py", "lab.py"}
    write(project, ["my_net", "lab"], files)
    for name in ("ann_happiness_1", "bob_anger_1"):
        image = project / "recordings" / f"{name}.png"
        image.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(image), np.zeros((48, 48, 3), np.uint8))
    yaml_text.edit(project / "params.yaml", "datasets.tiny", {"source": "lab", "path": "recordings"})
    params = parameters.load(project / "params.yaml")
    reader = sources.get_source(params.dataset("tiny"), seed=0)
    found = [entry.faces[0].label for entry in reader.scan(project / "recordings").entries]
    assert [reader.label_space.labels[label] for label in found] == ["happiness", "anger"]
    logits = create_model("my_net", 8, width=4).eval()(torch.zeros(2, 3, 48, 48))
    assert logits.shape == (2, 8)


def test_the_model_of_the_tutorial_is_built(project: Path) -> None:
    text = (REPOSITORY / "docs" / "tutorial.md").read_text("utf-8")
    ((name, code),) = re.findall(r"cat > (\w+\.py) <<'EOT'\n(.*?)\nEOT\n", text, re.DOTALL)
    write(project, [name.removesuffix(".py")], {name: code})
    parameters.load(project / "params.yaml")
    model = create_model("my_net", 7, width=8)
    assert model.train()(torch.zeros(2, 3, 48, 48)).logits.shape == (2, 7)


@pytest.mark.parametrize(
    ("names", "files", "said"),
    [
        (["my_net"], {"my_net.py": "\nimport nothing_like_it\n"}, r"my_net.*my_net\.py:2.*nothing_like_it"),
        (["my_net"], {"my_net.py": "def f(:\n"}, r"my_net.*SyntaxError.*my_net\.py, line 1"),
        (["my_net"], {}, r"my_net.*ModuleNotFoundError"),
        (["my_net"], {**MY_NET, "my_net.py": NET.replace('"my_net"', '"btn"')}, r"my_net\.py:5.*'btn'.*BTN"),
        (["lab"], {"lab.py": READER.replace('"lab"]', '"rafdb"]')}, r"lab\.py:10.*'rafdb'.*RafDbConfig"),
        (["colorsys"], {"colorsys.py": ""}, r"'colorsys' is .*colorsys\.py, not in .*another name"),
        (["../my_net"], {}, r"plugins\.0 = '\.\./my_net'"),
        (["my_net; rm"], {}, r"plugins\.0 = 'my_net; rm'"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_refused_with_its_file(
    names: list[str], files: dict[str, str], said: str, project: Path
) -> None:
    write(project, names, files)
    with pytest.raises(ValueError, match=rf"params\.yaml.*{said}"):
        parameters.load(project / "params.yaml")


def test_an_installed_package_is_a_plugin_by_its_entry_point(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(project, [], MY_NET)
    point = EntryPoint("mine", "my_net", plugins.GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group: EntryPoints([point]).select(group=group))
    monkeypatch.setattr(plugins, "load_installed", plugins.load_installed.__wrapped__)
    monkeypatch.setattr(sys, "path", [*sys.path, str(project)])
    params = parameters.load(project / "params.yaml")
    assert "my_net.py" in Code().closure("train", recipes=[params.recipe("toy")])
    (project / "my_net.py").write_text("broken")
    del sys.modules["my_net"]
    with pytest.raises(plugins.PluginError, match=r"entry point 'mine'.*my_net\.py:1"):
        plugins.load_installed()


def test_another_process_imports_what_this_one_has(project: Path) -> None:
    assert plugins.worker_setup() is None
    write(project, ["my_net"], MY_NET)
    parameters.load(project / "params.yaml")
    names, folders = tuple(plugins._loaded), [str(folder) for folder in plugins._folders]
    assert plugins.worker_setup() is not None
    code = (
        f"from pathlib import Path\nfrom fer import plugins\nplugins.load({names}, [Path(p) for p in {folders}], '')\n"
    )
    code += "from fer.models import create_model\nprint(create_model('my_net').name)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment(), cwd="/"
    )
    assert done.stdout == "my_net\n"


@pytest.mark.ray
def test_rays_workers_have_the_plugins_that_the_driver_has(project: Path) -> None:
    """The canary of `fer.cluster.compat.worker_environment`."""
    import ray

    write(project, ["my_net"], MY_NET)
    parameters.load(project / "params.yaml")

    def made() -> tuple[int, str | None]:
        from fer.models import create_model as create

        return os.getpid(), create("my_net", width=2).name

    with connect(ClusterConfig(cpus=1)):
        worker, name = ray.get(ray.remote(made).remote(), timeout=patience(120))
    assert worker != os.getpid()
    assert name == "my_net"
