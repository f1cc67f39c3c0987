"""Published weight files -> our models, whatever they are wrapped in, without running anything from them.

    model = load_published("poster_v2", "rafdb-model_best.pth")  # classes, heads and depth read from the file
    load_published(model, "rafdb-model_best.pth")                # into an existing model, which must fit

Formats: `torch.save` in both its layouts (a state dict alone or under one of `WRAPPERS`, or a whole pickled module),
safetensors, npz, Keras' h5, TensorFlow checkpoints and OpenVINO's xml with its bin.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fer.io.files import FileError, refuse_impostor
from fer.models import FerModel, create_model, model_options
from fer.weights.convert import convert, published_options
from fer.weights.store import shortened, usable
from fer.weights.torchfile import LEGACY_MAGIC, Stub, TensorRef, TorchFile, reading

WRAPPERS = ("state_dict", "model_state_dict", "net_state_dict", "model")
"""The keys that published files hold their state dict under."""

_DATA_PARALLEL = "module."
_OPTIMIZER = {"state", "param_groups"}
_OPENVINO_MODEL = "mobilefacenet_landmarks"

_FLOAT = torch.empty(0)  # the dtype of the models' parameters

# The largest published model has about 1,200 tensors in 1,100 modules; modules that contain themselves have no end.
_MOST_PARTS = 100_000

# No published model comes near; a compressed archive may declare any size.
_MOST_NPZ_BYTES = 4 << 30


def load_published(model: FerModel | str, path: str | Path) -> FerModel:
    """The model with the weights of a published file.

    Args:
        model: a name, for a new model in evaluation mode whose options are read from the file; or a model that
            `create_model` made, which is filled in place: every option that the file determines must agree.
        path: the file; of a TensorFlow checkpoint its folder, its prefix or its index.

    Raises:
        FileError: weights that cannot be read, with the reason; or values that are NaN or infinite.
        ValueError: weights of another model, or for other options; the message names the keys, or the options.
    """
    path = Path(path)
    name = model if isinstance(model, str) else model.name
    if name is None:
        raise ValueError(f"{path}: the model was not made by create_model, its published layout is unknown")
    options, state = _converted(name, path)
    if options["num_classes"] is None:
        raise ValueError(
            f"{path}: holds no head of {name}; a recipe names such weights in start_from, to train from them"
        )
    if isinstance(model, str):
        model = create_model(name, **options).eval()
    else:
        _refuse_other_options(path, model, options)
    model.load_state_dict(usable(path, state, model.state_dict()))
    return model


def load_state(name: str, path: Path) -> dict[str, Tensor]:
    """The tensors of a published file by their names in our model `name`; those of its head may be missing.

    Raises:
        FileError, ValueError: as `load_published`.
    """
    _, state = _converted(name, path)
    return usable(path, state, {key: _FLOAT for key in state if not key.endswith("num_batches_tracked")})


def read_published(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a published file, by its authors' names; a `module.` prefix of all of them is removed.

    OpenVINO's files hold no names of tensors: only `load_published` reads them.

    Raises:
        FileError: not there, damaged, refused, or without weights.
    """
    path = Path(path)
    state = _read(path)
    if not state:
        raise FileError(f"{path}: holds no weights")
    if all(key.startswith(_DATA_PARALLEL) for key in state):
        state = {key.removeprefix(_DATA_PARALLEL): tensor for key, tensor in state.items()}
    return state


