"""Promises of decoding, resizing and normalising."""

import io

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from builders.shards import picture, png
from PIL import Image

from fer.models.base import IMAGENET_MEAN, IMAGENET_STD, Resize
from fer.shards.pixels import ModelInput, PixelCache, decode, normalize, resize


def test_decoding_gives_rgb_or_gray_as_stored() -> None:
    for gray in (True, False):
        image = picture(1, 9, gray=gray)
        assert (decode(np.frombuffer(png(image), np.uint8)) == image).all()
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 250
    jpeg = cv2.imencode(".jpg", red[..., ::-1])[1]
    assert abs(decode(jpeg).mean((0, 1)) - [250, 0, 0]).max() < 4


@pytest.mark.parametrize("data", [b"", b"\x89PNG", b"<html>"])
def test_bytes_that_are_not_an_image_are_rejected(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a readable image"):
        decode(np.frombuffer(data, np.uint8))


def test_resize_to_the_same_size_is_the_image_itself() -> None:
    image = picture(0, 10)
    assert resize(image, ModelInput(10, Resize())) is image


@pytest.mark.parametrize("size", [7, 30])
def test_antialiased_resize_is_pillows(size: int) -> None:
    image = picture(0, 20)
    expected = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
    assert (resize(image, ModelInput(size, Resize(antialias=True))) == expected).all()
    gray = resize(image[..., 0], ModelInput(size, Resize(antialias=True)))
    assert (gray == expected[..., 0]).all()


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [7, 30])
def test_resize_without_antialias_has_half_pixel_centers_as_torch(size: int, kernel: str) -> None:
    image = picture(0, 20)
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    expected = F.interpolate(x, size=(size, size), mode=kernel, align_corners=False).clamp(0, 255)[0].permute(1, 2, 0)
    result = resize(image, ModelInput(size, Resize(kernel=kernel, antialias=False)))
    assert abs(result.astype(float) - expected.numpy()).max() <= 1.0


def test_a_truncated_input_drops_fractions_in_training_and_keeps_them_elsewhere() -> None:
    """By hand: the two middle pixels of four are 3/4 of the nearer one and 1/4 of the other.

    JPEG of quality 100 then moves a level by 1 at most: here two of them.
    """
    image, rounded = np.array([[0, 10], [100, 240]], np.uint8), ModelInput(4, Resize(antialias=False))
    exact = [[0, 2.5, 7.5, 10], [25, 35.625, 56.875, 67.5], [75, 101.875, 155.625, 182.5], [100, 135, 205, 240]]
    truncated = rounded._replace(truncate=True)
    found = resize(image, truncated)
    assert found.dtype == truncated.dtype(training=False) == np.float32
    assert found.tolist() == exact
    trained = resize(image, truncated, training=True)
    assert trained.dtype == truncated.dtype(training=True) == np.uint8
    assert trained.tolist() == [[0, 2, 7, 10], [25, 36, 56, 67], [74, 101, 155, 182], [100, 135, 205, 240]]
    assert (np.floor(exact) - trained).tolist() == [[0, 0, 0, 0], [0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert (resize(image, rounded, training=True) == resize(image, rounded)).all()
    assert resize(image, rounded)[2].tolist() == [75, 102, 156, 183]


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [7, 20, 30])
def test_truncated_training_images_are_what_pillow_stores_and_others_are_the_rounded_ones_before_rounding(
    size: int, antialias: bool
) -> None:
    target = ModelInput(size, Resize(antialias=antialias), truncate=True)
    image = picture(3, 20)
    for own in (image, image[..., 0]):
        exact = resize(own, target)
        assert abs(exact - resize(own, target._replace(truncate=False))).max() <= 1
        file = io.BytesIO()
        floored = exact.astype(np.uint8) if own.ndim == 3 else np.repeat(exact.astype(np.uint8)[..., None], 3, 2)
        Image.fromarray(floored).save(file, "JPEG", quality=100, subsampling=0)
        stored = np.asarray(Image.open(file))
        assert (resize(own, target, training=True) == (stored if own.ndim == 3 else stored[..., 0])).all()


def test_unrounded_levels_are_normalized_by_the_same_formula() -> None:
    images = torch.tensor([[[[0.0, 2.5, 255.0]]]])
    kept = images.clone()
    assert normalize(images, (0.0,) * 3, (1 / 255,) * 3).flatten().tolist() == pytest.approx([0, 2.5, 255])
    assert torch.equal(images, kept)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_normalize_is_the_arithmetic_of_the_published_transforms(memory_format: torch.memory_format) -> None:
    images = torch.randint(0, 256, (3, 5, 4, 3), dtype=torch.uint8)
    x = images.permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    result = normalize(images, IMAGENET_MEAN, IMAGENET_STD, memory_format=memory_format)
    assert torch.equal(result, (x - mean) / std)
    assert result.is_contiguous(memory_format=memory_format)
    assert normalize(images, IMAGENET_MEAN, IMAGENET_STD, torch.bfloat16).dtype == torch.bfloat16


def test_cache_keeps_the_smaller_form_and_stays_within_its_limit() -> None:
    small, large = np.zeros((4, 4), np.uint8), np.zeros((8, 8, 3), np.uint8)
    cache = PixelCache(rows=10, limit=160)
    for row in range(12):
        cache.put(row % 10, small, large)
    assert cache.nbytes == 160
    assert cache.get(3) is small
    too_small = PixelCache(rows=10, limit=159)
    too_small.put(0, small, large)
    assert too_small.get(0) is None
    assert too_small.nbytes == 0
