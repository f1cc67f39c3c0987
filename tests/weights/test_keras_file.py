"""Keras' files give the weights by layer and name; what Keras does not write is refused before an array is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from builders.conformance import load

from fer.io.files import FileError
from fer.models import create_model
from fer.weights.convert import convert, published_options
from fer.weights.layouts import LAYOUTS
from fer.weights.parts import load_sources, locate
from fer.weights.published import read_published

LABELS = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger")


def keras_file(path: Path, arrays: dict[str, np.ndarray], *, under: str = "", scope: str = "") -> Path:
    """A file of `save_weights` (or of `save`, under model_weights), from `layer/weight` -> array."""
    with h5py.File(path, "w") as file:
        root = file.create_group(under) if under else file
        for name, array in arrays.items():
            layer, weight = name.split("/")
            root[f"{layer}/{scope}{layer}/{weight}:0"] = array
    return path


ARRAYS = {
    "conv0/kernel": np.arange(24, dtype=np.float32).reshape(2, 2, 3, 2),
    "bn0/moving_mean": np.ones(2, dtype=np.float32),
}


@pytest.mark.parametrize(("under", "scope"), [("", ""), ("model_weights", ""), ("", "resnet34/")])
def test_weights_are_read_by_layer_and_name(under: str, scope: str, tmp_path: Path) -> None:
    read = read_published(keras_file(tmp_path / "a.h5", ARRAYS, under=under, scope=scope))
    assert read.keys() == ARRAYS.keys()
    assert all(np.array_equal(read[name].numpy(), array) for name, array in ARRAYS.items())


def test_weights_of_one_name_in_a_layer_keep_their_paths(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for direction in ("forward", "backward"):
            file[f"lstm/{direction}/kernel:0"] = np.zeros(2, dtype=np.float32)
    assert read_published(tmp_path / "a.h5").keys() == {"lstm/forward/kernel:0", "lstm/backward/kernel:0"}


def test_a_real_file_is_read(test_data: Path) -> None:
    folder = test_data / "weights" / "fer_mini_xception_keras"
    state = read_published(folder / "fer2013_mini_XCEPTION.102-0.66.hdf5")
    assert len(state) == 80
    assert state["conv2d_7/kernel"].shape == (3, 3, 128, 7)
    assert all(bool(tensor.isfinite().all()) for tensor in state.values())


# ------------------------------------------------------------------------------------------------ refused


def bomb(file: h5py.File) -> None:
    file.create_dataset("a/kernel:0", shape=(1 << 30,), dtype="f4", chunks=(1 << 20,), compression="gzip")


def unstored(file: h5py.File) -> None:
    file.create_dataset("a/kernel:0", shape=(1 << 40,), dtype="f4", chunks=(1 << 20,))


def many_times(file: h5py.File) -> None:
    file["a/kernel:0"] = np.zeros(1 << 16, dtype=np.float32)
    for number in range(9):
        file[f"a{number}/kernel:0"] = file["a/kernel:0"]


def circle(file: h5py.File) -> None:
    file.create_group("a")["a"] = file["/"]


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout(shape=(4,), dtype="f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", shape=(4,))
    file.create_virtual_dataset("a/kernel:0", layout)


HOSTILE: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "external link": (lambda file: file.__setitem__("a", h5py.ExternalLink("/etc/passwd", "/")), "a is a ExternalLink"),
    "soft link": (lambda file: file.__setitem__("a", h5py.SoftLink("/b")), "a is a SoftLink"),
    "external storage": (
        lambda file: file.create_dataset("a/kernel:0", (4,), dtype="f4", external=[("/etc/passwd", 0, 16)]),
        "a/kernel:0 lie in another file",
    ),
    "virtual dataset": (virtual, "a/kernel:0 lie in another file"),
    "compressed": (bomb, "a/kernel:0 is compressed"),
    "stores nothing": (unstored, r"a/kernel:0 declares 4,398,046,511,104 bytes and stores 0"),
    "one array many times": (many_times, "declares more numbers"),
    "objects": (
        lambda file: file.create_dataset("a/kernel:0", data=["x"], dtype=h5py.string_dtype()),
        "a/kernel:0 has elements of type object",
    ),
    "strings": (lambda file: file.create_dataset("a/kernel:0", data=np.array([b"xy"])), "elements of type"),
    "references": (lambda file: file.create_dataset("a/k", (1,), dtype=h5py.ref_dtype), "elements of type"),
    "nothing": (lambda file: file.create_dataset("a/k", data=h5py.Empty("f4")), "a/k is empty"),
    "a named type": (lambda file: file.__setitem__("a", np.dtype("f4")), "a is no array"),
    "a circle": (circle, "groups that contain themselves"),
    "Keras 3": (lambda file: file.create_group("layers/conv2d/vars"), "Keras 3"),
    "no weights": (lambda file: file.create_group("a"), "holds no weights"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_keras_does_not_write_is_refused(what: str, tmp_path: Path) -> None:
    write, message = HOSTILE[what]
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        write(file)
    with pytest.raises(FileError, match=rf"a\.h5: .*{message}"):
        read_published(path)


def test_a_cut_off_file_is_refused(tmp_path: Path) -> None:
    path = keras_file(tmp_path / "a.h5", {"a/kernel": np.zeros(5000, dtype=np.float32)})
    path.write_bytes(path.read_bytes()[:6000])
    with pytest.raises(FileError, match=r"a\.h5: damaged or cut off"):
        read_published(path)


# ------------------------------------------------------------------------------------------------ LHC-Net's host


def test_the_hosts_imagenet_file_fills_all_but_its_linear_layers() -> None:
    document = load("resnet34v2")
    published = {key: torch.empty(shape, device="meta") for key, shape, *_ in document["keys"] if "fc" not in key}
    with torch.device("meta"):
        host = set(create_model("resnet34v2").state_dict())
    for top in ({}, {"fc1/kernel": (512, 1000), "fc1/bias": (1000,)}):  # with and without its own classifier
        whole = published | {key: torch.empty(shape, device="meta") for key, shape in top.items()}
        assert published_options("resnet34v2", whole) == {"num_classes": None}
        assert host - set(convert("resnet34v2", whole)) == {
            f"head.fc{n}.{kind}" for n in (1, 2, 3) for kind in ("weight", "bias")
        }
    del published["stage3_unit6_bn2/gamma"]
    with pytest.raises(ValueError, match=r"missing: the tensor for stages\.2\.5\.bn2\.weight"):
        convert("resnet34v2", published)


def test_lhc_net_starts_from_its_hosts_keras_file(tmp_path: Path) -> None:
    document, random = load("resnet34v2"), np.random.default_rng(0)
    arrays = {
        key: random.standard_normal(shape, dtype=np.float32) for key, shape, *_ in document["keys"] if "fc" not in key
    }
    keras_file(tmp_path / "resnet34_imagenet_1000_no_top.h5", arrays)
    [source] = locate({"": "resnet34_imagenet_1000_no_top.h5"}, tmp_path)
    model = create_model("lhc_net")
    kept = load_sources(model, [source.__class__("", source.path, source.digest, "resnet34v2")], LABELS)
    assert {key.split(".")[0] for key in kept} == {"lhc", "head"}
    assert not [key for key in kept if key.startswith("head.") and not key.startswith("head.fc")]
    kernel = torch.from_numpy(arrays["stage2_unit1_sc/kernel"]).permute(3, 2, 0, 1)
    assert torch.equal(model.stages[1][0].shortcut.weight, kernel)
    assert LAYOUTS["resnet34v2"].our_key("bn_data/moving_variance") == "stem.norm.running_var"
