"""The reader of this project: Parquet shards, threads, uint8 batches that the consumer normalizes."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.baselines import AUGMENT, MEAN, STD, Batches, Job, Sample
from benchmarks.data import write_samples
from fer.models.base import Resize
from fer.shards.pixels import decode
from fer.shards.read import ShardSet, TrainBatches, normalize
from fer.transforms.reference import Augmenter, AugmentSpec

_SMALL = 112


def prepare(samples: Sequence[Sample], folder: Path) -> None:
    """Shards of two parts; no more held out than their manifest asks for.

    Large images are in row groups of 256, the least that `shard.rows_per_group` allows: eight of them are in memory.
    """
    side = decode(np.frombuffer(samples[0][0], np.uint8)).shape[0]
    group = 512 if side <= _SMALL else 256
    write_samples(folder / "shards", [*samples, *samples[:2]], size=side, held_out=1, rows_per_group=group)


def epochs(job: Job, *, cache_bytes: int = 0) -> Callable[[int], Batches]:
    """The pixel cache is off unless asked for."""
    augment = Augmenter([AugmentSpec.model_validate(one) for one in AUGMENT], job.size)
    batches = TrainBatches(
        ShardSet.open(job.folder / "shards", verify=False).split("train"),
        model_input=(job.size, Resize()),
        batch_size=job.batch,
        seed=0,
        augment=augment,
        threads=job.workers,
        cache_bytes=cache_bytes,
    )

    def epoch(number: int) -> Batches:
        for batch in batches.epoch(number):
            yield normalize(batch.images, MEAN, STD), batch.targets
            del batch  # its memory serves the next one

    return epoch
