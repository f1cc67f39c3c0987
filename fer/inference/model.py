"""Faces in photos, detected, cropped and classified by the code that processed the training data.

    photo ─decode─▶ detect ─▶ align, crop ─JPEG─▶ decode ─▶ resize, normalize ─▶ model ─▶ one `Face` each

Everything up to the stored crop is `fer.faces.crop.crop_samples`, the crop stage itself; everything behind it is that
of the shards' reader. The crop is encoded and decoded as there, because the model has seen no other crops: a dataset's
own images get the logits of `evaluate`. Photos are read in place; nothing leaves the machine, and nothing is written
here but the detector's weights, fetched once.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast, get_args, overload

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fer.config import nearest, parse
from fer.console import log
from fer.evaluation.metrics import log_softmax
from fer.explain.cam import attribute
from fer.explain.config import Method
from fer.explain.sheet import overlay
from fer.faces.config import CropConfig
from fer.faces.crop import FaceCrop, Finder, Unreadable, crop_samples, finder
from fer.faces.weights import PUBLISHED, locate
from fer.inference.photos import ImageLike, is_image, name_of, pixels, sample
from fer.io.files import FileError, read_json
from fer.models.inference import for_inference
from fer.shards.pixels import ModelInput, decode, normalize, rgb_levels
from fer.sources.base import Reject
from fer.weights import registry
from fer.weights.store import WEIGHTS_NAME, WeightsInfo, load_model

Tta = Literal["none", "flip"]
DetectorOption = Literal["retinaface", "yunet", "whole"]

DETECTOR: DetectorOption = "yunet"
"""Where the faces of the training data were not found by a detector."""


@dataclass(frozen=True, kw_only=True)
class Face:
    """A face, and what the model makes of it.

    Attributes:
        box: x1, y1, x2, y2 in px of the upright photo, half-open; it may reach beyond the photo. None for a given crop.
        score: the detector's, 0 .. 1; None where the whole photo is the face.
        label: of the highest probability.
        probabilities: by label, in the order of the weights, summing to 1.
        logits: by label.
        track: number of the person in a video; `probabilities` and `label` are then smoothed over time.
    """

    box: tuple[float, float, float, float] | None
    score: float | None
    label: str
    probabilities: dict[str, float]
    logits: dict[str, float]
    track: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON; probabilities are rounded to six digits."""
        return {
            "box": None if self.box is None else list(self.box),
            "score": self.score,
            "label": self.label,
            "probabilities": {label: round(value, 6) for label, value in self.probabilities.items()},
            "logits": dict(self.logits),
            **({} if self.track is None else {"track": self.track}),
        }


@dataclass(frozen=True, kw_only=True)
class Result:
    """The faces of one image.

    Attributes:
        name: the image's path or URL, or its number in the list that was given.
        faces: the highest score first.
        refused: faces, or the whole image, that were not classified; reasons as in rejects.parquet.
        read: whether the image could be decoded.
        frame, seconds: place in a video, from 0; None of a photo.
    """

    name: str
    faces: tuple[Face, ...]
    refused: tuple[Reject, ...]
    read: bool
    frame: int | None = None
    seconds: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON; faces are numbered from 1."""
        return {
            "file": self.name,
            **({} if self.frame is None else {"frame": self.frame, "seconds": self.seconds}),
            "read": self.read,
            "faces": [{"face": number, **face.to_dict()} for number, face in enumerate(self.faces, 1)],
            "refused": [{"reason": one.reason, "detail": one.detail} for one in self.refused],
        }


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Where in a face the evidence for a label lies.

    Attributes:
        face: the face explained.
        target: the label that the map speaks for.
        crop: uint8 (H, W, 3) RGB, the aligned face.
        map: float32 (size, size), from 0 to 1, over the whole crop.
        method, layer: how, and of which layer of the network.
    """

    face: Face
    target: str
    crop: npt.NDArray[np.uint8]
    map: npt.NDArray[np.float32]
    method: Method
    layer: str

    def overlay(self) -> npt.NDArray[np.uint8]:
        """The crop (H, W, 3), in color the more, the higher the map."""
        return overlay(self.crop, self.map)


