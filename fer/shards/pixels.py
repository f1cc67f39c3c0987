"""From the bytes of a stored image to the pixels of a model's input."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from fer.models.base import FerModel, Resize

Pixels = npt.NDArray[np.uint8]
Levels = npt.NDArray[Any]
"""Levels 0 to 255 of an image, uint8 or, unrounded, float32."""

_PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_OPENCV = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


class ModelInput(NamedTuple):
    """A model's input specification: square images of `size` pixels, made by `resize` from crops of another size.

    `truncate`: see `resize` below.
    """

    size: int
    resize: Resize
    truncate: bool = False

    @classmethod
    def of(cls, model: FerModel) -> ModelInput:
        """The input that a model declares."""
        return cls(model.input_size, model.resize, model.truncate)

    def check(self) -> None:
        """Raises ValueError for a kernel that there is no code for."""
        if self.resize.kernel not in _PILLOW:
            raise ValueError(f"resize kernel {self.resize.kernel!r} is unknown; known: {', '.join(_PILLOW)}")

    def dtype(self, *, training: bool) -> np.dtype[np.uint8] | np.dtype[np.float32]:
        """Of the levels of an image after `resize`."""
        return np.dtype(np.float32) if self.truncate and not training else np.dtype(np.uint8)


def decode(data: npt.NDArray[np.uint8]) -> Pixels:
    """Bytes (n,) of a PNG or JPEG -> (H, W) for a gray image, else (H, W, 3) RGB.

    Raises:
        ValueError: the bytes are not an image, or a broken one.
    """
    try:
        image = cv2.imdecode(data, cv2.IMREAD_ANYCOLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:  # for an empty buffer
        image = None
    if image is None:
        raise ValueError(f"{data.size} bytes that are not a readable image")
    if image.ndim == 3:  # IMREAD_COLOR_RGB would save this, and make gray images three times as large
        cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)
    return image.astype(np.uint8, copy=False)


def resize(image: Pixels, target: ModelInput, *, training: bool = False) -> Levels:
    """(H, W) or (H, W, 3) -> (size, size) or (size, size, 3); the image itself where it has that size already.

    With antialias, Pillow's resampling: what the published transforms do, which work on Pillow images. Without,
    OpenCV's of the same kernel with half-pixel centers, as torch's `interpolate(align_corners=False)`.

    Levels are rounded to uint8. With `truncate` they are not, float32, but for images of `training`, which lose their
    fractions and are stored as JPEG of quality 100 without subsampling: LHC-Net's preparation (section 3, "Setup"; the
    quality is the published code's).
    """
    side = (target.size, target.size)
    if target.truncate:
        exact = _unrounded(image, target)
        return _through_jpeg(exact.astype(np.uint8)) if training else exact
    if image.shape[:2] == side:
        return image
    if target.resize.antialias:
        return np.asarray(Image.fromarray(image).resize(side, _PILLOW[target.resize.kernel]))
    return cv2.resize(image, side, interpolation=_OPENCV[target.resize.kernel]).astype(np.uint8, copy=False)


def rgb_levels(image: Pixels, target: ModelInput) -> Levels:
    """(H, W) or (H, W, 3) -> (size, size, 3) for evaluation: `resize`, and a gray image as three equal channels."""
    levels = resize(image, target)
    return np.repeat(levels[:, :, None], 3, axis=2) if levels.ndim == 2 else levels


def _unrounded(image: Pixels, target: ModelInput) -> npt.NDArray[np.float32]:
    """Resized, with the fractions of its levels."""
    side, exact = (target.size, target.size), image.astype(np.float32)
    if image.shape[:2] == side:
        return exact
    if not target.resize.antialias:
        return cv2.resize(exact, side, interpolation=_OPENCV[target.resize.kernel]).clip(0, 255)
    kernel = _PILLOW[target.resize.kernel]
    planes = [np.asarray(Image.fromarray(plane).resize(side, kernel)) for plane in cv2.split(exact)]
    return cv2.merge(planes).clip(0, 255)


def _through_jpeg(image: Pixels) -> Pixels:
    """What is left of an image, (H, W) or (H, W, 3) RGB, that is stored as JPEG of quality 100 without subsampling."""
    options = [cv2.IMWRITE_JPEG_QUALITY, 100, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    bgr = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return decode(cv2.imencode(".jpg", bgr, options)[1])


def normalize(
    images_BHWC: Tensor,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Levels (B, H, W, 3) RGB -> `dtype` (B, 3, H, W), on the same device: `(x / 255 - mean) / std` per channel.

    Computed in float32 whatever `dtype`. On the CPU the 256 possible values of a channel of uint8 are computed once and
    looked up, which gives the same bits in a third to a seventh of the time.
    """
    if images_BHWC.device.type == "cpu" and images_BHWC.dtype == torch.uint8:
        levels = torch.arange(256, dtype=torch.uint8).repeat(3, 1).T[:, None]
        table = _formula(levels, mean, std).numpy()
        return _look_up(images_BHWC.numpy(), table, memory_format).to(dtype)
    return _formula(images_BHWC, mean, std).permute(0, 3, 1, 2).to(dtype).contiguous(memory_format=memory_format)


def _formula(x: Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]) -> Tensor:
    """The channel last."""
    y = x.to(torch.float32, copy=True).div_(255.0)
    return y.sub_(y.new_tensor(mean)).div_(y.new_tensor(std))


def _look_up(images_BHWC: Pixels, table: npt.NDArray[np.float32], memory_format: torch.memory_format) -> Tensor:
    """Each level through the column of its channel in `table` (256, 1, 3) -> float32 (B, 3, H, W).

    The memory is numpy's because that asks for huge pages: without them, the first touch of 77 MB (128 images of 224
    px) takes longer than the arithmetic.
    """
    count, height, width, channels = images_BHWC.shape
    if memory_format == torch.channels_last:
        last = np.empty(images_BHWC.shape, np.float32)
        for image, out in zip(images_BHWC, last, strict=True):
            cv2.LUT(image, table, dst=out)
        return torch.from_numpy(last).permute(0, 3, 1, 2)
    columns = [np.ascontiguousarray(table[:, 0, channel]) for channel in range(channels)]
    first = np.empty((count, channels, height, width), np.float32)
    planes = list(np.empty((channels, height, width), np.uint8))
    for image, target in zip(images_BHWC, first, strict=True):
        cv2.split(image, planes)
        for plane, column, out in zip(planes, columns, target, strict=True):
            cv2.LUT(plane, column, dst=out)
    return torch.from_numpy(first)


class PixelCache:
    """Decoded images of a split that fits into memory, so that later epochs need not read and decode again.

    Keeps an image as decoded or as resized, whichever is smaller, if the whole split of `rows` such images stays
    within `limit` bytes; else keeps none. What is read from it equals what would be decoded. Safe for many threads.
    """

    def __init__(self, rows: int, limit: int) -> None:
        self._rows = rows
        self._limit = limit
        self._kept: dict[int, Pixels] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, row: int) -> Pixels | None:
        """The image as it was put, or None. Not to be written to."""
        return self._kept.get(row)

    def put(self, row: int, decoded: Pixels, resized: Levels) -> None:
        """Offers an image."""
        kept = decoded if decoded.nbytes <= resized.nbytes else resized
        if kept.nbytes * self._rows > self._limit:
            return
        with self._lock:
            if row not in self._kept and self._bytes + kept.nbytes <= self._limit:
                self._kept[row] = kept
                self._bytes += kept.nbytes

    @property
    def nbytes(self) -> int:
        """Bytes of pixels kept."""
        return self._bytes
