"""Hugging Face datasets: an Arrow table on disk, transformed on access, and torch's DataLoader."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch

from benchmarks.baselines import Batches, Job, Sample, by_sample, loader


def prepare(samples: Sequence[Sample], folder: Path) -> None:
    """The feature `Image`, as the manual has it."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    images = [{"bytes": data, "path": None} for data, _ in samples]
    table = datasets.Dataset.from_dict({"image": images, "label": [label for _, label in samples]}, features=features)
    table.save_to_disk(str(folder / "datasets"))


def epochs(job: Job) -> Callable[[int], Batches]:
    """`with_transform` on whole batches, which DataLoader asks for at once; decoded by OpenCV, quicker than its PIL."""
    transform = by_sample(job)

    def change(rows: dict[str, Any]) -> dict[str, Any]:
        return {"image": [transform(image["bytes"]) for image in rows["image"]], "label": rows["label"]}

    table = datasets.load_from_disk(str(job.folder / "datasets"))
    table = table.cast_column("image", datasets.Image(decode=False)).with_transform(change)
    batches = loader(table, job, shuffle=True)

    def epoch(number: int) -> Batches:
        for rows in batches:
            yield rows["image"], torch.as_tensor(rows["label"])

    return epoch
