"""The interface that every model of the zoo implements.

The trainer, the evaluator and the exporter know a model only through `FerModel`:

* its input specification: `input_size`, `mean`, `std`, `resize`, `truncate`;
* in training mode it returns a `TrainOutput`, in evaluation mode the logits alone, (B, num_classes);
* its paper's loss, `loss(output, targets)`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class TrainOutput(NamedTuple):
    """What a model in training mode returns. A NamedTuple of tensors, so that DistributedDataParallel finds them all.

    logits: (B, num_classes), unnormalized.
    aux: what the model's own loss needs besides, each documented by the model; empty for most.
    """

    logits: Tensor
    aux: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Resize:
    """How a crop of another size is resized to the model's square input: interpolation kernel; low-pass filter."""

    kernel: str = "bilinear"
    antialias: bool = True


class FerModel(nn.Module, ABC):
    """A facial-expression classifier.

    Input: float (B, 3, input_size, input_size), RGB in [0, 1], then `(x - mean) / std` per channel.

    Attributes:
        truncate: whether resized training images lose the fractions of their levels and pass through JPEG, and all
            others keep the fractions; False rounds both alike. See `fer.shards.pixels.resize`.
        loss_is: description of `loss`; "cross-entropy" where it is that of the logits, as in validation.
        without_classes: what a model with `num_classes=0` returns; None where it needs at least one class.
        name, options: the arguments of `create_model`, set by it; the name is None where the class was called itself.
    """

    loss_is: ClassVar[str] = "cross-entropy"
    without_classes: ClassVar[str | None] = None

    def __init__(
        self,
        num_classes: int,
        *,
        input_size: int,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        resize: Resize = Resize(),
        truncate: bool = False,
    ) -> None:
        super().__init__()
        least, meaning = (0, f" ({self.without_classes})") if self.without_classes else (1, "")
        if num_classes < least:
            raise ValueError(f"{type(self).__name__}: num_classes = {num_classes}: at least {least}{meaning} is needed")
        self.name: str | None = None
        self.options: Mapping[str, Any] = {}
        self.num_classes = num_classes
        self.input_size = input_size
        self.mean = mean
        self.std = std
        self.resize = resize
        self.truncate = truncate

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor | TrainOutput:
        """`TrainOutput` in training mode, logits (B, num_classes) in evaluation mode."""

    def loss(self, output: TrainOutput, targets: Tensor) -> Tensor:
        """Scalar to minimize. `targets`: class indices int64 (B,), or class probabilities float (B, num_classes)."""
        return cross_entropy(output.logits, targets)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy, in at least float32 also under autocast.

    `targets`: class indices int64 (B,), or class probabilities float (B, C): smoothed, mixed or voted labels.
    """
    logits = at_least_float32(logits)
    return F.cross_entropy(logits, targets.to(logits.dtype) if targets.is_floating_point() else targets)


def at_least_float32(x: Tensor) -> Tensor:
    """`x` itself, or its float32 copy where it is of half precision."""
    return x.float() if x.dtype.itemsize < 4 else x
