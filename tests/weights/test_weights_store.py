"""Weights files: self-describing, without code, finite, and never used for other labels."""

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


def test_loaded_model_equals_the_saved_one(tmp_path: Path) -> None:
    model = saved(tmp_path / "model.safetensors", num_heads=3)
    loaded, info = load_model(tmp_path / "model.safetensors", labels=LABELS)
    x = torch.rand(2, 3, model.input_size, model.input_size)
    assert not loaded.training
    assert torch.equal(loaded(x), model.eval()(x))
    assert (info.labels, info.label_space, info.options) == (LABELS, "basic7", {"num_heads": 3})
    assert (info.input_size, info.colour, info.extra) == (model.input_size, "RGB", {"dataset": "tiny"})


def test_same_weights_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        saved(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_other_labels_or_another_number_of_them_are_an_error(tmp_path: Path) -> None:
    saved(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="trained on labels neutral"):
        load_model(tmp_path / "model.safetensors", labels=tuple(reversed(LABELS)))
    with pytest.raises(ValueError, match="8 labels for a model of 7 classes"):
        save_model(create_model("ddamfn_nano"), tmp_path / "m", SPACES["basic8"].labels, "basic8", name="ddamfn_nano")
    assert not (tmp_path / "m").exists()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:5000]),
    "git-lfs pointer": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    "not described": lambda path: save_file({"weight": torch.zeros(1)}, path),
    "short": lambda path: path.write_bytes(b"abc"),
    "bytes": lambda path: path.write_bytes(bytes(range(256)) * 8),
    "header": lambda path: path.write_bytes(path.read_bytes()[:8] + b"\xff" + path.read_bytes()[9:]),
    "size of header": lambda path: path.write_bytes(struct.pack("<Q", 1 << 60) + path.read_bytes()[8:]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_or_other_file_is_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    saved(path)
    DAMAGES[damage](path)
    for read in (read_info, load_model):
        with pytest.raises(FileError, match=r"model\.safetensors"):
            read(path)


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
def test_nan_and_infinity_are_rejected_with_file_and_tensor(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
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


def test_first_broken_tensors_are_named_and_the_others_counted(tmp_path: Path) -> None:
    tensors = {f"t{number}": torch.tensor([float("nan")]) for number in range(9)}
    with pytest.raises(FileError, match=r"m: 9 of 9 tensors hold NaN or infinity: t0, t1, t2 and 6 more; restore"):
        usable(tmp_path / "m", tensors, tensors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precision_is_converted_with_one_warning_where_nothing_is_lost(
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
    (message,) = {record.getMessage() for record in caplog.records}
    assert f"{path}: " in message
    assert f"({dtype}, expected torch.float32)" in message


@pytest.mark.parametrize("value", [torch.tensor([1 / 3], dtype=torch.float64), torch.tensor([1]), torch.tensor([1j])])
def test_dtype_that_cannot_be_converted_without_loss_is_rejected(value: torch.Tensor, tmp_path: Path) -> None:
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
def test_metadata_that_is_not_a_mapping_of_strings_is_an_error_with_the_file(metadata: object, tmp_path: Path) -> None:
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
"""Description -> words of the error."""
WRONG: list[tuple[dict[str, object], str]] = [
    ({"model": None}, "model = None"),
    ({"options": []}, "options = []"),
    ({"labels": "neutral"}, "labels = 'neutral'"),
    ({"label_space": 7}, "label_space = 7"),
    ({"input_size": "112"}, "input_size = '112'"),
    ({"mean": {}}, "mean = {}"),
    ({"std": ["a"]}, "std.0 = 'a'"),
    ({"resize": "bilinear"}, "resize = 'bilinear'"),
    ({"extra": None}, "extra = None"),
    ({"colour": []}, "colour = []"),
    ({"surprising": 1}, "surprising = 1"),
    ({"extra": {"crop": []}}, "extra.crop = []"),
    ({"extra": {"crop": "face"}}, "extra.crop = 'face'"),
    ({"extra": {"crop": None}}, "extra.crop = None"),
    ({"extra": {"synthetic": "no"}}, "extra.synthetic = 'no'"),
]
"""Changed keys of a description -> words of the error."""
OTHER_MODEL: list[dict[str, object]] = [
    {"model": "ddamfm_nano"},
    {"options": {"num_heads": "3"}},
    {"options": {"num_classes": 7}},
    {"options": {"x": 1}},
    {"options": {"num_heads": -1}},
    {"labels": []},
]
"""Changed keys that describe no model."""


@pytest.mark.parametrize("text", BROKEN)
def test_broken_description_is_an_error_of_one_line_with_file_and_remedy(text: str, tmp_path: Path) -> None:
    assert_rejected(with_header(tmp_path / "model.safetensors", {"fer": text}), BROKEN[text])


@pytest.mark.parametrize(("change", "words"), WRONG, ids=lambda value: str(value))
def test_description_of_a_wrong_type_is_an_error_with_its_key(
    change: dict[str, object], words: str, tmp_path: Path
) -> None:
    assert_rejected(with_description(tmp_path / "model.safetensors", change), words)


def with_description(path: Path, change: dict[str, object]) -> Path:
    saved(path)
    return with_header(path, {"fer": json.dumps(json.loads(described(path)) | change)})


def assert_rejected(path: Path, words: str) -> None:
    for read in (read_info, load_model):
        with pytest.raises(FileError) as caught:
            read(path)
        (line,) = str(caught.value).splitlines()
        assert line.startswith(f"{path}: ")
        assert words in line
        assert "restore the file" in line


@pytest.mark.parametrize("change", OTHER_MODEL, ids=str)
def test_description_of_an_unknown_model_is_an_error_with_the_file(change: dict[str, object], tmp_path: Path) -> None:
    path = with_description(tmp_path / "model.safetensors", change)
    with pytest.raises(ValueError, match="^" + str(path)) as caught:
        load_model(path)
    assert len(str(caught.value).splitlines()) == 1