class Model:
    """A trained model on photos; `fer.load` finds one.

    Args:
        path: a weights file of this project, or the folder of a run with one.
        detector: "retinaface" or "yunet"; "whole" takes each photo as one face, cropped like the training data. None:
            the detector of the training data, or YuNet where that was none.
        detector_weights: its file, or a folder with it; None: the cache, into which it is fetched at the first need.
        threads: of torch and OpenCV in this whole process; None leaves them as they are.
        tta: "flip" averages the logits of a face and its mirror image.

    Attributes:
        path: of the weights file.
        network: the model in evaluation mode, for gradients and hooks.
        info: the description in its weights file.

    Raises:
        FileError: missing, damaged, published weights that were not imported, or weights without a classifier.
        ValueError: an unknown detector or kind of `tta`.
    """

    def __init__(
        self,
        path: Path,
        *,
        detector: str | None = None,
        detector_weights: str | os.PathLike[str] | None = None,
        threads: int | None = None,
        tta: Tta = "none",
    ) -> None:
        for key, value, kind in (("detector", detector or DETECTOR, DetectorOption), ("tta", tta, Tta)):
            if value not in (known := get_args(kind)):
                raise ValueError(f"{key} = {value!r}{nearest(str(value), known)}; known: {', '.join(known)}")
        self.path = weights_file(path)
        self.network, self.info = load_model(self.path)
        if not self.info.labels:
            raise FileError(f"{self.path}: weights without a classifier, for pretraining only")
        self._folded = for_inference(self.network)
        self._input = ModelInput.of(self.network)
        self._input.check()
        self._detector, self._detector_weights, self._tta = detector, detector_weights, tta
        self._threads = threads or 1
        if threads is not None:
            torch.set_num_threads(threads)
            cv2.setNumThreads(threads)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits."""
        return self.info.labels

    @cached_property
    def card(self) -> dict[str, Any]:
        """The model card: card.json beside the weights, else what their maker recorded in the file."""
        path = self.path.with_name("card.json")
        return dict(read_json(path)) if path.is_file() else dict(self.info.extra)

    # -------------------------------------------------------------------------------------------- photos

    @overload  # a string is an iterable of strings, too
    def predict(self, images: ImageLike, *, batch: int = ...) -> Result: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, images: Iterable[ImageLike], *, batch: int = ...) -> list[Result]: ...
    def predict(self, images: ImageLike | Iterable[ImageLike], *, batch: int = 32) -> Result | list[Result]:
        """The expressions of all faces of an image, or of each image of a list.

        Args:
            images: path, http(s) URL, bytes of a file, RGB uint8 array (H, W, 3), or an image of Pillow's; or several.
            batch: faces of one forward pass, across images; changes speed only.

        Returns:
            the result of one image, or a list of them in the order given. A file that cannot be read is no exception:
            its reason stands in `refused`.

        Raises:
            ValueError: an array that is not uint8 RGB or gray; TypeError: something that is no image.
            FileError: the detector's weights are not there and cannot be fetched.
        """
        given = [images] if is_image(images) else cast(Iterable[ImageLike], images)
        found = list(self.results(((name_of(one, number), one) for number, one in enumerate(given, 1)), batch=batch))
        return found[0] if is_image(images) else found

    def results(self, images: Iterable[tuple[str, ImageLike]], *, batch: int = 32) -> Iterator[Result]:
        """As `predict`, one after the other, of named images; at most `batch` of them and a few more are in memory."""
        config, search = self.detection
        samples = (sample(image, name, is_crop=search is None) for name, image in images)
        waiting: list[list[FaceCrop | Reject]] = []
        for found in crop_samples(samples, config, search, threads=self._threads):
            waiting.append(found)
            if len(waiting) >= batch or sum(map(len, waiting)) >= batch:
                yield from self._finish(waiting, batch)
                waiting = []
        yield from self._finish(waiting, batch)

    @cached_property
    def detection(self) -> tuple[CropConfig, Finder | None]:
        """How faces are cropped, and their detector, which is fetched where it is not there."""
        if self._detector == "whole":
            return CropConfig(), None
        config = crop_config(self.info, self._detector, where=str(self.path))
        return config, finder(config, str(detector_file(config.detector, self._detector_weights)))

    def _finish(self, found: Sequence[Sequence[FaceCrop | Reject]], batch: int) -> Iterator[Result]:
        crops = [decode(np.frombuffer(one.image, np.uint8)) for f in found for one in f if isinstance(one, FaceCrop)]
        logits = iter(self.logits(crops, batch=batch))
        for results in found:
            faces = [one.face for one in results if isinstance(one, FaceCrop)]
            yield Result(
                name=results[0].origin,
                faces=tuple(self._face(next(logits), face.box, face.score) for face in faces),
                refused=tuple(one for one in results if isinstance(one, Reject)),
                read=not any(isinstance(one, Unreadable) for one in results),
            )

    # -------------------------------------------------------------------------------------------- crops

    def predict_faces(self, crops: Sequence[ImageLike], *, batch: int = 32) -> list[Face]:
        """The expressions of faces that are cropped and aligned already, as in the training data.

        Raises:
            ImageError: a file that cannot be read; else as `predict`.
        """
        return [self._face(row, None, None) for row in self.logits(crops, batch=batch)]

    def explain(
        self, image: ImageLike, method: Method = "grad_cam", *, target: str | None = None, layer: str | None = None
    ) -> list[Explanation]:
        """Where in each face of an image the evidence lies, by a class activation map (`fer.explain.cam`).

        Args:
            image: as in `predict`.
            method: "grad_cam" or "score_cam".
            target: the label to explain; None: of each face the predicted one.
            layer: dotted name of a module of `network`; None: the network's default.

        Raises:
            ValueError: an unknown method, label or layer; else as `predict`.
        """
        config, search = self.detection
        named = sample(image, name_of(image, 1), is_crop=search is None)
        (found,) = crop_samples([named], config, search, threads=self._threads)
        cropped = [one for one in found if isinstance(one, FaceCrop)]
        crops = [decode(np.frombuffer(one.image, np.uint8)) for one in cropped]
        return [
            replace(one, face=replace(one.face, box=of.face.box, score=of.face.score))
            for one, of in zip(self.explain_faces(crops, method, target=target, layer=layer), cropped, strict=True)
        ]

    def explain_faces(
        self, crops: Sequence[ImageLike], method: Method = "grad_cam", *, target: str | None = None,
        layer: str | None = None,
    ) -> list[Explanation]:  # fmt: skip
        """`explain` of faces that are cropped and aligned already."""
        if target is not None and target not in self.labels:
            hint = nearest(target, self.labels)
            raise ValueError(f"target = {target!r}{hint}; the labels are {', '.join(self.labels)}")
        if not crops:
            return []
        images = [pixels(crop) for crop in crops]
        label = None if target is None else self.labels.index(target)
        maps = attribute(self.network, self.normalized(images), method, target=label, layer=layer)
        shown = [image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2) for image in images]
        return [
            Explanation(
                face=self._face(logits, None, None), target=self.labels[explained], crop=crop, map=heat,
                method=method, layer=maps.layer,
            )
            for crop, logits, explained, heat in zip(
                shown, self.logits(images), maps.target.tolist(), maps.maps.numpy(), strict=True
            )
        ]  # fmt: skip

    def logits(self, crops: Sequence[ImageLike], *, batch: int = 32) -> npt.NDArray[np.float32]:
        """float32 (n, classes) of crops; with `tta` "flip" the mean over each face and its mirror image."""
        parts = [np.empty((0, len(self.labels)), np.float32)]
        for first in range(0, len(crops), batch):
            x = self.normalized(crops[first : first + batch])
            with torch.inference_mode():
                logits = self._folded(x).float()
                if self._tta == "flip":
                    mirrored = x.flip(3).contiguous(memory_format=torch.channels_last)
                    logits = (logits + self._folded(mirrored).float()) / 2
            parts.append(logits.numpy())
        return np.concatenate(parts)

    def normalized(self, crops: Sequence[ImageLike]) -> Tensor:
        """The network's input of crops, float32 (B, 3, size, size): resized and normalized as the shards' reader does.

        Raises: as `predict_faces`.
        """
        levels = [rgb_levels(pixels(crop), self._input) for crop in crops]
        images_BHWC = torch.from_numpy(np.stack(levels))
        return normalize(images_BHWC, self.network.mean, self.network.std, memory_format=torch.channels_last)

    def _face(
        self, logits: npt.NDArray[np.float32], box: tuple[float, float, float, float] | None, score: float | None
    ) -> Face:
        probabilities = np.exp(log_softmax(logits[None])[0])
        return Face(
            box=box,
            score=score,
            label=self.labels[int(probabilities.argmax())],
            probabilities=dict(zip(self.labels, probabilities.tolist(), strict=True)),
            logits=dict(zip(self.labels, logits.tolist(), strict=True)),
        )


def weights_file(path: Path) -> Path:
    """The weights file of a path: the file itself, or the one in a run's folder; see `Model`."""
    file = path / WEIGHTS_NAME if path.is_dir() else path
    if file.is_file() and file.suffix != ".safetensors":
        raise FileError(
            f"{file}: not weights of this project (.safetensors); `fer weights import` converts published ones"
        )
    return file


