"""Every kind of image is decoded to the same upright RGB, or refused with a reason."""

import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from builders.images import HEIGHT, WIDTH, Pixels, difference, encoded, memory_to_read, scene, silence
from PIL import Image, ImageChops

from fer.io import images, jpeg

# Its filter in `fer.io.images` does not outlive a test, because pytest restores all filters.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


def refusal(data: bytes) -> str:
    """The reason of the refusal."""
    with pytest.raises(images.ImageError) as caught:
        images.decode_image(data)
    return caught.value.reason


def with_orientation(kind: str, orientation: int) -> bytes:
    image = Image.fromarray(scene())
    exif = image.getexif()
    exif[jpeg.ORIENTATION] = orientation
    return encoded(image, kind, exif=exif.tobytes(), **({} if kind == "PNG" else {"quality": 95}))


# ------------------------------------------------------------------------------------------------ kinds


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_becomes_upright(kind: str, orientation: int) -> None:
    stored = scene()
    # What the tag's numbers say of the stored rows and columns: EXIF 2.32, table 6.
    upright = {
        1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], 5: stored.transpose(1, 0, 2),
        6: stored[::-1].transpose(1, 0, 2), 7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: stored[:, ::-1].transpose(1, 0, 2),
    }[orientation]  # fmt: skip
    decoded = images.decode_image(with_orientation(kind, orientation))
    assert difference(decoded, upright) < 2.5
    assert decoded.flags.c_contiguous


@pytest.mark.parametrize("tag", [0, 9, 65535])
def test_invalid_orientation_is_ignored(tag: int) -> None:
    assert images.decode_image(with_orientation("JPEG", tag)).shape == (HEIGHT, WIDTH, 3)


def test_orientation_is_read_in_both_byte_orders_and_malformed_blocks_are_ignored() -> None:
    for order, mark in (("<", b"II"), (">", b"MM")):
        block = mark + struct.pack(f"{order}HIHHHIHH", 42, 8, 1, jpeg.ORIENTATION, 3, 1, 6, 0)
        assert jpeg.exif_orientation(block) == 6
        for cut in range(20):
            assert jpeg.exif_orientation(block[:cut]) == 1
    assert jpeg.exif_orientation(b"II" + struct.pack("<HI", 42, 2**32 - 1)) == 1


LOSSLESS = {
    "png": lambda: encoded(scene(), "PNG"),
    "png with a comment and junk behind": lambda: encoded(scene(), "PNG") + bytes(5000),
    "opaque png": lambda: encoded(Image.fromarray(scene()).convert("RGBA"), "PNG"),
    "tiff": lambda: encoded(scene(), "TIFF"),
    "lzw tiff": lambda: encoded(scene(), "TIFF", compression="tiff_lzw"),
    "multi-page tiff": lambda: encoded(scene(), "TIFF", save_all=True, append_images=[Image.new("RGB", (9, 9))]),
    "animated png": lambda: encoded(scene(), "PNG", save_all=True, append_images=[Image.new("RGB", (WIDTH, HEIGHT))]),
    "lossless webp": lambda: encoded(scene(), "WEBP", lossless=True),
    "bmp": lambda: encoded(scene(), "BMP"),
    "ppm": lambda: encoded(scene(), "PPM"),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_image_keeps_every_pixel(name: str) -> None:
    assert np.array_equal(images.decode_image(LOSSLESS[name]()), scene())


LOSSY = {
    "jpeg": (lambda: encoded(scene(), "JPEG", quality=95), 2.0),
    "progressive jpeg": (lambda: encoded(scene(), "JPEG", quality=95, progressive=True), 2.0),
    "jpeg with restart markers": (lambda: encoded(scene(), "JPEG", quality=95, restart_marker_blocks=2), 2.0),
    "jpeg of rgb": (lambda: encoded(scene(), "JPEG", quality=95, keep_rgb=True), 2.0),
    "jpeg and another behind it": (lambda: encoded(scene(), "JPEG", quality=95) + encoded(scene()[:9], "JPEG"), 2.0),
    "adobe cmyk jpeg": (lambda: encoded(_inks(scene()), "JPEG", quality=95), 2.0),
    "cmyk jpeg as it is": (lambda: _without_adobe(encoded(ImageChops.invert(_inks(scene())), "JPEG", quality=95)), 2.0),
    "ycck jpeg": (lambda: _ycck(scene()), 3.0),
    "webp": (lambda: encoded(scene(), "WEBP", quality=95), 3.0),
    "animated webp": (lambda: encoded(scene(), "WEBP", quality=95, save_all=True, append_images=[_black()]), 3.0),
    "avif": (lambda: encoded(scene(), "AVIF", quality=95), 3.0),
    "palette": (lambda: encoded(Image.fromarray(scene()).quantize(256), "PNG"), 5.0),
    "animated gif": (lambda: encoded(Image.fromarray(scene()), "GIF", save_all=True, append_images=[_black()]), 5.0),
}


def _black() -> Image.Image:
    return Image.new("RGB", (WIDTH, HEIGHT))


def _inks(rgb: Pixels) -> Image.Image:
    return Image.fromarray(np.dstack([255 - rgb, np.zeros(rgb.shape[:2], np.uint8)]), "CMYK")


def _without_adobe(data: bytes) -> bytes:
    at = data.index(b"\xff\xee")
    assert data[at + 4 : at + 9] == b"Adobe"
    return data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]


