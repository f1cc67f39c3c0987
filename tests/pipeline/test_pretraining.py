"""From a folder of people to a backbone, and from the backbone to a run on expressions: every stage on the way."""

import argparse
from pathlib import Path

import cv2
import numpy as np
import pytest

from fer import params as parameters
from fer.commands import verify
from fer.io.files import read_json
from fer.models import create_model
from fer.shards.read import ShardSet
from fer.stages import shard
from fer.stages.crop import crop_dataset
from fer.stages.download import download_dataset
from fer.stages.evaluate import run as run_evaluation
from fer.stages.train import run as run_training
from fer.weights.parts import load_part, locate
from fer.weights.store import load_model, read_info

PARAMS = """
seed: 0
run: {datasets: [people], models: [nano]}
datasets: {people: {source: identities, path: people, test_fraction: 0.15, validation_fraction: 0.1}}
models: {nano: {recipe: arcface/nano, epochs: 1, batch_size: 32, schedule: {warmup_epochs: 0.0}}}
crop: {}
shard: {folds: 3}
train: {workers: 0}
evaluate: {}
report: {}
cluster: {crop_workers: 0}
tracking: {enabled: false}
tune: {}
"""


@pytest.mark.slow
def test_people_become_a_backbone_that_a_run_on_expressions_starts_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    for person in range(200):  # more than a byte can count
        (tmp_path / "people" / f"p{person:03d}").mkdir(parents=True)
        for number in range(3):
            pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            cv2.imwrite(str(tmp_path / "people" / f"p{person:03d}" / f"{number}.png"), pixels)
    (tmp_path / "params.yaml").write_text(PARAMS)
    monkeypatch.chdir(tmp_path)
    params = parameters.load()
    config = params.dataset("people")
    download_dataset("people", config, seed=0, root=tmp_path)
    crop_dataset("people", config, params.crop, params.cluster, seed=0, root=tmp_path)
    shards = ShardSet.open(shard.run(params, "people"))
    names = read_json(tmp_path / "data" / "raw" / "people" / "source.json")["people"]
    train = shards.split("train")
    assert len(shards.labels) == 200
    for sample, label in zip(train.sample_ids(), train.labels().tolist(), strict=True):
        assert sample.split("/")[1] == names[label]
    unseen = set(range(200)) - set(train.labels().tolist())
    assert unseen == set(shards.split("test").labels().tolist())

    folder = run_training(params, "people", "nano")
    info = read_info(folder / "model.safetensors")
    assert (len(info.labels), info.label_space) == (200, shards.label_space)
    model, _ = load_model(folder / "model.safetensors", labels=shards.labels)
    verify.main(argparse.Namespace(weights=folder, dataset="people", pairs=50, seed=0, threads=1))
    said = capsys.readouterr().out
    assert f"{len(unseen)} people of the test split, none of them trained on; 100 pairs" in said
    with pytest.raises(ValueError, match=r"`fer verify trained/people/nano people` measures"):
        run_evaluation(params, "people", "nano")

    fresh = create_model("ddamfn_nano")
    [source] = locate({"features": "trained/people/nano/model.safetensors"}, tmp_path)
    load_part(fresh, source)
    given = model.get_submodule("features").state_dict()
    assert all((tensor == given[key]).all() for key, tensor in fresh.get_submodule("features").state_dict().items())
