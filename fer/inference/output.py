"""Predictions for people and programs: one line per face, JSON, CSV, and photos with drawn boxes."""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fer.inference.model import Face, Result
from fer.io.files import write_atomic
from fer.shards.pixels import Pixels

SYNTHETIC = "trained on synthetic faces: says nothing about people"

_INK, _PAPER = (255, 255, 255), (200, 40, 60)
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_JPEG_QUALITY = 92


def lines(result: Result) -> Iterator[str]:
    """One for each face: the file, the face's number, its box, its label and the label's probability."""
    place = "" if result.seconds is None else f" {result.seconds:.2f} s"
    for number, face in enumerate(result.faces, 1):
        box = ",".join(f"{value:.0f}" for value in face.box or ())
        found = f"{face.label} {face.probabilities[face.label]:.3f}"
        yield f"{result.name}{place}  face {face.track or number}  box {box}  {found}"
    if not result.faces:
        yield f"{result.name}  {'; '.join(reasons(result))}"


def reasons(result: Result) -> list[str]:
    """Why an image has no face that was classified."""
    if not result.read:
        return [f"not read: {one.detail}" for one in result.refused]
    return [
        f"no face: {one.detail}" + ("" if one.reason == "no_face" else f" ({one.reason})") for one in result.refused
    ]


def columns_of(labels: Sequence[str]) -> dict[str, type]:
    """The columns of a table of faces."""
    face = {"face": int, **dict.fromkeys(("x1", "y1", "x2", "y2", "score"), float), "label": str, "confidence": float}
    last = {"refused": str, "trained_on_synthetic": bool, "frame": int, "seconds": float, "track": int}
    return {"file": str, **face, **{f"p_{label}": float for label in labels}, **last}


def rows_of(results: Iterable[Result], *, synthetic: bool = False) -> Iterator[dict[str, Any]]:
    """A row for each face, and one for each image without a face, with the reasons in `refused`; see `columns_of`.

    Args:
        synthetic: whether the model was trained on synthetic faces.
    """
    for result in results:
        image = {"file": result.name, "frame": result.frame, "seconds": result.seconds}
        image["trained_on_synthetic"] = synthetic
        for number, face in enumerate(result.faces, 1):
            probabilities = face.to_dict()["probabilities"]
            row = {"face": number, "score": face.score, "label": face.label, "track": face.track}
            row |= dict(zip(("x1", "y1", "x2", "y2"), face.box or (), strict=True))
            row |= {f"p_{label}": value for label, value in probabilities.items()}
            yield image | row | {"confidence": max(probabilities.values())}
        if not result.faces:
            yield image | {"refused": " ".join(one.reason for one in result.refused)}


def is_table(kind: str, path: Path) -> bool:
    """Whether a file holds predictions of that kind ("json", "csv" or "parquet"), which may be written again."""
    first = list(columns_of(()))[:6]
    try:
        if kind == "json":
            content = json.loads(path.read_bytes())
            return isinstance(content, dict) and {"photos", "weights_sha256"} <= content.keys()
        if kind == "csv":
            with path.open(encoding="utf-8", newline="") as file:
                return next(csv.reader(file), [])[:6] == first
        from fer.shards.table import TableReader

        return TableReader(path).columns[:6] == first
    except (ValueError, OSError):  # JSON, UTF-8 and Parquet of others
        return False


def as_csv(rows: Iterable[Mapping[str, Any]], labels: Sequence[str]) -> str:
    """Rows as text."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns_of(labels)), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: str(value).lower() if isinstance(value, bool) else value for key, value in row.items()}
                     for row in rows)  # fmt: skip
    return text.getvalue()


def annotated(image: Pixels, faces: Sequence[Face], note: str = "") -> Pixels:
    """A copy of an upright photo, (H, W, 3) RGB, with each face's box, number and label, and a note in a band below."""
    drawn = image.copy()
    side = max(image.shape[:2])
    unit, size = max(1, round(side / 700)), max(0.45, side / 2000)  # px of a thin line; scale of the font
    texts = [f"{face.track or number} {face.label} {face.probabilities[face.label]:.2f}" for number, face in
             enumerate(faces, 1)]  # fmt: skip
    sizes = [cv2.getTextSize(text, _FONT, size, unit) for text in texts]
    boxes = [tuple(round(value) for value in face.box or (0.0,) * 4) for face in faces]
    places = place_labels(boxes, [(width, height + base) for (width, height), base in sizes], image.shape[:2])
    for box, (left, top) in zip(boxes, places, strict=True):  # before the labels, which are not to be crossed
        cv2.rectangle(drawn, box[:2], box[2:], _PAPER, unit)
        cv2.line(drawn, (max(0, box[0]), max(0, min(max(box[1], top), box[3]))), (left, top), _PAPER, unit)
    for text, ((width, height), base), (left, top) in zip(texts, sizes, places, strict=True):
        cv2.rectangle(drawn, (left, top), (left + width - 1, top + height + base - 1), _PAPER, cv2.FILLED)
        cv2.putText(drawn, text, (left, top + height + base // 2), _FONT, size, _INK, unit, cv2.LINE_AA)
    if not note:
        return drawn
    (width, height), base = cv2.getTextSize(note, _FONT, size, unit)
    rows = textwrap.wrap(note, max(1, int(0.9 * len(note) * image.shape[1] / width)))  # letters differ in width
    band = np.full((len(rows) * (height + base) + base, image.shape[1], 3), _PAPER, np.uint8)
    for number, row in enumerate(rows, 1):
        cv2.putText(band, row, (unit, number * (height + base)), _FONT, size, _INK, unit, cv2.LINE_AA)
    return np.concatenate([drawn, band])


def place_labels(
    boxes: Sequence[tuple[int, ...]], sizes: Sequence[tuple[int, int]], shape: tuple[int, int]
) -> list[tuple[int, int]]:
    """Left and top of each face's label in px, none on another as long as there is room.

    A label stands above its box, else below it, else as near to one of these as is free.

    Args:
        boxes: x1, y1, x2, y2. sizes: width and height of the labels. shape: height and width of the image.
    """
    placed: list[tuple[int, int, int, int]] = []
    for (x1, y1, _, y2), (width, height) in zip(boxes, sizes, strict=True):
        left, lowest = max(0, min(x1, shape[1] - width)), max(0, shape[0] - height)
        aside = {max(0, min(left + step * width // 4, shape[1] - width)) for step in range(-8, 9)}
        tops = [top for step in range(2 * shape[0] // max(1, height) + 1)
                for top in (y1 - height - step * height // 2, y2 + step * height // 2)]  # fmt: skip
        places = [(x, y, x + width, y + height) for y in tops if 0 <= y <= lowest for x in sorted(aside)]
        places.sort(key=lambda one: abs(one[0] - left) + min(abs(one[3] - y1), abs(one[1] - y2)))
        free = (one for one in places if not any(_meet(one, other) for other in placed))
        y = max(0, min(y1 - height, lowest))
        placed.append(next(free, (left, y, left + width, y + height)))
    return [(left, top) for left, top, _, _ in placed]


def _meet(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def write_jpeg(path: Path, image: Pixels) -> None:
    """Writes (H, W, 3) RGB, without the photo's metadata of place, time and camera."""
    done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    assert done
    write_atomic(path, np.asarray(data, np.uint8).tobytes())
