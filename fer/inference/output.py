"""What was found in photos, for people and programs: a line a face, JSON, csv, and the photos with boxes drawn in."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fer.inference.photos import Face, Photo
from fer.io.files import write_atomic
from fer.shards.pixels import Pixels

SYNTHETIC = "trained on synthetic faces: says nothing about people"

_INK, _PAPER = (255, 255, 255), (200, 40, 60)
_JPEG_QUALITY = 92


def lines(photo: Photo, labels: Sequence[str]) -> Iterator[str]:
    """One for each face: the file, the face's number, its box, the label and how sure the model is of it."""
    for face in photo.faces:
        best = int(face.probabilities.argmax())
        box = ",".join(f"{value:.0f}" for value in face.box)
        yield f"{photo.name}  face {face.number}  box {box}  {labels[best]} {face.probabilities[best]:.3f}"
    if not photo.faces:
        yield f"{photo.name}  {'; '.join(_why(photo))}"


def _why(photo: Photo) -> list[str]:
    if not photo.read:
        return [f"not read: {one.detail}" for one in photo.refused]
    return [f"no face: {one.detail}" + ("" if one.reason == "no_face" else f" ({one.reason})") for one in photo.refused]


def as_json(photo: Photo, labels: Sequence[str]) -> dict[str, Any]:
    """Everything that is known of a photo, as plain JSON."""
    return {
        "file": photo.name,
        "read": photo.read,
        "faces": [
            {
                "face": face.number,
                "box": list(face.box),
                "score": face.score,
                "label": labels[int(face.probabilities.argmax())],
                "probabilities": dict(zip(labels, map(_rounded, face.probabilities), strict=True)),
                "logits": dict(zip(labels, map(float, face.logits), strict=True)),
            }
            for face in photo.faces
        ],
        "refused": [{"reason": one.reason, "detail": one.detail} for one in photo.refused],
    }


def as_csv(photos: Sequence[Photo], labels: Sequence[str], *, synthetic: bool = False) -> str:
    """A table with a row for each face and for each photo without one; of the latter, `refused` says why.

    Args:
        synthetic: whether the model was trained on synthetic faces, for the last column.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["file", "face", "x1", "y1", "x2", "y2", "score", "label", "confidence"]
        + [f"p_{label}" for label in labels]
        + ["refused", "trained_on_synthetic"]
    )
    trained_on = str(synthetic).lower()
    for photo in photos:
        for face in photo.faces:
            shares = [_rounded(value) for value in face.probabilities]
            score = "" if face.score is None else face.score
            label = labels[int(face.probabilities.argmax())]
            writer.writerow([photo.name, face.number, *face.box, score, label, max(shares), *shares, "", trained_on])
        if not photo.faces:
            why = " ".join(one.reason for one in photo.refused)
            writer.writerow([photo.name] + [""] * (8 + len(labels)) + [why, trained_on])
    return text.getvalue()


def _rounded(value: float) -> float:
    return round(float(value), 6)


def annotated(image: Pixels, faces: Sequence[Face], labels: Sequence[str], note: str = "") -> Pixels:
    """A copy of an upright photo, (H, W, 3) RGB, with each face's box, number and label drawn in.

    Args:
        note: a text for a band below the photo.
    """
    drawn = image.copy()
    unit = max(1, round(max(image.shape[:2]) / 500))  # px of a thin line
    for face in faces:
        x1, y1, x2, y2 = (round(value) for value in face.box)
        best = int(face.probabilities.argmax())
        text = f"{face.number} {labels[best]} {face.probabilities[best]:.2f}"
        (width, height), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.45 * unit, unit)
        left = max(0, min(x1, image.shape[1] - width))
        bottom = y1 if y1 - height - base >= 0 else min(image.shape[0], y2 + height + base)
        cv2.rectangle(drawn, (x1, y1), (x2, y2), _PAPER, unit)
        cv2.rectangle(drawn, (left, bottom - height - base), (left + width, bottom), _PAPER, cv2.FILLED)
        origin = (left, bottom - base // 2)
        cv2.putText(drawn, text, origin, cv2.FONT_HERSHEY_SIMPLEX, 0.45 * unit, _INK, unit, cv2.LINE_AA)
    return _with_note(drawn, note, unit) if note else drawn


def _with_note(image: Pixels, note: str, unit: int) -> Pixels:
    """The image above a band with the text, in as many lines as its width needs."""
    size = 0.45 * unit
    (width, height), base = cv2.getTextSize(note, cv2.FONT_HERSHEY_SIMPLEX, size, unit)
    lines = textwrap.wrap(note, max(1, int(0.9 * len(note) * image.shape[1] / width)))  # letters differ in width
    step = height + base
    band = np.full((len(lines) * step + base, image.shape[1], 3), _PAPER, np.uint8)
    for number, line in enumerate(lines, 1):
        cv2.putText(band, line, (unit, number * step), cv2.FONT_HERSHEY_SIMPLEX, size, _INK, unit, cv2.LINE_AA)
    return np.concatenate([image, band])


def write_jpeg(path: Path, image: Pixels) -> None:
    """Writes (H, W, 3) RGB, without whatever the photo's file said of place, time and camera."""
    done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    assert done
    write_atomic(path, np.asarray(data, np.uint8).tobytes())
