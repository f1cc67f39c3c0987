"""Reading the fixtures that Keras computed: their fill rule, their inputs of pixels, channels last."""

import re
import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fer.models import FerModel, create_model
from fer.weights import convert, published_options

from .conformance import load


def keras_state(document: dict[str, Any], keys: list[Any]) -> dict[str, np.ndarray]:
    """The tensors of `keys`, by the rule of the file's `fill`, in Keras' shapes."""
    fill = document["fill"]
    state = {}
    for key, shape, dtype, kind, fan_in in keys:
        seed = zlib.crc32((fill["suffix"] + key).encode())
        draws = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape)
        state[key] = np.asarray(_values(fill["kinds"][kind], draws, fan_in)).astype(dtype)
    return state


def _values(rule: str, draws: Any, fan_in: int | None) -> Any:
    """A rule reads `float32(1.6*d/sqrt(fan_in))`, `float32(1+0.1*d)`, `float32(4096*(1+0.1*abs(d)))`, ..."""
    formula = re.match(r"float32\(((?:[^()]|\((?:[^()]|\([^()]*\))*\))*)\)", rule)
    assert formula is not None, rule
    names = {"d": draws, "fan_in": fan_in, "sqrt": np.sqrt, "abs": np.abs}
    assert set(re.findall(r"[a-z_]+", formula[1])) <= set(names), rule
    return eval(formula[1], {"__builtins__": {}}, names)


def keras_model(fixture: str, name: str) -> tuple[FerModel, dict[str, Any], dict[str, np.ndarray]]:
    """Our model `name`, filled through the importer with the fixture's published state; the fixture; that state."""
    document = load(fixture)
    published = keras_state(document, document["keys"])
    model = create_model(name, **published_options(name, published))
    model.load_state_dict(convert(name, published), strict=True)
    return model, document, published


def pixels(spec: dict[str, Any]) -> Tensor:
    """The fixture's input, pixels 0..255, as (B,3,S,S) float32, channels last in memory."""
    batch, size, _, channels = spec["shape"]
    generator = np.random.Generator(np.random.PCG64(spec["seed"]))
    high = generator.standard_normal((batch, size, size, channels))
    low = generator.standard_normal((batch, 7, 7, channels))
    low = np.repeat(np.repeat(low, size // 7, 1), size // 7, 2)
    return nchw(np.clip(128 + 32 * high + 48 * low, 0, 255).astype(np.float32))


def nchw(array: Any) -> Tensor:
    """Of a (B,H,W,C) array."""
    return torch.as_tensor(np.asarray(array)).permute(0, 3, 1, 2)


def nhwc(x: Tensor) -> Tensor:
    """Of a (B,C,H,W) tensor; others as they are."""
    return x.permute(0, 2, 3, 1).contiguous() if x.ndim == 4 else x
