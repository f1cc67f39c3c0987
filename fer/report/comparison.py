"""Models of a dataset against each other, on the same rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fer.evaluation.config import EvaluateConfig
from fer.evaluation.paired import Paired, compare_all
from fer.evaluation.predicted import Predicted


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


def compare_models(predicted: Mapping[str, Predicted], config: EvaluateConfig, seed: int) -> tuple[Comparison, ...]:
    """One comparison for each set of rows that several models of a dataset were evaluated on.

    Args:
        predicted: by model.
    """
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for model, one in predicted.items():
        groups.setdefault((one.data_digest, one.sample_ids), []).append(model)
    ranked = (sorted(models, key=lambda model: -predicted[model].correct.mean()) for models in groups.values())
    return tuple(
        Comparison(
            models=tuple(models),
            pairs=compare_all(
                {model: predicted[model].correct for model in models},
                samples=config.bootstrap_samples, confidence=config.confidence, seed=seed,
            ),
            rows=len(predicted[models[0]].sample_ids),
            confidence=config.confidence,
        )
        for models in ranked
        if len(models) > 1
    )  # fmt: skip
