"""The one way from foreign picture bytes to pixels."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

# 100 megapixels decode to 300 MB of RGB; no face photograph needs more, and a bomb of a few bytes asks for far more.
MAX_PIXELS = 100_000_000


class ImageError(ValueError):
    """Bytes that are no usable picture; `reason` is a short stable word for counting."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def decode_image(data: bytes) -> npt.NDArray[np.uint8]:
    """The one way from foreign picture bytes to pixels.

    EXIF orientation is applied; grey, palette, CMYK and 16-bit pictures become RGB; of several frames the first counts;
    transparency is laid over white.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ImageError: reason "empty", "not_an_image", "truncated" or "too_large".
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not data:
        raise ImageError("empty", "0 bytes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ImageError("too_large", f"{image.width} x {image.height} pixels, at most {MAX_PIXELS}")
                image.load()
                upright = ImageOps.exif_transpose(image)
                return _to_rgb(upright)
        except (UnidentifiedImageError, Image.DecompressionBombError) as error:
            if isinstance(error, Image.DecompressionBombError):
                raise ImageError("too_large", str(error)) from None
            # Pillow's own text holds a memory address, which would differ on every run.
            raise ImageError("not_an_image", f"no known picture format in {len(data)} bytes") from None
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            if isinstance(error, ImageError):
                raise
            raise ImageError("truncated", str(error)) from None


def _to_rgb(image: Any) -> npt.NDArray[np.uint8]:
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        # 16-bit grey spans 0..65535 (PIL calls it I;16 or I), float TIFF 0..1 or 0..255: scale to 8 bits, never clip.
        top = 1.0 if values.max(initial=0) <= 1.0 else 255.0 if values.max(initial=0) <= 255.0 else 65535.0
        grey = np.clip(np.rint(values * (255.0 / top)), 0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"), dtype=np.uint8)
