"""A folder of JPEGs and torch's DataLoader, as torch's tutorial on data loading has it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.baselines import MEAN, STD, Batches, Job, Sample, by_sample, loader
from fer.shards.read import normalize


def prepare(samples: Sequence[Sample], folder: Path) -> None:
    """One folder a class."""
    for number, (data, label) in enumerate(samples):
        path = folder / "folder" / str(label) / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


class Images:
    """A map-style dataset over the files."""

    def __init__(self, job: Job, **options: Any) -> None:
        self._paths = sorted((job.folder / "folder").glob("*/*.jpg"))
        self._transform = by_sample(job, **options)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path = self._paths[index]
        return self._transform(path.read_bytes()), int(path.parent.name)


def epochs(job: Job, *, tuned: bool = False) -> Callable[[int], Batches]:
    """Shuffled over the whole set.

    Args:
        tuned: beyond the manual: uint8 goes between the processes, and the consumer normalizes the batch with this
            project's function. It shows what part of the difference is the size of what the processes hand over.
    """
    batches = loader(Images(job, normalized=not tuned), job, shuffle=True)

    def epoch(number: int) -> Batches:
        for images_BCHW, labels in batches:
            yield normalize(images_BCHW.permute(0, 2, 3, 1), MEAN, STD), torch.as_tensor(labels)

    return epoch if tuned else lambda number: iter(batches)
