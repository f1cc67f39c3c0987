"""Detectors of faces behind one interface, and how to make one by its name.

Whatever the detector, what it finds of a picture depends on that picture alone, not on what else was in the call:
scores and coordinates are rounded before faces are sorted, which takes the last float noise out of them, so that the
same dataset gives the same bytes however its pictures were batched.
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
    """What a detector uses where nothing is asked for; docs/faces.md says what they were chosen by.

    Attributes:
        min_score: the least score of a face, 0..1.
        longest_side: larger pictures are shrunk to it before they are searched, in px; smaller ones stay as they are.
    """

    min_score: float
    longest_side: int


DEFAULTS: dict[str, Defaults] = {
    "retinaface": Defaults(min_score=0.6, longest_side=640),
    "yunet": Defaults(min_score=0.6, longest_side=640),
}


def create_detector(
    name: str, *, weights: Path, min_score: float | None = None, longest_side: int | None = None
) -> Detector:
    """The detector of that name.

    Args:
        name: one of `DetectorName`.
        weights: its file, as `fer.faces.weights.locate` gives it.
        min_score: the least score of a face, 0..1; None is the detector's default.
        longest_side: in px, bounds time and memory for a picture; None is the detector's default.

    Raises:
        ValueError: another name, or a value outside of what is allowed.
        FileError: the weights are not there, or are not this detector's.
    """
    if name not in DEFAULTS:
        raise ValueError(f"no detector {name!r}{nearest(name, list(DEFAULTS))}; known: {', '.join(DEFAULTS)}")
    min_score = DEFAULTS[name].min_score if min_score is None else min_score
    longest_side = DEFAULTS[name].longest_side if longest_side is None else longest_side
    if not 0 < min_score < 1:
        raise ValueError(f"min_score = {min_score}: a number between 0 and 1 is meant")
    if not 64 <= longest_side <= 4096:
        raise ValueError(f"longest_side = {longest_side}: 64 to 4096 px are allowed")
    if name == "yunet":
        return YuNet(weights, min_score=min_score, longest_side=longest_side)
    return RetinaFace(weights, min_score=min_score, longest_side=longest_side)


assert set(get_args(DetectorName)) == set(DEFAULTS)
