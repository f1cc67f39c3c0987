"""Predictions for people and programs: one line per face, JSON, CSV, and photos with drawn boxes."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

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
    for number, face in enumerate(result.faces, 1):
        box = ",".join(f"{value:.0f}" for value in face.box or ())
        yield f"{result.name}  face {number}  box {box}  {face.label} {face.probabilities[face.label]:.3f}"
    if not result.faces:
        yield f"{result.name}  {'; '.join(_why(result))}"


def _why(result: Result) -> list[str]:
    if not result.read:
        return [f"not read: {one.detail}" for one in result.refused]
    return [
        f"no face: {one.detail}" + ("" if one.reason == "no_face" else f" ({one.reason})") for one in result.refused
    ]


def as_csv(results: Sequence[Result], labels: Sequence[str], *, synthetic: bool = False) -> str:
    """A table with a row for each face, and one for each photo without a face, with the reasons in `refused`.

    Args:
        synthetic: whether the model was trained on synthetic faces, for the last column.
    """
    text = io.StringIO()
    of_face = ["face", "x1", "y1", "x2", "y2", "score", "label", "confidence", *(f"p_{label}" for label in labels)]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", *of_face, "refused", "trained_on_synthetic"])
    last = str(synthetic).lower()
    for result in results:
        for number, face in enumerate(result.faces, 1):
            found = face.to_dict()
            probabilities = list(found["probabilities"].values())
            row = [number, *found["box"], "" if face.score is None else face.score, face.label, max(probabilities)]
            writer.writerow([result.name, *row, *probabilities, "", last])
        if not result.faces:
            writer.writerow([result.name, *[""] * len(of_face), " ".join(one.reason for one in result.refused), last])
    return text.getvalue()


def annotated(image: Pixels, faces: Sequence[Face], note: str = "") -> Pixels:
    """A copy of an upright photo, (H, W, 3) RGB, with each face's box, number and label, and a note in a band below."""
    drawn = image.copy()
    unit = max(1, round(max(image.shape[:2]) / 500))  # px of a thin line
    size = 0.45 * unit
    for number, face in enumerate(faces, 1):
        assert face.box is not None
        x1, y1, x2, y2 = (round(value) for value in face.box)
        text = f"{number} {face.label} {face.probabilities[face.label]:.2f}"
        (width, height), base = cv2.getTextSize(text, _FONT, size, unit)
        left = max(0, min(x1, image.shape[1] - width))
        bottom = y1 if y1 - height - base >= 0 else min(image.shape[0], y2 + height + base)
        cv2.rectangle(drawn, (x1, y1), (x2, y2), _PAPER, unit)
        cv2.rectangle(drawn, (left, bottom - height - base), (left + width, bottom), _PAPER, cv2.FILLED)
        cv2.putText(drawn, text, (left, bottom - base // 2), _FONT, size, _INK, unit, cv2.LINE_AA)
    if not note:
        return drawn
    (width, height), base = cv2.getTextSize(note, _FONT, size, unit)
    rows = textwrap.wrap(note, max(1, int(0.9 * len(note) * image.shape[1] / width)))  # letters differ in width
    band = np.full((len(rows) * (height + base) + base, image.shape[1], 3), _PAPER, np.uint8)
    for number, row in enumerate(rows, 1):
        cv2.putText(band, row, (unit, number * (height + base)), _FONT, size, _INK, unit, cv2.LINE_AA)
    return np.concatenate([drawn, band])


def write_jpeg(path: Path, image: Pixels) -> None:
    """Writes (H, W, 3) RGB, without the photo's metadata of place, time and camera."""
    done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    assert done
    write_atomic(path, np.asarray(data, np.uint8).tobytes())
