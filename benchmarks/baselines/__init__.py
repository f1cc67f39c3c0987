"""Baselines of the reader: one small file each, as that library's documentation recommends.

Each holds `prepare`, which writes the images in the library's format, and `epochs`, which reads them: batches as
the training loop would get them, float32 (B, 3, size, size) normalized, and labels (B,).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

AUGMENT: tuple[dict[str, Any], ...] = (
    {"name": "HorizontalFlip", "p": 0.5},
    {"name": "Rotate", "limit": [-10, 10], "p": 1.0},
    {"name": "Erasing", "scale": [0.02, 0.33], "ratio": [0.3, 3.3], "p": 0.5},
)

CONTENDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ours": ("ours", {}),
    "ours, cached": ("ours", {"cache_bytes": 1 << 34}),
    "folder": ("folder", {}),
    "folder, tuned": ("folder", {"tuned": True}),
    "webdataset": ("tar", {}),
    "streaming": ("mosaic", {}),
    "litdata": ("lit", {}),
    "datasets": ("hugging_face", {}),
    "ray": ("ray_data", {}),
}
"""Contender -> its module here, and options of its `epochs`; "ours" is the reader of this project."""

Sample = tuple[bytes, int]
Batches = Iterator["tuple[Tensor, Tensor]"]


@dataclass(frozen=True)
class Job:
    """What all contenders do.

    Attributes:
        folder: that `prepare` has filled.
        size: side of the images in px, as stored and as given to the model.
        batch: images of a batch.
        workers: processes or threads that read, decode and augment.
    """

    folder: Path
    size: int
    batch: int
    workers: int


def contender(name: str) -> Any:
    """A contender's module: `prepare(samples: Sequence[Sample], folder: Path) -> None`, and
    `epochs(job: Job, **options) -> Callable[[int], Batches]`.
    """
    return import_module(f"{__name__}.{CONTENDERS[name][0]}")


def loader(dataset: Any, job: Job, **options: Any) -> Any:
    """torch's DataLoader as all that build on it use it here: its processes live on from epoch to epoch."""
    from torch.utils.data import DataLoader

    given = {"batch_size": job.batch, "drop_last": True, "num_workers": job.workers, "persistent_workers": True}
    return DataLoader(dataset, **{**given, "worker_init_fn": start_worker, **options})


def start_worker(number: int) -> None:
    """One core a process: OpenCV's threads would fight for the cores that the processes share."""
    import cv2

    cv2.setNumThreads(0)


def by_sample(job: Job, *, normalized: bool = True) -> "Callable[[bytes], Tensor]":
    """Bytes of a image -> (3, size, size): decoded by OpenCV, augmented by albumentations.

    Geometry is done on uint8, which is quicker than on floats, and `Normalize` comes last; without it uint8 is given.
    """
    import cv2
    import numpy as np

    from fer.transforms.reference import AugmentSpec, compose

    specs = [AugmentSpec.model_validate(one) for one in AUGMENT]
    transform = compose(specs, job.size, mean=MEAN, std=STD) if normalized else compose(specs, job.size)
    return lambda data: transform(np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)))