# ------------------------------------------------------------------------------------------------ detection


def detector_file(name: str, given: str | os.PathLike[str] | None) -> Path:
    """The weights of a detector, checked by their sha256; fetched into the cache where none are given.

    Raises:
        FileError: missing and not to be fetched, or another file; it says what to do without a network.
    """
    if given is None:
        try:
            registry.pull(PUBLISHED[name])
        except FileError as error:
            raise FileError(
                f"detector {name}: {error}. Or name its file with --detector-weights (detector_weights=), another "
                "detector with --detector (detector=), or use the detector `whole` on images that are face crops"
            ) from None
    return locate(name, None if given is None else os.fspath(given), Path.cwd())


def crop_config(info: WeightsInfo, detector: str | None, *, where: str = "the weights' own description") -> CropConfig:
    """The crop configuration for a model: that of its training data, but with all faces.

    Args:
        info: of its weights file.
        detector: "retinaface" or "yunet"; None is the one of the training data, or `DETECTOR` where that was none.
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
    own = known.get("detector") in PUBLISHED
    chosen = detector or (known["detector"] if own else DETECTOR)
    if chosen != known.get("detector"):
        # Scores and sides of one detector do not apply to another.
        known |= {"min_score": None, "detector_side": None}
        if own:
            log.warning(
                "the faces of the model's training data were detected by %s, not by %s", known["detector"], chosen
            )
    values = {**known, "detector": chosen, "detector_weights": None, "faces": "all"}
    return parse(CropConfig, values, where, "crop")
