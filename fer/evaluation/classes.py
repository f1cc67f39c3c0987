"""The classes of a model beside those of a dataset: which rows can be scored, and by which logits.

Rows of a class that the model lacks are left out: it cannot name them. For a class that the dataset lacks there are two
rules. `left_out`, the default: its logit is left out, so that the prediction is the most probable shared class, and the
probabilities are those given that the class is a shared one. This is how ImageNet-R and ImageNet-A, which hold 200 of
ImageNet's classes, are scored (Hendrycks et al. 2021). `wrong`: the logit stays, and to predict the class is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fer.evaluation.predict import Predictions

ExtraClasses = Literal["left_out", "wrong"]
FEWEST = 2
"""Shared classes, below which there is nothing to tell apart."""


@dataclass(frozen=True, kw_only=True)
class ClassMap:
    """How a model's logits are scored on a dataset's labels.

    Attributes:
        of_model, of_dataset: the classes of both, in their orders.
        extra: the rule for classes that the dataset lacks.
    """

    of_model: tuple[str, ...]
    of_dataset: tuple[str, ...]
    extra: ExtraClasses = "left_out"

    @property
    def shared(self) -> tuple[str, ...]:
        """The classes of both, in the dataset's order."""
        return tuple(name for name in self.of_dataset if name in self.of_model)

    @property
    def names(self) -> tuple[str, ...]:
        """The classes that are scored: the shared ones, and with `wrong` those that only the model has."""
        others = [name for name in self.of_model if name not in self.of_dataset]
        return (*self.shared, *(others if self.extra == "wrong" else ()))

    def labels(self, of_dataset: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The dataset's labels as indices into `names`; -1 for classes that the model lacks. Shapes (n,)."""
        names = self.names
        places = [names.index(name) if name in names else -1 for name in self.of_dataset]
        return np.array(places, np.int64)[of_dataset]

    def scored(self, predictions: Predictions) -> Predictions:
        """The rows whose class the model has, their labels and logits in the order of `names`.

        Args:
            predictions: labels by `of_dataset`, logits by `of_model`.
        """
        columns = [self.of_model.index(name) for name in self.names]
        labels = self.labels(predictions.labels)
        kept = labels >= 0
        logits, tta = (scores[kept][:, columns] for scores in (predictions.logits, predictions.tta))
        return Predictions(predictions.rows[kept], labels[kept], logits, tta)

    def about(self, rows_left_out: int) -> dict[str, Any]:
        """What test.json holds of it, as `classes`."""
        return {
            "shared": list(self.shared),
            "only_model": [name for name in self.of_model if name not in self.of_dataset],
            "only_dataset": [name for name in self.of_dataset if name not in self.of_model],
            "extra": self.extra,
            "rows_left_out": rows_left_out,
        }
