"""Published weights load whatever they are wrapped in; what does not fit is message by name, never dropped."""

from __future__ import annotations

import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders.conformance import load, published_state
from torch import Tensor, nn

from fer.io.files import FileError
from fer.models import create_model
from fer.weights.published import load_published, read_published
from fer.weights.store import save_model


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    return {key: torch.from_numpy(value) for key, value in published_state(load("ddamfn_7cls")).items()}


@pytest.fixture(scope="module")
def mfn() -> dict[str, Tensor]:
    return {key: torch.from_numpy(value) for key, value in published_state(load("mfn")).items()}


def save(value: Any, path: Path, *, legacy: bool = False) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


def equal(read: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return read.keys() == expected.keys() and all(torch.equal(read[key], expected[key]) for key in read)


@pytest.fixture
def authors_code() -> Iterator[types.ModuleType]:
    """The module `networks.MixedFeatureNet` of the authors; it is gone when the file is read."""
    package, module = types.ModuleType("networks"), types.ModuleType("networks.MixedFeatureNet")
    sys.modules |= {"networks": package, "networks.MixedFeatureNet": module}
    yield module
    for name in ("networks", "networks.MixedFeatureNet"):
        sys.modules.pop(name, None)


def class_in(module: types.ModuleType, name: str, base: type = object) -> type:
    """A class that pickles by its name in `module`."""
    made = type(name, (base,), {"__module__": module.__name__})
    setattr(module, name, made)
    return made


def nested(state: dict[str, Tensor], kind: type[nn.Module]) -> nn.Module:
    """A tree of modules with exactly this state dict."""
    root = kind()
    for key, tensor in state.items():
        *path, name = key.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, kind())
            module = module.get_submodule(part)
        if tensor.is_floating_point() and not name.startswith("running"):
            module.register_parameter(name, nn.Parameter(tensor))
        else:
            module.register_buffer(name, tensor)
    return root


# ------------------------------------------------------------------------------------------------ layouts


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model", None])
def test_every_wrapper_is_unwrapped(wrapper: str | None, legacy: bool, tmp_path: Path) -> None:
    state = OrderedDict({"module.fc.weight": torch.ones(7, 3), "module.fc.bias": torch.zeros(7)})
    saved = {"iter": 20, wrapper: state, "optimizer_state_dict": {"state": {}}} if wrapper else state
    path = save(saved, tmp_path / "a.pth", legacy=legacy)
    assert equal(read_published(path), {"fc.weight": torch.ones(7, 3), "fc.bias": torch.zeros(7)})


def test_poster_v2s_recorder_objects_are_ignored(tmp_path: Path, published: dict[str, Tensor]) -> None:
    """Its best files hold objects of classes that stood in the authors' `__main__`, and arrays of numpy."""
    main = sys.modules["__main__"]
    recorder, recorder1 = class_in(main, "RecorderMeter")(), class_in(main, "RecorderMeter1")()
    recorder.epoch_losses = np.zeros((200, 2), dtype=np.float32)
    recorder1.y_pred = torch.arange(5)
    state = OrderedDict((f"module.{key}", tensor) for key, tensor in published.items())
    saved = {"epoch": 3, "state_dict": state, "best_acc": torch.tensor(92.2), "recorder1": recorder1}
    path = save(saved | {"recorder": recorder, "optimizer": {"state": {}}}, tmp_path / "rafdb-model_best.pth")
    del main.RecorderMeter, main.RecorderMeter1  # type: ignore[attr-defined]
    assert equal(read_published(path), published)


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")  # it has none
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_whole_module_is_read_without_its_code(
    legacy: bool, tmp_path: Path, mfn: dict[str, Tensor], authors_code: types.ModuleType
) -> None:
    module = nested(mfn, class_in(authors_code, "MixedFeatureNet", nn.Module))
    module.register_buffer("derived", torch.zeros(3), persistent=False)
    module.register_buffer("absent", None)
    path = save(module, tmp_path / "MFN_msceleb.pth", legacy=legacy)
    sys.modules.pop("networks.MixedFeatureNet")
    read = read_published(path)
    assert equal(read, mfn)
    assert load_published("mfn", path).num_classes == 0


def test_a_module_that_contains_itself_is_rejected(tmp_path: Path, authors_code: types.ModuleType) -> None:
    kind = class_in(authors_code, "Ring", nn.Module)
    ring = kind()
    ring._modules["inner"] = ring
    with pytest.raises(FileError, match="modules that contain themselves"):
        read_published(save(ring, tmp_path / "a.pth"))


