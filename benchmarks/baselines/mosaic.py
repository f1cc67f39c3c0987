"""MosaicML Streaming: MDS shards, read from the disk they lie on."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from benchmarks.baselines import Batches, Job, Sample, by_sample, loader


def _streaming() -> Any:
    """`streaming.base`, without `streaming` itself: that one imports torchvision, for datasets that are not used."""
    if "streaming" not in sys.modules:
        found = find_spec("streaming")
        if found is None or found.submodule_search_locations is None:
            raise ModuleNotFoundError("No module named 'streaming'", name="streaming")
        package = ModuleType("streaming")
        package.__path__ = list(found.submodule_search_locations)
        sys.modules["streaming"] = package
    return import_module("streaming.base")


_Dataset: Any = _streaming().StreamingDataset


def prepare(samples: Sequence[Sample], folder: Path) -> None:
    """Bytes and labels; its own column type for JPEGs would decode by PIL."""
    columns = {"image": "bytes", "label": "int"}
    with _streaming().MDSWriter(out=str(folder / "mds"), columns=columns) as writer:
        for data, label in samples:
            writer.write({"image": data, "label": label})


class _Images(_Dataset):  # type: ignore[misc]
    def __init__(self, job: Job) -> None:
        super().__init__(local=str(job.folder / "mds"), shuffle=True, batch_size=job.batch)
        self._transform = by_sample(job)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        sample = super().__getitem__(index)
        return self._transform(sample["image"]), sample["label"]


def epochs(job: Job) -> Callable[[int], Batches]:
    """Shuffled by its default algorithm."""
    batches = loader(_Images(job), job)
    return lambda number: iter(batches)
