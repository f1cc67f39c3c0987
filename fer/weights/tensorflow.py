"""TensorFlow's object checkpoints, read without TensorFlow.

A checkpoint is a bundle of files that share a prefix: `PREFIX.index` says what is where, `PREFIX.data-00000-of-0000n`
hold the raw tensors. The index is a sorted table of LevelDB (github.com/google/leveldb, doc/table_format.md): blocks
of key-value pairs, whose values are messages of tensorflow/core/protobuf/tensor_bundle.proto. All checksums, CRC-32C of
the blocks and of the tensors, are verified.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fer.io.files import FileError, refuse_impostor

_FOOTER_BYTES = 48
_MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
_BLOCK_TRAILER_BYTES = 5
_UNCOMPRESSED, _SNAPPY = 0, 1

# An index of LHC-Net has 25 kB and 600 keys of at most 100 bytes: a file that asks for more than this is none.
_MAX_INDEX_BYTES = 1 << 24
_MAX_TENSORS = 100_000
_MAX_KEY_BYTES = 1024
_MAX_SHARDS = 1000
_MAX_DIMENSIONS = 8

_DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8", 19: "<f2"}
"""numpy's names of the types of tensorflow/core/framework/types.proto that weights have."""

_NO_WEIGHT = re.compile(r"_CHECKPOINTABLE_OBJECT_GRAPH|(save_counter|optimizer)/.*|.*/\.OPTIMIZER_SLOT/.*")

_REMEDY = "fetch the .index and .data files again, from the same place"

Array = npt.NDArray[Any]


@dataclass
class _Entry:
    """The place of one tensor."""

    dtype: int = 0
    shape: list[int] = field(default_factory=list)
    shard: int = 0
    offset: int = 0
    size: int = 0
    checksum: int = 0
    sliced: bool = False


def read_checkpoint(path: Path) -> dict[str, Array]:
    """The weights of a checkpoint, by their names in the file (`conv1/kernel/.ATTRIBUTES/VARIABLE_VALUE`).

    The optimizer's variables and the checkpoint's own bookkeeping are left out.

    Args:
        path: the prefix, one of its files, or the folder whose file `checkpoint` names the prefix.

    Raises:
        FileError: no such checkpoint, a shard is missing, truncated or damaged, or it is no checkpoint; nothing is
            read beyond the size of the files, whatever they claim.
    """
    prefix = _prefix(Path(path))
    index = prefix.with_name(f"{prefix.name}.index")
    try:
        num_shards, entries = _read_index(index)
    except (IndexError, UnicodeDecodeError) as error:
        raise FileError(f"{index}: a damaged index ({error}); {_REMEDY}") from None
    shards = [_Shard(prefix, number, num_shards) for number in range(num_shards)]
    for name, entry in entries.items():
        shards[entry.shard].check(name, entry)
    weights = {name: entry for name, entry in entries.items() if not _NO_WEIGHT.fullmatch(name)}
    return {name: shards[entry.shard].read(name, entry) for name, entry in weights.items()}


def _prefix(path: Path) -> Path:
    if path.is_dir():
        listing = path / "checkpoint"
        if not listing.is_file():
            raise FileError(f"{path}: no file `checkpoint` in this folder; name the .index file itself")
        with open(listing, encoding="utf-8", errors="replace") as file:
            named = re.search(r'^model_checkpoint_path: "(.+)"', file.read(_MAX_INDEX_BYTES), re.MULTILINE)
        if named is None:
            raise FileError(f"{listing}: names no model_checkpoint_path; name the .index file itself")
        # The path may be of the machine that wrote it; the files are beside the listing.
        return path / re.split(r"[/\\]", named[1])[-1]
    return path.with_name(re.sub(r"\.index$|\.data-\d{5}-of-\d{5}$", "", path.name))


# -------------------------------------------------------------------------------------------------- the index