def _ycck(rgb: Pixels) -> bytes:
    """As Adobe writes it: inverted inks, of which three are turned into luma and chroma; the segment says 2."""
    luma_and_chroma = np.asarray(Image.fromarray(255 - rgb).convert("YCbCr"))
    planes = np.dstack([luma_and_chroma, np.full(rgb.shape[:2], 255, np.uint8)])
    data = bytearray(encoded(ImageChops.invert(Image.fromarray(planes, "CMYK")), "JPEG", quality=95))
    data[data.index(b"Adobe") + 11] = 2
    return bytes(data)


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_image_looks_the_same(name: str) -> None:
    make, bound = LOSSY[name]
    assert difference(images.decode_image(make()), scene()) < bound


def test_gray_of_any_depth_becomes_the_same_rgb() -> None:
    gray = scene()[:, :, 0]
    expected = np.repeat(gray[:, :, None], 3, axis=2)
    same = {
        "8 bit": encoded(gray, "PNG"),
        "16 bit": encoded(gray.astype(np.uint16) * 257, "PNG"),
        "16 bit tiff": encoded(gray.astype(np.uint16) * 257, "TIFF"),
        "float, 0 .. 1": encoded(Image.fromarray((gray / 255).astype(np.float32)), "TIFF"),
        "float, 0 .. 255": encoded(Image.fromarray(gray.astype(np.float32)), "TIFF"),
        "float, 0 .. 65535": encoded(Image.fromarray(gray.astype(np.float32) * 257), "TIFF"),
        "opaque": encoded(Image.fromarray(gray).convert("LA"), "PNG"),
    }
    for name, data in same.items():
        assert np.array_equal(images.decode_image(data), expected), name


def test_dark_16_bit_image_stays_dark() -> None:
    assert images.decode_image(encoded(np.full((8, 8), 200, np.uint16), "PNG")).max() == 1


def test_nan_samples_are_black() -> None:
    values = np.array([[np.nan, np.inf, -np.inf, -1.0, 0.5, 1.0]], np.float32)
    decoded = images.decode_image(encoded(Image.fromarray(values), "TIFF"))
    assert decoded[0, :, 0].tolist() == [0, 255, 0, 0, 128, 255]


