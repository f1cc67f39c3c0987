"""The faces behind the cells of a confusion matrix: the most confident mistakes, as small images in the page."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import cv2
import numpy as np
import numpy.typing as npt

from fer.evaluation.predicted import Predicted, Rows, mistakes_by_cell
from fer.explain.sheet import overlay
from fer.io.files import FileError, read_object
from fer.shards.read import ShardSet

MOST_BYTES = 10 * 2**20
"""Of all images, as they stand in the page: with the rest of it, five models stay below 15 MB."""
_SIDE = 72  # px, the longer side of an image
_QUALITY = 70  # of JPEG

Heat = npt.NDArray[np.float32]
Cells = dict[tuple[int, int], list[dict[str, Any]]]


@dataclass(kw_only=True)
class Gallery:
    """All faces of the page.

    Attributes:
        images: data URI -> number, each once, in order.
        cells: by dataset and model, then by actual and predicted label: the faces, most confident first. Each has
            sample_id; confidence, of the wrong class, 0 .. 1; image, its number; cam, that of its Grad-CAM, or None.
        problems: why faces of a dataset cannot be shown.
    """

    images: dict[str, int] = field(default_factory=dict)
    cells: dict[tuple[str, str], Cells] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def content(self) -> dict[str, Any]:
        """As the page's script reads it, with names of results and cells that can stand in an attribute."""
        cells = {
            f"{dataset}-{model}": {f"{actual}-{predicted}": faces for (actual, predicted), faces in found.items()}
            for (dataset, model), found in self.cells.items()
        }
        return {"images": list(self.images), "cells": cells}

    def add(
        self, one: Predicted, order: Rows, images: Mapping[str, bytes], maps: Mapping[str, Heat], most: int
    ) -> Cells:
        """Faces of one result in their order, until they have `most` bytes."""
        cells: Cells = {}
        for row in order.tolist():
            sample = one.sample_ids[row]
            if sample not in images:
                continue
            uris = [_uri(images[sample])]
            if sample in maps:
                uris.append(_uri(with_map(images[sample], maps[sample])))
            most -= sum(map(len, uris))
            if most < 0:
                break
            numbers = [self.images.setdefault(uri, len(self.images)) for uri in uris]
            face = {"sample_id": sample, "confidence": round(float(one.confidence[row]), 4)}
            face |= {"image": numbers[0], "cam": numbers[1] if len(numbers) > 1 else None}
            cells.setdefault((int(one.labels[row]), int(one.predicted[row])), []).append(face)
        return cells


def collect_gallery(
    root: Path,
    results: Mapping[tuple[str, str], Predicted],
    weights: Mapping[tuple[str, str], str | None],
    per_cell: int,
) -> Gallery:
    """The faces of all results, each with an equal part of `MOST_BYTES`.

    Args:
        root: the project's folder.
        results: predictions by dataset and model, of the shards as they are now. weights: sha256 of the weights.
        per_cell: most faces of a cell, beside those with a Grad-CAM; 0 shows none.
    """
    gallery = Gallery()
    for dataset in dict.fromkeys(dataset for dataset, _ in results) if per_cell else ():
        own = {model: one for (key, model), one in results.items() if key == dataset}
        try:
            maps = {model: heat_maps(root, dataset, model, weights.get((dataset, model))) for model in own}
            orders = {model: mistakes_by_cell(one, per_cell, maps[model]) for model, one in own.items()}
            required = {own[model].sample_ids[row] for model, order in orders.items() for row in order}
            images = _thumbnails(root / "data" / "shards" / dataset, required)
        except ValueError as error:
            gallery.problems.append(str(error).replace(f"{root}/", ""))
            continue
        for model, one in own.items():
            part = MOST_BYTES // len(results)
            gallery.cells[dataset, model] = gallery.add(one, orders[model], images, maps[model], part)
    return gallery


def heat_maps(root: Path, dataset: str, model: str, weights: str | None) -> Mapping[str, Heat]:
    """The Grad-CAMs that the stage `explain` left for test faces, by sample_id; empty without any of these weights.

    Raises:
        FileError: its files are damaged.
    """
    folder = root / "explained" / dataset / model
    if not (folder / "explain.json").is_file():
        return {}
    remedy = f"make it again: dvc repro -sf explain@{dataset}-{model}"
    about = read_object(folder / "explain.json", {"faces": list, "weights_sha256": str}, remedy)
    if about["weights_sha256"] != weights:
        return {}
    try:
        with np.load(folder / "maps.npz") as found:
            maps = {
                face["sample_id"]: heat for face, heat in zip(about["faces"], found.get("grad_cam", ()), strict=False)
            }
            mistakes = zip(about.get("mistakes", ()), found.get("mistakes", ()), strict=True)
            return maps | {sample: heat.astype(np.float32) / 255 for sample, heat in mistakes}
    except (OSError, ValueError, KeyError, TypeError, BadZipFile) as error:
        raise FileError(f"{folder / 'maps.npz'}: not what the explain stage writes ({error}); {remedy}") from None


def _thumbnails(folder: Path, required: set[str]) -> dict[str, bytes]:
    """Small JPEGs of some rows of the test split, by sample_id; ShardError where the shards cannot be read."""
    split = ShardSet.open(folder, verify=False).split("test")
    samples = {row: sample for row, sample in enumerate(split.sample_ids()) if sample in required}
    small = {samples[row]: thumbnail(image.tobytes()) for row, image in split.images_at(samples).items()}
    return {sample: jpeg for sample, jpeg in small.items() if jpeg is not None}


def thumbnail(data: bytes) -> bytes | None:
    """An encoded image as a JPEG of at most 72 px, gray if it is; None where it cannot be decoded."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        return None
    scale = _SIDE / max(image.shape[:2])
    if scale < 1:
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return _jpeg(image)


def with_map(jpeg: bytes, heat: Heat) -> bytes:
    """A thumbnail with a map (h, w) over it."""
    decoded = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert decoded is not None  # `thumbnail` wrote it
    return _jpeg(cv2.cvtColor(overlay(decoded.astype(np.uint8), heat), cv2.COLOR_RGB2BGR))


def _jpeg(image: npt.NDArray[Any]) -> bytes:
    return bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes())


def _uri(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
