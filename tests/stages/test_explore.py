"""`fer explore`: evaluated models side by side, in one folder that appears complete."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from builders.mlflow_runs import give_store, runs
from builders.published import make_project, publish_training
from builders.shards import LABELS, change_manifest

from fer import cli
from fer.config import ConfigError
from fer.io.files import FileError, read_json, sha256
from fer.models import create_model
from fer.outputs import EXPLORED
from fer.params import Params
from fer.shards.manifest import load_manifest
from fer.sources.synthetic import SyntheticSource
from fer.stages.evaluate import run as run_evaluation
from fer.stages.explore import run
from fer.tracking import TrackingConfig
from fer.weights.store import save_model

ROWS = 30


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Params:
    """Models nano and other, with other weights, evaluated on dataset toy; left as it is."""
    params = make_project(tmp_path_factory.mktemp("project"), test_rows=ROWS)
    change_manifest(params.root / "data" / "shards" / "toy", generator="tests")
    for key in ("nano", "other"):
        folder = publish_training(params, key=key)
        torch.manual_seed(len(key))
        save_model(create_model("ddamfn_nano"), folder / "model.safetensors", LABELS, "basic7", name="ddamfn_nano")
        run_evaluation(params, "toy", key)
    return params


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as handle:
        return list(csv.DictReader(handle))


def test_two_models_are_shown_on_the_same_faces(evaluated: Params) -> None:
    give_store(evaluated.root)
    folder = run(replace(evaluated, tracking=TrackingConfig()), "toy", ["nano", "other"], faces=20)
    assert folder == evaluated.root / "reports" / "explored" / "toy" / "nano-other"

    points = table(folder / "features.csv")
    ids = {model: [line["sample_id"] for line in points if line["model"] == model] for model in ("nano", "other")}
    assert ids["nano"] == ids["other"]
    assert len(set(ids["nano"])) == 20
    content = read_json(folder / "explored.json")
    assert content["weights_sha256"]["nano"] == sha256(evaluated.root / "trained/toy/nano/model.safetensors")
    for of in content["distances"].values():
        np.testing.assert_allclose(of["intra"], np.mean(np.diag(of["between"])))
    assert content["distances"]["nano"] != content["distances"]["other"]
    assert b"svg" in (folder / "features.svg").read_bytes()[:200]

    correct = {key: _correct(evaluated, key) for key in ("nano", "other")}
    hard = {line["sample_id"]: line for line in table(folder / "hard_cases.csv")}
    assert hard.keys() == {one for one in correct["nano"] if correct["nano"][one] != correct["other"][one]}
    for sample, line in hard.items():
        assert (line["predicted_nano"] == line["label"]) == correct["nano"][sample]
        assert float(line[f"{line['predicted_nano']}_nano"]) == max(float(line[f"{name}_nano"]) for name in LABELS)
    wrong = [line for line in table(folder / "mistakes.csv") if line["model"] == "nano"]
    assert len(wrong) == sum(not one for one in correct["nano"].values())
    assert [line["rank"] for line in wrong[:2]] == ["1", "2"]
    assert cv2.imread(str(folder / "mistakes.png")) is not None
    assert not (folder / "action_units.csv").exists(), "these faces were not drawn by params.yaml"

    (recorded,) = runs(evaluated.root)
    assert recorded.data.metrics["nano_intra_distance"] == content["distances"]["nano"]["intra"]
    again = {path.name: path.read_bytes() for path in folder.iterdir()}
    run(replace(evaluated, tracking=TrackingConfig()), "toy", ["nano", "other"], faces=20)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == again, "a function of its inputs"
    assert len(runs(evaluated.root)) == 1


def _correct(params: Params, key: str) -> dict[str, bool]:
    from fer.shards.table import read_table

    columns = read_table(params.root / "evaluated" / "toy" / key / "predictions.parquet", ["sample_id", "correct"])
    return dict(zip(columns["sample_id"], columns["correct"], strict=True))


def test_one_model_has_no_hard_cases(evaluated: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(evaluated.root)
    cli._main(["explore", "toy", "nano", "--name", "alone", "--faces", "20"])
    names = {path.name for path in (evaluated.root / "reports/explored/toy/alone").iterdir()}
    assert names == {"explored.json", "features.csv", "features.svg", "mistakes.csv", "mistakes.png"}


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        (["nano", "nano"], {}, "nano"),
        (["nana"], {}, "nana"),
        (["nano"], {"faces": 2}, "--faces 2"),
        (["nano"], {"name": "../up"}, r"\.\./up"),
        (["nano", "o" * 70], {}, "--name"),
    ],
)
def test_bad_input_is_named_before_anything_is_written(
    evaluated: Params, models: list[str], options: dict[str, Any], message: str
) -> None:
    parent = evaluated.root / EXPLORED.parent / "toy"
    before = sorted(parent.glob("**/*"))
    with pytest.raises(ValueError, match=message):
        run(evaluated, "toy", models, **options)
    assert sorted(parent.glob("**/*")) == before


def test_an_evaluation_of_other_weights_or_data_is_refused(tmp_path: Path) -> None:
    params = make_project(tmp_path, test_rows=ROWS)
    weights = publish_training(params) / "model.safetensors"
    with pytest.raises(FileError, match=r"test\.json.*evaluate@toy-nano"):
        run(params, "toy", ["nano"])
    run_evaluation(params, "toy", "nano")
    whole = weights.read_bytes()
    torch.manual_seed(1)
    save_model(create_model("ddamfn_nano"), weights, LABELS, "basic7", name="ddamfn_nano")
    with pytest.raises(FileError, match=r"other weights.*evaluate@toy-nano"):
        run(params, "toy", ["nano"])
    weights.write_bytes(whole)
    change_manifest(tmp_path / "data" / "shards" / "toy", seed=7)
    with pytest.raises(FileError, match=r"other data.*evaluate@toy-nano"):
        run(params, "toy", ["nano"])
    assert not (tmp_path / "reports").exists()


def test_faces_that_params_yaml_does_not_draw_are_refused(tmp_path: Path) -> None:
    params = make_project(tmp_path, test_rows=ROWS)
    assert load_manifest(tmp_path / "data" / "shards" / "toy").generator == SyntheticSource.generator
    publish_training(params)
    run_evaluation(params, "toy", "nano")
    with pytest.raises(ValueError, match=r"datasets\.toy.*seed = 0"):
        run(params, "toy", ["nano"])
    assert not (tmp_path / "reports" / "explored" / "toy" / "nano").exists()


def test_an_unknown_dataset_is_named(evaluated: Params) -> None:
    with pytest.raises(ConfigError, match="tay"):
        run(evaluated, "tay", ["nano"])
