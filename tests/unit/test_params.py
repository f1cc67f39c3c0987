"""params.yaml is validated whole, before any stage touches an output."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml_text

from fer import params
from fer.config import ConfigError


@pytest.fixture
def project(tmp_path: Path, repo_root: Path) -> Path:
    shutil.copy(repo_root / "params.yaml", tmp_path)
    return tmp_path


def _edit(project: Path, dotted: str, value: object) -> None:
    yaml_text.edit(project / "params.yaml", dotted, value)


def test_the_shipped_file_is_right_and_complete(project: Path) -> None:
    loaded = params.load(project / "params.yaml")
    assert loaded.root == project
    assert loaded.recipe("ddamfn_nano").model == "ddamfn_nano"


def test_every_knob_of_the_shipped_file_is_commented(repo_root: Path) -> None:
    for number, line in enumerate((repo_root / "params.yaml").read_text().splitlines(), 1):
        key, _, rest = line.strip().partition(":")
        is_knob = bool(rest.strip()) and not line.strip().startswith("#")
        if is_knob and key not in ("source", "recipe", "title") and not rest.strip().startswith("{"):
            assert "#" in line, f"params.yaml:{number}: {line}"


def test_duplicates_are_switched_off_as_the_file_says(project: Path) -> None:
    path = project / "params.yaml"
    path.write_text(path.read_text().replace("duplicates: report", "duplicates: off"))
    assert params.load(path).shard.duplicates == "off"


@pytest.mark.parametrize(
    ("key", "value", "parts"),
    [
        ("sede", 1, ["'sede'", "did you mean 'seed'"]),
        ("train.worker", 2, ["'train.worker'", "did you mean 'workers'"]),
        ("train.workers", -1, ["train.workers = -1", "greater than or equal to 0"]),
        ("train.workers", "2", ["train.workers = '2'"]),
        ("datasets.synthetic.sceens", 3, ["sceens", "did you mean 'scenes'"]),
        ("datasets.synthetic.source", "fer2031", ["fer2031", "fer2013"]),
        ("datasets.synthetic.strength", 9.0, ["strength"]),
        ("run.models", ["ddamfn_nao"], ["ddamfn_nao", "did you mean 'ddamfn_nano'"]),
        ("run.datasets", ["fer2014"], ["fer2014", "did you mean 'fer2013'"]),
        ("models.ddamfn_nano.recipe", "ddamfn/nanno", ["models.ddamfn_nano.recipe", "ddamfn/nano"]),
        ("models.ddamfn_nano.epoch", 3, ["models.ddamfn_nano.epoch", "did you mean 'epochs'"]),
        ("models.ddamfn_nano.epochs", 0, ["models.ddamfn_nano.epochs = 0"]),
        ("models.ddamfn_nano.augment", [{"name": "HorizontalFlipp"}], ["HorizontalFlip"]),
    ],
)
def test_a_mistake_is_named_with_its_remedy(project: Path, key: str, value: object, parts: list[str]) -> None:
    _edit(project, key, value)
    with pytest.raises(ConfigError) as caught:
        params.load(project / "params.yaml")
    assert all(part in str(caught.value) for part in ["params.yaml", *parts]), str(caught.value)


def test_unknown_names_list_the_known(project: Path) -> None:
    loaded = params.load(project / "params.yaml")
    with pytest.raises(ConfigError, match=r"did you mean 'rafdb'.*known: synthetic, "):
        loaded.dataset("raf")
    with pytest.raises(ConfigError, match="did you mean 'ddamfn_small'"):
        loaded.recipe("ddamfn_smal")


def test_it_is_found_from_below_and_missed_clearly(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(project / "a" / "b")
    assert params.project_root() == project
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    with pytest.raises(ConfigError, match=r"no params\.yaml"):
        params.project_root()
