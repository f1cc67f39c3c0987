"""An evaluation counts every row once, and gives the same bits, on any number of ranks, whatever is left over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from builders.projects import TOY
from builders.shards import LABELS, make_shards

from fer.evaluation.config import EvaluateConfig
from fer.evaluation.metrics import summarise
from fer.evaluation.predict import PredictJob, merge, predict_share
from fer.models import create_model
from fer.weights.store import save_model


@pytest.mark.parametrize("rows", [1, 7, 101])
def test_the_confusion_matrix_counts_all_rows_and_every_figure_is_the_same_bits_on_one_to_four_ranks(
    rows: int, tmp_path: Path
) -> None:
    make_shards(tmp_path / "shards", test=rows)
    torch.manual_seed(0)
    save_model(create_model(TOY["model"], len(LABELS)), tmp_path / "model.safetensors", LABELS, "basic7", name="toy")
    job = PredictJob(
        shards=str(tmp_path / "shards"),
        weights=str(tmp_path / "model.safetensors"),
        split="test",
        batch_size=8,
        threads=1,
    )
    config, summaries, logits = EvaluateConfig(bootstrap_samples=100), [], []
    for world_size in (1, 2, 3, 4):
        whole = merge([predict_share(job, rank, world_size) for rank in range(world_size)], rows)
        logits.append(whole.logits)
        summaries.append(summarise(whole.labels, whole.logits, LABELS, config, seed=0))
    for summary, found in zip(summaries, logits, strict=True):
        assert np.sum(summary["confusion"]) == summary["rows"] == rows
        assert summary == summaries[0]
        assert np.array_equal(found, logits[0])
