"""JPEG files, read strictly: their structure from marker to marker (ITU-T T.81, annex B), and no pixel made up.

libjpeg shows *something* for nearly every file. Missing data become gray, and after damaged data it continues at the
wrong place, with at most a warning that neither Pillow nor OpenCV passes on. So this module walks the structure itself,
and gives the decoder the coded data in two portions, which show whether it ended where it should:

* without the last few bytes the image must not be complete; if it is, bytes were skipped, or left over;
* with all of them, and zeros where a marker would stop it, the image must be complete; if not, data are missing.

That finds nearly all damage of an ordinary camera JPEG: one scan, without restart markers. With these, damage stays
inside its interval and is mostly undetected; so it is in a progressive file, and wherever the codes fall into step
again. A JPEG has no checksum.
"""

from __future__ import annotations

import functools
import hashlib
import re
import struct
from dataclasses import dataclass
from typing import Any

from fer.io import compat

MAGIC = b"\xff\xd8\xff"

MAX_SCANS = 100
"""A progressive file has about ten; each costs a pass over the whole image."""

MAX_MARKERS = 10_000
"""Without restart markers. Large color profiles and depth maps take a few hundred segments."""

_MARKER = re.compile(rb"\xff[\x01-\xfe]")
_AFTER_SCAN = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # passes over stuffed zeros and restart markers
_EOI, _SOS, _APP1, _APP14 = 0xD9, 0xDA, 0xE1, 0xEE
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_HUFFMAN_SEQUENTIAL = (0xC0, 0xC1)
_BARE = {0x01, *range(0xD0, 0xD8)}  # markers without a segment
_INSIDE = {*range(0xE0, 0xF0), 0xC4, 0xCC, 0xDA, 0xDB, 0xDC, 0xDD, 0xFE}  # allowed after a scan, besides the end

ORIENTATION = 0x0112  # the EXIF tag
_NARROW = 8  # px; narrower rows could equal the mark of `decode` by accident
# The decoder looks ahead by at most 64 bits, so that it stops within so many bytes of where the data stop.
_AHEAD = 8
_PADDING = 4096  # bytes of zeros or ones that a writer may put before the end marker


class JpegError(ValueError):
    """A JPEG that cannot be decoded completely; `reason` is "truncated", "damaged" or "unsupported"."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Structure:
    """What the markers say of the pixels.

    Attributes:
        width, height: in px as stored, before `orientation`.
        components: 1 gray, 3 colors, 4 inks.
        orientation: of the EXIF tag, 1 .. 8; 1 where it is missing or malformed.
        adobe: whether the file has Adobe's segment; its inks are then stored inverted.
        ordinary: whether one scan of Huffman codes holds all pixels, so that `decode` can check where they end.
        end: offset of the end marker.
    """

    width: int
    height: int
    components: int
    orientation: int
    adobe: bool
    ordinary: bool
    end: int


def structure(data: bytes) -> Structure:
    """Walks a file that begins with `MAGIC` from marker to marker; what follows its end is ignored.

    Raises:
        JpegError: truncated, malformed, or of an unsupported kind.
    """
    frame: tuple[int, int, int, int, int] | None = None
    orientation, adobe, scans, whole, position, end = 1, False, 0, False, 2, None
    for _ in range(MAX_MARKERS):
        match = (_AFTER_SCAN if scans else _MARKER).search(data, position)
        if match is None:
            break
        kind, position = data[match.end() - 1], match.end()
        if kind == _EOI:
            end = match.start()
            break
        if kind in _BARE:
            continue
        if scans and kind not in _INSIDE:
            raise JpegError("damaged", f"marker ff{kind:02x} inside its pixels")
        size = int.from_bytes(data[position : position + 2], "big")
        body, position = data[position + 2 : position + size], position + size
        if size < 2 or position > len(data):
            break
        if kind in _FRAMES:
            if frame or len(body) < 6:
                raise JpegError("damaged", "two frame headers" if frame else "a broken frame header")
            frame = (kind, *struct.unpack_from(">BHHB", body))
        elif kind == _SOS:
            if frame is None or not body:
                raise JpegError("damaged", "pixels without a frame header")
            whole = body[0] == frame[4]
            scans += 1
        elif kind == _APP1 and body.startswith(b"Exif\0\0"):
            orientation = exif_orientation(body[6:])
        elif kind == _APP14 and body.startswith(b"Adobe"):
            adobe = True
    if frame is None or not scans:
        raise JpegError("truncated" if end is None else "damaged", f"{len(data)} bytes that end before its pixels")
    kind, precision, height, width, components = frame
    if precision != 8 or components not in (1, 3, 4) or not height:
        raise JpegError("unsupported", f"JPEG of {components} components of {precision} bits, {height} rows")
    if not width:
        raise JpegError("damaged", "a width of 0")
    if scans > MAX_SCANS:
        raise JpegError("unsupported", f"JPEG of {scans} scans, at most {MAX_SCANS}")
    ordinary = kind in _HUFFMAN_SEQUENTIAL and scans == 1 and whole and width >= _NARROW
    if end is None:
        raise JpegError("truncated", f"{len(data)} bytes without an end marker")
    return Structure(
        width=width, height=height, components=components, orientation=orientation, adobe=adobe, ordinary=ordinary,
        end=end,
    )  # fmt: skip


def exif_orientation(tiff: bytes) -> int:
    """The orientation tag, 1 .. 8, of an EXIF block (a TIFF header and its first directory); 1 where it has none."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, directory)
        for entry in range(entries):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, directory + 2 + 12 * entry)
            if tag == ORIENTATION:
                return value if kind == 3 and 1 <= value <= 8 else 1
    except struct.error:  # the block ends early: a malformed tag is no reason to refuse an image
        pass
    return 1


def decode(data: bytes, found: Structure) -> Any:
    """The pixels of a file as a Pillow image as stored, not turned: mode L, RGB or CMYK (0: no ink).

    Raises:
        JpegError: "damaged" where the coded data do not fit the image.
    """
    from PIL import Image

    mode = {1: "L", 3: "RGB", 4: "CMYK"}[found.components]
    image = Image.new(mode, (found.width, found.height), None)
    decoder = compat.jpeg_decoder(image, "CMYK;I" if found.components == 4 and found.adobe else mode)
    if not found.ordinary:
        taken, error = decoder.decode(data[: found.end + 2])
        if taken >= 0 or error:
            raise JpegError("damaged", "its coded pixels do not fit its size")
        return image
    # Rows that the decoder does not reach keep their previous pixels.
    mark, corner = _mark(mode), (0, found.height - 1, _NARROW, found.height)
    image.paste(mark, corner)
    tail = data[max(0, found.end - _PADDING) : found.end]
    taken, error = decoder.decode(memoryview(data)[: found.end - len(tail) + len(tail.rstrip(b"\0\xff")) - _AHEAD])
    if taken < 0 or error or image.crop(corner).tobytes() != mark.tobytes():
        raise JpegError("damaged", "its coded pixels are complete before their end: some of them are wrong")
    _, error = decoder.decode(data[taken : found.end] + bytes(_AHEAD))
    if error or image.crop(corner).tobytes() == mark.tobytes():
        raise JpegError("damaged", "its coded pixels end before the last row: some of them are wrong")
    return image


@functools.cache
def _mark(mode: str) -> Any:
    """Noise, with which no image's last row begins."""
    from PIL import Image

    return Image.frombytes(mode, (_NARROW, 1), hashlib.sha256(b"not the last row").digest()[: _NARROW * len(mode)])