def test_safetensors_and_npz_are_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = {"a": torch.ones(2, 3), "b": torch.tensor(4)}
    save_file(state, tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", a=np.ones((2, 3), dtype=np.float32), b=np.int64(4))
    assert equal(read_published(tmp_path / "a.safetensors"), state)
    assert equal(read_published(tmp_path / "a.npz"), state)


def test_a_tensorflow_checkpoint_is_read_by_folder_prefix_and_index() -> None:
    folder = Path(__file__).parents[1] / "assets" / "conformance" / "tf_ckpt_tiny"
    expected = read_published(folder)
    assert expected
    assert equal(read_published(folder / "LHC_tiny"), expected)
    assert equal(read_published(folder / "LHC_tiny.index"), expected)


def test_the_published_landmarks_load(test_data: Path) -> None:
    folder = test_data / "weights" / "landmark_mobilefacenet_openvino"
    assert load_published("mobilefacenet_landmarks", folder / "mobilefacenet.xml").num_classes == 0
    load_published(create_model("mobilefacenet_landmarks", 0), folder / "mobilefacenet.bin")
    with pytest.raises(ValueError, match="not that of ir50"):
        load_published("ir50", folder / "mobilefacenet.xml")


# ------------------------------------------------------------------------------------------------ into models


def test_classes_and_heads_are_read_from_the_file(tmp_path: Path) -> None:
    state = {key: torch.from_numpy(value) for key, value in published_state(load("ddamfn_7cls_h3")).items()}
    model = load_published("ddamfn", save({"model_state_dict": state}, tmp_path / "a.pth"))
    assert (model.num_classes, len(model.heads), model.training) == (7, 3, False)
    assert torch.equal(model.fc.weight, state["fc.weight"])


def test_an_existing_model_is_filled_where_it_fits(tmp_path: Path, published: dict[str, Tensor]) -> None:
    path = save(published, tmp_path / "a.pth")
    model = create_model("ddamfn")
    assert load_published(model, str(path)) is model
    assert model.training
    assert torch.equal(model.fc.weight, published["fc.weight"])
    for options, message in (
        ({"num_classes": 8}, "num_classes = 7, the model 8"),
        ({"num_heads": 3}, "num_heads = 2, the model 3"),
    ):
        with pytest.raises(ValueError, match=rf"a\.pth: the file is for another ddamfn: it has {message}"):
            load_published(create_model("ddamfn", **options), path)


def test_published_weights_with_nan_are_rejected(tmp_path: Path, published: dict[str, Tensor]) -> None:
    broken = published | {"fc.bias": torch.full_like(published["fc.bias"], float("nan"))}
    with pytest.raises(FileError, match=r"a\.pth: 1 of .* NaN or infinity: fc\.bias; restore the file"):
        load_published("ddamfn", save(broken, tmp_path / "a.pth"))


def test_another_models_weights_are_rejected_by_key(tmp_path: Path, published: dict[str, Tensor]) -> None:
    path = save(published, tmp_path / "a.pth")
    with pytest.raises(
        ValueError, match=r"(?s)a\.pth: not the published layout of 'mfn'.*unexpected: features\.0\.conv"
    ):
        load_published("mfn", path)
    without = {key: tensor for key, tensor in published.items() if key != "fc.bias"}
    with pytest.raises(ValueError, match=r"missing: the tensor for fc\.bias"):
        load_published("ddamfn", save(without, path))


def test_a_model_without_a_name_cannot_be_looked_up(tmp_path: Path, published: dict[str, Tensor]) -> None:
    from fer.models.ddamfn import DDAMFN
    from fer.models.mfn import NANO

    with pytest.raises(ValueError, match="not made by create_model"):
        load_published(DDAMFN(7, config=NANO), tmp_path / "a.pth")


# ------------------------------------------------------------------------------------------------ what holds no weights


def test_poster_v2s_best_file_of_the_optimizer_alone_is_recognised(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.zeros(3))
    weight.grad = torch.ones(3)
    optimizer = torch.optim.Adam([weight])
    optimizer.step()
    path = save(optimizer.state_dict(), tmp_path / "rafdb-model_best.pth")
    with pytest.raises(FileError, match=r"state of an optimizer and no weights.*model\.pth"):
        read_published(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>sign in", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"", "empty"),
        (b"\x89HDF\r\n\x1a\n", "damaged or cut off"),
        (b"GIF89a and so on, for many bytes", "not recognized"),
        (b"PK\x03\x04 and no end", "cut off"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{ no header }   ", "safetensors"),
    ],
)
def test_other_files_are_rejected_by_what_they_are(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(FileError, match=rf"a\.pth: .*{message}"):
        read_published(path)
    with pytest.raises(FileError, match="no such file"):
        read_published(tmp_path / "absent.pth")


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({}, "holds no weights"),
        ([torch.zeros(1)], "no state dict and no module, but a list"),
        ({"epoch": 3, "net": {"a": torch.zeros(1)}}, r"no state dict: epoch \(a int\), net \(a dict\)"),
        ({"state_dict": {"a": torch.zeros(1), "b": 3}}, r"no state dict: b \(a int\)"),
    ],
)
def test_files_of_torch_without_a_state_dict_are_rejected_by_content(saved: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=message):
        read_published(save(saved, tmp_path / "a.pth"))


def test_pickles_in_npz_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, a=np.array([{}], dtype=object))
    with pytest.raises(FileError, match=r"a\.npz: .*Object arrays cannot be loaded"):
        read_published(path)


def test_our_own_weights_are_rejected_with_their_loader(tmp_path: Path) -> None:
    from fer.labels import SPACES

    path = tmp_path / "model.safetensors"
    save_model(create_model("ddamfn_nano"), path, SPACES["basic7"].labels, "basic7", name="ddamfn_nano")
    with pytest.raises(FileError, match="load_model"):
        read_published(path)


@pytest.mark.parametrize("name", ["ir50_truncated.pth", "mobilefacenet_model_best_truncated.pth.tar"])
def test_real_truncated_files_are_rejected(name: str, test_data: Path) -> None:
    with pytest.raises(FileError, match=rf"{name}: .*cut off"):
        load_published("ir50", test_data / "bad" / "weights" / name)


def test_a_real_pointer_and_a_real_legacy_file(test_data: Path) -> None:
    with pytest.raises(FileError, match="Git LFS pointer"):
        read_published(test_data / "bad" / "weights" / "yunet_lfs_pointer.onnx")
    state = read_published(test_data / "weights" / "retinaface" / "mobilenet0.25_Final.pth")
    assert len(state) == 300
    assert state["body.stage1.0.0.weight"].shape == (8, 3, 3, 3)
    assert all(bool(tensor.isfinite().all()) for tensor in state.values())
