"""`make shipped`: its settings are valid, and photos are framed as the images that it trains on."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from builders.projects import REPOSITORY

from fer import params as parameters
from fer.config import read_yaml
from fer.faces.detect import create_detector
from fer.shards.table import read_table
from fer.stages.reproduce import write_project
from fer.stages.shipped import DATASET, MODEL, settings


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
