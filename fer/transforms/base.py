"""What a fast form is."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fer.transforms.draws import Float64Array

Pixels = npt.NDArray[np.uint8]
Shape = tuple[int, int]


class Transform(ABC):
    """A transform's fast form.

    Attributes:
        p: probability of being applied.
        draws: uniform numbers that a sample's parameters are made of, in the order in which albumentations draws them.
        in_place: `apply` writes to the picture it is given.
    """

    draws: int = 0
    in_place: ClassVar[bool] = False

    def __init__(self, p: float) -> None:
        self.p = p

    @classmethod
    @abstractmethod
    def of(cls, reference: Any) -> "Transform | None":
        """The fast form of an object of albumentations, or None where its settings have none."""

    def shape(self, shape: Shape) -> Shape | None:
        """(height, width) given -> (height, width) made; None: it cannot be applied to such a picture."""
        return shape

    @abstractmethod
    def parameters(self, u: Float64Array, shape: Shape) -> Sequence[Any]:
        """u (B, draws) -> what each of B samples is to be transformed by; pictures are (height, width, 3)."""

    @abstractmethod
    def apply(self, image: Pixels, parameter: Any) -> Pixels:
        """(height, width, 3) RGB -> the same in the new shape; `image` may be a view, and so may the result."""


def between(u: Float64Array, low: float, high: float) -> Float64Array:
    """Uniform numbers of [0, 1) as `random.uniform(low, high)` makes them."""
    return low + (high - low) * u


def integer(u: Float64Array, low: npt.ArrayLike, high: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Uniform numbers of [0, 1) as whole numbers of `low` to `high`, both included."""
    low, high = np.asarray(low), np.asarray(high)
    return np.asarray(low + np.floor(u * (high - low + 1)), np.int64)


def border_value(fill: float | Sequence[float]) -> float | Sequence[float]:
    """A fill as albumentations hands it to OpenCV, which would take a single number for the red channel's alone."""
    return [fill] * 3 if isinstance(fill, float) else fill
