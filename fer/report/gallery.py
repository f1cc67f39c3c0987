"""The faces behind the cells of a confusion matrix: the most confident mistakes, as small images in the page."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fer.report.rows import Rows
from fer.shards.read import ShardSet

MOST_BYTES = 10 * 2**20
"""Of all images, as they stand in the page: with the rest of it, five models stay below 15 MB."""
_SIDE = 72  # px, the longer side of an image
_QUALITY = 70  # of JPEG

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
        self, rows: Rows, order: Iterator[int], images: Mapping[str, bytes], cams: Mapping[str, bytes], most: int
    ) -> Cells:
        """Faces of one result in their order, until they have `most` bytes."""
        cells: Cells = {}
        for row in order:
            sample = rows.ids[row]
            if sample not in images:
                continue
            uris = [_uri(found[sample]) for found in (images, cams) if sample in found]
            most -= sum(map(len, uris))
            if most < 0:
                break
            numbers = [self.images.setdefault(uri, len(self.images)) for uri in uris]
            face = {"sample_id": sample, "confidence": round(float(rows.confidence[row]), 4)}
            face |= {"image": numbers[0], "cam": numbers[1] if len(numbers) > 1 else None}
            cells.setdefault((int(rows.labels[row]), int(rows.predicted[row])), []).append(face)
        return cells


def collect_gallery(root: Path, results: Mapping[tuple[str, str], Rows], per_cell: int) -> Gallery:
    """The faces of all results, each with an equal part of `MOST_BYTES`.

    Args:
        root: the project's folder.
        results: predictions by dataset and model, of the shards as they are now.
        per_cell: most faces of a cell; 0 shows none.
    """
    gallery = Gallery()
    for dataset in dict.fromkeys(dataset for dataset, _ in results) if per_cell else ():
        own = {model: rows for (key, model), rows in results.items() if key == dataset}
        orders = {model: most_confident_mistakes(rows, per_cell) for model, rows in own.items()}
        wanted = {own[model].ids[row] for model, order in orders.items() for row in order}
        try:
            images = _thumbnails(root / "data" / "shards" / dataset, wanted)
        except ValueError as error:
            gallery.problems.append(str(error).replace(f"{root}/", ""))
            continue
        for model, rows in own.items():
            cams, part = overlays(root, dataset, model), MOST_BYTES // len(results)
            gallery.cells[dataset, model] = gallery.add(rows, iter(orders[model]), images, cams, part)
    return gallery


def overlays(root: Path, dataset: str, model: str) -> Mapping[str, bytes]:
    """Grad-CAMs that the stage `explain` left for faces of the test split: sample_id -> JPEG."""
    folder = root / "explained" / dataset / model
    return {path.stem: path.read_bytes() for path in sorted(folder.glob("*.jpg"))}


def most_confident_mistakes(rows: Rows, per_cell: int) -> list[int]:
    """Numbers of rows: the most confident mistake of every cell, then the second of every cell, and so on."""
    ranked: list[tuple[int, float, int]] = []
    counts: dict[tuple[int, int], int] = {}
    wrong = np.flatnonzero(~rows.correct)
    for row in wrong[np.argsort(-rows.confidence[wrong], kind="stable")].tolist():
        cell = int(rows.labels[row]), int(rows.predicted[row])
        counts[cell] = counts.get(cell, 0) + 1
        if counts[cell] <= per_cell:
            ranked.append((counts[cell], -float(rows.confidence[row]), row))
    return [row for _, _, row in sorted(ranked)]


def _thumbnails(folder: Path, wanted: set[str]) -> dict[str, bytes]:
    """Small JPEGs of some rows of the test split, by sample_id; ShardError where the shards cannot be read."""
    split = ShardSet.open(folder, verify=False).split("test")
    places: dict[int, list[tuple[str, int]]] = {}
    for row, sample in enumerate(split.sample_ids()):
        if sample in wanted:
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
    return bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes())


def _uri(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
