"""A model whose logits differ from face to face, and drawn scenes whose faces a detector knows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from fer import synth
from fer.faces.config import CropConfig
from fer.faces.crop import Finder
from fer.faces.detection import Detection, Image
from fer.io.images import decode_image
from fer.labels import SPACES
from fer.models import create_model
from fer.weights.store import save_model

LABELS = SPACES["basic7"].labels
CROP = CropConfig(detector="yunet", size=96, border="replicate", jpeg_quality=90)


class Scenes(NamedTuple):
    """A folder of synthetic scenes, a finder of their faces, and the number of these."""

    folder: Path
    finder: Finder
    count: int


class Knowing:
    """A detector that knows the faces of each image."""

    def __init__(self, known: dict[str, list[Detection]]) -> None:
        self._known = known

    def detect(self, images: Sequence[Image]) -> list[list[Detection]]:
        return [self._known.get(key_of(image), []) for image in images]


def key_of(image: Image) -> str:
    color = image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)
    return hashlib.sha256(np.ascontiguousarray(color)).hexdigest()


def save_weights(folder: Path) -> Path:
    """Fills the folder of a run: random weights whose logits differ from face to face."""
    torch.manual_seed(0)
    model = create_model("ddamfn_nano", len(LABELS))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    last = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
    torch.nn.init.normal_(last.weight, std=20.0)
    extra = {"dataset": "scenes", "crop": CROP.model_dump(exclude={"detector_weights"}) | {"detector_sha256": "0" * 64}}
    save_model(model, folder / "model.safetensors", LABELS, "basic7", extra, name="ddamfn_nano")
    return folder


def draw_scenes(folder: Path) -> Scenes:
    """Fills a folder with twelve scenes."""
    known: dict[str, list[Detection]] = {}
    for index in range(12):
        scene = synth.render(3, index)
        data = synth.encode(scene)
        (folder / f"{index:02d}.jpg").write_bytes(data)
        known[key_of(decode_image(data))] = [
            Detection(box=face.box, landmarks=face.landmarks, score=0.9 - 0.1 * number)
            for number, face in enumerate(scene.faces)
        ]
    finder = Finder(detector=Knowing(known), min_score=0.5)
    return Scenes(folder, finder, sum(map(len, known.values())))
