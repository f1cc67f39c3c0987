"""Fast forms of the transforms that the shipped recipes use.

Parameters are drawn for a whole batch at once, and a uint8 image is changed by single calls. Each form does what the
transform of the same name in albumentations 2.0.8 does, to the bit, with the same function of the same uniform numbers.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import cv2
import numpy as np
import numpy.typing as npt

from fer.transforms.draws import Float64Array

Pixels = npt.NDArray[np.uint8]
Shape = tuple[int, int]

_LEVELS = np.arange(256, dtype=np.float32)
_CROP_ATTEMPTS = 10
_THROUGH_FOUR_CHANNELS = (cv2.BORDER_CONSTANT, cv2.BORDER_REPLICATE)


class Transform(ABC):
    """A transform's fast form, made from the object of albumentations, which it knows by its attributes alone.

    Attributes:
        p: probability of being applied.
        draws: uniform numbers that a sample's parameters are made of, in the order in which albumentations draws them.
        in_place: `apply` writes to the image it is given.
    """

    draws: ClassVar[int] = 0
    in_place: ClassVar[bool] = False

    def __init__(self, reference: Any) -> None:
        self.p: float = reference.p

    @classmethod
    def supports(cls, reference: Any) -> bool:
        """Whether there is a fast form of an object of albumentations with these settings."""
        return True

    def shape(self, shape: Shape) -> Shape | None:
        """(height, width) given -> (height, width) made; None: it cannot be applied to such an image."""
        return shape

    def parameters(self, u: Float64Array, shape: Shape) -> Sequence[Any]:
        """u (B, draws) -> what each of B samples is transformed by; images are (height, width, 3)."""
        return [None] * len(u)

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


def _border_value(fill: float | Sequence[float]) -> float | Sequence[float]:
    """A fill as albumentations hands it to OpenCV, which would take a single number for the red channel's alone."""
    return [fill] * 3 if isinstance(fill, float) else fill


class RandomBrightnessContrast(Transform):
    """Levels times a factor plus an offset."""

    draws = 2

    @classmethod
    def supports(cls, reference: Any) -> bool:
        return bool(reference.brightness_by_max and not reference.ensure_safe_range)

    def __init__(self, reference: Any) -> None:
        super().__init__(reference)
        self._brightness, self._contrast = reference.brightness_limit, reference.contrast_limit

    def parameters(self, u: Float64Array, shape: Shape) -> Sequence[Pixels]:
        factor = (1.0 + between(u[:, 0], *self._contrast)).astype(np.float32)[:, None]
        offset = (between(u[:, 1], *self._brightness) * 255.0).astype(np.float32)[:, None]
        return list(np.asarray(np.clip(_LEVELS * factor + offset, 0, 255), np.uint8))  # the fraction is dropped

    def apply(self, image: Pixels, parameter: Pixels) -> Pixels:
        return cv2.LUT(image, parameter).astype(np.uint8, copy=False)


class Erasing(Transform):
    """One rectangle of random area and aspect ratio (width by height) is filled."""

    draws = 4
    in_place = True

    @classmethod
    def supports(cls, reference: Any) -> bool:
        return not isinstance(reference.fill, str)

    def __init__(self, reference: Any) -> None:
        super().__init__(reference)
        self._fill = np.array(reference.fill, np.uint8)
        self._scale, self._ratio = reference.scale, reference.ratio

    def parameters(self, u: Float64Array, shape: Shape) -> list[tuple[int, ...]]:
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
        return _boxes(x1, y1, x1 + w, y1 + h)

    def apply(self, image: Pixels, parameter: tuple[int, int, int, int]) -> Pixels:
        x1, y1, x2, y2 = parameter
        image[y1:y2, x1:x2] = self._fill
        return image


class HorizontalFlip(Transform):
    """Left and right exchanged."""

    def apply(self, image: Pixels, parameter: None) -> Pixels:
        return cv2.flip(image, 1).astype(np.uint8, copy=False)


