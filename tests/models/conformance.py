"""Reading the fixtures of tests/assets/conformance: numbers that the published implementations computed."""

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fer.models import FerModel, create_model
from fer.weights import convert, published_options

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
    state = {}
    for key, shape, dtype, kind, fan_in in document["keys"]:
        if kind == "keep":
            continue
        seed = zlib.crc32((document["fill"]["suffix"] + key).encode())
        draws = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape)
        state[key] = np.asarray(FILL[kind](draws, fan_in)).astype(dtype)
    return state


def fixture_input(spec: dict[str, Any]) -> Tensor:
    batch, channels, size, _ = spec["shape"]
    cells = 7 if size % 7 == 0 else 8
    generator = np.random.Generator(np.random.PCG64(spec["seed"]))
    high = generator.standard_normal((batch, channels, size, size))
    low = generator.standard_normal((batch, channels, cells, cells))
    low = np.repeat(np.repeat(low, size // cells, 2), size // cells, 3)
    return torch.from_numpy((0.5 * high + low).astype(np.float32))


def published_model(fixture: str, name: str) -> tuple[FerModel, dict[str, Any]]:
    """Our model `name`, filled through the importer with the fixture's published state; and the fixture."""
    document = load(fixture)
    published = published_state(document)
    model = create_model(name, **published_options(name, published))
    model.load_state_dict(convert(name, published), strict=True)
    return model, document


def assert_close(actual: Any, expected: Any, tolerance: float, what: str) -> None:
    """The largest absolute difference is at most `tolerance`."""
    difference = np.abs(np.asarray(actual, dtype=np.float64) - np.asarray(expected, dtype=np.float64)).max()
    assert difference <= tolerance, f"{what}: off by {difference:.3g}, {tolerance:.3g} is allowed"
