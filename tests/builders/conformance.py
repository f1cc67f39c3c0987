"""Reading the fixtures of tests/assets/conformance: numbers that the published implementations computed.

Fixtures of Keras have a fill rule of their own, inputs of pixels, and channels last.
"""

import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fer.models import FerModel, create_model
from fer.weights.convert import convert, published_options

ASSETS = Path(__file__).parents[1] / "assets" / "conformance"

FILL: dict[str, Callable[[Any, Any], Any]] = {
    "weight": lambda draws, fan_in: draws / np.sqrt(fan_in),
    "norm_w": lambda draws, _: 1 + 0.1 * draws,
    "bias": lambda draws, _: 0.1 * draws,
    "var": lambda draws, _: 1 + 0.1 * np.abs(draws),
    "prelu": lambda draws, _: 0.25 + 0.01 * draws,
    "gamma": lambda draws, _: 0.5 + 0.1 * draws,
    "rpb": lambda draws, _: 0.1 * draws,
    "zero_i": lambda draws, _: np.zeros_like(draws),
}
"""The values of a tensor of each kind, from standard normal draws and its fan-in."""


def load(fixture: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((ASSETS / f"{fixture}.json").read_text())
    return document


def published_state(document: dict[str, Any]) -> dict[str, np.ndarray]:
    """The fixture's state dict, by its `fill` rule; without the buffers that are not filled ("keep")."""
    if "tensorflow" in document["official"]:
        return keras_state(document, document["keys"])
    return {
        key: np.asarray(FILL[kind](draws(document["fill"]["suffix"] + key, shape), fan_in)).astype(dtype)
        for key, shape, dtype, kind, fan_in in document["keys"]
        if kind != "keep"
    }


def draws(seed: str, shape: Any) -> np.ndarray:
    """Standard normal numbers of a text."""
    return np.random.Generator(np.random.PCG64(zlib.crc32(seed.encode()))).standard_normal(shape)


def keras_state(document: dict[str, Any], keys: list[Any]) -> dict[str, np.ndarray]:
    """The tensors of `keys`, by the rule of the file's `fill`, in Keras' shapes."""
    fill = document["fill"]
    return {
        key: np.asarray(_values(fill["kinds"][kind], draws(fill["suffix"] + key, shape), fan_in)).astype(dtype)
        for key, shape, dtype, kind, fan_in in keys
    }


def _values(rule: str, numbers: Any, fan_in: int | None) -> Any:
    """A rule reads `float32(1.6*d/sqrt(fan_in))`, `float32(1+0.1*d)`, `float32(4096*(1+0.1*abs(d)))`, ..."""
    formula = re.match(r"float32\(((?:[^()]|\((?:[^()]|\([^()]*\))*\))*)\)", rule)
    assert formula is not None, rule
    names = {"d": numbers, "fan_in": fan_in, "sqrt": np.sqrt, "abs": np.abs}
    assert set(re.findall(r"[a-z_]+", formula[1])) <= set(names), rule
    return eval(formula[1], {"__builtins__": {}}, names)


def fixture_input(spec: dict[str, Any]) -> Tensor:
    batch, channels, size, _ = spec["shape"]
    cells = 7 if size % 7 == 0 else 8
    generator = np.random.Generator(np.random.PCG64(spec["seed"]))
    high = generator.standard_normal((batch, channels, size, size))
    low = generator.standard_normal((batch, channels, cells, cells))
    low = np.repeat(np.repeat(low, size // cells, 2), size // cells, 3)
    return torch.from_numpy((0.5 * high + low).astype(np.float32))


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


def model_input(document: dict[str, Any]) -> Tensor:
    """The input of the fixture's evaluation."""
    return (pixels if "tensorflow" in document["official"] else fixture_input)(document["input"])


def published_model(fixture: str, name: str, **options: Any) -> tuple[FerModel, dict[str, Any]]:
    """Our model `name`, filled through the importer with the fixture's published state; and the fixture."""
    document = load(fixture)
    published = published_state(document)
    model = create_model(name, **published_options(name, published), **options)
    model.load_state_dict(convert(name, published), strict=True)
    return model, document


def assert_close(actual: Any, expected: Any, tolerance: float, what: str) -> None:
    """The largest absolute difference is at most `tolerance`."""
    difference = np.abs(np.asarray(actual, dtype=np.float64) - np.asarray(expected, dtype=np.float64)).max()
    assert difference <= tolerance, f"{what}: off by {difference:.3g}, {tolerance:.3g} is allowed"


def assert_summary(x: Tensor, expected: dict[str, Any], what: str, *, relative: float = 1e-4) -> None:
    """A tensor against the fixture's summary of it: shape, first and last numbers, mean and spread.

    relative: tolerance by the largest of 1 and the summary's spread (its range, where that is given).
    """
    scale = max(1.0, abs(expected.get("min", expected["std"])), abs(expected.get("max", expected["std"])))
    assert list(x.shape) == expected["shape"], what
    flat = x.flatten().double()
    found = {
        "first8": flat[:8], "last4": flat[-4:], "mean": flat.mean(), "std": flat.std(unbiased=False),
        "min": flat.min(), "max": flat.max(),
    }  # fmt: skip
    for key in found.keys() & expected.keys():
        assert_close(found[key], expected[key], relative * scale, f"{key} of {what}")
