"""Files of `torch.save`, read without `torch.load`: the pickle as data (`fer.weights.unpickle`), the numbers as bytes.

Two layouts are in use. A zip archive (PyTorch 1.6 and later) holds `<name>/data.pkl` and one member a storage,
uncompressed. Before that, a file was five pickles (magic number, protocol, byte order, the object, the names of the
storages) and then the storages, each behind its length.

Every size that a file declares is checked against the bytes that it has before memory is asked for.
"""

from __future__ import annotations

import io
import math
import mmap
import struct
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fer.io.files import FileError
from fer.weights.unpickle import Global, TensorRef, unpickle

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The first pickle of a file in the old layout: a number that PyTorch chose."""

_LEGACY_PROTOCOL = 1001

# Tied weights read the same numbers a few times; a file that reads them more often wants to fill the memory.
_MOST_READS = 8

_DTYPES: Mapping[str, torch.dtype] = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype
    count: int


class TorchFile:
    """An open file of `torch.save`: `root` is the saved object (see `unpickle`), `tensor` brings one of its tensors.

    Raises:
        UnsafeFileError: its pickle names what acts on the machine.
        FileError: damaged, cut off, or not of PyTorch.
    """

    def __init__(self, path: Path) -> None:
        self._name = str(path)
        self._budget = _MOST_READS * path.stat().st_size
        self._latest: tuple[_Storage, Tensor] | None = None  # many tensors may be views of one storage
        with open(path, "rb") as handle:
            legacy = handle.read(len(LEGACY_MAGIC)) == LEGACY_MAGIC
        self._layout: _Zip | _Legacy = _Legacy(path) if legacy else _Zip(path)
        self.root: Any = self._layout.root

    def tensor(self, reference: TensorRef) -> Tensor:
        """The tensor itself: on the CPU, contiguous, its memory its own."""
        storage = reference.storage
        if not isinstance(storage, _Storage):
            raise FileError(f"{self._name}: damaged: a tensor without a storage")
        size = math.prod(reference.shape)
        last = reference.offset + sum((n - 1) * s for n, s in zip(reference.shape, reference.stride, strict=True))
        if size > storage.count or (size and last >= storage.count):
            raise FileError(f"{self._name}: a tensor of shape {reference.shape} in a storage of {storage.count}")
        self._budget -= size * storage.dtype.itemsize
        if self._budget < 0:
            raise FileError(f"{self._name}: declares more numbers than it holds")
        if not size:
            try:
                return torch.empty(reference.shape, dtype=storage.dtype)
            except RuntimeError as error:  # nothing, in dimensions whose product overflows
                raise FileError(f"{self._name}: a tensor of shape {reference.shape} ({error})") from None
        if self._latest is None or self._latest[0] != storage:
            self._latest = storage, torch.frombuffer(bytearray(self._layout.read(storage)), dtype=storage.dtype)
        view = self._latest[1].as_strided(reference.shape, reference.stride, reference.offset)
        return view.clone(memory_format=torch.contiguous_format)


def _storage(reference: Any) -> Any:
    """The storage that a persistent id names; the old layout also stores the source of classes under such ids."""
    match reference:
        case ("storage", Global() as kind, str() as key, str(), int() as count, *views):
            if any(view is not None for view in views):
                raise FileError("written by PyTorch before 0.4, which is not read")
            if str(kind) not in _DTYPES:
                raise FileError(f"numbers of type {kind}, which is not read; known: {', '.join(sorted(_DTYPES))}")
            if not 0 <= count < 1 << 63:
                raise FileError("a storage of an impossible size")
            return _Storage(key, _DTYPES[str(kind)], count)
        case ("module", kind, *_):
            return kind
    raise FileError("a persistent id of an unknown form")


# What `zipfile` says of damaged archives.
ZIP_ERRORS = (zipfile.BadZipFile, LookupError, ValueError, EOFError, OSError, RuntimeError, struct.error)


def open_zip(path: Path) -> zipfile.ZipFile:
    """The archive; FileError where it is none, or has no end."""
    try:
        return zipfile.ZipFile(path)
    except ZIP_ERRORS as error:
        raise FileError(f"{path}: begins as a zip archive and has no end ({error}): cut off; fetch it again") from None


class _Zip:
    """The layout since PyTorch 1.6."""

    def __init__(self, path: Path) -> None:
        self._name = name = str(path)
        self._archive = open_zip(path)
        members = {info.filename: info for info in self._archive.infolist()}
        pickles = [member for member in members if member.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise FileError(f"{name}: a zip archive, but no file of torch.save: it has no data.pkl")
        self._prefix = pickles[0].removesuffix("data.pkl")
        if self._prefix + "constants.pkl" in members:
            raise FileError(f"{name}: a TorchScript program; only weights are read")
        # torch.save never compresses: compressed members are a bomb, and so are members that overlap.
        compressed = any(info.compress_type != zipfile.ZIP_STORED for info in members.values())
        if compressed or sum(info.file_size for info in members.values()) > path.stat().st_size:
            raise FileError(f"{name}: compressed or overlapping members, which torch.save does not write")
        if self._prefix + "byteorder" in members and self._member("byteorder").decode() != sys.byteorder:
            raise FileError(f"{name}: written on a machine of another byte order, which is not read")
        self.root = unpickle(io.BytesIO(self._member("data.pkl")), name, _storage)

    def read(self, storage: _Storage) -> bytes:
        data = self._member(f"data/{storage.key}")
        if len(data) != storage.count * storage.dtype.itemsize:
            raise FileError(f"{self._name}: storage {storage.key} has {len(data)} bytes, not {storage.count} numbers")
        return data

    def _member(self, member: str) -> bytes:
        try:
            return self._archive.read(self._prefix + member)
        except ZIP_ERRORS as error:
            raise FileError(f"{self._name}: damaged: {error}; fetch it again") from None


class _Legacy:
    """The layout before PyTorch 1.6."""

    def __init__(self, path: Path) -> None:
        self._name = name = str(path)
        with open(path, "rb") as handle:
            self._data = data = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        storages: dict[str, _Storage] = {}

        def persistent(reference: Any) -> Any:
            value = _storage(reference)
            if isinstance(value, _Storage) and storages.setdefault(value.key, value) != value:
                raise FileError(f"two storages named {value.key}")
            return value

        def value() -> Any:
            return unpickle(data, name, persistent)  # type: ignore[arg-type]  # mmap reads as a file does

        value()  # the magic number
        protocol, system = value(), value()
        if protocol != _LEGACY_PROTOCOL or not isinstance(system, dict):
            raise FileError(f"{name}: written by an unknown version of PyTorch (protocol {protocol})")
        if system.get("little_endian") is not (sys.byteorder == "little"):
            raise FileError(f"{name}: written on a machine of another byte order, which is not read")
        self.root = value()
        self._starts = self._find(value(), storages)

    def _find(self, keys: Any, storages: Mapping[str, _Storage]) -> dict[str, int]:
        """The offset of each storage's numbers; the file must hold them all."""
        starts: dict[str, int] = {}
        place = self._data.tell()
        for key in keys if isinstance(keys, list) else ():
            if key not in storages:
                raise FileError(f"{self._name}: damaged: a storage {key!r} that no tensor uses")
            storage = storages[key]
            count = int.from_bytes(self._data[place : place + 8], sys.byteorder, signed=True)
            starts[key] = place + 8
            place += 8 + storage.count * storage.dtype.itemsize
            if place > len(self._data):
                raise FileError(
                    f"{self._name}: cut off: it has {len(self._data):,} bytes and storage {key} ends at {place:,}; "
                    "fetch it again"
                )
            if count != storage.count:
                raise FileError(f"{self._name}: damaged: storage {key} has {count} numbers, not {storage.count}")
        if len(starts) != len(storages):
            raise FileError(f"{self._name}: damaged: {len(storages) - len(starts)} storages are missing")
        return starts

    def read(self, storage: _Storage) -> bytes:
        start = self._starts[storage.key]
        return self._data[start : start + storage.count * storage.dtype.itemsize]
