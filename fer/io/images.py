"""Decoding of untrusted image files, the only way to pixels.

An image comes out as a viewer shows it: upright, with its colors, and whole. No pixel is made up: a file that ends
early, or whose coded pixels are detectably damaged, is refused, though libraries would show something.

| input | outcome |
|---|---|
| JPEG of any size, sequential or progressive, gray, color, CMYK or YCCK, with Adobe's inverted inks or not | read |
| anything behind the end of a JPEG or PNG | ignored |
| a file that ends early, if only by a few bytes: their pixels are unknown | "truncated" |
| a PNG with a wrong checksum; a JPEG whose coded pixels do not end with its last row (`fer.io.jpeg`) | "damaged" |
| wrong bytes that nothing in the file reveals | read, with wrong pixels |
| 16-bit and float samples | read, scaled to 8 bits: 0 .. 65535, floats 0 .. 1 (or 0 .. 255, 0 .. 65535) |
| a palette, 1 bit per pixel, gray | read as RGB |
| transparency | laid over white |
| several frames or pages | the first |
| PNG, GIF, WebP, TIFF, BMP, AVIF, PPM under any name | read |
| HEIC, JPEG of 12 bits, and other known kinds without a decoder | "unsupported" |
| more than `MAX_PIXELS` or `MAX_BYTES` | "too_large", before any of it is decoded |
| anything else | "empty" or "not_an_image" |

Color profiles are not applied, as in the training pipelines of all the papers.
"""

from __future__ import annotations

import functools
import io
import logging
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fer.io import compat, jpeg

Pixels = npt.NDArray[np.uint8]

MAX_PIXELS = 64_000_000
"""Phones take 50 megapixels by default; a bomb of a few bytes asks for far more. Decoders take up to 12 bytes per
pixel (progressive CMYK JPEG: 770 MB), that of WebP 16: its limit is three quarters of this."""

MAX_BYTES = 256 << 20
"""Of a file. An uncompressed TIFF of `MAX_PIXELS` has less."""

_BAND_PIXELS = 1 << 20  # converted at a time, so that no conversion needs the memory of a second image

_FORMATS = ("AVIF", "BMP", "GIF", "PNG", "PPM", "TIFF", "WEBP")  # beside JPEG; none that runs another program
_PNG = b"\x89PNG\r\n\x1a\n"
_MAGICS = (
    ("AVIF", 4, b"ftypavi"), ("BMP", 0, b"BM"), ("GIF", 0, b"GIF8"), ("PNG", 0, _PNG), ("WEBP", 8, b"WEBP"),
    ("TIFF", 0, b"II*\0"), ("TIFF", 0, b"MM\0*"), ("HEIC", 4, b"ftyphei"), ("HEIC", 4, b"ftypmif1"),
    ("HEIC", 4, b"ftypmsf1"), ("JPEG 2000", 4, b"jP  \r\n"), ("JPEG XL", 4, b"JXL \r\n"), ("JPEG XL", 0, b"\xff\x0a"),
    ("Photoshop's format", 0, b"8BPS"), ("PDF", 0, b"%PDF-"), ("PostScript", 0, b"%!PS"),
)  # fmt: skip


class ImageError(ValueError):
    """Bytes that are not a usable image; `reason` is a short stable word for counting."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def read_image(path: Path) -> Pixels:
    """The image in a file; errors as of `read_bytes` and `decode_image`."""
    return decode_image(read_bytes(path))


def read_bytes(path: Path) -> bytes:
    """An image file, undecoded.

    Raises:
        ImageError: "not_a_file" (absent, a folder, a device), "unreadable" (no permission, a broken disk) or
            "too_large".
    """
    try:
        if not path.is_file():
            raise ImageError("not_a_file", "a folder" if path.is_dir() else "no such file")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise _too_many_bytes(size)
        return path.read_bytes()
    except OSError as error:
        raise ImageError("unreadable", error.strerror or "cannot be read") from None


def decode_image(data: bytes) -> Pixels:
    """An image of any kind as upright RGB; the table above lists the outcome for each input.

    Thread-safe. Takes at most 1 GB of memory for any input.

    Returns:
        (H, W, 3) uint8 RGB, read-only.

    Raises:
        ImageError: reason "empty", "not_an_image", "unsupported", "truncated", "damaged" or "too_large".
    """
    if not data:
        raise ImageError("empty", "0 bytes")
    if len(data) > MAX_BYTES:
        raise _too_many_bytes(len(data))
    if data.startswith(jpeg.MAGIC):
        return _decode_jpeg(data)
    if data.startswith(_PNG):
        _check_png(data)
    elif data[8:12] == b"WEBP" and (size := int.from_bytes(data[4:8], "little") + 8) > len(data):
        raise ImageError("truncated", f"{len(data)} bytes of a WebP of {size}")
    return _decode_other(data)


def pillow_pixels(image: Any) -> Pixels:
    """An image that Pillow has opened, as `decode_image` returns one of a file; errors alike."""
    _check_size(image.width, image.height)
    try:
        image.load()
        return _upright(_to_rgb(image), _orientation(image))
    except ImageError:
        raise
    except Exception as error:  # noqa: BLE001 - it may be read only now, and Pillow's readers raise any exception
        raise ImageError("damaged", str(error) or type(error).__name__) from None


def _decode_jpeg(data: bytes) -> Pixels:
    try:
        found = jpeg.structure(data)
        _check_size(found.width, found.height)
        image = jpeg.decode(data, found)
    except jpeg.JpegError as error:
        raise ImageError(error.reason, str(error)) from None
    pixels = _to_rgb(image)
    del image  # its memory is needed for turning
    return _upright(pixels, found.orientation)


def _check_png(data: bytes) -> None:
    """Checks the checksum of every chunk; decoders skip some of them."""
    position = len(_PNG)
    while position < len(data):
        size, kind = struct.unpack_from(">I4s", data, position) if position + 8 <= len(data) else (0, b"a piece")
        name, end = kind.decode("ascii", "replace"), position + 12 + size
        if end > len(data):
            # Chunks without pixels may be missing; whether the pixels are complete, their decoder finds.
            if kind != b"IEND" and not kind[:1].islower():
                raise ImageError("truncated", f"PNG that ends inside its chunk {name}")
            return
        if zlib.crc32(memoryview(data)[position + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise ImageError("damaged", f"PNG with a wrong checksum of its chunk {name}")
        if kind == b"IEND":
            return
        position = end


def _decode_other(data: bytes) -> Pixels:
    from PIL import Image, UnidentifiedImageError

    _quiet()
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _check_size(image.width, image.height, 16 if image.format == "WEBP" else 12)
            image.load()
            pixels, orientation = _to_rgb(image), _orientation(image)
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError("too_large", f"more than {MAX_PIXELS:,} pixels") from None
    except UnidentifiedImageError:
        raise _unknown(data) from None
    except Exception as error:  # noqa: BLE001 - for damaged files, Pillow's readers raise any exception
        text = str(error) or type(error).__name__
        early = isinstance(error, EOFError) or "truncated" in text or "not enough" in text.lower()
        raise ImageError("truncated" if early else "damaged", text) from None
    return _upright(pixels, orientation)


@functools.cache
def _quiet() -> None:
    """Once: messages of libraries, which would stand on the terminal without the file's name, are turned off."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").addHandler(logging.NullHandler())  # else Python prints errors that nobody handles
    compat.silence_libtiff()


