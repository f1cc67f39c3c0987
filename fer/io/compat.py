"""Every use of a private part of Pillow or of the standard library, one function each.

"Seen with" names the versions that were tried; tests/io/test_io_compat.py has a test for each, which fails first when
another version changes one of them.
"""

from __future__ import annotations

import ctypes
import http.client
import tarfile
import zipfile
from typing import IO, Any, cast


def zip_name(info: zipfile.ZipInfo) -> str | bytes:
    """A member's name as stored: text where it is flagged as UTF-8, else bytes. `ZipInfo.filename` is cut at a NUL.

    Seen with Python 3.11 to 3.13.
    """
    name: str = info.orig_filename
    return name if info.flag_bits & 0x800 else name.encode("cp437")


def tar_stream(tar: tarfile.TarFile) -> IO[bytes]:
    """The stream behind a tar opened with mode "r|", including what was read ahead. Seen with Python 3.11 to 3.13."""
    return cast("IO[bytes]", tar.fileobj)


def forget_tar_members(tar: tarfile.TarFile) -> None:
    """Frees the members read so far; from Python 3.13 on, `stream=True` does. Seen with Python 3.11 to 3.13."""
    tar.members.clear()  # type: ignore[attr-defined]


def http_socket(response: http.client.HTTPResponse) -> Any:
    """The buffered connection behind a response, which also has bytes beyond its Content-Length.

    Seen with Python 3.11 to 3.13.
    """
    return response.fp


def jpeg_decoder(image: Any, raw_mode: str) -> Any:
    """Pillow's JPEG decoder, which fills `image` from portions of data; the public functions take a whole file.

    Seen with Pillow 11 to 13.
    """
    from PIL import Image

    decoder = Image._getdecoder(image.mode, "jpeg", (raw_mode, ""))
    decoder.setimage(image.im, (0, 0, *image.size))
    return decoder


def image_bytes(image: Any) -> bytes:
    """The samples of a Pillow image of mode L or RGB; `tobytes` needs the memory twice. Seen with Pillow 11 to 13."""
    from PIL import Image

    encoder = Image._getencoder(image.mode, "raw", (image.mode,))
    encoder.setimage(image.im, (0, 0, *image.size))
    _, _, data = encoder.encode(image.width * image.height * len(image.mode))
    samples: bytes = data
    return samples


def silence_libtiff() -> bool:
    """Stops libtiff from writing to standard error; False where it is linked such that this cannot be done.

    Seen with Pillow 11 to 13.
    """
    import PIL._imaging

    set_handler = getattr(ctypes.CDLL(PIL._imaging.__file__), "TIFFSetErrorHandler", None)
    if set_handler is not None:
        set_handler(None)
    return set_handler is not None
