"""The table of drawn faces: the right face for each sample, conditions that cover all, rates beside the expected."""

import numpy as np
import pytest

from fer.explain.action_units import conditions, drawn_faces, error_rates
from fer.sources.synthetic import SyntheticConfig, SyntheticSource
from fer.synth.expressions import EXPRESSIONS
from fer.synth.scene import describe

CONFIG = SyntheticConfig(source="synthetic", multi_face_probability=0.5, no_face_probability=0.0)


def test_a_sample_is_found_by_its_scene_and_number() -> None:
    scenes = [describe(SyntheticSource(CONFIG, 5).seed, index, CONFIG.scene_config()) for index in range(12)]
    faces = {
        f"synthetic/{scene.index:08d}" + (f"#{number}" if len(scene.faces) > 1 else ""): face
        for scene in scenes
        for number, face in enumerate(scene.faces)
    }
    assert any("#1" in sample for sample in faces)
    assert drawn_faces(CONFIG, 5, list(faces)) == list(faces.values())


def test_every_face_has_one_intensity_one_pose_and_is_occluded_or_not() -> None:
    faces = drawn_faces(
        CONFIG.model_copy(update={"multi_face_probability": 0.0}), 0, [f"synthetic/{i}" for i in range(300)]
    )
    masks = conditions(faces, 1.0, (0, 10, 20, 30, 90))
    graded = sum(mask.astype(int) for name, mask in masks.items() if "strongest" in name or name == "no action unit")
    assert (graded == 1).all()
    assert (sum(mask.astype(int) for name, mask in masks.items() if "yaw" in name) == 1).all()
    occluded = np.logical_or.reduce([mask for name, mask in masks.items() if name.startswith("occluded")])
    np.testing.assert_array_equal(occluded, ~masks["not occluded"])
    happy = np.array([EXPRESSIONS[face.clean_label] == "happiness" for face in faces])
    assert masks["AU 12 (lip corner puller)"][happy].all()
    weaker = conditions(faces, 0.5, (0, 90))
    assert weaker["strongest action unit of intensity E"].sum() > masks["strongest action unit of intensity E"].sum()


def test_a_condition_that_only_follows_its_class_has_the_expected_rate() -> None:
    labels = np.repeat([0, 1], 100)
    wrong = np.arange(200) % 10 < np.where(labels == 0, 1, 5)  # 10 % and 50 %
    masks = {
        "follows its class": labels == 1,
        "makes mistakes": (labels == 1) & wrong,
        "of both": np.arange(200) % 2 == 0,
        "nobody": labels > 1,
    }
    follows, makes, both = error_rates(masks, labels, wrong)
    assert (follows["rate"], follows["expected"]) == (0.5, 0.5)
    assert follows["low"] < 0.5 < follows["high"]
    assert (makes["rate"], makes["expected"]) == (1.0, 0.5)
    assert both["expected"] == pytest.approx(0.3)
    assert (both["faces"], both["errors"]) == (100, int(wrong[::2].sum()))
