"""WebDataset: tar files in sequence, shuffled through a buffer, batched in the workers."""

import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import webdataset

from benchmarks.baselines import Batches, Job, Sample, by_sample, start_worker

_SAMPLES_PER_TAR = 1024
_BUFFER = 1000


def prepare(samples: Sequence[Sample], folder: Path) -> None:
    """Tar files of some thousand images, each beside its label."""
    (folder / "tar").mkdir()
    for first in range(0, len(samples), _SAMPLES_PER_TAR):
        with tarfile.open(folder / "tar" / f"part-{first // _SAMPLES_PER_TAR:04d}.tar", "w") as archive:
            for number, (data, label) in enumerate(samples[first : first + _SAMPLES_PER_TAR], start=first):
                for kind, content in (("jpg", data), ("cls", str(label).encode())):
                    entry = tarfile.TarInfo(f"{number:06d}.{kind}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))


def epochs(job: Job) -> Callable[[int], Batches]:
    """The pipeline of the manual's page on training, with a decoder of our own: OpenCV's is quicker than its PIL's."""
    transform = by_sample(job)
    parts = sorted(str(path) for path in (job.folder / "tar").glob("*.tar"))
    dataset = (
        webdataset.WebDataset(parts, shardshuffle=len(parts), nodesplitter=None, empty_check=False)
        .shuffle(_BUFFER)
        .to_tuple("jpg", "cls")
        .map_tuple(transform, int)
        .batched(job.batch, partial=False)
    )
    batches = webdataset.WebLoader(
        dataset, batch_size=None, num_workers=job.workers, persistent_workers=True, worker_init_fn=start_worker
    )
    return lambda number: iter(batches)
