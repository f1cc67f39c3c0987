"""The explain stage: what it leaves, and what it refuses before it leaves anything."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml_text
from builders.published import make_project, publish_training

from fer import params as parameters
from fer.evaluation.predicted import read_predictions
from fer.explain.config import ExplainConfig
from fer.io.files import sha256
from fer.outputs import EXPLAINED
from fer.report.gallery import heat_maps
from fer.shards.read import ShardSet
from fer.stages import evaluate, explain


@pytest.fixture
def project(tmp_path: Path) -> parameters.Params:
    params = make_project(tmp_path, test_rows=45)
    publish_training(params)
    return params


def configured(params: parameters.Params, **values: object) -> parameters.Params:
    path = params.root / "params.yaml"
    yaml_text.edit(path, "explain", {"steps": 4, "threads": 1, **values})
    return parameters.load(path)


def test_it_explains_faces_of_every_class_by_every_method(project: parameters.Params) -> None:
    params = configured(project, methods=["grad_cam", "score_cam"], faces_per_class=1)
    folder = explain.run(params, "toy", "nano")
    assert folder == params.root / "explained" / "toy" / "nano"
    content = json.loads((folder / "explain.json").read_text())
    shards = ShardSet.open(params.root / "data" / "shards" / "toy")
    classes = np.unique(shards.split("test").labels())
    assert [face["label"] for face in content["faces"]] == [shards.labels[label] for label in classes]
    assert {face["sample_id"] for face in content["faces"]} <= set(shards.split("test").sample_ids())
    assert content["layer"] == "features"
    assert set(content["methods"]) == {"grad_cam", "score_cam"}
    for found in (*content["methods"].values(), content["random"]):
        assert 0 <= found["deletion"] <= 1
        assert 0 <= found["insertion"] <= 1
    with np.load(folder / "maps.npz") as maps:
        assert maps["grad_cam"].shape == maps["score_cam"].shape == (len(classes), 64, 64)
        assert maps["attention/heads.1"].shape == (len(classes), 1, 4, 4)
    assert (folder / "faces.png").read_bytes().startswith(b"\x89PNG")
    assert EXPLAINED.folder(params.root, "toy", "nano") == folder, "it may be replaced"


def test_most_confident_mistakes_of_the_evaluation_have_a_map_for_the_report(project: parameters.Params) -> None:
    params = configured(project, mistakes_per_cell=2)
    evaluated = evaluate.run(params, "toy", "nano")
    folder = explain.run(params, "toy", "nano")
    found = json.loads((folder / "explain.json").read_text())["mistakes"]
    predictions = read_predictions(evaluated / "predictions.parquet", "nano")
    wrong = {predictions.sample_ids[row] for row in np.flatnonzero(~predictions.correct)}
    assert found
    assert set(found) <= wrong
    weights = sha256(params.root / "trained" / "toy" / "nano" / "model.safetensors")
    maps = heat_maps(params.root, "toy", "nano", weights)
    assert set(found) <= set(maps)
    assert all(heat.shape == (64, 64) and heat.min() >= 0 and heat.max() <= 1 for heat in maps.values())


def test_the_same_seed_gives_the_same_faces_and_maps_and_another_seed_others(project: parameters.Params) -> None:
    params = configured(project)
    first = {path.name: path.read_bytes() for path in explain.run(params, "toy", "nano").iterdir()}
    again = {path.name: path.read_bytes() for path in explain.run(params, "toy", "nano").iterdir()}
    assert {name: again[name] for name in ("explain.json", "faces.png")} == {
        name: first[name] for name in ("explain.json", "faces.png")
    }
    labels = np.repeat([0, 1, 3], [40, 1, 40])
    rows, others = (explain.chosen(labels, ExplainConfig(seed=seed)) for seed in (0, 1))
    assert labels[rows].tolist() == [0, 0, 1, 3, 3], "all of a class that has fewer"
    assert rows.tolist() != others.tolist()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"layer": "featurs"}, r"explain\.layer = 'featurs'.*did you mean 'features'"),
        ({"layer": "fc"}, r"'fc' .*no map"),
    ],
)
def test_a_layer_that_cannot_be_explained_is_refused_before_any_output(
    project: parameters.Params, values: dict[str, object], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        explain.run(configured(project, **values), "toy", "nano")
    assert not (project.root / "explained" / "toy" / "nano").exists()


def test_weights_of_other_data_are_refused(tmp_path: Path) -> None:
    params = make_project(tmp_path)
    publish_training(params, data_digest="0" * 64)
    with pytest.raises(ValueError, match=r"train\.json: trained on other data"):
        explain.run(params, "toy", "nano")


def test_a_method_named_twice_is_refused(project: parameters.Params) -> None:
    with pytest.raises(ValueError, match=r"explain\.methods.*more than once"):
        configured(project, methods=["grad_cam", "grad_cam"])
