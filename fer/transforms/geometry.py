"""Fast forms of the transforms that move pixels."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from fer.transforms.base import Pixels, Shape, Transform, between, border_value, integer
from fer.transforms.draws import Float64Array

_CROP_ATTEMPTS = 10
_THROUGH_FOUR_CHANNELS = (cv2.BORDER_CONSTANT, cv2.BORDER_REPLICATE)


class HorizontalFlip(Transform):
    """Left and right exchanged."""

    @classmethod
    def of(cls, reference: Any) -> "HorizontalFlip":
        return cls(reference.p)

    def parameters(self, u: Float64Array, shape: Shape) -> Sequence[None]:
        return [None] * len(u)

    def apply(self, image: Pixels, parameter: None) -> Pixels:
        return cv2.flip(image, 1).astype(np.uint8, copy=False)


class _Warp(Transform):
    """Pixels taken through a matrix (2, 3) from where they were to where they are; None leaves them."""

    def __init__(self, reference: Any) -> None:
        super().__init__(reference.p)
        self._flags, self._border = reference.interpolation, reference.border_mode
        self._value = border_value(reference.fill)
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
    """Turned about the centre, anticlockwise for positive degrees."""

    draws = 1

    @classmethod
    def of(cls, reference: Any) -> "Rotate | None":
        return None if reference.crop_border else cls(reference)

    def __init__(self, reference: Any) -> None:
        super().__init__(reference)
        self._limit = reference.limit

    def parameters(self, u: Float64Array, shape: Shape) -> list[npt.NDArray[np.float64] | None]:
        return _about_centre([_turns(between(u[:, 0], *self._limit))], shape)


class Affine(_Warp):
    """Scaled, turned, sheared and moved, in this order, about the centre; each axis by draws of its own."""

    draws = 7

    @classmethod
    def of(cls, reference: Any) -> "Affine | None":
        return None if reference.balanced_scale or reference.fit_output else cls(reference)

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
        turned = _turns(between(u[:, 6], *self._rotate))
        return _about_centre([moved, sheared, turned, scaled], shape)


class Pad(Transform):
    """Pixels added on each side."""

    @classmethod
    def of(cls, reference: Any) -> "Pad":
        return cls(reference)

    def __init__(self, reference: Any) -> None:
        super().__init__(reference.p)
        given = reference.padding
        if isinstance(given, int | float):
            given = (given, given)
        left, top, right, bottom = given if len(given) == 4 else (*given, *given)
        self._sides = int(top), int(bottom), int(left), int(right)
        self._border, self._value = reference.border_mode, border_value(reference.fill)

    def shape(self, shape: Shape) -> Shape:
        top, bottom, left, right = self._sides
        return shape[0] + top + bottom, shape[1] + left + right

    def parameters(self, u: Float64Array, shape: Shape) -> Sequence[None]:
        return [None] * len(u)

    def apply(self, image: Pixels, parameter: None) -> Pixels:
        padded = cv2.copyMakeBorder(image, *self._sides, borderType=self._border, value=self._value)
        return padded.astype(np.uint8, copy=False)


class _Crop(Transform):
    """A window of the picture, given as (x1, y1, x2, y2)."""

    def __init__(self, reference: Any) -> None:
        super().__init__(reference.p)
        self._height, self._width = reference.height, reference.width

    def shape(self, shape: Shape) -> Shape | None:
        fits = self._height <= shape[0] and self._width <= shape[1]
        return (self._height, self._width) if fits else None

    def apply(self, image: Pixels, parameter: tuple[int, int, int, int]) -> Pixels:
        x1, y1, x2, y2 = parameter
        return image[y1:y2, x1:x2]


class RandomCrop(_Crop):
    """A window anywhere."""

    draws = 2

    @classmethod
    def of(cls, reference: Any) -> "RandomCrop | None":
        return None if reference.pad_if_needed else cls(reference)

    def parameters(self, u: Float64Array, shape: Shape) -> list[tuple[int, ...]]:
        y1 = np.floor((shape[0] - self._height + 1) * u[:, 0])
        x1 = np.floor((shape[1] - self._width + 1) * u[:, 1])
        return _boxes(x1, y1, x1 + self._width, y1 + self._height)


class CenterCrop(_Crop):
    """The window in the middle."""

    @classmethod
    def of(cls, reference: Any) -> "CenterCrop | None":
        return None if reference.pad_if_needed else cls(reference)

    def parameters(self, u: Float64Array, shape: Shape) -> list[tuple[int, ...]]:
        y1, x1 = (shape[0] - self._height) // 2, (shape[1] - self._width) // 2
        return [(x1, y1, x1 + self._width, y1 + self._height)] * len(u)


class RandomResizedCrop(Transform):
    """A window of random area and aspect ratio, resized; the whole picture's middle where ten windows did not fit."""

    draws = 2 * _CROP_ATTEMPTS + 2

    @classmethod
    def of(cls, reference: Any) -> "RandomResizedCrop | None":
        return None if reference.area_for_downscale else cls(reference)

    def __init__(self, reference: Any) -> None:
        super().__init__(reference.p)
        self._size, self._scale, self._ratio = reference.size, reference.scale, reference.ratio
        self._flags = reference.interpolation

    def shape(self, shape: Shape) -> Shape:
        return int(self._size[0]), int(self._size[1])

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
        window = image[y1:y2, x1:x2]
        if window.shape[:2] == tuple(self._size):
            return window
        return cv2.resize(window, (self._size[1], self._size[0]), interpolation=self._flags).astype(
            np.uint8, copy=False
        )


def _boxes(x1: Float64Array, y1: Float64Array, x2: Float64Array, y2: Float64Array) -> list[tuple[int, ...]]:
    return [tuple(box) for box in np.stack([x1, y1, x2, y2], axis=-1).astype(int).tolist()]


def _turns(degrees: Float64Array) -> Float64Array:
    """(B,) -> (B, 3, 3), anticlockwise where y points down."""
    radians = np.deg2rad(degrees % 360)
    turns = np.tile(np.eye(3), (len(degrees), 1, 1))
    turns[:, 0, 0] = turns[:, 1, 1] = np.cos(radians)
    turns[:, 0, 1], turns[:, 1, 0] = np.sin(radians), -np.sin(radians)
    return turns


def _about_centre(steps: Sequence[Float64Array], shape: Shape) -> list[npt.NDArray[np.float64] | None]:
    """Matrices (B, 3, 3), the last applied first, about the middle of a picture -> B matrices (2, 3), None: identity.

    The middle is that of the pixels' centres, (width - 1) / 2. Products are taken from left to right as in
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
