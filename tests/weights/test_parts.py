"""Initial weights of a part of a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fer.io.files import FileError
from fer.models import create_model
from fer.training.job import fingerprint
from fer.training.recipe import Recipe
from fer.weights.parts import list_parts, load_part, locate
from fer.weights.store import save_model

LABELS = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger")


def donor(path: Path, name: str = "ddamfn_nano", seed: int = 1) -> Path:
    torch.manual_seed(seed)
    save_model(create_model(name), path, LABELS, "basic7", name=name)
    return path


def test_a_part_takes_the_features_and_leaves_the_rest(tmp_path: Path) -> None:
    donor(tmp_path / "donor.safetensors")
    torch.manual_seed(2)
    model = create_model("ddamfn_nano")
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    [source] = locate({"features": "donor.safetensors"}, tmp_path)
    load_part(model, source)
    torch.manual_seed(1)
    expected = create_model("ddamfn_nano").state_dict()
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, (expected if key.startswith("features.") else before)[key]), key


def test_the_landmark_branch_can_train_once_it_is_loaded(tmp_path: Path, test_data: Path) -> None:
    model = create_model("poster_v2", landmark_frozen=True).train()
    folder = test_data / "weights" / "landmark_mobilefacenet_openvino"
    [source] = locate({"landmarks": "mobilefacenet.xml"}, folder)
    load_part(model, source)
    assert model(torch.randn(2, 3, 224, 224)).logits.shape == (2, 7)


def test_weights_of_another_network_are_rejected_by_key(tmp_path: Path) -> None:
    donor(tmp_path / "small.safetensors", "ddamfn_small")
    model = create_model("ddamfn_nano")
    [source] = locate({"features": "small.safetensors"}, tmp_path)
    with pytest.raises(ValueError, match=r"(?s)not the weights of features of ddamfn_nano.*down1"):
        load_part(model, source)
    with pytest.raises(ValueError, match=r"pretrained\.landmarks: ddamfn_nano has no such part; its parts: features"):
        load_part(model, replace(source, part="landmarks"))


def test_a_missing_file_is_rejected_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(
        FileError, match=r"pretrained\.image = 'ir_50': neither a file .* nor a name in `fer weights list`"
    ):
        locate({"image": "ir_50"}, tmp_path)


def test_the_transformer_takes_the_first_blocks_of_a_vit_and_keeps_its_own_positions(tmp_path: Path) -> None:
    donor(tmp_path / "vit.safetensors", "vit_b16")
    model = create_model("poster_v2", landmark_frozen=False)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    [source] = locate({"vit": "vit.safetensors"}, tmp_path)
    load_part(model, source)
    torch.manual_seed(1)
    expected = create_model("vit_b16").state_dict()
    for key, tensor in model.state_dict().items():
        own = not key.startswith("vit.") or key == "vit.positions"
        assert torch.equal(tensor, before[key] if own else expected[key.replace("vit.", "transformer.", 1)]), key


def test_a_transformer_of_another_width_is_rejected(tmp_path: Path) -> None:
    donor(tmp_path / "vit.safetensors", "vit_b16")
    [source] = locate({"vit": "vit.safetensors"}, tmp_path)
    with pytest.raises(ValueError, match=r"(?s)not the weights of vit of poster_v2_nano.*blocks\.0\."):
        load_part(create_model("poster_v2_nano"), source)


def test_parts_are_the_backbones() -> None:
    with torch.device("meta"):
        assert list_parts(create_model("poster_v2")) == ["image", "landmarks", "vit"]
        assert list_parts(create_model("btn")) == ["poster.image", "poster.landmarks", "poster.vit"]
        assert list_parts(create_model("ddamfn")) == ["features"]
        assert list_parts(create_model("vit_b16")) == ["transformer"]
        assert list_parts(create_model("lhc_net")) == []


def test_other_weights_change_the_fingerprint_of_a_run(tmp_path: Path) -> None:
    recipe = Recipe(model="ddamfn_nano", epochs=1, batch_size=8, learning_rate=0.1, pretrained={"features": "a"})
    prints = set()
    for seed in (1, 2):
        sources = locate({"features": str(donor(tmp_path / "a", seed=seed))}, tmp_path)
        prints.add(fingerprint("data", recipe, 0, "code", sources))
    assert len(prints) == 2


def test_a_part_with_nan_or_infinity_is_rejected_by_file_and_tensor(tmp_path: Path) -> None:
    model = create_model("ddamfn_nano")
    key = next(key for key, tensor in model.state_dict().items() if key.startswith("features.") and tensor.ndim == 4)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights[key].view(-1)[0] = float("inf")
    save_model(model, tmp_path / "d.safetensors", LABELS, "basic7", name="ddamfn_nano", weights=weights)
    [source] = locate({"features": "d.safetensors"}, tmp_path)
    with pytest.raises(FileError, match=rf"d\.safetensors: 1 of .* NaN or infinity: {key}; restore the file"):
        load_part(create_model("ddamfn_nano"), source)


def test_a_broken_description_is_not_taken_for_published_weights(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "d.safetensors", {"fer": "[]"})
    [source] = locate({"features": "d.safetensors"}, tmp_path)
    with pytest.raises(FileError, match=r"d\.safetensors: its description: .*object; restore the file"):
        load_part(create_model("ddamfn_nano"), source)
