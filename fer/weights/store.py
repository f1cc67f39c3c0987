"""Weights on disk: safetensors, which can carry no code, with everything needed to use them in the header.

The header holds one JSON text under the key `fer`: safetensors writes several keys in an order that changes from
process to process, and the same weights must be the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from fer.console import log
from fer.io.files import FileError, refuse_impostor, write_atomic
from fer.labels import is_identities, space
from fer.models import FerModel, create_model
from fer.plugins import load_installed

SCHEMA = 1
WEIGHTS_NAME = "model.safetensors"
"""In the folder of a run."""
_KEY = "fer"
_REMEDY = "restore the file, or create it again: train again, or fetch and import it again (`fer weights`)"
_FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


@dataclass(frozen=True, kw_only=True)
class WeightsInfo:
    """The description in a weights file.

    Attributes:
        model, options: arguments of `create_model`, but for the number of classes.
        labels: names of the classes, in the order of the logits. Those of people are numbers, and not in the file.
        label_space: their label space, "basic7" or "basic8", or that of people (`fer.labels.identities`).
        input_size, mean, std, resize: the model's input (`FerModel`); `colour` is always RGB.
        extra: anything else that its writer records; plain JSON. Of a training run: `dataset`, whether that is
            `synthetic`, and `crop`, how the faces were cropped.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    model: str
    options: dict[str, Any]
    labels: tuple[str, ...]
    label_space: str
    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: dict[str, Any]
    colour: str = "RGB"
    extra: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def synthetic(self) -> bool:
        """Whether it was trained on synthetic faces. Files of older versions show it by the dataset's name only."""
        return bool(self.extra.get("synthetic", str(self.extra.get("dataset")).startswith("synthetic")))


_OBJECT, _INFO = TypeAdapter(dict[str, Any]), TypeAdapter(WeightsInfo)


def save_model(
    model: FerModel,
    path: Path,
    labels: Sequence[str],
    label_space: str,
    extra: Mapping[str, Any] | None = None,
    *,
    name: str,
    options: Mapping[str, Any] | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes a model that `create_model(name, len(labels), **options)` made.

    The same weights give the same bytes.

    Args:
        weights: state dict to write in place of the model's own.

    Raises:
        ValueError: the number of labels is not that of classes.
    """
    from safetensors.torch import save

    if len(labels) != model.num_classes:
        raise ValueError(f"{path}: {len(labels)} labels for a model of {model.num_classes} classes")
    info = WeightsInfo(
        model=name,
        options=dict(options or {}),
        labels=() if is_identities(label_space) else tuple(labels),
        label_space=label_space,
        input_size=model.input_size,
        mean=model.mean,
        std=model.std,
        resize=asdict(model.resize),
        extra=dict(extra or {}),
    )
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in (weights or model.state_dict()).items()}
    write_atomic(path, save(tensors, {_KEY: json.dumps(asdict(info), sort_keys=True)}))


def read_info(path: Path) -> WeightsInfo:
    """The description in the file, without its weights. Raises FileError as `load_model` does."""
    text = _description(path)
    if text is None:
        raise FileError(f"{path}: not weights of this project; published ones go through fer.weights.convert")
    try:
        schema = _OBJECT.validate_json(text).get("schema")
        if schema != SCHEMA:
            raise FileError(f"{path}: weights of schema {schema!r:.40}, this version reads {SCHEMA}; {_REMEDY}")
        info = _INFO.validate_json(text)
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(map(str, fault["loc"]))
        given = "" if fault["type"] == "missing" else f" = {fault['input']!r:.80}"
        what = f"{key}{given}: {fault['msg']}" if key else fault["msg"]
        raise FileError(f"{path}: its description: {what}; {_REMEDY}") from None
    for key, kind in (("crop", dict), ("synthetic", bool)):
        if not isinstance(value := info.extra.get(key, kind()), kind):
            raise FileError(f"{path}: its description: extra.{key} = {value!r:.80}: no {kind.__name__}; {_REMEDY}")
    return replace(info, labels=space(info.label_space).labels) if is_identities(info.label_space) else info


def has_description(path: Path) -> bool:
    """Whether it is a safetensors file of this project, its description valid or not. FileError as `read_info`."""
    return _description(path) is not None


def _description(path: Path) -> str | None:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileError(f"{path}: no such file")
    refuse_impostor(path, str(path))
    try:
        with safe_open(path, framework="pt") as file:
            text: str | None = (file.metadata() or {}).get(_KEY)
            return text
    except SafetensorError as error:
        raise FileError(f"{path}: no safetensors file, or a damaged one ({error}); {_REMEDY}") from None


def load_model(path: Path, *, labels: Sequence[str] | None = None) -> tuple[FerModel, WeightsInfo]:
    """The model of a weights file, on the CPU, in evaluation mode, and its description.

    Args:
        labels: the classes of the caller's data, in order; others in the file are an error, never a remap.

    Raises:
        FileError: absent, damaged, not of this project, or tensors that `usable` refuses.
        ValueError: other labels, an unknown model, or weights that do not fit it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    info = read_info(path)
    if labels is not None and tuple(labels) != info.labels:
        raise ValueError(
            f"{path}: trained on labels {', '.join(info.labels)}; the data has {', '.join(labels)}, in this order. "
            "Use weights that were trained on these labels"
        )
    try:
        load_installed()
        model = create_model(info.model, len(info.labels), **info.options)
    except (TypeError, ValueError, RuntimeError) as error:  # options of any kind reach the model's own code
        raise ValueError(f"{path}: the model that it describes cannot be created ({error}); {_REMEDY}") from None
    try:
        model.load_state_dict(usable(path, load_file(path), model.state_dict()))
    except SafetensorError as error:
        raise FileError(f"{path}: damaged ({error}); {_REMEDY}") from None
    except RuntimeError as error:
        raise ValueError(f"{path}: the weights do not fit {info.model}: {' '.join(str(error).split()):.400}") from None
    model.mean, model.std = info.mean, info.std  # of published weights perhaps not those of the model
    return model.eval(), info


def usable(path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file, finite and in the dtypes of `expected`; names and shapes are for the model to check.

    Floating-point numbers of another size are converted where nothing is lost by it, with a warning.

    Raises:
        FileError: NaN or infinite values, or a dtype that cannot be converted; names the file and the tensors.
    """
    ready = dict(tensors)
    broken: list[str] = []
    other: list[str] = []
    converted: list[str] = []
    for key, tensor in tensors.items():
        dtype = expected[key].dtype if key in expected else tensor.dtype
        if tensor.dtype in _FLOATS and tensor.numel() and not all(map(isfinite, tensor.aminmax())):
            broken.append(key)
        elif tensor.dtype != dtype:
            floats = {tensor.dtype, dtype} <= _FLOATS
            ready[key] = tensor.to(dtype) if floats else tensor
            lossless = floats and torch.equal(ready[key].to(tensor.dtype), tensor)
            (converted if lossless else other).append(f"{key} ({tensor.dtype}, expected {dtype})")
    of_all = f"of {len(tensors)} tensors"
    if broken:
        raise FileError(f"{path}: {len(broken)} {of_all} hold NaN or infinity: {shortened(broken, 3)}; {_REMEDY}")
    if other:
        raise FileError(f"{path}: {len(other)} {of_all} have another dtype: {shortened(other, 3)}; {_REMEDY}")
    if converted:
        log.warning("%s: %d %s converted without loss: %s", path, len(converted), of_all, shortened(converted, 3))
    return ready


def shortened(texts: Sequence[str], most: int = 8) -> str:
    """A listing of the first few."""
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")
