"""A folder of JPEGs and torch's DataLoader, tuned beyond the manual: uint8 goes between the processes.

The batch is normalised by the consumer, with this project's function. No manual says so; it shows what part of the
difference is the size of what the processes hand over.
"""

from collections.abc import Callable

import torch

from benchmarks.baselines import MEAN, STD, Batches, Job, loader
from benchmarks.baselines import folder as plain
from fer.shards.read import normalise

prepare = plain.prepare


def epochs(job: Job) -> Callable[[int], Batches]:
    """Shuffled over the whole set."""
    batches = loader(plain.Pictures(job, normalised=False), job, shuffle=True)

    def epoch(number: int) -> Batches:
        for images_BCHW, labels in batches:
            yield normalise(images_BCHW.permute(0, 2, 3, 1), MEAN, STD), torch.as_tensor(labels)

    return epoch
