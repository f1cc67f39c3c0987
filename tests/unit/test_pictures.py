"""Every kind of picture is decoded to upright RGB, or refused with a reason."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from fer import pictures


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_every_kind_of_picture_becomes_upright_rgb() -> None:
    red_left = np.zeros((40, 60, 3), np.uint8)
    red_left[:, :30, 0] = 255
    image = Image.fromarray(red_left)
    exif = image.getexif()
    exif[0x0112] = 6  # turned a quarter: upright is 60 high
    assert pictures.decode_image(_encoded(image, "PNG")).shape == (40, 60, 3)
    assert pictures.decode_image(_encoded(image, "JPEG", exif=exif.tobytes())).shape == (60, 40, 3)
    assert pictures.decode_image(_encoded(image.convert("CMYK"), "JPEG")).shape == (40, 60, 3)
    grey16 = Image.fromarray(np.full((4, 4), 40000, np.uint16))
    assert pictures.decode_image(_encoded(grey16, "PNG"))[0, 0].tolist() == [156, 156, 156]
    clear = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    assert pictures.decode_image(_encoded(clear, "PNG"))[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize(("data", "reason"), [(b"", "empty"), (b"hello", "not_an_image")])
def test_what_is_no_picture_has_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(pictures.ImageError) as caught:
        pictures.decode_image(data)
    assert caught.value.reason == reason


def test_a_truncated_picture_and_a_bomb_have_reasons() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    with pytest.raises(pictures.ImageError) as caught:
        pictures.decode_image(_encoded(Image.fromarray(noise), "JPEG")[:5000])
    assert caught.value.reason == "truncated"
    bomb = _encoded(Image.new("1", (20000, 20000)), "PNG")
    with pytest.raises(pictures.ImageError) as caught:
        pictures.decode_image(bomb)
    assert caught.value.reason == "too_large"
