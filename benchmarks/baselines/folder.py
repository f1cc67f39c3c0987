"""A folder of JPEGs and torch's DataLoader, as torch's tutorial on data loading has it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.baselines import Batches, Job, Sample, by_sample, loader


def prepare(samples: Sequence[Sample], folder: Path) -> None:
    """One folder a class."""
    for number, (data, label) in enumerate(samples):
        path = folder / "folder" / str(label) / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


class Pictures:
    """A map-style dataset over the files."""

    def __init__(self, job: Job, **options: Any) -> None:
        self._paths = sorted((job.folder / "folder").glob("*/*.jpg"))
        self._transform = by_sample(job, **options)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path = self._paths[index]
        return self._transform(path.read_bytes()), int(path.parent.name)


def epochs(job: Job) -> Callable[[int], Batches]:
    """Shuffled over the whole set."""
    batches = loader(Pictures(job), job, shuffle=True)
    return lambda number: iter(batches)
