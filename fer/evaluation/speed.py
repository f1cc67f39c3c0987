"""What a forward pass costs: counted operations, and the time of one image on this machine's processor."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from fer.lineage import hardware
from fer.models import FerModel
from fer.models.cost import measure
from fer.weights.store import load_model

_PASSES = 20
_SECONDS = 3.0  # after which fewer passes are enough


def cost(weights: Path) -> dict[str, Any]:
    """See `cost_of`."""
    return cost_of(load_model(weights)[0])


def cost_of(model: FerModel) -> dict[str, Any]:
    """The cost of a model, ready for JSON; `latency_ms` and `hardware` differ between equal evaluations.

    Returns:
        `parameters`; `gmacs`: 10^9 multiply-accumulates for one image (`fer.models.cost.Operations.macs`);
        `latency_ms`: time of a forward pass of one image, float32, on one core, without decoding: the fastest of
        several, which other processes on the machine disturbed least; `hardware`.
    """
    counted = measure(model)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    size, before = model.input_size, torch.get_num_threads()
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    image = image.contiguous(memory_format=torch.channels_last)
    times: list[float] = []
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            model(image)
            while len(times) < _PASSES and sum(times) < _SECONDS:
                start = time.perf_counter()
                model(image)
                times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return {
        "parameters": counted.parameters,
        "gmacs": counted.operations.macs / 1e9,
        "latency_ms": 1000 * min(times),
        "hardware": hardware(),
    }