class _Warp(Transform):
    """Pixels taken through a matrix (2, 3) from where they were to where they are; None leaves them."""

    def __init__(self, reference: Any) -> None:
        super().__init__(reference)
        self._flags, self._border = reference.interpolation, reference.border_mode
        self._value = _border_value(reference.fill)
        # OpenCV's bilinear warp of four channels takes two thirds of the time of three, and gives the same three.
        self._through_four = self._flags == cv2.INTER_LINEAR and self._border in _THROUGH_FOUR_CHANNELS

    def apply(self, image: Pixels, parameter: npt.NDArray[np.float64] | None) -> Pixels:
        if parameter is None:
            return image
        source = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA) if self._through_four else image
        size = image.shape[1], image.shape[0]
        result = cv2.warpAffine(
            source, parameter, size, flags=self._flags, borderMode=self._border, borderValue=self._value
        )
        if self._through_four:
            result = cv2.cvtColor(result, cv2.COLOR_RGBA2RGB)
        return result.astype(np.uint8, copy=False)


class Rotate(_Warp):
    """Rotated about the center, counterclockwise for positive degrees."""

    draws = 1

    @classmethod
    def supports(cls, reference: Any) -> bool:
        return not reference.crop_border

    def __init__(self, reference: Any) -> None:
        super().__init__(reference)
        self._limit = reference.limit

    def parameters(self, u: Float64Array, shape: Shape) -> list[npt.NDArray[np.float64] | None]:
        return _about_center([_rotations(between(u[:, 0], *self._limit))], shape)


class Affine(_Warp):
    """Scaled, rotated, sheared and translated, in this order, about the center; each axis by draws of its own."""

    draws = 7

    @classmethod
    def supports(cls, reference: Any) -> bool:
        return not reference.balanced_scale and not reference.fit_output

    def __init__(self, reference: Any) -> None:
        super().__init__(reference)
        self._scale, self._shear, self._rotate = reference.scale, reference.shear, reference.rotate
        self._percent, self._pixels = reference.translate_percent, reference.translate_px
        self._keep_ratio = reference.keep_ratio

    def parameters(self, u: Float64Array, shape: Shape) -> list[npt.NDArray[np.float64] | None]:
        moved, sheared, scaled = (np.tile(np.eye(3), (len(u), 1, 1)) for _ in range(3))
        for axis, (name, length) in enumerate((("x", shape[1]), ("y", shape[0]))):
            if self._pixels is not None:
                low, high = self._pixels[name]
                moved[:, axis, 2] = integer(u[:, axis], int(low), int(high))
            else:
                moved[:, axis, 2] = np.trunc(between(u[:, axis], *self._percent[name]) * length)
            sheared[:, axis, 1 - axis] = np.tan(np.deg2rad(-between(u[:, 2 + axis], *self._shear[name])))
            drawn = 4 if self._keep_ratio else 4 + axis
            scaled[:, axis, axis] = between(u[:, drawn], *self._scale[name])
        rotated = _rotations(between(u[:, 6], *self._rotate))
        return _about_center([moved, sheared, rotated, scaled], shape)


class Pad(Transform):
    """Pixels added on each side."""

    def __init__(self, reference: Any) -> None:
        super().__init__(reference)
        given = reference.padding
        if isinstance(given, int | float):
            given = (given, given)
        left, top, right, bottom = given if len(given) == 4 else (*given, *given)
        self._sides = int(top), int(bottom), int(left), int(right)
        self._border, self._value = reference.border_mode, _border_value(reference.fill)

    def shape(self, shape: Shape) -> Shape:
        top, bottom, left, right = self._sides
        return shape[0] + top + bottom, shape[1] + left + right

    def apply(self, image: Pixels, parameter: None) -> Pixels:
        padded = cv2.copyMakeBorder(image, *self._sides, borderType=self._border, value=self._value)
        return padded.astype(np.uint8, copy=False)


class RandomCrop(Transform):
    """A window anywhere, given as (x1, y1, x2, y2)."""

    draws = 2

    @classmethod
    def supports(cls, reference: Any) -> bool:
        return not reference.pad_if_needed

    def __init__(self, reference: Any) -> None:
        super().__init__(reference)
        self._height, self._width = reference.height, reference.width

    def shape(self, shape: Shape) -> Shape | None:
        fits = self._height <= shape[0] and self._width <= shape[1]
        return (self._height, self._width) if fits else None

    def parameters(self, u: Float64Array, shape: Shape) -> list[tuple[int, ...]]:
        y1 = np.floor((shape[0] - self._height + 1) * u[:, 0])
        x1 = np.floor((shape[1] - self._width + 1) * u[:, 1])
        return _boxes(x1, y1, x1 + self._width, y1 + self._height)

    def apply(self, image: Pixels, parameter: tuple[int, int, int, int]) -> Pixels:
        x1, y1, x2, y2 = parameter
        return image[y1:y2, x1:x2]