def test_transparency_is_blended_with_white() -> None:
    half = images.decode_image(encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 128)), "PNG"))
    assert np.abs(half[0, 0].astype(int) - [255, 127, 127]).max() <= 1
    gray = images.decode_image(encoded(Image.new("LA", (2, 2), (0, 0)), "PNG"))
    assert gray[0, 0].tolist() == [255, 255, 255]
    indexed = Image.new("P", (2, 1))
    indexed.putpalette([10, 20, 30, 40, 50, 60])
    indexed.putpixel((1, 0), 1)
    assert images.decode_image(encoded(indexed, "PNG", transparency=1))[0].tolist() == [[10, 20, 30], [255] * 3]
    keyed = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    assert images.decode_image(encoded(keyed, "PNG", transparency=(4, 5, 6)))[0].tolist() == [[1, 2, 3], [255] * 3]


def test_conversion_in_bands_changes_no_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = images.decode_image(encoded(_inks(scene()), "TIFF"))
    monkeypatch.setattr(images, "_BAND_PIXELS", 3 * WIDTH)
    assert np.array_equal(images.decode_image(encoded(_inks(scene()), "TIFF")), whole)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [(1, 1), (4000, 3), (3, 4000), (7, 9), (8, 1)])
def test_images_of_odd_sizes_are_decoded(size: tuple[int, int], kind: str) -> None:
    assert images.decode_image(encoded(Image.new("RGB", size, "red"), kind)).shape == (size[1], size[0], 3)


def test_ordinary_images_have_the_pixels_of_opencv() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (61, 83, 3), dtype=np.uint8)
    for name, data in {
        "4:2:0": encoded(noise, "JPEG", quality=80),
        "4:4:4": encoded(noise, "JPEG", quality=99, subsampling=0),
        "4:2:2, progressive": encoded(noise, "JPEG", subsampling=1, progressive=True),
        "gray": encoded(noise[:, :, 0], "JPEG"),
        "png": encoded(noise, "PNG"),
    }.items():
        assert np.array_equal(
            images.decode_image(data), cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        ), name


def test_threads_decode_the_same_pixels() -> None:
    files = [make() for make in LOSSLESS.values()] + [make() for make, _ in LOSSY.values()]
    alone = [images.decode_image(data) for data in files]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(images.decode_image, files * 8))
    assert all(np.array_equal(one, alone[index % len(files)]) for index, one in enumerate(together))


# ------------------------------------------------------------------------------------------------ refused


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello", "not_an_image"),
        (b"<!DOCTYPE html><title>Log in</title>", "not_an_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "unsupported"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "unsupported"),
        (b"GIF89a", "damaged"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
        (b"\xff\xd8\xff", "truncated"),
        (b"\xff\xd8\xff\xd9", "damaged"),
    ],
)
def test_other_bytes_have_a_reason(data: bytes, reason: str) -> None:
    assert refusal(data) == reason


@pytest.mark.parametrize("name", [*LOSSLESS, *LOSSY])
def test_truncated_image_is_refused_or_whole(name: str) -> None:
    data = LOSSLESS[name]() if name in LOSSLESS else LOSSY[name][0]()
    whole = images.decode_image(data)
    random = np.random.default_rng(0)
    ends = {*random.integers(1, len(data), 40).tolist(), *range(max(1, len(data) - 40), len(data))}
    reasons = set()
    with silence():
        for end in ends:
            try:
                assert np.array_equal(images.decode_image(data[:end]), whole), end
            except images.ImageError as error:
                reasons.add(error.reason)
    assert reasons <= {"truncated", "damaged", "not_an_image"}


def test_half_of_damaged_jpegs_are_detected() -> None:
    photo = scene().repeat(6, axis=0).repeat(6, axis=1)
    photo[60:180, 80:260] = np.random.default_rng(1).integers(0, 256, (120, 180, 3))
    data = encoded(photo, "JPEG", quality=90)
    random = np.random.default_rng(2)
    detected = 0
    for _ in range(40):
        start = int(random.integers(2000, len(data) - 2000))
        broken = data[:start] + random.bytes(60) + data[start + 60 :]
        try:
            images.decode_image(broken)
        except images.ImageError as error:
            detected += error.reason in ("damaged", "truncated")
    assert detected >= 20, f"{detected} of 40"


