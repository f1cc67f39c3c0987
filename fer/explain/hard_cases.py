"""Hard cases: faces that one model gets right and another wrong (BTN, figure 4), and the most confident mistakes.

Pure functions from predictions to numbers of rows, and a contact sheet of any faces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from fer.io.files import FileError
from fer.shards.schema import prediction_schema
from fer.shards.table import TableReader

if TYPE_CHECKING:
    from fer.shards.dataset import ShardSplit

Pixels = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """A model's predictions of some rows.

    Attributes:
        name: of the model.
        sample_ids: (N,) of the rows.
        classes: (K,) names.
        labels: int64 (N,). probabilities: float64 (N, K).
        data_digest: of the shards that hold the rows.
    """

    name: str
    sample_ids: tuple[str, ...]
    classes: tuple[str, ...]
    labels: Rows
    probabilities: Floats
    data_digest: str

    @property
    def predicted(self) -> Rows:
        """int64 (N,): the most probable class of each row."""
        classes: Rows = self.probabilities.argmax(axis=1)
        return classes

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """(N,)."""
        return np.equal(self.predicted, self.labels)

    @property
    def of_label(self) -> Floats:
        """(N,): the probability of each row's label."""
        return self.probabilities[np.arange(len(self.labels)), self.labels]


def read_predictions(path: Path, name: str) -> Predicted:
    """The predictions.parquet of an evaluation.

    Raises:
        FileError: absent, damaged, or not written by an evaluation.
    """
    reader = TableReader(path, prediction_schema(), remedy="evaluate the model again")
    columns, about = reader.table().to_pydict(), reader.metadata
    if missing := {"fer.labels", "fer.data_digest"} - set(about):
        raise FileError(f"{path}: has no {min(missing)} in its metadata; evaluate the model again")
    return Predicted(
        name=name,
        sample_ids=tuple(columns["sample_id"]),
        classes=tuple(about["fer.labels"].split(",")),
        labels=np.array(columns["label"], np.int64),
        probabilities=np.array(columns["probabilities"], np.float64),
        data_digest=about["fer.data_digest"],
    )


def mistakes(one: Predicted, *, actual: int | None = None, predicted: int | None = None) -> Rows:
    """The rows that a model gets wrong, the most confident first.

    Args:
        actual, predicted: classes, for one cell of the confusion matrix; None: any.
    """
    wrong = ~one.correct
    if actual is not None:
        wrong &= one.labels == actual
    if predicted is not None:
        wrong &= one.predicted == predicted
    return _ranked(wrong, one.probabilities.max(axis=1))


def disagreements(models: Sequence[Predicted]) -> Rows:
    """The rows that some models get right and others wrong, the most different probability of the label first.

    Raises:
        ValueError: models of other rows or classes.
    """
    first = models[0]
    for other in models[1:]:
        if (other.sample_ids, other.classes) != (first.sample_ids, first.classes):
            raise ValueError(f"{first.name} and {other.name} predicted other rows or classes; evaluate both again")
    right = np.sum([one.correct for one in models], axis=0)
    of_label = np.stack([one.of_label for one in models])
    return _ranked((right > 0) & (right < len(models)), np.ptp(of_label, axis=0))


def _ranked(chosen: npt.NDArray[np.bool_], by: Floats) -> Rows:
    rows = np.flatnonzero(chosen)
    return rows[np.argsort(-by[rows], kind="stable")]


# ------------------------------------------------------------------------------------------------ contact sheets

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

    rows = {sample: row for row, sample in enumerate(split.sample_ids())}
    places = [split.place(rows[sample]) for sample in sample_ids]
    groups = {group: split.images(group) for group in sorted({group for group, _ in places})}
    return [decode(groups[group][row]) for group, row in places]


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