def _read_index(path: Path) -> tuple[int, dict[str, _Entry]]:
    """Number of shards, and the entry of each tensor."""
    if not path.is_file():
        raise FileError(f"{path}: no such file; a checkpoint is named by its prefix, its .index file or its folder")
    refuse_impostor(path, str(path))
    size = path.stat().st_size
    if size > _MAX_INDEX_BYTES:
        raise FileError(f"{path}: {size} bytes, more than an index has; name the .index file of a checkpoint")
    data = path.read_bytes()
    if size < _FOOTER_BYTES or data[-8:] != _MAGIC:
        raise FileError(f"{path}: no index of a TensorFlow checkpoint, or a truncated one; {_REMEDY}")
    _, position = _handle(data, size - _FOOTER_BYTES)  # of the metaindex, which is empty
    (offset, length), _ = _handle(data, position)
    num_shards = total = 0
    entries: dict[str, _Entry] = {}
    for _, handle in _pairs(path, data, offset, length):
        (offset, length), _ = _handle(handle, 0)
        total += length
        if total > size:
            raise FileError(f"{path}: blocks that overlap, so no checkpoint of a model")
        for key, value in _pairs(path, data, offset, length):
            if not key:
                num_shards = _header(path, value)
                continue
            entries[key.decode()] = _entry(value)
            if len(entries) > _MAX_TENSORS:
                raise FileError(f"{path}: more than {_MAX_TENSORS} tensors, so no checkpoint of a model")
    if num_shards == 0:
        raise FileError(f"{path}: an index without a header; {_REMEDY}")
    for name, entry in entries.items():
        if entry.shard >= num_shards:
            raise FileError(f"{path}: {name} is in shard {entry.shard} of {num_shards}; {_REMEDY}")
    return num_shards, entries


def _header(path: Path, message: bytes) -> int:
    """Number of shards."""
    fields = dict(_fields(message))
    num_shards = fields.get(1, 0)
    if fields.get(2, 0) != 0:
        raise FileError(f"{path}: a big-endian checkpoint; write it again on a little-endian machine")
    if not isinstance(num_shards, int) or not 1 <= num_shards <= _MAX_SHARDS:
        raise FileError(f"{path}: names {num_shards!r} shards, 1 to {_MAX_SHARDS} are possible; {_REMEDY}")
    return num_shards


def _entry(message: bytes) -> _Entry:
    entry = _Entry()
    for number, value in _fields(message):
        if number == 2 and isinstance(value, bytes):
            entry.shape = [_dimension(dim) for tag, dim in _fields(value) if tag == 2 and isinstance(dim, bytes)]
        elif number == 7:
            entry.sliced = True
        elif isinstance(value, int):
            name = {1: "dtype", 3: "shard", 4: "offset", 5: "size", 6: "checksum"}.get(number)
            if name:
                setattr(entry, name, value)
    return entry


def _dimension(message: bytes) -> int:
    return next((value for number, value in _fields(message) if number == 1 and isinstance(value, int)), 0)


def _pairs(path: Path, data: bytes, offset: int, length: int) -> Iterator[tuple[bytes, bytes]]:
    """The key-value pairs of the block at `offset`, whose content has `length` bytes."""
    end = offset + length
    if end + _BLOCK_TRAILER_BYTES > len(data):
        raise FileError(f"{path}: a block ends behind the file; {_REMEDY}")
    if _crc32c(data[offset : end + 1]) != _unmask(int.from_bytes(data[end + 1 : end + 5], "little")):
        raise FileError(f"{path}: wrong checksum at byte {offset}, the file is damaged; {_REMEDY}")
    if data[end] != _UNCOMPRESSED:
        kind = "compressed by snappy" if data[end] == _SNAPPY else f"of unknown compression {data[end]}"
        raise FileError(f"{path}: an index {kind}; TensorFlow writes plain ones: load and save it there once more")
    block = data[offset:end]
    num_restarts = int.from_bytes(block[-4:], "little")
    limit = len(block) - 4 * (num_restarts + 1)
    position, key = 0, b""
    while position < limit:
        shared, position = _varint(block, position)
        unshared, position = _varint(block, position)
        value_length, position = _varint(block, position)
        value_start = position + unshared
        if shared > len(key) or value_start + value_length > limit or shared + unshared > _MAX_KEY_BYTES:
            raise FileError(f"{path}: an entry of the table leaves its block; {_REMEDY}")
        key = key[:shared] + block[position:value_start]
        position = value_start + value_length
        yield key, block[value_start:position]