class RandomResizedCrop(Transform):
    """A window of random area and aspect ratio, resized; the whole image's middle where ten windows did not fit."""

    draws = 2 * _CROP_ATTEMPTS + 2

    @classmethod
    def supports(cls, reference: Any) -> bool:
        return not reference.area_for_downscale

    def __init__(self, reference: Any) -> None:
        super().__init__(reference)
        self._height, self._width = map(int, reference.size)
        self._scale, self._ratio, self._flags = reference.scale, reference.ratio, reference.interpolation

    def shape(self, shape: Shape) -> Shape:
        return self._height, self._width

    def parameters(self, u: Float64Array, shape: Shape) -> list[tuple[int, ...]]:
        # Attempt n draws numbers 2 n and 2 n + 1; the place of the first window that fits, the two after its own.
        height, width = shape
        area = between(u[:, : 2 * _CROP_ATTEMPTS : 2], *(part * height * width for part in self._scale))
        aspect = np.exp(between(u[:, 1 : 2 * _CROP_ATTEMPTS : 2], *np.log(self._ratio)))
        heights, widths = np.rint(np.sqrt(area / aspect)), np.rint(np.sqrt(area * aspect))
        fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
        samples, first = np.arange(len(u)), fits.argmax(1)
        h, w = heights[samples, first], widths[samples, first]
        y1 = np.floor((height - h + 1) * u[samples, 2 * first + 2])
        x1 = np.floor((width - w + 1) * u[samples, 2 * first + 3])
        none = ~fits.any(1)
        if none.any():
            h[none], w[none] = self._largest(shape)
            y1[none], x1[none] = (height - h[none]) // 2, (width - w[none]) // 2
        return _boxes(x1, y1, x1 + w, y1 + h)

    def _largest(self, shape: Shape) -> Shape:
        """The largest window whose aspect ratio is allowed."""
        height, width = shape
        if width / height < self._ratio[0]:
            return round(width / self._ratio[0]), width
        if width / height > self._ratio[1]:
            return height, round(height * self._ratio[1])
        return height, width

    def apply(self, image: Pixels, parameter: tuple[int, int, int, int]) -> Pixels:
        x1, y1, x2, y2 = parameter
        resized = cv2.resize(image[y1:y2, x1:x2], (self._width, self._height), interpolation=self._flags)
        return resized.astype(np.uint8, copy=False)


FORMS: dict[str, type[Transform]] = {
    form.__name__: form
    for form in (
        Affine, Erasing, HorizontalFlip, Pad, RandomBrightnessContrast, RandomCrop, RandomResizedCrop, Rotate,
    )
}  # fmt: skip
"""Name in albumentations -> its fast form."""


def _boxes(*corners: npt.NDArray[Any]) -> list[tuple[int, ...]]:
    """x1, y1, x2, y2, each (B,) -> B boxes."""
    return [tuple(box) for box in np.stack(corners, axis=-1).astype(int).tolist()]


def _rotations(degrees: Float64Array) -> Float64Array:
    """(B,) -> (B, 3, 3), counterclockwise where y points down."""
    radians = np.deg2rad(degrees % 360)
    matrices = np.tile(np.eye(3), (len(degrees), 1, 1))
    matrices[:, 0, 0] = matrices[:, 1, 1] = np.cos(radians)
    matrices[:, 0, 1], matrices[:, 1, 0] = np.sin(radians), -np.sin(radians)
    return matrices


def _about_center(steps: Sequence[Float64Array], shape: Shape) -> list[npt.NDArray[np.float64] | None]:
    """Matrices (B, 3, 3), the last applied first, about the middle of an image -> B matrices (2, 3), None: identity.

    The middle is that of the pixels' centers, (width - 1) / 2. Products are taken from left to right as in
    albumentations, so that they round alike.
    """
    middle = shape[1] / 2 - 0.5, shape[0] / 2 - 0.5
    there, back = np.eye(3), np.eye(3)
    there[:2, 2], back[:2, 2] = middle, (-middle[0], -middle[1])
    product = there
    for step in (*steps, back):
        product = product @ step
    same = np.isclose(product, np.eye(3)).all(axis=(1, 2)).reshape(-1)
    return [None if alike else matrix for alike, matrix in zip(same, product[:, :2], strict=True)]
