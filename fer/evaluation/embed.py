"""Embeddings of the faces of a split, by a network that was trained on people."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import numpy.typing as npt
import torch

from fer.models.arcface import ArcFace
from fer.shards.read import EvalBatches, ModelInput, ShardSplit, normalise


def embed_split(
    model: ArcFace, split: ShardSplit, *, batch_size: int = 128, threads: int = 1
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Embeddings (rows, E) of length 1 and labels (rows,), in the order of the split.

    Args:
        model: in evaluation mode, on the CPU.
        threads: that read and decode.
    """
    batches = EvalBatches(
        split, model_input=ModelInput.of(model), batch_size=batch_size, threads=threads, cache_bytes=0
    )
    found = []
    with closing(batches), torch.inference_mode():
        for batch in batches:
            images = normalise(batch.images, model.mean, model.std, memory_format=torch.channels_last)
            found.append(model.embed(images).numpy())
    return np.concatenate(found), split.labels()
