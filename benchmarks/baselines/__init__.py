"""What people would use in place of our reader: one small file each, as that library's documentation recommends.

Each holds `prepare`, which writes the pictures as the library likes them, and `epochs`, which reads them: batches as
the training loop would get them, float32 (B, 3, size, size) normalised, and labels (B,).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

AUGMENT: tuple[dict[str, Any], ...] = (
    {"name": "HorizontalFlip", "p": 0.5},
    {"name": "Rotate", "limit": [-10, 10], "p": 1.0},
    {"name": "Erasing", "scale": [0.02, 0.33], "ratio": [0.3, 3.3], "p": 0.5},
)

MODULES = {
    "ours": "benchmarks.baselines.ours",
    "ours, cached": "benchmarks.baselines.ours_cached",
    "folder": "benchmarks.baselines.folder",
    "folder, tuned": "benchmarks.baselines.folder_tuned",
    "webdataset": "benchmarks.baselines.tar",
    "streaming": "benchmarks.baselines.mosaic",
    "litdata": "benchmarks.baselines.lit",
    "datasets": "benchmarks.baselines.hugging_face",
    "ray": "benchmarks.baselines.ray_data",
}
"""Contender -> where it is; "ours" are the reader itself."""

Sample = tuple[bytes, int]
Batches = Iterator[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Job:
    """What all contenders do.

    Attributes:
        folder: that `prepare` has filled.
        size: side of the pictures in px, as stored and as given to the model.
        batch: pictures of a batch.
        workers: processes or threads that read, decode and augment.
    """

    folder: Path
    size: int
    batch: int
    workers: int


def contender(name: str) -> Any:
    """The module of a contender: `prepare(samples: Sequence[Sample], folder: Path) -> None`, and
    `epochs(job: Job) -> Callable[[int], Batches]`.
    """
    return import_module(MODULES[name])


def loader(dataset: Any, job: Job, **options: Any) -> Any:
    """torch's DataLoader as all that build on it use it here: its processes live on from epoch to epoch."""
    given = {"batch_size": job.batch, "drop_last": True, "num_workers": job.workers, "persistent_workers": True}
    return DataLoader(dataset, **{**given, "worker_init_fn": start_worker, **options})


def start_worker(number: int) -> None:
    """One core a process: OpenCV's threads would fight for the cores that the processes share."""
    import cv2

    cv2.setNumThreads(0)


def by_sample(job: Job, *, normalised: bool = True) -> "Callable[[bytes], Tensor]":
    """Bytes of a picture -> (3, size, size): decoded by OpenCV, augmented by albumentations.

    Geometry is done on uint8, which is quicker than on floats, and `Normalize` comes last; without it uint8 is given.
    """
    import cv2
    import numpy as np

    from fer.transforms.reference import AugmentSpec, compose

    specs = [AugmentSpec.model_validate(one) for one in AUGMENT]
    transform = compose(specs, job.size, mean=MEAN, std=STD) if normalised else compose(specs, job.size)
    return lambda data: transform(np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)))