def _converted(name: str, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The options of model `name` that the file determines, and our state dict."""
    if _is_openvino(path):
        from fer.weights.openvino import landmark_state

        if name != _OPENVINO_MODEL:
            raise ValueError(f"{path}: of OpenVINO's files only that of {_OPENVINO_MODEL} is read, not that of {name}")
        return {"num_classes": 0}, landmark_state(path.with_suffix(".xml"))
    published = read_published(path)
    try:
        return published_options(name, published), convert(name, published)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _refuse_other_options(path: Path, model: FerModel, options: Mapping[str, Any]) -> None:
    assert model.name is not None
    has = model_options(model.name) | dict(model.options) | {"num_classes": model.num_classes}
    other = [
        f"{option} = {value!r}, the model {has[option]!r}" for option, value in options.items() if has[option] != value
    ]
    if other:
        raise ValueError(f"{path}: the file is for another {model.name}: it has {'; it has '.join(other)}")


# ------------------------------------------------------------------------------------------------ formats


def _read(path: Path) -> dict[str, Tensor]:
    if path.is_dir() or path.suffix == ".index" or path.with_name(path.name + ".index").is_file():
        return _read_tensorflow(path)
    if not path.is_file():
        raise FileError(f"{path}: no such file")
    refuse_impostor(path, str(path))
    if _is_openvino(path):
        raise FileError(f"{path}: OpenVINO's files hold no names of tensors; load_published reads them")
    with open(path, "rb") as handle:
        head = handle.read(16)
    if head.startswith(b"PK"):
        return _read_npz(path) if _is_npz(path) else _read_torch(path)
    if head.startswith(LEGACY_MAGIC):
        return _read_torch(path)
    if head[8:9] == b"{":
        return _read_safetensors(path)
    if head.startswith(b"\x89HDF"):
        return _read_keras(path)
    raise FileError(
        f"{path}: not recognized. Weights are read from files of torch.save, safetensors, npz, Keras (.h5), TensorFlow "
        "checkpoints (.index) and OpenVINO (.xml)"
    )


def _is_openvino(path: Path) -> bool:
    return path.suffix == ".xml" or (path.suffix == ".bin" and path.with_suffix(".xml").is_file())


def _read_tensorflow(path: Path) -> dict[str, Tensor]:
    from fer.weights.tensorflow import read_checkpoint

    return {key: torch.from_numpy(array) for key, array in read_checkpoint(path).items()}


def _read_keras(path: Path) -> dict[str, Tensor]:
    from fer.weights.keras import read_keras

    return {key: torch.from_numpy(array) for key, array in read_keras(path).items()}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            if "fer" in (file.metadata() or {}):
                raise FileError(f"{path}: weights of this project, not published ones; read them with load_model")
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
    except SafetensorError as error:
        raise FileError(f"{path}: no safetensors file, or a damaged one ({error}); fetch it again") from None


def _is_npz(path: Path) -> bool:
    with reading(path), zipfile.ZipFile(path) as archive:
        return all(name.endswith(".npy") for name in archive.namelist())


def _read_npz(path: Path) -> dict[str, Tensor]:
    import numpy as np

    with reading(path):
        with zipfile.ZipFile(path) as archive:
            size = sum(info.file_size for info in archive.infolist())
        if size > _MOST_NPZ_BYTES:
            raise FileError(f"unpacks to {size:,} bytes, more than any published model")
        with np.load(path, allow_pickle=False) as arrays:
            return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


# ------------------------------------------------------------------------------------------------ torch.save


def _read_torch(path: Path) -> dict[str, Tensor]:
    file = TorchFile(path)
    references = _state_dict(file.root, str(path))
    return {key: file.tensor(reference) for key, reference in references.items()}


def _state_dict(saved: Any, name: str) -> dict[str, TensorRef]:
    """The tensors of what `torch.save` was given, whatever they are wrapped in."""
    mapping = _as_mapping(saved)
    for key in WRAPPERS:
        if mapping is not None and _holds_tensors(mapping.get(key)):
            saved, mapping = mapping[key], _as_mapping(mapping[key])
            break
    if _is_module(saved):
        return _of_module(saved, name)
    if mapping is None:
        raise FileError(f"{name}: holds no state dict and no module, but {_kind(saved)}")
    if mapping.keys() == _OPTIMIZER:
        raise FileError(
            f"{name}: holds the state of an optimizer and no weights. POSTER V2's training script writes such a file "
            "as its best one; the weights are in its model.pth"
        )
    others = [f"{key} ({_kind(value)})" for key, value in mapping.items() if not isinstance(value, TensorRef)]
    if others:
        raise FileError(
            f"{name}: no state dict: {shortened(others)}. "
            f"Weights are looked for at the top and under {', '.join(WRAPPERS)}"
        )
    return {str(key): value for key, value in mapping.items()}


def _of_module(module: Stub, name: str) -> dict[str, TensorRef]:
    """What `module.state_dict()` would give."""
    found: dict[str, TensorRef] = {}
    waiting = [("", module)]
    for _ in range(_MOST_PARTS):
        if not waiting:
            return found
        prefix, module = waiting.pop()
        state = module.state
        transient = state.get("_non_persistent_buffers_set") or ()
        for key, value in (state["_parameters"] | state["_buffers"]).items():
            if isinstance(value, TensorRef) and key not in transient:
                found[f"{prefix}{key}"] = value
        children = [(f"{prefix}{key}.", child) for key, child in state["_modules"].items() if child is not None]
        for key, child in children:
            if not _is_module(child):
                raise FileError(f"{name}: {key[:-1]} is no module, but {_kind(child)}")
        waiting.extend(reversed(children))  # depth first, in the order of registration
        if len(waiting) + len(found) > _MOST_PARTS:
            break
    raise FileError(f"{name}: more than {_MOST_PARTS:,} modules and tensors, or modules that contain themselves")


def _is_module(value: Any) -> bool:
    parts = ("_modules", "_parameters", "_buffers")
    return (
        isinstance(value, Stub)
        and isinstance(value.state, dict)
        and all(isinstance(value.state.get(part), dict) for part in parts)
    )


def _holds_tensors(value: Any) -> bool:
    return _is_module(value) or any(isinstance(item, TensorRef) for item in (_as_mapping(value) or {}).values())


def _as_mapping(value: Any) -> dict[Any, Any] | None:
    if isinstance(value, Stub) and value.mapping:
        return value.mapping
    return value if isinstance(value, dict) else None


def _kind(value: Any) -> str:
    return f"an object of {value}" if isinstance(value, Stub) else f"a {type(value).__name__}"
