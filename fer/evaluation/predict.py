"""Logits, and embeddings, for every row of a split; exact for any number of ranks.

The split is cut into fixed batches, assigned round robin to the ranks. A batch is computed whole, by one rank, with the
same number of threads: so the logits are the same bits whoever computed them, and no row is padded or dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fer.evaluation.config import TtaName
from fer.evaluation.tta import predict_views, views
from fer.io.cache import local, send
from fer.io.storage import inside
from fer.models.arcface import ArcFace
from fer.shards.read import EvalBatches, ModelInput, ShardSet, ShardSplit, normalize
from fer.shards.remote import upload
from fer.weights.store import load_model


@dataclass(frozen=True)
class Predictions:
    """Rows of a split with the outputs of a model.

    rows: int64 (n,), numbers of the rows in the split. labels: int64 (n,), of the data. logits: float32 (n, classes),
    of the model, whose classes may be others (`fer.evaluation.classes`).
    tta: float32 (n, classes), logarithms of the probabilities under test-time augmentation; the logits without it.
    """

    rows: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]
    tta: npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class PredictJob:
    """What every rank computes; picklable.

    Attributes:
        shards, weights: absolute paths, or URLs in a store, of the folder of shards and of the weights file.
        split: name of the split.
        batch_size: images of one forward pass.
        threads: CPU threads of each rank.
        tta: name of the test-time augmentation.
        labels: classes of the weights, in the order of their logits; None: those of the data.
    """

    shards: str
    weights: str
    split: str
    batch_size: int
    threads: int
    tta: TtaName = "none"
    labels: tuple[str, ...] | None = None

    def sent_to(self, storage: str) -> PredictJob:
        """The same on copies of its files in a store, each below its digest; what is there is not sent again."""
        shards = upload(Path(self.shards), inside(storage, "shards"))
        return replace(self, shards=shards, weights=send(Path(self.weights), inside(storage, "weights")))


def predict_share(job: PredictJob, rank: int = 0, world_size: int = 1, device: str = "cpu") -> Predictions:
    """The predictions of one rank, in float32.

    Raises:
        ValueError: the weights are for other labels than the job's.
    """
    shards = ShardSet.open(job.shards, verify=False)  # the driver has verified them
    model, _ = load_model(local(job.weights), labels=job.labels or shards.labels)
    torch.set_num_threads(job.threads)
    model.to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batches = EvalBatches(
        shards.split(job.split),
        model_input=ModelInput.of(model),
        batch_size=job.batch_size,
        rank=rank,
        world_size=world_size,
        threads=job.threads,
        cache_bytes=0,
    )
    classes = model.num_classes
    rows, labels = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    logits, tta = [np.empty((0, classes), np.float32)], [np.empty((0, classes), np.float32)]
    weighted = views(job.tta, model.input_size)
    with closing(batches), torch.inference_mode():
        for batch in batches:
            images = normalize(batch.images.to(device), model.mean, model.std, memory_format=torch.channels_last)
            plain, together = predict_views(model, images, weighted)
            logits.append(plain.cpu().numpy())
            tta.append((plain if job.tta == "none" else together).cpu().numpy())
            rows.append(batch.rows.numpy())
            labels.append(batch.targets.numpy())
    return Predictions(np.concatenate(rows), np.concatenate(labels), np.concatenate(logits), np.concatenate(tta))


def merge(parts: Sequence[Predictions], total: int) -> Predictions:
    """The predictions of all ranks as one, in the order of the split: every row once, which is asserted."""
    rows, labels, logits, tta = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("rows", "labels", "logits", "tta")
    )
    order = np.argsort(rows, kind="stable")
    assert np.array_equal(rows[order], np.arange(total)), f"{len(rows)} predictions for {total} rows, or a row twice"
    return Predictions(rows[order], labels[order], logits[order], tta[order])


def embed_split(
    model: ArcFace, split: ShardSplit, *, batch_size: int = 128, threads: int = 1
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Embeddings (rows, E) of length 1, by a network trained on identities, and labels (rows,), in the split's order.

    Args:
        model: in evaluation mode, on the CPU.
        threads: that read and decode.
    """
    batches = EvalBatches(
        split, model_input=ModelInput.of(model), batch_size=batch_size, threads=threads, cache_bytes=0
    )
    with closing(batches), torch.inference_mode():
        found = [
            model.embed(normalize(batch.images, model.mean, model.std, memory_format=torch.channels_last)).numpy()
            for batch in batches
        ]
    return np.concatenate(found), split.labels()
