"""Metrics of a split after an epoch, in float64 from all logits, so that the number of ranks does not matter."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def classification_metrics(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """Mean cross-entropy, accuracy, and balanced accuracy: the mean recall over the classes that occur.

    Args:
        logits: (N, C).
        targets: class indices, int64 (N,).
    """
    logits = logits.double()
    correct = (logits.argmax(1) == targets).double()
    counts = torch.bincount(targets, minlength=logits.shape[1])
    recalled = torch.bincount(targets, weights=correct, minlength=logits.shape[1])
    return {
        "loss": F.cross_entropy(logits, targets).item(),
        "accuracy": correct.mean().item(),
        "balanced_accuracy": (recalled[counts > 0] / counts[counts > 0]).mean().item(),
    }


def best_metrics(best: Mapping[str, float]) -> dict[str, float]:
    """The row of the best epoch by the names that runs are ranked by: `best_epoch`, `best_val_accuracy`, ..."""
    return {"best_epoch": best["epoch"], **{f"best_{k}": v for k, v in best.items() if k.startswith("val_")}}