def _unknown(data: bytes) -> ImageError:
    for name, offset, magic in _MAGICS:
        if data[offset : offset + len(magic)] == magic:
            if name in _FORMATS:
                return ImageError("damaged", f"{name} whose beginning cannot be read")
            return ImageError("unsupported", f"{name} is not supported; save the image as JPEG or PNG")
    return ImageError("not_an_image", f"no known image format in {len(data)} bytes")


def _check_size(width: int, height: int, bytes_per_pixel: int = 12) -> None:
    most = MAX_PIXELS * 12 // bytes_per_pixel
    if width * height > most:
        raise ImageError("too_large", f"{width} x {height} pixels, at most {most:,} are read")


def _too_many_bytes(size: int) -> ImageError:
    return ImageError("too_large", f"{size:,} bytes, at most {MAX_BYTES:,} are read")


# ------------------------------------------------------------------------------------------------ pixels


def _to_rgb(image: Any) -> Pixels:
    """(H, W, 3) of a Pillow image of any mode."""
    import cv2

    width, height = image.size
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        pixels = np.frombuffer(compat.image_bytes(image), np.uint8).reshape(height, width, -1)
        return pixels if image.mode == "RGB" else np.asarray(cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB), np.uint8)
    rows = max(1, _BAND_PIXELS // width)
    bands = [(0, top, width, min(height, top + rows)) for top in range(0, height, rows)]
    pixels = np.empty((height, width, 3), np.uint8)
    white = _white(image, bands) if image.mode in ("I", "F") else 65535.0
    for band in bands:
        pixels[band[1] : band[3]] = _band_to_rgb(image.crop(band), white)
    return pixels


def _white(image: Any, bands: list[tuple[int, int, int, int]]) -> float:
    """The sample value of white, which files do not state: the least usual one that no sample exceeds."""
    highest = 0.0
    for band in bands:
        values = np.asarray(image.crop(band))
        highest = max(highest, float(values.max(initial=0, where=np.isfinite(values))))
    usual = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0, 2.0**31 - 1)
    return next((value for value in usual if highest <= value), usual[-1])


def _band_to_rgb(band: Any, white: float) -> Pixels:
    import cv2
    from PIL import Image

    if band.mode[0] in "IF":
        values = np.nan_to_num(np.asarray(band, np.float32), nan=0.0, posinf=white, neginf=0.0)
        gray = np.clip(np.rint(values * np.float32(255.0 / white)), 0, 255).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    if band.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in band.info:
        band = band.convert("RGBA") if band.mode != "RGBA" or "transparency" in band.info else band
        values = np.asarray(band)
        if values[:, :, 3].min() == 255:
            return np.asarray(cv2.cvtColor(values, cv2.COLOR_RGBA2RGB), np.uint8)
        band = Image.alpha_composite(Image.new("RGBA", band.size, "white"), band)
    try:
        return np.asarray(band.convert("RGB"))
    except ValueError:
        raise ImageError("unsupported", f"pixels of kind {band.mode}") from None


def _orientation(image: Any) -> int:
    """The EXIF tag, 1 .. 8; 1 where it is missing or malformed."""
    try:
        value = image.getexif().get(jpeg.ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - as above; a malformed tag is no reason to refuse an image
        return 1
    return value if value in range(1, 9) else 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undoes the rotation and mirroring of an EXIF orientation."""
    import cv2

    if orientation in (5, 7):
        pixels = np.asarray(cv2.transpose(pixels), np.uint8)
        orientation = {5: 1, 7: 3}[orientation]
    turns = {3: cv2.ROTATE_180, 6: cv2.ROTATE_90_CLOCKWISE, 8: cv2.ROTATE_90_COUNTERCLOCKWISE}
    if orientation in turns:
        return np.asarray(cv2.rotate(pixels, turns[orientation]), np.uint8)
    if orientation in (2, 4):
        return np.asarray(cv2.flip(pixels, {2: 1, 4: 0}[orientation]), np.uint8)
    return pixels
