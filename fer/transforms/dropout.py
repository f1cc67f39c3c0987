"""Fast forms of the transforms that paint rectangles over a picture."""

from typing import Any

import numpy as np

from fer.transforms.base import Pixels, Shape, Transform, between, integer
from fer.transforms.draws import Float64Array

Holes = list[list[int]]
"""Rectangles [x1, y1, x2, y2] in pixels, half-open."""


class _Dropout(Transform):
    in_place = True

    @classmethod
    def of(cls, reference: Any) -> "_Dropout | None":
        return None if isinstance(reference.fill, str) else cls(reference)

    def __init__(self, reference: Any) -> None:
        super().__init__(reference.p)
        self._fill = np.array(reference.fill, np.uint8)

    def apply(self, image: Pixels, parameter: Holes) -> Pixels:
        for x1, y1, x2, y2 in parameter:
            image[y1:y2, x1:x2] = self._fill
        return image


class Erasing(_Dropout):
    """One rectangle of random area and aspect ratio (width by height)."""

    draws = 4

    def __init__(self, reference: Any) -> None:
        super().__init__(reference)
        self._scale, self._ratio = reference.scale, reference.ratio

    def parameters(self, u: Float64Array, shape: Shape) -> list[Holes]:
        # Every area drawn leaves room for all ratios, so that their ranges are cut to each other by rounding at most.
        height, width = shape
        low, high = self._ratio
        smallest = height * width * self._scale[0]
        largest = min(height * width * self._scale[1], low * height * height, width * width / high)
        assert smallest <= largest, "albumentations has no rectangle to draw from, and fails when it is tried out"
        area = between(u[:, 0], smallest, largest)
        with np.errstate(divide="ignore"):
            widest = np.minimum(high, width * width / area)
        narrowest = np.maximum(low, area / (height * height))
        ratio = narrowest + (widest - narrowest) * u[:, 1]
        h, w = np.rint(np.sqrt(area / ratio)), np.rint(np.sqrt(area * ratio))
        y1, x1 = integer(u[:, 2], 0, height - h), integer(u[:, 3], 0, width - w)
        return [[box] for box in np.stack([x1, y1, x1 + w, y1 + h], axis=-1).astype(int).tolist()]


class CoarseDropout(_Dropout):
    """Some rectangles; their sides in pixels, or as shares of the picture's."""

    def __init__(self, reference: Any) -> None:
        super().__init__(reference)
        self._counts = reference.num_holes_range
        self._heights, self._widths = reference.hole_height_range, reference.hole_width_range
        self._most = int(self._counts[1])
        self.draws = 1 + 4 * self._most

    def parameters(self, u: Float64Array, shape: Shape) -> list[Holes]:
        height, width = shape
        count = integer(u[:, 0], int(self._counts[0]), self._most).tolist()
        of_heights, of_widths, of_tops, of_lefts = np.split(u[:, 1:], 4, axis=1)
        in_pixels = self._heights[1] >= 1
        h = _sides(of_heights, self._heights, height, in_pixels)
        w = _sides(of_widths, self._widths, width, in_pixels)
        y1, x1 = integer(of_tops, 0, height - h), integer(of_lefts, 0, width - w)
        holes = np.stack([x1, y1, x1 + w, y1 + h], axis=-1).tolist()
        return [of[:number] for of, number in zip(holes, count, strict=True)]


def _sides(u: Float64Array, limits: tuple[float, float], length: int, in_pixels: bool) -> Any:
    if in_pixels:
        return integer(u, int(limits[0]), int(min(limits[1], length)))
    return (length * between(u, *limits)).astype(np.int64)
