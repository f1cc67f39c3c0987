"""predictions.parquet of an evaluation, and the rows that stand out in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fer.io.files import FileError
from fer.shards.schema import prediction_schema
from fer.shards.table import TableReader

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

    @cached_property
    def predicted(self) -> Rows:
        """int64 (N,): the most probable class of each row."""
        classes: Rows = self.probabilities.argmax(axis=1)
        return classes

    @cached_property
    def correct(self) -> npt.NDArray[np.bool_]:
        """(N,)."""
        return np.equal(self.predicted, self.labels)

    @cached_property
    def confidence(self) -> Floats:
        """(N,): the probability of the predicted class."""
        return np.asarray(self.probabilities.max(axis=1))

    @cached_property
    def of_label(self) -> Floats:
        """(N,): the probability of each row's label."""
        return self.probabilities[np.arange(len(self.labels)), self.labels]


def read_predictions(path: Path, name: str, remedy: str = "evaluate the model again") -> Predicted:
    """The predictions.parquet of an evaluation.

    Args:
        remedy: the command that makes it again.

    Raises:
        FileError: absent, damaged, or not written by an evaluation.
    """
    reader = TableReader(path, prediction_schema(), remedy=remedy)
    columns, about = reader.table().to_pydict(), reader.metadata
    if missing := {"fer.labels", "fer.data_digest"} - set(about):
        raise FileError(f"{path}: has no {min(missing)} in its metadata; {remedy}")
    return Predicted(
        name=name,
        sample_ids=tuple(columns["sample_id"]),
        classes=tuple(about["fer.labels"].split(",")),
        labels=np.array(columns["label"], np.int64),
        probabilities=np.array(columns["probabilities"], np.float64),
        data_digest=about["fer.data_digest"],
    )


def mistakes(one: Predicted) -> Rows:
    """The rows that a model gets wrong, the most confident first."""
    return _ranked(~one.correct, one.confidence)


def mistakes_by_cell(one: Predicted, per_cell: int, also: Container[str] = ()) -> Rows:
    """The most confident mistake of every cell of the confusion matrix, then the second of every cell, and so on.

    Args:
        also: samples that are kept beside the first `per_cell` of their cell.
    """
    labels, predicted, counts, found = one.labels.tolist(), one.predicted.tolist(), Counter[tuple[int, int]](), []
    for row in mistakes(one).tolist():
        cell = labels[row], predicted[row]
        counts[cell] += 1
        if counts[cell] <= per_cell or one.sample_ids[row] in also:
            found.append((counts[cell], row))
    return np.array([row for _, row in sorted(found, key=lambda place: place[0])], np.int64)


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
