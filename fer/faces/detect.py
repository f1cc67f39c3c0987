"""Face detectors by name.

The faces that a detector finds in an image depend on that image alone, not on the rest of the batch: scores and
coordinates are rounded before faces are sorted, which removes float noise, so that a dataset gives the same bytes for
any batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from fer.config import nearest
from fer.faces.detection import Detector
from fer.faces.retinaface import RetinaFace
from fer.faces.yunet import YuNet

DetectorName = Literal["retinaface", "yunet"]


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """A detector's parameters where none are given; docs/faces.md has the measurements behind them.

    Attributes:
        min_score: lowest score of a face, 0..1.
        longest_side: larger images are shrunk to it before detection, in px; smaller ones stay as they are.
    """

    min_score: float = 0.6
    longest_side: int = 640


DEFAULTS = {"retinaface": Defaults(), "yunet": Defaults()}

assert set(get_args(DetectorName)) == set(DEFAULTS)


def create_detector(
    name: str, *, weights: Path, min_score: float | None = None, longest_side: int | None = None
) -> Detector:
    """The detector of that name.

    Args:
        name: one of `DetectorName`.
        weights: its file, as from `fer.faces.weights.locate`.
        min_score: lowest score of a face, 0..1; None is the detector's default.
        longest_side: in px, bounds time and memory per image; None is the detector's default.

    Raises:
        ValueError: an unknown name, or a value out of range.
        FileError: the weights are missing, or not this detector's.
    """
    if name not in DEFAULTS:
        raise ValueError(f"no detector {name!r}{nearest(name, list(DEFAULTS))}; known: {', '.join(DEFAULTS)}")
    defaults = DEFAULTS[name]
    min_score = defaults.min_score if min_score is None else min_score
    longest_side = defaults.longest_side if longest_side is None else longest_side
    if not 0 < min_score < 1:
        raise ValueError(f"min_score = {min_score}: must be between 0 and 1")
    if not 64 <= longest_side <= 4096:
        raise ValueError(f"longest_side = {longest_side}: must be 64 to 4096 px")
    kind = YuNet if name == "yunet" else RetinaFace
    return kind(weights, min_score=min_score, longest_side=longest_side)
