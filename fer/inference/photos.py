"""Faces in people's own photos, found, cut out and classified by the code that the training's faces went through.

    photo ─decode─▶ detect ─▶ align, crop ─JPEG─▶ decode ─▶ resize, normalise ─▶ model ─▶ one `Face` each

Everything up to the stored crop is `fer.faces.crop.crop_samples`, the crop stage itself; everything behind it is what
the reader of the shards does. The crop is encoded and decoded again as there, because the model has seen no other: so a
dataset's own pictures get the logits that `evaluate` gives for them. Photos are read where they lie; nothing of them
leaves the machine, and nothing is written here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from fer.config import parse
from fer.console import log
from fer.evaluation.metrics import log_softmax
from fer.faces.config import CropConfig
from fer.faces.crop import FaceCrop, Finder, Unreadable, crop_samples
from fer.io.files import FileError
from fer.io.images import ImageError, read_bytes
from fer.models import FerModel
from fer.models.inference import for_inference
from fer.shards.pixels import ModelInput, Pixels, decode, normalise, resize
from fer.sources.base import AnnotatedFace, RawSample, Reject
from fer.sources.layout import PICTURE_ENDINGS
from fer.weights.store import WeightsInfo, load_model

Tta = Literal["none", "flip"]

WEIGHTS_NAME = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Face:
    """A face that was found in a photo, and what the model says of it.

    Attributes:
        number: from 1 in its photo, the surest face first.
        box: x1, y1, x2, y2 in px of the upright photo, half-open; it may reach beyond the photo.
        score: the detector's, 0 .. 1; None where the photo was taken as a face.
        logits: float32 (classes,), in the order of the weights' labels.
    """

    number: int
    box: tuple[float, float, float, float]
    score: float | None
    logits: npt.NDArray[np.float32]

    @property
    def probabilities(self) -> npt.NDArray[np.float64]:
        """(classes,), summing to 1."""
        probabilities: npt.NDArray[np.float64] = np.exp(log_softmax(self.logits[None])[0])
        return probabilities


@dataclass(frozen=True, kw_only=True)
class Photo:
    """What was found in a file.

    Attributes:
        name: the path as it was given or found.
        faces: by number.
        refused: why a face, or the whole photo, was not classified; reasons as in rejects.parquet.
        read: whether the file is a picture that could be read.
    """

    name: str
    faces: tuple[Face, ...]
    refused: tuple[Reject, ...]
    read: bool


class Classifier:
    """A model for inference with what its weights file says of it.

    Args:
        path: a weights file of this project, or the folder of a training with one.

    Raises:
        FileError: absent, damaged, published weights that were not imported, or weights without a classifier.
    """

    def __init__(self, path: Path) -> None:
        self.path = weights_file(path)
        model, self.info = load_model(self.path)
        if not self.info.labels:
            raise FileError(f"{self.path}: weights without a classifier; they are for a training to start from")
        self._model: FerModel = for_inference(model)
        self._input = ModelInput.of(model)
        self._input.check()

    def logits(self, crops: Sequence[bytes], tta: Tta = "none") -> npt.NDArray[np.float32]:
        """float32 (n, classes) for n encoded crops; with "flip" the mean over each face and its mirror image."""
        pixels = [_three_channels(resize(decode(np.frombuffer(data, np.uint8)), self._input)) for data in crops]
        images_BHWC = torch.from_numpy(np.stack(pixels))
        with torch.inference_mode():
            logits_BN = self._logits(images_BHWC)
            if tta == "flip":
                logits_BN = (logits_BN + self._logits(images_BHWC.flip(2).contiguous())) / 2
        return logits_BN.numpy()

    def _logits(self, images_BHWC: torch.Tensor) -> torch.Tensor:
        x = normalise(images_BHWC, self._model.mean, self._model.std, memory_format=torch.channels_last)
        logits: torch.Tensor = self._model(x).float()
        return logits


def weights_file(path: Path) -> Path:
    """The weights that a path means: the file itself, or that of a training's folder; see `Classifier`."""
    file = path / WEIGHTS_NAME if path.is_dir() else path
    if file.is_file() and file.suffix != ".safetensors":
        raise FileError(
            f"{file}: no weights of this project (.safetensors); published ones are turned into such by `fer weights "
            "import`"
        )
    return file


def _three_channels(pixels: Pixels) -> Pixels:
    return np.repeat(pixels[:, :, None], 3, axis=2) if pixels.ndim == 2 else pixels


