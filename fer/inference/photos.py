"""Faces in photos, detected, cropped and classified by the code that processed the training data.

    photo ─decode─▶ detect ─▶ align, crop ─JPEG─▶ decode ─▶ resize, normalize ─▶ model ─▶ one `Face` each

Everything up to the stored crop is `fer.faces.crop.crop_samples`, the crop stage itself; everything behind it is that
of the shards' reader. The crop is encoded and decoded as there, because the model has seen no other crops: a dataset's
own images get the logits of `evaluate`. Photos are read in place; nothing leaves the machine, and nothing is written
here.
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
from fer.shards.pixels import Levels, ModelInput, decode, normalize, resize
from fer.sources.base import AnnotatedFace, RawSample, Reject
from fer.sources.layout import IMAGE_ENDINGS
from fer.weights.store import WeightsInfo, load_model

Tta = Literal["none", "flip"]

WEIGHTS_NAME = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Face:
    """A face of a photo, and the model's logits.

    Attributes:
        number: from 1 in its photo, the highest score first.
        box: x1, y1, x2, y2 in px of the upright photo, half-open; it may reach beyond the photo.
        score: the detector's, 0 .. 1; None where the whole photo is the face.
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

    @property
    def best(self) -> int:
        """Index of the most probable label."""
        return int(self.probabilities.argmax())


@dataclass(frozen=True, kw_only=True)
class Photo:
    """The results of one file.

    Attributes:
        name: its path as given or found.
        faces: by number.
        refused: faces, or the whole photo, that were not classified; reasons as in rejects.parquet.
        read: whether the file could be decoded.
    """

    name: str
    faces: tuple[Face, ...]
    refused: tuple[Reject, ...]
    read: bool


class Classifier:
    """A model for inference with the description in its weights file.

    Args:
        path: a weights file of this project, or the folder of a run with one.

    Raises:
        FileError: missing, damaged, published weights that were not imported, or weights without a classifier.
    """

    def __init__(self, path: Path) -> None:
        self.path = weights_file(path)
        model, self.info = load_model(self.path)
        if not self.info.labels:
            raise FileError(f"{self.path}: weights without a classifier, for pretraining only")
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
        x = normalize(images_BHWC, self._model.mean, self._model.std, memory_format=torch.channels_last)
        logits: torch.Tensor = self._model(x).float()
        return logits


def weights_file(path: Path) -> Path:
    """The weights file of a path: the file itself, or the one in a run's folder; see `Classifier`."""
    file = path / WEIGHTS_NAME if path.is_dir() else path
    if file.is_file() and file.suffix != ".safetensors":
        raise FileError(
            f"{file}: not weights of this project (.safetensors); `fer weights import` converts published ones"
        )
    return file


def _three_channels(pixels: Levels) -> Levels:
    return np.repeat(pixels[:, :, None], 3, axis=2) if pixels.ndim == 2 else pixels


# ------------------------------------------------------------------------------------------------ configuration


def crop_config(
    info: WeightsInfo, detector: str | None, *, default: str = "retinaface", where: str = "the weights' own description"
) -> CropConfig:
    """The crop configuration for a model: that of its training data, but with all faces.

    Args:
        info: of its weights file.
        detector: "retinaface" or "yunet"; None is the one of the training data, or `default` where that was none.
        where: the weights file, for errors.

    Raises:
        ConfigError: the file has keys or values that this version does not know.
    """
    trained: Mapping[str, Any] = info.extra.get("crop") or {}
    if not trained:
        log.warning(
            "the weights do not say how the faces of their training data were cropped; using the defaults: %s",
            ", ".join(f"{key} {getattr(CropConfig(), key)}" for key in ("align", "size", "border")),
        )
    known = {key: value for key, value in trained.items() if key in CropConfig.model_fields}
    own = known.get("detector") in ("retinaface", "yunet")
    chosen = detector or (known["detector"] if own else default)
    if chosen != known.get("detector"):
        # Scores and sides of one detector do not apply to another.
        known |= {"min_score": None, "detector_side": None}
        if own:
            log.warning(
                "the faces of the model's training data were detected by %s, not by %s", known["detector"], chosen
            )
    values = {**known, "detector": chosen, "detector_weights": None, "faces": "all"}
    return parse(CropConfig, values, where, "crop")


# ------------------------------------------------------------------------------------------------ photos


def find_photos(paths: Iterable[Path]) -> Iterator[Path]:
    """Files as given, and every file below given folders with the ending of an image.

    Sorted within a folder; hidden files and folders are skipped, links to folders are not followed.
    """
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        for folder, inside, names in os.walk(path):
            inside[:] = sorted(name for name in inside if not name.startswith("."))
            for name in sorted(names):
                if name.lower().endswith(IMAGE_ENDINGS) and not name.startswith("."):
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
    """The results of every photo, in the order given.

    Args:
        photos: names, each with its file or the file's bytes.
        config: see `crop_config`.
        finder: of faces; None takes each photo as one face that is cropped already.
        batch: faces of one forward pass, across photos; changes speed only.
        threads: for decoding.
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
    """A photo as a sample of a dataset with one label for all faces; the label's value is not used."""
    try:
        data = photo if isinstance(photo, bytes) else read_bytes(photo)
    except ImageError as error:
        return Unreadable(sample_id=name, reason=error.reason, detail=str(error), origin=name)
    face = AnnotatedFace(box=None, landmarks=None, label=0, clean_label=0)
    return RawSample(key=name, image=data, split="test", faces=(face,), is_crop=is_crop, origin=name)
