"""`Model.explain`: a map over each face that `predict` finds."""

import numpy as np
import pytest
import torch
from builders.scenes import Scenes

from fer.explain.cam import attribute
from fer.inference.model import Model


def test_each_face_of_a_photo_is_explained_for_what_is_predicted(model: Model, scenes: Scenes) -> None:
    photo = next(path for path in sorted(scenes.folder.iterdir()) if model.predict(path).faces)
    found = model.explain(photo)
    assert [one.face for one in found] == list(model.predict(photo).faces)
    for one in found:
        assert one.target == one.face.label
        assert one.map.shape == (model.network.input_size,) * 2
        assert one.overlay().shape == one.crop.shape
        expected = attribute(model.network, model.normalized([one.crop])).maps[0].numpy()
        assert np.allclose(one.map, expected, atol=1e-4)


def test_another_label_method_and_layer_can_be_asked_for(model: Model, scenes: Scenes) -> None:
    photo = next(path for path in sorted(scenes.folder.iterdir()) if model.predict(path).faces)
    plain, other = model.explain(photo)[0], model.explain(photo, "score_cam", target=model.labels[-1])[0]
    assert other.target == model.labels[-1]
    assert other.method == "score_cam"
    assert other.layer == plain.layer
    assert model.explain(photo, layer="features.stage2")[0].layer == "features.stage2"
    with torch.no_grad():
        assert not any(parameter.grad is not None for parameter in model.network.parameters())


def test_an_unknown_label_is_refused_with_the_nearest(model: Model) -> None:
    near = model.labels[0][:-1]
    with pytest.raises(ValueError, match=f"did you mean '{model.labels[0]}'"):
        model.explain(np.zeros((64, 64, 3), np.uint8), target=near)


def test_an_image_without_a_face_has_no_explanation(model: Model) -> None:
    assert model.explain(np.zeros((64, 64, 3), np.uint8)) == []