def test_png_with_a_flipped_bit_is_refused() -> None:
    data = bytearray(encoded(scene(), "PNG"))
    for place in range(8, len(data), 7):
        data[place] ^= 16
        with pytest.raises(images.ImageError):
            images.decode_image(bytes(data))
        data[place] ^= 16


def test_zeros_before_the_end_marker_are_not_damage() -> None:
    data = encoded(scene(), "JPEG")
    padded = data[:-2] + bytes(100) + data[-2:]
    assert np.array_equal(images.decode_image(padded), images.decode_image(data))


def test_too_many_pixels_are_refused_before_decoding() -> None:
    header = struct.pack(">HHBHHB", 0xFFC0, 17, 8, 60_000, 60_000, 3) + bytes([1, 17, 0, 2, 17, 0, 3, 17, 0])
    scan = struct.pack(">HHB", 0xFFDA, 12, 3) + bytes([1, 0, 2, 0, 3, 0, 0, 63, 0])
    assert refusal(b"\xff\xd8" + header + scan + b"\0\xff\xd9") == "too_large"
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    pixels = b"IDAT" + zlib.compress(b"")
    chunks = [struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) for body in (chunk, pixels)]
    assert refusal(b"\x89PNG\r\n\x1a\n" + b"".join(chunks)) == "too_large"


def test_file_above_the_size_limit_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "sparse.jpg"
    with open(path, "wb") as file:
        file.truncate(images.MAX_BYTES + 1)
    with pytest.raises(images.ImageError, match="too_large"):
        images.read_image(path)


def test_progressive_jpeg_with_too_many_scans_is_refused() -> None:
    data = encoded(scene(), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    assert refusal(data[:-2] + scan * jpeg.MAX_SCANS + data[-2:]) == "unsupported"


def test_unreadable_file_has_a_reason(tmp_path: Path) -> None:
    for name in ("folder", "empty", "locked"):
        (tmp_path / name).mkdir() if name == "folder" else (tmp_path / name).touch()
    (tmp_path / "locked").chmod(0)
    locked = "empty" if os.access(tmp_path / "locked", os.R_OK) else "unreadable"  # root may read everything
    for name, reason in (("folder", "not_a_file"), ("absent", "not_a_file"), ("empty", "empty"), ("locked", locked)):
        with pytest.raises(images.ImageError) as caught:
            images.read_image(tmp_path / name)
        assert caught.value.reason == reason


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("inks.jpg", {"mode": "CMYK", "progressive": True, "subsampling": 0}),
        ("colors.jpg", {"mode": "RGB", "progressive": True, "subsampling": 0}),
        ("alpha.png", {"mode": "RGBA", "compress_level": 1}),
        ("deep.png", {"mode": "I;16", "compress_level": 1}),
        ("alpha.webp", {"mode": "RGBA", "lossless": True, "quality": 0, "method": 0}),
        ("alpha.avif", {"mode": "RGBA", "speed": 10}),
        ("clear.gif", {"mode": "P", "transparency": 0}),
        ("float.tiff", {"mode": "F", "compression": "tiff_adobe_deflate"}),
        ("one_strip.tiff", {"mode": "RGB", "compression": "tiff_adobe_deflate", "tiffinfo": {278: 8000}}),
    ],
)
def test_largest_images_take_less_than_a_gigabyte(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    side = 6928 if name.endswith(".webp") else 8000
    assert images.MAX_PIXELS == 8000 * 8000
    Image.new(options.pop("mode"), (side, side)).save(tmp_path / name, **options)
    outcome, peak = memory_to_read(tmp_path / name)
    assert outcome == f"{side} x {side}"
    assert peak < 1000, f"{peak} MiB"
