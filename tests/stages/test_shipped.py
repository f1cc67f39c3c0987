"""`make shipped`: valid settings, photos framed as the images that it trains on, and what it made is shipped."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from builders.projects import REPOSITORY

import fer
from fer import params as parameters
from fer.config import read_yaml
from fer.faces.detect import create_detector
from fer.io.files import read_json, sha256
from fer.labels import SPACES
from fer.shards.table import read_table
from fer.sources.fer2013_rows import Row, parquet_rows
from fer.sources.ferplus import EXPRESSIONS, VoteLabel, aggregate_votes, read_votes
from fer.stages.reproduce import write_project
from fer.stages.shipped import DATASET, FOLDER, MODEL, settings
from fer.training.recipe import load_recipe


def test_settings_are_those_of_a_valid_project(tmp_path: Path) -> None:
    folder = tmp_path / "reproductions" / MODEL
    stages = read_yaml(REPOSITORY / "dvc.yaml")["stages"]
    write_project(tmp_path, folder, settings(tmp_path / "fer2013.csv", tmp_path / "votes.csv", False), stages)
    params = parameters.load(folder / "params.yaml")
    recipe = params.recipe(MODEL)
    assert (recipe.labels, params.dataset(DATASET).mode) == ("soft", "soft")
    assert params.crop_of(DATASET).color == "gray"


def test_detected_square_of_a_published_image_is_the_image(test_data: Path) -> None:
    """So `box_margin` 0 frames a photo's face as FER2013 does."""
    images = read_table(test_data / "fer2013" / "fer2013.parquet", ["image"])["image"][:200]
    weights = test_data / "weights" / "yunet" / "face_detection_yunet_2023mar.onnx"
    detector = create_detector("yunet", weights=weights, min_score=0.5, longest_side=None)
    sides = []
    for data in images:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        large = cv2.resize(image, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
        bordered = cv2.copyMakeBorder(large, 32, 32, 32, 32, cv2.BORDER_REPLICATE)
        for face in detector.detect([bordered])[0][:1]:
            x1, y1, x2, y2 = face.box
            sides.append(max(x2 - x1, y2 - y1) / large.shape[0])
    assert len(sides) > 180
    assert 0.95 < np.median(sides) < 1.1


def test_shipped_model_is_small_and_of_the_recipe_that_make_shipped_trains() -> None:
    folder, info = REPOSITORY / FOLDER, fer.load().info
    weights, card = folder / "model.safetensors", read_json(folder / "card.json")
    assert weights.stat().st_size < 2e6
    assert card["weights_sha256"] == sha256(weights)
    assert info.labels == SPACES["basic8"].labels == tuple(card["labels"])
    assert not info.synthetic
    recipe = load_recipe({"recipe": "ddamfn/ferplus_small"}, REPOSITORY, "here")
    assert card["training"]["recipe"] == recipe.model_dump(mode="json")


def test_shipped_model_knows_real_faces(test_data: Path) -> None:
    """The first 300 of the test split that have a majority; its card has 80 % of all of them."""
    votes = read_votes(test_data / "ferplus" / "fer2013new.csv")
    faces = []
    for line, row in parquet_rows(test_data / "fer2013" / "fer2013.parquet"):
        vote = votes[line.published or 0]
        if isinstance(row, Row) and row.split == "test" and vote.name and not isinstance(vote.counts, str):
            found = aggregate_votes(vote.counts, "majority")
            if isinstance(found, VoteLabel):
                faces.append((row.pixels, EXPRESSIONS[found.label]))
        if len(faces) == 300:
            break
    predicted = fer.load().predict_faces([image for image, _ in faces])
    assert np.mean([one.label == label for one, (_, label) in zip(predicted, faces, strict=True)]) > 0.75
