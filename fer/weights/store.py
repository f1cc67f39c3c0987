"""Weights on disk: safetensors, which can carry no code, with all that is needed to use them in the header.

The header holds one JSON text under the key `fer`: safetensors writes several keys in an order that changes from
process to process, and the same weights must be the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from fer.files import FileError, refuse_impostor, write_atomic
from fer.labels import is_identities, space
from fer.models import FerModel, create_model

SCHEMA = 1
_KEY = "fer"


@dataclass(frozen=True, kw_only=True)
class WeightsInfo:
    """What a weights file says of itself.

    Attributes:
        model, options: arguments of `create_model`, but for the number of classes.
        labels: names of the classes, in the order of the logits. Those of people are numbers, and not in the file.
        label_space: the space they are of, "basic7" or "basic8", or of people (`fer.labels.identities`).
        input_size, mean, std, resize: what the model takes (`FerModel`); `colour` is always RGB.
        extra: anything else that its writer had to say; plain JSON.
    """

    model: str
    options: dict[str, Any]
    labels: tuple[str, ...]
    label_space: str
    input_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: dict[str, Any]
    colour: str = "RGB"
    extra: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA


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
        ValueError: as many labels as classes there must be.
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
        mean=tuple(model.mean),
        std=tuple(model.std),
        resize=asdict(model.resize),
        extra=dict(extra or {}),
    )
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in (weights or model.state_dict()).items()}
    write_atomic(path, save(tensors, {_KEY: json.dumps(asdict(info), sort_keys=True)}))


def read_info(path: Path) -> WeightsInfo:
    """What the file says of itself, without its weights. Raises FileError as `load_model` does."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileError(f"{path}: no such file")
    refuse_impostor(path, str(path))
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
    except SafetensorError as error:
        raise FileError(f"{path}: no safetensors file, or a damaged one ({error})") from None
    if text is None:
        raise FileError(f"{path}: weights without a description of ours; published ones go through fer.weights.convert")
    content = json.loads(text)
    if content.get("schema") != SCHEMA:
        raise FileError(f"{path}: weights of schema {content.get('schema')}, this version reads {SCHEMA}")
    for key in ("labels", "mean", "std"):
        content[key] = tuple(content[key])
    if is_identities(content["label_space"]):
        content["labels"] = space(content["label_space"]).labels
    return WeightsInfo(**content)


def load_model(path: Path, *, labels: Sequence[str] | None = None) -> tuple[FerModel, WeightsInfo]:
    """The model of a weights file, on the CPU, in evaluation mode, and what the file says of it.

    Args:
        labels: what the caller's data calls its classes, in order; others in the file are an error, never a remap.

    Raises:
        FileError: absent, damaged, or not ours.
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
    model = create_model(info.model, len(info.labels), **info.options)
    try:
        model.load_state_dict(load_file(path))
    except SafetensorError as error:
        raise FileError(f"{path}: damaged ({error})") from None
    except RuntimeError as error:
        raise ValueError(f"{path}: the weights do not fit {info.model}: {error}") from None
    return model.eval(), info
