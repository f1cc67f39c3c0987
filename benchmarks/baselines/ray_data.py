"""Ray Data as a reader of images, for `fer bench ingest`: Parquet, `map_batches`, `iter_torch_batches`."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data

from benchmarks.baselines import Batches, Job, Sample, by_sample
from fer.shards.schema import shard_schema
from fer.shards.table import write_table

_ROWS_PER_FILE = 512


def prepare(samples: Sequence[Sample], folder: Path) -> None:
    """Parquet files of some hundred images: Ray Data shuffles whole files."""
    for first in range(0, len(samples), _ROWS_PER_FILE):
        rows = [
            {"sample_id": f"bench/{row:06d}", "image": data, "label": label, "clean_label": label}
            for row, (data, label) in enumerate(samples[first : first + _ROWS_PER_FILE], start=first)
        ]
        write_table(folder / "ray" / f"part-{first:06d}.parquet", rows, shard_schema())


class _Transform:
    def __init__(self, job: Job) -> None:
        self._job = job
        self._transform: Callable[[bytes], Any] | None = None

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        if self._transform is None:
            self._transform = by_sample(self._job)
        return {"image": np.stack([self._transform(data).numpy() for data in rows["image"]]), "label": rows["label"]}


def epochs(job: Job) -> Callable[[int], Batches]:
    """As its page on working with images has it, in a cluster of as many CPUs as there are workers."""
    ray.init(num_cpus=job.workers, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    images = ray.data.read_parquet(str(job.folder / "ray"), columns=["image", "label"], shuffle="files")
    images = images.map_batches(_Transform(job), batch_size=job.batch)

    def epoch(number: int) -> Batches:
        for rows in images.iter_torch_batches(batch_size=job.batch, drop_last=True):
            yield rows["image"], rows["label"]

    return epoch
