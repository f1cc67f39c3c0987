"""A contact sheet of faces, each with the predictions of some models below it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from fer.evaluation.predicted import Predicted
    from fer.shards.dataset import ShardSplit

Pixels = npt.NDArray[np.uint8]

_SIDE, _LINE, _MARGIN = 112, 15, 8  # px
_FONT, _SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.38
_INK = {None: (51, 39, 29), True: (60, 120, 20), False: (42, 60, 190)}  # BGR: neutral, right, wrong


class Line(NamedTuple):
    """A line of text below a face; `right` colors it."""

    text: str
    right: bool | None = None


def faces_of(split: ShardSplit, sample_ids: Sequence[str]) -> list[Pixels]:
    """The images of some samples, in their order: (H, W) for a gray image, else (H, W, 3) RGB.

    Raises:
        KeyError: a sample is not in the split.
    """
    from fer.shards.pixels import decode  # imports torch

    numbers = {sample: row for row, sample in enumerate(split.sample_ids())}
    rows = [numbers[sample] for sample in sample_ids]
    images = split.images_at(rows)
    return [decode(images[row]) for row in rows]


def captions(row: int, models: Sequence[Predicted]) -> list[Line]:
    """What a sheet says of a row: the label, and each model's prediction with its probability."""
    classes = models[0].classes
    lines = [Line(f"label: {classes[models[0].labels[row]]}")]
    for one in models:
        guess = one.predicted[row]
        probability = f"{100 * one.probabilities[row, guess]:.0f} %"
        lines.append(Line(f"{one.name}: {classes[guess]} {probability}", bool(one.correct[row])))
    return lines


def sheet(faces: Sequence[Pixels], lines: Sequence[Sequence[Line]], *, columns: int = 6) -> bytes:
    """A PNG: faces row by row, each with its lines below.

    Args:
        faces: (H, W) or (H, W, 3) RGB.
        lines: of each face, as many for all.
    """
    texts = [line.text for of_face in lines for line in of_face]
    width = max([_SIDE, *(cv2.getTextSize(text, _FONT, _SCALE, 1)[0][0] for text in texts)]) + 2 * _MARGIN
    height = _SIDE + _LINE * max(map(len, lines), default=0) + 2 * _MARGIN
    columns = min(columns, max(len(faces), 1))
    page = np.full((height * max(-(-len(faces) // columns), 1), width * columns, 3), 255, np.uint8)
    for index, (face, of_face) in enumerate(zip(faces, lines, strict=True)):
        top, left = height * (index // columns) + _MARGIN, width * (index % columns) + _MARGIN
        kernel = cv2.INTER_AREA if max(face.shape[:2]) > _SIDE else cv2.INTER_CUBIC
        bgr = cv2.cvtColor(face, cv2.COLOR_GRAY2BGR if face.ndim == 2 else cv2.COLOR_RGB2BGR)
        page[top : top + _SIDE, left : left + _SIDE] = cv2.resize(bgr, (_SIDE, _SIDE), interpolation=kernel)
        for number, (text, right) in enumerate(of_face, start=1):
            at = (left, top + _SIDE + _LINE * number - 3)
            cv2.putText(page, text, at, _FONT, _SCALE, _INK[right], 1, cv2.LINE_AA)
    return cv2.imencode(".png", page)[1].tobytes()
