"""RecordIO as face-recognition datasets are published by InsightFace: train.rec, train.idx, property.

All numbers are little-endian. A record of train.rec (dmlc-core, include/dmlc/recordio.h):

    u32 0xCED7230A, u32 with the kind of part in its 3 high bits and the length in the others, data, zeros to 4 bytes

Kinds: 0 is a whole record; 1, 2, 3 are the first, middle and last part of one that held the mark above at a multiple of
4 bytes, where it was cut out. The data of an image (mxnet, python/mxnet/recordio.py):

    u32 flag, f32 label, u64 id, u64 id, then `flag` more f32 in place of the label where flag > 0, then the image

train.idx has a line "key<TAB>offset" a record. Record 0 of InsightFace's files is not an image: its labels are the
key one past the last image (records of people follow), and one past the last of all. Files that mxnet's im2rec made
have images alone. property says "number of people,height,width".
"""

from __future__ import annotations

import math
import re
import struct
from pathlib import Path
from typing import IO, NamedTuple

from fer.io.files import FileError, refuse_impostor

_MARK = 0xCED7230A
_MARK_BYTES = struct.pack("<I", _MARK)
_PART = struct.Struct("<II")
_HEADER = struct.Struct("<IfQQ")
_LABEL = struct.Struct("<f")
_LARGEST_IMAGE = 64 << 20
_MOST_PEOPLE = 1 << 24  # from here on float32 misses whole numbers


class Place(NamedTuple):
    """Where a record of train.rec begins."""

    key: int
    offset: int


def holds_records(folder: Path) -> bool:
    """Whether a folder is a dataset in this form, or the greater part of one."""
    return (folder / "train.rec").is_file()


def read_index(folder: Path) -> list[Place]:
    """The records of folder/train.idx, by ascending key.

    Raises:
        FileError: absent, not such a list, a key given twice, or a place outside train.rec.
    """
    path = folder / "train.idx"
    if not path.is_file():
        raise FileError(f"{path}: no such file; it comes with train.rec and says where in it each image is")
    refuse_impostor(path, str(path))
    size = (folder / "train.rec").stat().st_size
    places: dict[int, int] = {}
    with path.open("rb") as handle:
        for number, line in enumerate(iter(lambda: handle.readline(64), b""), 1):
            match = re.fullmatch(rb"(\d{1,18})\t(\d{1,18})\r?\n?", line)
            if not match:
                raise FileError(f"{path}: line {number}: {line[:40]!r} is not a key, a tab and an offset")
            key, offset = int(match[1]), int(match[2])
            if offset % 4 or offset + _PART.size > size:
                raise FileError(
                    f"{path}: line {number}: offset {offset} begins no record of the {size} bytes of train.rec"
                )
            if places.setdefault(key, offset) != offset:
                raise FileError(f"{path}: line {number}: key {key} is given twice")
    return [Place(key, places[key]) for key in sorted(places)]


def images(handle: IO[bytes], places: list[Place]) -> list[Place]:
    """The records that are images.

    Raises:
        ValueError: the first record is damaged, or contradicts the index.
    """
    if not places or places[0].key != 0:
        return places
    labels = _labels(handle, places[0].offset, most=2)
    if len(labels) == 1:
        return places
    end = labels[0]
    if not (end.is_integer() and 1 <= end <= places[-1].key + 1):
        raise ValueError(f"record 0 says that images end before key {end:g}, of {places[-1].key} at most")
    return [place for place in places if 0 < place.key < end]


def read_label(handle: IO[bytes], offset: int) -> int:
    """The number of the person whom a record shows.

    Raises:
        ValueError: a damaged record, or no number of a person.
    """
    label = _labels(handle, offset, most=1)[0]
    if not (math.isfinite(label) and label.is_integer() and 0 <= label < _MOST_PEOPLE):
        raise ValueError(f"label {label:g} is not a number of a person")
    return int(label)


def _labels(handle: IO[bytes], offset: int, *, most: int) -> tuple[float, ...]:
    """The first labels of a record, one or more; reads no image. ValueError: a damaged record."""
    _, length = _part(handle, offset, first=True)
    data = handle.read(min(length, _HEADER.size + most * _LABEL.size))
    if len(data) < _HEADER.size:
        raise ValueError(f"the record at byte {offset} is too short")
    flag, label, _, _ = _HEADER.unpack_from(data)
    if flag == 0:
        return (label,)
    count = min(flag, most)
    if len(data) < _HEADER.size + count * _LABEL.size:
        raise ValueError(f"the record at byte {offset} is shorter than its {flag} labels")
    return struct.unpack_from(f"<{count}f", data, _HEADER.size)


def read_image(handle: IO[bytes], offset: int) -> bytes:
    """The encoded image of a record.

    Raises:
        ValueError: a damaged record.
    """
    data = bytearray()
    place, kind = offset, 1
    while kind not in (0, 3):
        kind, length = _part(handle, place, first=place == offset)
        if len(data) + length > _LARGEST_IMAGE:
            raise ValueError(f"the record at byte {offset} is larger than any image")
        part = handle.read(length)
        if len(part) < length:
            raise ValueError(f"the record at byte {offset} is cut off")
        data += part if place == offset else _MARK_BYTES + part  # the writer cut the mark out
        place += _PART.size + -(-length // 4) * 4
    if len(data) < _HEADER.size:
        raise ValueError(f"the record at byte {offset} is too short")
    flag = _HEADER.unpack_from(data)[0]
    image = bytes(data[_HEADER.size + flag * _LABEL.size :])
    if not image:
        raise ValueError(f"the record at byte {offset} holds no image")
    return image


def _part(handle: IO[bytes], offset: int, *, first: bool) -> tuple[int, int]:
    """Kind and length of a part; the handle stands at its data."""
    handle.seek(offset)
    head = handle.read(_PART.size)
    if len(head) < _PART.size:
        raise ValueError(f"no record at byte {offset}: the file ends")
    mark, rest = _PART.unpack(head)
    kind = rest >> 29
    if mark != _MARK or (kind not in (0, 1) if first else kind not in (2, 3)):
        raise ValueError(f"no record begins at byte {offset}: damaged, or an index of another file")
    return kind, rest & (1 << 29) - 1


def read_property(folder: Path) -> int | None:
    """The number of people that folder/property states; None without the file.

    Raises:
        FileError: it says something else.
    """
    path = folder / "property"
    if not path.is_file():
        return None
    text = path.read_bytes()[:64].decode("ascii", "replace").strip()
    match = re.fullmatch(r"(\d{1,9}),(\d{1,5}),(\d{1,5})", text)
    if not match:
        raise FileError(f"{path}: {text[:40]!r} is not the number of people, height and width, e.g. 85742,112,112")
    return int(match[1])
