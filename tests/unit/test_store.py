"""Weights files: they say what they are, hold no code, and are never used for other labels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fer.files import FileError
from fer.labels import SPACES
from fer.models import create_model
from fer.weights.store import load_model, read_info, save_model

LABELS = SPACES["basic7"].labels


def saved(path: Path, **options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    model = create_model("ddamfn_nano", 7, **options)
    save_model(model, path, LABELS, "basic7", {"dataset": "tiny"}, name="ddamfn_nano", options=options)
    return model


def test_a_model_comes_back_as_it_was(tmp_path: Path) -> None:
    model = saved(tmp_path / "model.safetensors", num_heads=3)
    loaded, info = load_model(tmp_path / "model.safetensors", labels=LABELS)
    x = torch.rand(2, 3, model.input_size, model.input_size)
    assert not loaded.training
    assert torch.equal(loaded(x), model.eval()(x))
    assert (info.labels, info.label_space, info.options) == (LABELS, "basic7", {"num_heads": 3})
    assert (info.input_size, info.colour, info.extra) == (model.input_size, "RGB", {"dataset": "tiny"})


def test_the_same_weights_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        saved(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_other_labels_are_an_error_never_a_remap(tmp_path: Path) -> None:
    saved(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="trained on labels neutral"):
        load_model(tmp_path / "model.safetensors", labels=tuple(reversed(LABELS)))


def test_as_many_labels_as_classes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="8 labels for a model of 7 classes"):
        save_model(create_model("ddamfn_nano"), tmp_path / "m", SPACES["basic8"].labels, "basic8", name="ddamfn_nano")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("damage", ["missing", "truncated", "pointer", "foreign"])
def test_what_is_no_weights_file_is_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    saved(path)
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
    elif damage == "pointer":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    else:
        from safetensors.torch import save_file

        save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(FileError, match=r"model\.safetensors"):
        read_info(path)
    with pytest.raises(FileError):
        load_model(path)
