"""predictions.parquet of an evaluation, and what follows from those of several models on the same rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fer.evaluation.config import EvaluateConfig
from fer.evaluation.paired import Paired, compare_all
from fer.shards.schema import prediction_schema
from fer.shards.table import TableReader


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The predictions of a model.

    Attributes:
        ids: sample_id of each of the N rows.
        labels, predicted: int64 (N,).
        confidence: probability of the predicted class, (N,).
        digest: of the shards that hold the rows.
    """

    ids: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float64]
    digest: str

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """Which rows are classified correctly, (N,)."""
        return np.asarray(self.predicted == self.labels)


def read_rows(path: Path, remedy: str) -> Rows | None:
    """predictions.parquet; None where it is not there, or holds no row.

    Args:
        remedy: the command that makes it again.

    Raises:
        FileError: it is damaged, or another table.
    """
    if not path.is_file():
        return None
    reader = TableReader(path, prediction_schema(), remedy=remedy)
    columns = reader.table().to_pydict()
    if not columns["sample_id"]:
        return None
    return Rows(
        ids=tuple(columns["sample_id"]),
        labels=np.array(columns["label"], np.int64),
        predicted=np.array(columns["predicted"], np.int64),
        confidence=np.array(columns["probabilities"], np.float64).max(axis=1),
        digest=reader.metadata.get("fer.data_digest", ""),
    )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Models on the same rows of a dataset, each against each.

    Attributes:
        models: two or more, the most accurate first.
        pairs: by the one and the other.
        rows: how many they share.
        confidence: of the intervals.
    """

    models: tuple[str, ...]
    pairs: Mapping[tuple[str, str], Paired]
    rows: int
    confidence: float


def compare_models(rows: Mapping[str, Rows], config: EvaluateConfig, seed: int) -> tuple[Comparison, ...]:
    """One comparison for each set of rows that several models of a dataset were evaluated on.

    Args:
        rows: of each model.
    """
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for model, one in rows.items():
        groups.setdefault((one.digest, one.ids), []).append(model)
    ranked = (sorted(models, key=lambda model: -rows[model].correct.mean()) for models in groups.values())
    return tuple(
        Comparison(
            models=tuple(models),
            pairs=compare_all(
                {model: rows[model].correct for model in models},
                samples=config.bootstrap_samples, confidence=config.confidence, seed=seed,
            ),
            rows=len(rows[models[0]].ids),
            confidence=config.confidence,
        )
        for models in ranked
        if len(models) > 1
    )  # fmt: skip
