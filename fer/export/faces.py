"""Faces to check and to calibrate with: crops of a dataset's shards, or drawn ones. Never of a test split."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fer.shards.pixels import Levels, ModelInput, rgb_levels
from fer.shards.read import ShardSplit, levels_at
from fer.synth.align import aligned_crop
from fer.synth.scene import render


class Faces(NamedTuple):
    """Levels (B,S,S,3) of faces at a model's size, in its dtype, and their labels int64 (B,)."""

    levels: Levels
    labels: npt.NDArray[np.int64]


def drawn_faces(model_input: ModelInput, number: int, *, seed: int = 0) -> Levels:
    """The first synthetic faces of a seed, aligned, as `Faces.levels`: like faces, unlike noise, and of nobody."""
    found: list[Levels] = []
    for index in count():
        scene = render(seed, index)
        crops = [aligned_crop(scene.image, np.array(face.landmarks)) for face in scene.faces]
        found += [rgb_levels(crop, model_input) for crop in crops]
        if len(found) >= number:
            break
    return np.stack(found[:number])


def stored_faces(split: ShardSplit, model_input: ModelInput, most: int, *, batch: int = 32) -> Iterator[Faces]:
    """Up to `most` faces of a split, evenly spread over it, in batches."""
    rows = np.unique(np.linspace(0, split.rows - 1, min(most, split.rows)).round().astype(np.int64))
    labels = split.labels()
    for first in range(0, len(rows), batch):
        part = rows[first : first + batch]
        yield Faces(levels_at(split, part, model_input), labels[part])
