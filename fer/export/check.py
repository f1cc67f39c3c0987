"""An exported graph beside the model that it was made of: logits, labels, time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fer.export.faces import Faces
from fer.export.formats import Run
from fer.shards.pixels import Levels

TOLERANCE = 1e-3
"""Of a float32 export: the largest difference of a logit, as a share of the largest logit. Rounding stays far below."""

_ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Parity:
    """What torch and an exported graph make of the same faces.

    Attributes:
        faces: how many.
        of: whose.
        max_difference: largest absolute difference of a logit.
        max_logit: largest absolute logit of torch.
        same_label: of how many faces both name the same class.
    """

    faces: int
    of: str
    max_difference: float
    max_logit: float
    same_label: int

    @property
    def holds(self) -> bool:
        """Whether the difference is within `TOLERANCE`; NaN is not."""
        return self.max_difference <= TOLERANCE * self.max_logit


def parity(model: Run, exported: Run, levels: Levels, of: str) -> Parity:
    """Compares the two on one face alone and on the others together, so that the number of images varies."""
    parts = [levels[:1], levels[1:]] if len(levels) > 1 else [levels]
    expected, found = (np.concatenate([run(part) for part in parts]) for run in (model, exported))
    return Parity(
        faces=len(levels),
        of=of,
        max_difference=float(np.abs(found - expected).max()),
        max_logit=float(np.abs(expected).max()),
        same_label=int((found.argmax(1) == expected.argmax(1)).sum()),
    )


def accuracies(runs: Mapping[str, Run], batches: Iterable[Faces]) -> tuple[dict[str, float], int]:
    """The share of faces that each names as labeled, 0 .. 1, and the number of faces."""
    correct, faces = dict.fromkeys(runs, 0), 0
    for batch in batches:
        faces += len(batch.labels)
        for name, run in runs.items():
            correct[name] += int((run(batch.levels).argmax(1) == batch.labels).sum())
    return {name: number / faces for name, number in correct.items()}, faces


def latencies(runs: Mapping[str, Run], levels: npt.NDArray[Any], sizes: tuple[int, ...] = (1, 32)) -> dict[str, Any]:
    """Milliseconds an image by runtime and batch size: {"torch": {"1": 12.3, "32": 5.1}}.

    Medians of rounds in which all take their turn, so that other work on the machine reaches all alike.
    """
    found: dict[str, dict[str, float]] = {name: {} for name in runs}
    for size in sizes:
        images = np.resize(levels, (size, *levels.shape[1:]))
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(_ROUNDS + 1):
            for name, run in runs.items():
                begun = time.perf_counter()
                run(images)
                if turn:  # the first one warms up
                    seconds[name].append(time.perf_counter() - begun)
        for name in runs:
            found[name][str(size)] = round(1000 * statistics.median(seconds[name]) / size, 3)
    return found
