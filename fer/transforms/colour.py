"""Fast forms of the transforms that change colours and leave pixels where they are."""

from collections.abc import Callable, Sequence
from itertools import permutations
from typing import Any

import cv2
import numpy as np

from fer.transforms.base import Pixels, Shape, Transform, between
from fer.transforms.draws import Float64Array

_LEVELS = np.arange(256, dtype=np.float32)
_ORDERS = list(permutations(range(4)))


class RandomBrightnessContrast(Transform):
    """Levels times a factor plus an offset."""

    draws = 2

    @classmethod
    def of(cls, reference: Any) -> "RandomBrightnessContrast | None":
        return cls(reference) if reference.brightness_by_max and not reference.ensure_safe_range else None

    def __init__(self, reference: Any) -> None:
        super().__init__(reference.p)
        self._brightness, self._contrast = reference.brightness_limit, reference.contrast_limit

    def parameters(self, u: Float64Array, shape: Shape) -> Sequence[Pixels]:
        factor = 1.0 + between(u[:, 0], *self._contrast)
        offset = between(u[:, 1], *self._brightness) * 255.0
        return list(_linear_tables(factor, offset))

    def apply(self, image: Pixels, parameter: Pixels) -> Pixels:
        return _look_up(image, parameter)


class RandomGamma(Transform):
    """Levels of 0 to 1 to the power of gamma."""

    draws = 1

    @classmethod
    def of(cls, reference: Any) -> "RandomGamma":
        return cls(reference)

    def __init__(self, reference: Any) -> None:
        super().__init__(reference.p)
        self._limit = reference.gamma_limit

    def parameters(self, u: Float64Array, shape: Shape) -> Sequence[Pixels]:
        gamma = between(u[:, 0], *self._limit) / 100.0
        levels = np.arange(0, 256.0 / 255, 1.0 / 255)
        return list((levels ** gamma[:, None] * 255).astype(np.uint8))

    def apply(self, image: Pixels, parameter: Pixels) -> Pixels:
        return _look_up(image, parameter)


class ToGray(Transform):
    """Luma, three times."""

    @classmethod
    def of(cls, reference: Any) -> "ToGray | None":
        return cls(reference.p) if reference.method == "weighted_average" else None

    def parameters(self, u: Float64Array, shape: Shape) -> Sequence[None]:
        return [None] * len(u)

    def apply(self, image: Pixels, parameter: None) -> Pixels:
        return cv2.cvtColor(_luma(image), cv2.COLOR_GRAY2RGB).astype(np.uint8, copy=False)


class ColorJitter(Transform):
    """Brightness, contrast, saturation and hue, in any order; the first three by factors, hue in turns."""

    draws = 5

    @classmethod
    def of(cls, reference: Any) -> "ColorJitter":
        return cls(reference)

    def __init__(self, reference: Any) -> None:
        super().__init__(reference.p)
        self._ranges = reference.brightness, reference.contrast, reference.saturation, reference.hue
        self._steps: tuple[Callable[[Pixels, float], Pixels], ...] = (_brighten, _contrast, _saturate, _turn_hue)

    def parameters(self, u: Float64Array, shape: Shape) -> list[list[tuple[int, float]]]:
        values = np.stack([between(u[:, n], *limits) for n, limits in enumerate(self._ranges)], axis=-1).tolist()
        orders = (u[:, 4] * len(_ORDERS)).astype(int).tolist()
        return [[(step, of[step]) for step in _ORDERS[order]] for of, order in zip(values, orders, strict=True)]

    def apply(self, image: Pixels, parameter: list[tuple[int, float]]) -> Pixels:
        for step, value in parameter:
            image = self._steps[step](image, value)
        return image


def _brighten(image: Pixels, factor: float) -> Pixels:
    return image if factor == 1 else _look_up(image, _linear_tables(np.array([factor]), np.zeros(1))[0])


def _contrast(image: Pixels, factor: float) -> Pixels:
    if factor == 1:
        return image
    mean = float(_luma(image).mean())
    if factor == 0:
        return np.full_like(image, int(mean + 0.5))
    return _look_up(image, _linear_tables(np.array([factor]), np.array([mean * (1 - factor)]))[0])


def _saturate(image: Pixels, factor: float) -> Pixels:
    if factor == 1:
        return image
    grey = cv2.cvtColor(_luma(image), cv2.COLOR_GRAY2RGB)
    mixed = grey if factor == 0 else cv2.addWeighted(image, factor, grey, 1 - factor, gamma=0)
    return mixed.astype(np.uint8, copy=False)


def _turn_hue(image: Pixels, turns: float) -> Pixels:
    if turns == 0:
        return image
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    table = np.mod(np.arange(256, dtype=np.int16) + 180 * turns, 180).astype(np.uint8)
    hsv[..., 0] = cv2.LUT(np.ascontiguousarray(hsv[..., 0]), table)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB).astype(np.uint8, copy=False)


def _luma(image: Pixels) -> Pixels:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.uint8, copy=False)


def _linear_tables(factor: Float64Array, offset: Float64Array) -> Pixels:
    """(B,) and (B,) -> (B, 256): level x factor + offset in float32, cut to 0 .. 255, the fraction dropped."""
    levels = _LEVELS * factor.astype(np.float32)[:, None] + offset.astype(np.float32)[:, None]
    return np.asarray(np.clip(levels, 0, 255), np.uint8)


def _look_up(image: Pixels, table: Pixels) -> Pixels:
    return cv2.LUT(image, table).astype(np.uint8, copy=False)
