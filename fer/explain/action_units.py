"""What goes with mistakes on drawn faces, of which everything is known: action units, intensity, pose, occlusion.

A pure table: for each condition the error rate of the faces that meet it, beside the rate that their classes alone let
expect. Without the second a hard class would blame its action units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from fer.evaluation.metrics import wilson
from fer.sources.synthetic import SyntheticConfig, SyntheticSource
from fer.synth.expressions import ACTION_UNITS, AU_NAMES
from fer.synth.scene import Face, describe

Mask = npt.NDArray[np.bool_]

_INTENSITIES = (0.0, 0.3, 0.5, 0.7, 0.9, np.inf)
"""Edges between FACS's intensities A .. E at strength 1, which are 0.2 apart."""


def drawn_faces(config: SyntheticConfig, seed: int, sample_ids: Sequence[str]) -> list[Face]:
    """What was drawn of each sample: "synthetic/<scene>", with "#<number>" where a scene has several faces.

    Args:
        config: of the dataset. seed: of the project.
    """
    source, scene_config, found = SyntheticSource(config, seed), config.scene_config(), []
    for sample in sample_ids:
        scene, _, number = sample.removeprefix("synthetic/").partition("#")
        found.append(describe(source.seed, int(scene), scene_config).faces[int(number or 0)])
    return found


def conditions(faces: Sequence[Face], strength: float, yaw_edges: Sequence[float]) -> dict[str, Mask]:
    """Which faces (N,) meet each condition, by its name; a face meets several.

    Args:
        strength: that every action unit was scaled by. yaw_edges: of the bins of |yaw|, in degrees.
    """
    units = np.array([face.aus for face in faces]) / strength
    yaw = np.abs([face.pose[0] for face in faces])
    strongest = units.max(axis=1)
    found = {f"AU {unit} ({AU_NAMES[unit]})": units[:, index] > 0 for index, unit in enumerate(ACTION_UNITS)}
    found["no action unit"] = strongest == 0
    for grade, (low, high) in zip("ABCDE", pairwise(_INTENSITIES), strict=True):
        found[f"strongest action unit of intensity {grade}"] = (strongest > low) & (strongest <= high)
    for low, high in pairwise(yaw_edges):
        found[f"|yaw| {low:g} to {high:g} degrees"] = (yaw >= low) & (yaw < high)
    for occluder in sorted({one for face in faces for one in face.occluders}):
        found[f"occluded by {occluder}"] = np.array([occluder in face.occluders for face in faces])
    found["not occluded"] = np.array([not face.occluders for face in faces])
    return found


def error_rates(masks: Mapping[str, Mask], labels: npt.NDArray[np.int64], wrong: Mask) -> list[dict[str, Any]]:
    """A line a condition that some face meets: `condition`, `faces`, `errors`, `rate` with Wilson's 95 % interval `low`
    and `high`, and `expected`, the rate where a mistake depended on the class alone.

    Args:
        masks: (N,) each. labels: int64 (N,). wrong: (N,), whether the prediction is.
    """
    of_class = np.bincount(labels, weights=wrong) / np.maximum(np.bincount(labels), 1)
    lines = []
    for condition, mask in masks.items():
        faces, errors = int(mask.sum()), int(wrong[mask].sum())
        if faces:
            rate = {"rate": errors / faces, **asdict(wilson(errors, faces))}
            expected = float(of_class[labels[mask]].mean())
            lines.append({"condition": condition, "faces": faces, "errors": errors, **rate, "expected": expected})
    return lines