def _handle(data: bytes, position: int) -> tuple[tuple[int, int], int]:
    """((offset, length) of a block, position behind it)."""
    offset, position = _varint(data, position)
    length, position = _varint(data, position)
    return (offset, length), position


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """(number, position behind it): seven bits a byte, the lowest first."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise IndexError("a number of more than ten bytes")


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protobuf message: number, and its integer or its bytes."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        kind = tag & 7
        if kind == 0:
            value, position = _varint(message, position)
            yield tag >> 3, value
            continue
        if kind == 2:
            length, position = _varint(message, position)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise IndexError(f"a field of kind {kind}")
        content = message[position : position + length]
        if len(content) != length:
            raise IndexError("a field leaves its message")
        position += length
        yield tag >> 3, content if kind == 2 else int.from_bytes(content, "little")


# -------------------------------------------------------------------------------------------------- the tensors


class _Shard:
    """One data file. Tensors do not overlap, so that its size bounds what is read."""

    def __init__(self, prefix: Path, number: int, of: int) -> None:
        self.path = prefix.with_name(f"{prefix.name}.data-{number:05d}-of-{of:05d}")
        if not self.path.is_file():
            raise FileError(f"{self.path}: no such file; it belongs beside {prefix.name}.index")
        self._left = self._size = self.path.stat().st_size
        if self._size:
            refuse_impostor(self.path, str(self.path))

    def check(self, name: str, entry: _Entry) -> None:
        """Each tensor once, whether it is read or not: a file that was cut off is noticed wherever that was."""
        if entry.offset + entry.size > self._size or entry.size > self._left:
            raise FileError(
                f"{self.path}: {self._size} bytes, but {name} takes {entry.size} from byte {entry.offset} on: "
                f"the file is truncated or of another checkpoint; {_REMEDY}"
            )
        self._left -= entry.size

    def read(self, name: str, entry: _Entry) -> Array:
        """A tensor that was checked."""
        if entry.dtype not in _DTYPES or entry.sliced:
            what = "is cut into slices" if entry.sliced else f"has the type number {entry.dtype}"
            raise FileError(f"{self.path}: {name} {what}, unknown in weights of a model; known: {sorted(_DTYPES)}")
        dtype = np.dtype(_DTYPES[entry.dtype])
        if (
            len(entry.shape) > _MAX_DIMENSIONS
            or any(length > self._size for length in entry.shape)
            or prod(entry.shape) * dtype.itemsize != entry.size
        ):
            shape = entry.shape[:_MAX_DIMENSIONS]
            raise FileError(f"{self.path}: {name} of shape {shape} in {entry.size} bytes; {_REMEDY}")
        data = bytearray(entry.size)
        with open(self.path, "rb") as file:
            file.seek(entry.offset)
            file.readinto(data)
        if _crc32c(data) != _unmask(entry.checksum):
            raise FileError(f"{self.path}: wrong checksum of {name}, the file is damaged; {_REMEDY}")
        return np.ndarray(entry.shape, dtype, data)


# -------------------------------------------------------------------------------------------------- the checksum


def _unmask(stored: int) -> int:
    """LevelDB stores a checksum rotated and shifted, so that a checksum of data with checksums in it works."""
    rotated = (stored - 0xA282EAD8) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF


def _crc32c(data: bytes | bytearray) -> int:
    """CRC-32C (Castagnoli, reflected polynomial 0x82F63B78) of any number of bytes; 130 MB in less than a second.

    A remainder is linear: the front half of a message, moved to the place of the back half and added to it, leaves the
    same remainder. So a message is halved, all words at a time, until one word is left. Zeros in front change nothing.
    """
    if not data:
        return 0
    levels = max(0, (-(-len(data) // 4) - 1).bit_length())
    padded = bytes((4 << levels) - len(data)) + data
    words: npt.NDArray[np.uint32] = np.frombuffer(padded, "<u4")
    for level in reversed(range(levels)):
        half = 1 << level
        words = _advance(words[:half], level + 2) ^ words[half:]
    register = np.array([0xFFFFFFFF], np.uint32)  # the start value, moved over the whole message
    for level in range(len(data).bit_length()):
        if len(data) >> level & 1:
            register = _advance(register, level)
    return int((_advance(words, 2) ^ register)[0]) ^ 0xFFFFFFFF


def _advance(registers: npt.NDArray[np.uint32], level: int) -> npt.NDArray[np.uint32]:
    """Each register after 2^level bytes of zeros."""
    table = _advance_table(level)
    moved: npt.NDArray[np.uint32] = table[0][registers & 0xFF]
    for byte in (1, 2, 3):
        moved ^= table[byte][registers >> np.uint32(8 * byte) & 0xFF]
    return moved


@cache
def _advance_table(level: int) -> npt.NDArray[np.uint32]:
    """(4, 256): by byte of the register and its value."""
    values = np.arange(256, dtype=np.uint32)
    bytes_ = np.stack([values << np.uint32(8 * byte) for byte in range(4)])
    if level > 0:
        return _advance(_advance(bytes_, level - 1), level - 1)
    for _ in range(8):
        bytes_ = np.where(bytes_ & 1, bytes_ >> 1 ^ np.uint32(0x82F63B78), bytes_ >> 1)
    return bytes_
