"""Face detectors by name, and their published weights.

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
from fer.io.files import FileError, below, refuse_impostor, sha256
from fer.weights import registry

DetectorName = Literal["retinaface", "yunet"]


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """A detector's parameters where none are given; docs/faces.md has the measurements behind them.

    Attributes:
        min_score: lowest score of a face, 0..1.
        longest_side: larger images are shrunk to it before detection, in px; smaller ones stay as they are.
        weights: its entry in the register of published weights.
    """

    min_score: float = 0.6
    longest_side: int = 640
    weights: str


DEFAULTS = {"retinaface": Defaults(weights="retinaface_mobilenet025"), "yunet": Defaults(weights="yunet_2023mar")}

assert set(get_args(DetectorName)) == set(DEFAULTS)


def create_detector(
    name: str, *, weights: Path, min_score: float | None = None, longest_side: int | None = None
) -> Detector:
    """The detector of that name.

    Args:
        name: one of `DetectorName`.
        weights: its file, as from `locate`.
        min_score: lowest score of a face, 0..1; None is the detector's default.
        longest_side: in px, bounds time and memory per image; None is the detector's default.

    Raises:
        ValueError: an unknown name, or a value out of range.
        FileError: the weights are missing, or not this detector's.
    """
    defaults = _defaults(name)
    min_score = defaults.min_score if min_score is None else min_score
    longest_side = defaults.longest_side if longest_side is None else longest_side
    if not 0 < min_score < 1:
        raise ValueError(f"min_score = {min_score}: must be between 0 and 1")
    if not 64 <= longest_side <= 4096:
        raise ValueError(f"longest_side = {longest_side}: must be 64 to 4096 px")
    kind = YuNet if name == "yunet" else RetinaFace
    return kind(weights, min_score=min_score, longest_side=longest_side)


def locate(name: str, given: str | None, root: Path, parent: Path | None = None) -> Path:
    """The published weights of a detector, checked by their sha256.

    Args:
        name: of the detector.
        given: their file, or a folder with the file somewhere below it, relative to `root`; None is the cache of
            `fer weights pull`.
        root: the project's folder.
        parent: where to look for what `root` lacks.

    Raises:
        FileError: missing, or another file; it says how to get the right one.
    """
    published = _defaults(name).weights
    (file,) = registry.entry(published).files
    if given is None:
        path = registry.find(published)
    else:
        path = below(Path(given).expanduser(), root, parent)
        if path.is_dir():
            path = next(iter(sorted(path.rglob(file.name))), path / file.name)
    remedy = f"`fer weights pull {published}` downloads {file.name}; without a network, use --from FOLDER"
    if not path.is_file():
        raise FileError(f"{path}: no weights of {name} there; {remedy}")
    try:
        refuse_impostor(path, str(path))
    except FileError as error:
        raise FileError(f"{error}; {remedy}") from None
    if sha256(path) != file.sha256:
        raise FileError(f"{path}: not the published {file.name}: sha256 is not {file.sha256}; {remedy}")
    return path


def _defaults(name: str) -> Defaults:
    if name not in DEFAULTS:
        raise ValueError(f"no detector {name!r}{nearest(name, list(DEFAULTS))}; known: {', '.join(DEFAULTS)}")
    return DEFAULTS[name]
