"""What people give as an image, as a sample of a dataset: a path, a URL, bytes, an array, an image of Pillow's."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import numpy.typing as npt
from PIL.Image import Image as PillowImage

from fer.io import remote
from fer.io.files import FileError
from fer.io.images import MAX_BYTES, ImageError, decode_image, pillow_pixels, read_bytes
from fer.shards.pixels import Pixels
from fer.sources.base import AnnotatedFace, RawSample, Reject
from fer.sources.layout import IMAGE_ENDINGS

if TYPE_CHECKING:
    from fer.faces.crop import Unreadable

ImageLike = str | os.PathLike[str] | bytes | npt.NDArray[np.uint8] | PillowImage
"""An image file's path, its http(s) URL, its bytes, RGB pixels uint8 (H, W, 3) or gray (H, W), or an opened image."""


def is_image(value: object) -> TypeGuard[ImageLike]:
    """Whether it is one image, and no list of them."""
    return isinstance(value, str | os.PathLike | bytes | np.ndarray | PillowImage)


def is_url(value: object) -> TypeGuard[str]:
    """Whether it is an address on the web."""
    return isinstance(value, str) and value.lower().startswith(("http://", "https://"))


def name_of(image: ImageLike, number: int) -> str:
    """A printable name: the path, the URL without credentials and query, or "image 1" for the first of a list."""
    if is_url(image):
        return remote.public_url(image)
    if isinstance(image, str | os.PathLike):  # file names may hold line breaks and bytes that are not text
        return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in os.fspath(image))
    return f"image {number}"


def pixels(image: ImageLike) -> Pixels:
    """(H, W, 3) RGB or (H, W) gray, upright.

    Raises:
        ImageError: it cannot be fetched, read or decoded; its `reason` is that of rejects.parquet, or "not_fetched".
        ValueError: an array of another kind. TypeError: no image at all.
    """
    found = _content(image)
    return decode_image(found) if isinstance(found, bytes) else found


def sample(image: ImageLike, name: str, *, is_crop: bool) -> RawSample | Reject:
    """As a sample of a dataset with one label for all faces, whose value is not used; errors of `pixels` that concern
    a file are a Reject."""
    try:
        data = _content(image)
    except ImageError as error:
        return unreadable(name, error)
    face = AnnotatedFace(box=None, landmarks=None, label=0, clean_label=0)
    return RawSample(key=name, image=data, split="test", faces=(face,), is_crop=is_crop, origin=name)


def unreadable(name: str, error: ImageError) -> Unreadable:
    """An image that could not be read."""
    from fer.faces.crop import Unreadable

    return Unreadable(sample_id=name, reason=error.reason, detail=str(error), origin=name)


def _content(image: ImageLike) -> bytes | Pixels:
    """Encoded bytes, or pixels; see `pixels` for errors."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, np.ndarray):
        return _checked(image)
    if isinstance(image, PillowImage):
        return pillow_pixels(image)
    if is_url(image):
        try:
            return remote.fetch(image, MAX_BYTES)
        except FileError as error:
            raise ImageError("not_fetched", str(error)) from None
    if isinstance(image, str | os.PathLike):
        return read_bytes(Path(image).expanduser())
    raise TypeError(
        f"{type(image).__name__}: no image; give a path, an http(s) URL, the bytes of a file, an RGB uint8 array "
        "(H, W, 3), or an image of Pillow's"
    )


def _checked(array: npt.NDArray[Any]) -> Pixels:
    if array.dtype != np.uint8:
        scale = ": scale it to 0 .. 255, round, and convert with .astype(np.uint8)" if array.dtype.kind == "f" else ""
        raise ValueError(f"array of {array.dtype}: pixels are uint8 levels, 0 .. 255{scale}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3) or 0 in array.shape:
        raise ValueError(f"array of shape {array.shape}: RGB is (H, W, 3), gray (H, W); of several, give a list")
    return np.ascontiguousarray(array)


def find_photos(paths: Iterable[Path]) -> Iterator[Path]:
    """Files as given, and every file below given folders with the ending of an image.

    Sorted within a folder; hidden files and folders are skipped, links to folders are not followed.
    """
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        for folder, inside, names in os.walk(path):
            inside[:] = sorted(name for name in inside if not name.startswith("."))
            for name in sorted(names):
                if name.lower().endswith(IMAGE_ENDINGS) and not name.startswith("."):
                    yield Path(folder) / name