# ------------------------------------------------------------------------------------------------ settings


def crop_config(
    info: WeightsInfo, detector: str | None, *, default: str = "retinaface", where: str = "the weights' own description"
) -> CropConfig:
    """How faces are found and cut out for a model: as for its training, but for which faces count: all.

    Args:
        info: what its weights file says.
        detector: "retinaface" or "yunet"; None is the training's own, or `default` where that was none.
        where: the weights file, for errors.

    Raises:
        ConfigError: the file names settings that this version does not have.
    """
    trained: Mapping[str, Any] = info.extra.get("crop") or {}
    if not trained:
        log.warning(
            "the weights do not say how their training's faces were cut out; the defaults are taken: %s",
            ", ".join(f"{key} {getattr(CropConfig(), key)}" for key in ("align", "size", "border")),
        )
    known = {key: value for key, value in trained.items() if key in CropConfig.model_fields}
    own = known.get("detector") in ("retinaface", "yunet")
    chosen = detector or (known["detector"] if own else default)
    if chosen != known.get("detector"):
        # Scores and sides of one detector mean nothing to another.
        known |= {"min_score": None, "detector_side": None}
        if own:
            log.warning("the model's training had its faces found by %s, not by %s", known["detector"], chosen)
    settings = {**known, "detector": chosen, "detector_weights": None, "faces": "all"}
    return parse(CropConfig, settings, where, "crop")


# ------------------------------------------------------------------------------------------------ photos


def find_photos(paths: Iterable[Path]) -> Iterator[Path]:
    """The files that are meant: files as given, and of folders every file with a picture's ending below them.

    Sorted within a folder; hidden files and folders are passed over, links to folders are not followed.
    """
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        for folder, inside, names in os.walk(path):
            inside[:] = sorted(name for name in inside if not name.startswith("."))
            for name in sorted(names):
                if name.lower().endswith(PICTURE_ENDINGS) and not name.startswith("."):
                    yield Path(folder) / name


def classify(
    photos: Iterable[tuple[str, Path | bytes]],
    classifier: Classifier,
    config: CropConfig,
    finder: Finder | None,
    *,
    tta: Tta = "none",
    batch: int = 32,
    threads: int = 1,
) -> Iterator[Photo]:
    """Every photo in the order given, with its faces.

    Args:
        photos: names, each with its file or with the file's bytes.
        config: see `crop_config`.
        finder: looks for the faces; None takes each photo as one face that was cut out already, as it is.
        batch: faces of one forward pass, of however many photos; changes speed only.
        threads: that decode.
    """
    samples = (_sample(name, photo, is_crop=finder is None) for name, photo in photos)
    waiting: list[list[FaceCrop | Reject]] = []
    for results in crop_samples(samples, config, finder, threads=threads):
        waiting.append(results)
        if len(waiting) >= batch or sum(len(found) for found in waiting) >= batch:
            yield from _finish(waiting, classifier, tta, batch)
            waiting = []
    yield from _finish(waiting, classifier, tta, batch)


def _finish(
    found: Sequence[Sequence[FaceCrop | Reject]], classifier: Classifier, tta: Tta, batch: int
) -> Iterator[Photo]:
    crops = [one.image for results in found for one in results if isinstance(one, FaceCrop)]
    parts = [classifier.logits(crops[first : first + batch], tta) for first in range(0, len(crops), batch)]
    logits = iter(row for part in parts for row in part)
    for results in found:
        faces = [one for one in results if isinstance(one, FaceCrop)]
        yield Photo(
            name=results[0].origin,
            faces=tuple(
                Face(number=number, box=crop.face.box, score=crop.face.score, logits=next(logits))
                for number, crop in enumerate(faces, 1)
            ),
            refused=tuple(one for one in results if isinstance(one, Reject)),
            read=not any(isinstance(one, Unreadable) for one in results),
        )


def _sample(name: str, photo: Path | bytes, *, is_crop: bool) -> RawSample | Reject:
    """A photo as a sample of a dataset, whose label belongs to every face; the label's value is never used."""
    try:
        data = photo if isinstance(photo, bytes) else read_bytes(photo)
    except ImageError as error:
        return Unreadable(sample_id=name, reason=error.reason, detail=str(error), origin=name)
    face = AnnotatedFace(box=None, landmarks=None, label=0, clean_label=0)
    return RawSample(key=name, image=data, split="test", faces=(face,), is_crop=is_crop, origin=name)
