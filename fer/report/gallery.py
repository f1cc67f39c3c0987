"""The faces behind the cells of a confusion matrix: the most confident mistakes, as small images in the page."""

from __future__ import annotations

import base64
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import cv2
import numpy as np
import numpy.typing as npt

from fer.io.files import FileError, read_object
from fer.report.rows import Rows
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
        self, rows: Rows, order: Sequence[int], images: Mapping[str, bytes], maps: Mapping[str, Heat], most: int
    ) -> Cells:
        """Faces of one result in their order, until they have `most` bytes."""
        cells: Cells = {}
        for row in order:
            sample = rows.ids[row]
            if sample not in images:
                continue
            uris = [_uri(images[sample])]
            if sample in maps:
                uris.append(_uri(overlay(images[sample], maps[sample])))
            most -= sum(map(len, uris))
            if most < 0:
                break
            numbers = [self.images.setdefault(uri, len(self.images)) for uri in uris]
            face = {"sample_id": sample, "confidence": round(float(rows.confidence[row]), 4)}
            face |= {"image": numbers[0], "cam": numbers[1] if len(numbers) > 1 else None}
            cells.setdefault((int(rows.labels[row]), int(rows.predicted[row])), []).append(face)
        return cells


def collect_gallery(
    root: Path, results: Mapping[tuple[str, str], Rows], weights: Mapping[tuple[str, str], str | None], per_cell: int
) -> Gallery:
    """The faces of all results, each with an equal part of `MOST_BYTES`.

    Args:
        root: the project's folder.
        results: predictions by dataset and model, of the shards as they are now. weights: sha256 of the weights.
        per_cell: most faces of a cell, beside those with a Grad-CAM; 0 shows none.
    """
    gallery = Gallery()
    for dataset in dict.fromkeys(dataset for dataset, _ in results) if per_cell else ():
        own = {model: rows for (key, model), rows in results.items() if key == dataset}
        try:
            maps = {model: heat_maps(root, dataset, model, weights.get((dataset, model))) for model in own}
            orders = {model: most_confident_mistakes(rows, per_cell, maps[model]) for model, rows in own.items()}
            required = {own[model].ids[row] for model, order in orders.items() for row in order}
            images = _thumbnails(root / "data" / "shards" / dataset, required)
        except ValueError as error:
            gallery.problems.append(str(error).replace(f"{root}/", ""))
            continue
        for model, rows in own.items():
            part = MOST_BYTES // len(results)
            gallery.cells[dataset, model] = gallery.add(rows, orders[model], images, maps[model], part)
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


def most_confident_mistakes(rows: Rows, per_cell: int, also: Container[str] = ()) -> list[int]:
    """Numbers of rows: the most confident mistake of every cell, then the second of every cell, and so on.

    Args:
        also: ids of rows that are kept beside the first `per_cell` of their cell.
    """
    ranked: list[tuple[int, float, int]] = []
    counts: dict[tuple[int, int], int] = {}
    wrong = np.flatnonzero(~rows.correct)
    for row in wrong[np.argsort(-rows.confidence[wrong], kind="stable")].tolist():
        cell = int(rows.labels[row]), int(rows.predicted[row])
        counts[cell] = counts.get(cell, 0) + 1
        if counts[cell] <= per_cell or rows.ids[row] in also:
            ranked.append((counts[cell], -float(rows.confidence[row]), row))
    return [row for _, _, row in sorted(ranked)]


def _thumbnails(folder: Path, required: set[str]) -> dict[str, bytes]:
    """Small JPEGs of some rows of the test split, by sample_id; ShardError where the shards cannot be read."""
    split = ShardSet.open(folder, verify=False).split("test")
    places: dict[int, list[tuple[str, int]]] = {}
    for row, sample in enumerate(split.sample_ids()):
        if sample in required:
            group, offset = split.place(row)
            places.setdefault(group, []).append((sample, offset))
    return {
        sample: small
        for group, members in places.items()
        for images in [split.images(group)]
        for sample, offset in members
        if (small := thumbnail(images[offset].tobytes())) is not None
    }


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


def overlay(jpeg: bytes, heat: Heat) -> bytes:
    """A thumbnail in color the more, the higher the map (h, w) from 0 to 1; where it is 0 unchanged."""
    decoded = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None  # `thumbnail` wrote it
    image = decoded.astype(np.float32)
    heat = cv2.resize(heat, image.shape[1::-1], interpolation=cv2.INTER_LINEAR).clip(0, 1)
    colors = cv2.applyColorMap((255 * heat).astype(np.uint8), cv2.COLORMAP_TURBO)
    return _jpeg(image + 0.6 * heat[..., None] * (colors - image))


def _jpeg(image: npt.NDArray[Any]) -> bytes:
    return bytes(cv2.imencode(".jpg", image.astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes())


def _uri(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
