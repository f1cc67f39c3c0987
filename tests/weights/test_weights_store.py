"""Weights files: they say what they are, hold no code, and are never used for other labels."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fer.io.files import FileError
from fer.labels import SPACES
from fer.models import create_model
from fer.weights.store import load_model, read_info, save_model, usable

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


@pytest.mark.parametrize("damage", ["missing", "truncated", "pointer", "foreign", "short", "garbage", "header", "size"])
def test_what_is_no_weights_file_is_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    saved(path)
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
    elif damage == "pointer":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    elif damage == "short":
        path.write_bytes(b"abc")
    elif damage == "garbage":
        path.write_bytes(bytes(range(256)) * 8)
    elif damage == "header":
        path.write_bytes(path.read_bytes()[:8] + b"\xff" + path.read_bytes()[9:])
    elif damage == "size":
        path.write_bytes(struct.pack("<Q", 1 << 60) + path.read_bytes()[8:])
    else:
        save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(FileError, match=r"model\.safetensors"):
        read_info(path)
    with pytest.raises(FileError):
        load_model(path)


# ------------------------------------------------------------------------------------------------ values


def changed(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """A weights file whose tensors were changed; its description is as before."""
    saved(path)
    tensors, text = load_file(path), described(path)
    change(tensors)
    save_file(tensors, path, {"fer": text})
    return path


def described(path: Path) -> str:
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    text: str = json.loads(data[8 : 8 + size])["__metadata__"]["fer"]
    return text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_weights_that_are_no_finite_numbers_are_refused_by_file_and_tensor(
    value: float, dtype: torch.dtype, tmp_path: Path
) -> None:
    name = "backbone.stem.0.weight"

    def change(tensors: dict[str, torch.Tensor]) -> None:
        nonlocal name
        name = next(key for key, tensor in tensors.items() if tensor.ndim == 4)
        tensors[name] = tensors[name].to(dtype)
        tensors[name].view(-1)[7] = value

    path = changed(tmp_path / "model.safetensors", change)
    with pytest.raises(FileError) as caught:
        load_model(path)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{path}: 1 of ")
    assert f"NaN or infinity: {name}; restore the file" in line


def test_of_many_broken_tensors_the_first_are_named_and_the_rest_counted(tmp_path: Path) -> None:
    tensors = {f"t{number}": torch.tensor([float("nan")]) for number in range(9)}
    with pytest.raises(FileError, match=r"m: 9 of 9 tensors hold NaN or infinity: t0, t1, t2 and 6 more; restore"):
        usable(tmp_path / "m", tensors, tensors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_precision_is_converted_with_one_warning_where_nothing_is_lost(
    dtype: torch.dtype, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fer.console.log.propagate", True)
    stored: dict[str, torch.Tensor] = {}

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({key: value.to(dtype) for key, value in tensors.items() if value.is_floating_point()})
        stored.update(tensors)

    path = changed(tmp_path / "model.safetensors", change)
    model, _ = load_model(path)
    assert all(torch.equal(value, stored[key].to(value.dtype)) for key, value in model.state_dict().items())
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32, torch.int64}
    (record,) = caplog.records
    assert f"{path}: " in record.getMessage()
    assert f"({dtype}, expected torch.float32)" in record.getMessage()


@pytest.mark.parametrize("value", [torch.tensor([1 / 3], dtype=torch.float64), torch.tensor([1]), torch.tensor([1j])])
def test_a_dtype_that_cannot_be_converted_without_loss_is_refused(value: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=rf"m: 1 of 1 tensors have another dtype: w \({value.dtype}, expected torch\.f"):
        usable(tmp_path / "m", {"w": value}, {"w": torch.zeros(1)})


# ------------------------------------------------------------------------------------------------ hostile descriptions


def with_header(path: Path, metadata: object) -> Path:
    """The file with this as its `__metadata__`, its tensors untouched."""
    saved(path)
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.dumps(json.loads(data[8 : 8 + size]) | {"__metadata__": metadata}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + size :])
    return path


@pytest.mark.parametrize("metadata", [[], None, 5, "x", {"fer": None}, {"fer": 5}, {"fer": {}}, {}])
def test_metadata_that_is_no_mapping_of_texts_is_told_with_the_file_s_name(metadata: object, tmp_path: Path) -> None:
    path = with_header(tmp_path / "model.safetensors", metadata)
    with pytest.raises(FileError) as caught:
        load_model(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value).splitlines()) == 1


BROKEN = {
    "[]": "should be an object",
    "null": "should be an object",
    "3": "should be an object",
    '"x"': "should be an object",
    "": "Invalid JSON",
    "{": "Invalid JSON",
    '{"schema": 1': "Invalid JSON",
    "[" * 100_000: "Invalid JSON",
    "{}": "schema None",
    '{"schema": [1]}': "schema [1]",
    '{"schema": 1}': "model: Field required",
}
WRONG = {
    "model": (None, "model = None"),
    "options": ([], "options = []"),
    "labels": ("neutral", "labels = 'neutral'"),
    "label_space": (7, "label_space = 7"),
    "input_size": ("112", "input_size = '112'"),
    "mean": ({}, "mean = {}"),
    "std": (["a"], "std.0 = 'a'"),
    "resize": ("bilinear", "resize = 'bilinear'"),
    "extra": (None, "extra = None"),
    "colour": ([], "colour = []"),
    "surprising": (1, "surprising = 1"),
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_description_is_told_in_one_line_with_file_and_remedy(text: str, tmp_path: Path) -> None:
    refused_for(with_header(tmp_path / "model.safetensors", {"fer": text}), BROKEN[text])


@pytest.mark.parametrize("key", WRONG)
def test_a_description_with_a_wrong_type_names_the_key(key: str, tmp_path: Path) -> None:
    saved(tmp_path / "model.safetensors")
    value, words = WRONG[key]
    text = json.dumps(json.loads(described(tmp_path / "model.safetensors")) | {key: value})
    refused_for(with_header(tmp_path / "model.safetensors", {"fer": text}), words)


@pytest.mark.parametrize(("key", "value"), [("crop", []), ("crop", "face"), ("crop", None), ("synthetic", "no")])
def test_what_a_training_tells_of_its_faces_has_its_type(key: str, value: object, tmp_path: Path) -> None:
    saved(tmp_path / "model.safetensors")
    content = json.loads(described(tmp_path / "model.safetensors"))
    text = json.dumps(content | {"extra": {key: value}})
    refused_for(with_header(tmp_path / "model.safetensors", {"fer": text}), f"extra.{key} = {value!r}")


def refused_for(path: Path, words: str) -> None:
    for read in (read_info, load_model):
        with pytest.raises(FileError) as caught:
            read(path)
        (line,) = str(caught.value).splitlines()
        assert line.startswith(f"{path}: ")
        assert words in line
        assert "restore the file" in line


@pytest.mark.parametrize(
    "change",
    [{"model": "ddamfm_nano"}, {"options": {"num_heads": "3"}}, {"options": {"num_classes": 7}}, {"options": {"x": 1}},
     {"options": {"num_heads": -1}}, {"labels": []}],
)  # fmt: skip
def test_a_description_of_no_model_names_the_file(change: dict[str, object], tmp_path: Path) -> None:
    saved(tmp_path / "model.safetensors")
    text = json.dumps(json.loads(described(tmp_path / "model.safetensors")) | change)
    path = with_header(tmp_path / "model.safetensors", {"fer": text})
    with pytest.raises(ValueError, match="^" + str(path)) as caught:
        load_model(path)
    assert len(str(caught.value).splitlines()) == 1
