"""LitData: chunks written by `optimize`, read by its own loader."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import litdata
from torch import Tensor

from benchmarks.baselines import Batches, Job, Sample, by_sample, start_worker


def prepare(samples: Sequence[Sample], folder: Path) -> None:
    """Bytes and labels, in chunks of the size that the manual uses."""
    litdata.optimize(
        fn=partial(_sample, samples),
        inputs=list(range(len(samples))),
        output_dir=str(folder / "litdata"),
        chunk_bytes="64MB",
        num_workers=1,
    )


def _sample(samples: Sequence[Sample], number: int) -> tuple[bytes, int]:
    return samples[number]


class _Images(litdata.StreamingDataset):  # type: ignore[misc]
    def __init__(self, job: Job) -> None:
        super().__init__(str(job.folder / "litdata"), shuffle=True, drop_last=True)
        self._transform = by_sample(job)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        data, label = super().__getitem__(index)
        return self._transform(data), label


def epochs(job: Job) -> Callable[[int], Batches]:
    """Shuffled over chunks and within them."""
    batches = litdata.StreamingDataLoader(
        _Images(job),
        batch_size=job.batch,
        num_workers=job.workers,
        persistent_workers=True,
        worker_init_fn=start_worker,
    )
    return lambda number: iter(batches)
