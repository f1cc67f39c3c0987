"""Files of `torch.save`, read as data: nothing that they name is imported or called.

    file = TorchFile(path)
    file.root                      # the saved object, its tensors as references
    file.tensor(file.root["a"])    # one of its tensors

Why not `torch.load(weights_only=True)`: published files hold whole modules and objects of the authors' own classes,
which it refuses (in the old layout even with stand-ins registered); it does not verify the checksums of the archive;
and a file with a deeply nested key ends the process. Since a reader of our own is needed for those, it reads all.

The layouts: a zip archive (PyTorch 1.6 and later) holds `<name>/data.pkl` and one uncompressed member per storage.
Before that, a file was five pickles (magic number, protocol, byte order, the object, the names of the storages) and
then the storages, each preceded by its length.

A name in a pickle becomes one of three things: a function of ours that builds tensors, state dicts and sets
(`_BUILDERS`); an error where the name is of a module that acts on the machine (os, builtins.eval, ...), for which
weights have no use; or else a `Stub`, which remembers what it was given and does nothing. The error is a service to the
reader, not the protection: a name missing from the list would only become a stub.

Every size that a file declares is checked against the bytes that it has before memory is allocated.
"""

from __future__ import annotations

import io
import math
import mmap
import pickle
import pickletools
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from fer.io.files import FileError

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The first pickle of a file in the old layout: a number that PyTorch chose."""

_LEGACY_PROTOCOL = 1001

# Tied weights read the same numbers a few times; a file that reads them more often would fill the memory.
_MOST_READS = 8

# A published model with its optimizer has about 10,000 tuples and 50 names. CPython hashes nested tuples by recursion
# in C, which overflows the stack at some 100,000 levels.
_MOST_TUPLES = 40_000
_MOST_NAMES = 1_000
_MOST_DIMENSIONS = 64  # torch's own limit

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


class UnsafeFileError(FileError):
    """The file asks for something that only an attack would; nothing of it was executed."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Within it, whatever a damaged file makes a parser raise becomes one FileError that names the file."""
    try:
        yield
    except FileError as error:
        raise type(error)(f"{path}: {error}") from None
    except (
        zipfile.BadZipFile, zlib.error, struct.error, pickle.UnpicklingError, EOFError, OSError, RuntimeError,
        ValueError, TypeError, LookupError, AttributeError, OverflowError, MemoryError,
    ) as error:  # fmt: skip
        raise FileError(f"{path}: damaged or cut off ({type(error).__name__}: {error}); fetch it again") from None


class Stub:
    """An instance of a class that was not looked up: the state and the items that the pickle gave it."""

    name: ClassVar[str]

    def __new__(cls, *_: Any, **__: Any) -> Self:
        stub = super().__new__(cls)
        stub.state = None
        stub.mapping = {}
        return stub

    def __init__(self, *_: Any, **__: Any) -> None:
        self.state: Any
        self.mapping: dict[Any, Any]

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.mapping[key] = value

    def append(self, _: Any) -> None:
        """Elements of an unknown kind of list are of no use here."""

    extend = add = append

    def __str__(self) -> str:
        return self.name


class Storage(NamedTuple):
    """A storage by its name in the file."""

    key: str
    dtype: torch.dtype
    numel: int


class TensorRef(NamedTuple):
    """A tensor by the place of its numbers: a storage, and the view of it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


# ------------------------------------------------------------------------------------------------ names


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Top-level modules whose functions read, write, run or load something.
_ACTING = _words(
    "_io _pickle asyncio bdb cProfile cloudpickle code codeop commands concurrent ctypes dill distutils doctest ftplib "
    "http imp importlib inspect io joblib jsonpickle linecache marshal mmap multiprocessing nt ntpath operator os pdb "
    "pickle pip pkgutil posix posixpath profile pty pydoc requests resource runpy setuptools shelve shutil signal site "
    "smtplib socket socketserver sqlite3 ssl subprocess sys tempfile threading timeit trace types unittest urllib venv "
    "webbrowser xmlrpc zipimport"
)
_DATA = frozenset({"types.SimpleNamespace"})  # plain data in one of them

# These give the machine away wherever they stand in a dotted name: `torch.serialization` + `os.system`.
_ACTING_ANYWHERE = _words("os posix nt subprocess sys builtins __builtin__ importlib runpy ctypes shutil")

_ACTING_NAMES = _words(
    "__import__ __subclasses__ __globals__ __getattribute__ _load_from_bytes attrgetter delattr eval exec execfile "
    "getattr globals methodcaller popen runstring setattr system"
)
_ACTING_PREFIXES = ("numpy.testing.", "numpy.f2py.", "numpy.distutils.", "torch.hub.", "torch.jit.")

_PLAIN_BUILTINS = _words(
    "Ellipsis NotImplemented bool bytearray bytes complex dict float frozenset int list object range set slice str "
    "tuple long unicode xrange"
)


def _checked_name(module: str, name: str) -> str:
    module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)  # as Python 2 wrote them
    whole = f"{module}.{name}"
    if module == "builtins":
        acts = name not in _PLAIN_BUILTINS
    elif module == "copyreg":
        acts = whole not in _BUILDERS
    else:
        acts = (
            (module.partition(".")[0] in _ACTING and whole not in _DATA)
            or whole.rpartition(".")[2] in _ACTING_NAMES
            or whole.startswith(_ACTING_PREFIXES)
            or not _ACTING_ANYWHERE.isdisjoint(whole.split("."))
        )
    if acts:
        raise UnsafeFileError(
            f"refused: the file asks for {whole}, for which weights have no use; this may be an attack. "
            "Nothing of it was executed. Get the file from its authors"
        )
    return whole


# ------------------------------------------------------------------------------------------------ builders


class _Dict(dict[Any, Any]):
    """In place of an OrderedDict, whose attributes (`_metadata`) are of no use."""

    def __setstate__(self, _: Any) -> None:
        """Nothing is kept."""


class _Builder:
    """A function in place of a name. Without a `__dict__`, and one per file: a pickle can change the attributes."""

    __slots__ = ("build",)

    def __init__(self, build: Callable[..., Any]) -> None:
        self.build = build

    def __call__(self, *args: Any) -> Any:
        return self.build(*args)


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> TensorRef:
    shape, strides = tuple(size), tuple(stride)
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    if not len(shape) == len(strides) <= _MOST_DIMENSIONS or not all(
        type(n) is int and 0 <= n < 1 << 63 for n in numbers
    ):
        raise ValueError("a tensor of an impossible shape, stride or offset")
    return TensorRef(storage, offset, shape, strides)


def _call(function: Any, *args: Any) -> Any:
    return function(*args)


_BUILDERS: Mapping[str, Callable[..., Any]] = {
    "builtins.set": set,
    "collections.OrderedDict": _Dict,
    "copyreg.__newobj__": _call,
    "copyreg._reconstructor": _call,
    "torch.Size": tuple,
    "torch._tensor._rebuild_from_type_v2": lambda function, kind, args, state: function(*args),
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
}


class _Unpickler(pickle.Unpickler):
    """Python's own, without its only way to code: `find_class` looks nothing up."""

    def __init__(self, stream: BinaryIO) -> None:
        start = stream.tell()
        _check_operations(stream)
        stream.seek(start)
        super().__init__(stream, encoding="latin-1")
        self._found: dict[str, Any] = {}
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        whole = _checked_name(module, name)
        if whole not in self._found:
            builder = _BUILDERS.get(whole)
            self._found[whole] = _Builder(builder) if builder else type("Stub", (Stub,), {"name": whole})
            if len(self._found) > _MOST_NAMES:
                raise FileError(f"names more than {_MOST_NAMES} classes and functions")
        return self._found[whole]

    def persistent_load(self, reference: Any) -> Any:
        """The storage that a persistent id names; the old layout also stores the source of classes under such ids."""
        match reference:
            case ("storage", kind, str() as key, str(), int() as count, *views):
                if any(view is not None for view in views):
                    raise FileError("written by PyTorch before 0.4, which is not read")
                name = getattr(kind, "name", type(kind).__name__)
                if name not in _DTYPES:
                    raise FileError(f"numbers of type {name}, which is not read; known: {', '.join(sorted(_DTYPES))}")
                storage = Storage(key, _DTYPES[name], count)
                if not 0 <= count < 1 << 63 or self.storages.setdefault(key, storage) != storage:
                    raise FileError(f"damaged: the size of storage {key} is impossible, or declared twice")
                return storage
            case ("module", kind, *_):
                return kind
        raise FileError("a persistent id of an unknown form")


_REFUSED = _words("PERSID EXT1 EXT2 EXT4 NEXT_BUFFER READONLY_BUFFER")


def _check_operations(stream: BinaryIO) -> None:
    """Refuses a pickle that would make the unpickler allocate or recurse without bound, or reach beside it."""
    tuples = 0
    for number, (operation, argument, _) in enumerate(pickletools.genops(stream)):
        name = operation.name
        if name in _REFUSED:
            raise UnsafeFileError(f"refused: the pickle operation {name}, for which weights have no use")
        if name.endswith("PUT") and int(argument or 0) > number:  # the memo is an array of that length
            raise ValueError(f"memo entry {argument}")
        tuples += name.startswith("TUPLE")
        if tuples > _MOST_TUPLES:
            raise ValueError(f"more than {_MOST_TUPLES} tuples")


# ------------------------------------------------------------------------------------------------ files


class TorchFile:
    """An open file of `torch.save`. `root` is the saved object: dictionaries as `dict`, sizes as tuples, tensors and
    parameters as `TensorRef`, other objects as `Stub`.

    Raises:
        UnsafeFileError: its pickle names what acts on the machine.
        FileError: damaged, cut off, or not of PyTorch.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._budget = _MOST_READS * path.stat().st_size
        self._latest: tuple[Storage, Tensor] | None = None  # many tensors may be views of one storage
        with reading(path):
            with open(path, "rb") as handle:
                legacy = handle.read(len(LEGACY_MAGIC)) == LEGACY_MAGIC
            self.root, self._read = _open_legacy(path) if legacy else _open_zip(path)

    def tensor(self, reference: TensorRef) -> Tensor:
        """The tensor itself: on the CPU, contiguous, its memory its own."""
        storage, offset, shape, stride = reference
        with reading(self._path):
            size = math.prod(shape)
            last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
            if size > storage.numel or (size and last >= storage.numel):
                raise FileError(f"a tensor of shape {shape} in a storage of {storage.numel}")
            self._budget -= size * storage.dtype.itemsize
            if self._budget < 0:
                raise FileError("declares more numbers than it holds")
            if not size:
                return torch.empty(shape, dtype=storage.dtype)
            if self._latest is None or self._latest[0] != storage:
                self._latest = storage, torch.frombuffer(bytearray(self._read(storage)), dtype=storage.dtype)
            return self._latest[1].as_strided(shape, stride, offset).clone(memory_format=torch.contiguous_format)


_Opened = tuple[Any, Callable[[Storage], bytes]]
"""The saved object; and what gives the bytes of a storage."""


def _open_zip(path: Path) -> _Opened:
    """The layout since PyTorch 1.6."""
    archive = zipfile.ZipFile(path)
    members = {info.filename: info for info in archive.infolist()}
    pickles = [member for member in members if member.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise FileError("a zip archive, but no file of torch.save: it has no data.pkl")
    prefix = pickles[0].removesuffix("data.pkl")
    if prefix + "constants.pkl" in members:
        raise FileError("a TorchScript program; only weights are read")
    # torch.save never compresses: compressed members are a bomb, and so are members that overlap.
    compressed = any(info.compress_type != zipfile.ZIP_STORED for info in members.values())
    if compressed or sum(info.file_size for info in members.values()) > path.stat().st_size:
        raise FileError("compressed or overlapping members, which torch.save does not write")
    if prefix + "byteorder" in members and archive.read(prefix + "byteorder").decode() != sys.byteorder:
        raise FileError("written on a machine of another byte order, which is not read")

    def read(storage: Storage) -> bytes:
        data = archive.read(f"{prefix}data/{storage.key}")
        if len(data) != storage.numel * storage.dtype.itemsize:
            raise FileError(f"storage {storage.key} has {len(data)} bytes, not {storage.numel} numbers")
        return data

    return _Unpickler(io.BytesIO(archive.read(pickles[0]))).load(), read


def _open_legacy(path: Path) -> _Opened:
    """The layout before PyTorch 1.6."""
    with open(path, "rb") as handle:
        data: Any = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    _, protocol, system = (_Unpickler(data).load() for _ in range(3))
    if protocol != _LEGACY_PROTOCOL or not isinstance(system, dict):
        raise FileError(f"written by an unknown version of PyTorch (protocol {protocol})")
    if system.get("little_endian") is not (sys.byteorder == "little"):
        raise FileError("written on a machine of another byte order, which is not read")
    unpickler = _Unpickler(data)
    root = unpickler.load()
    starts: dict[str, int] = {}
    keys, place = _Unpickler(data).load(), data.tell()
    for key in keys:
        storage = unpickler.storages[key]
        count = int.from_bytes(data[place : place + 8], sys.byteorder, signed=True)
        starts[key] = place + 8
        place += 8 + storage.numel * storage.dtype.itemsize
        if place > len(data):
            raise FileError(f"cut off: it has {len(data):,} bytes and storage {key} ends at {place:,}; fetch it again")
        if count != storage.numel:
            raise FileError(f"damaged: storage {key} has {count} numbers, not {storage.numel}")
    if missing := unpickler.storages.keys() - starts.keys():
        raise FileError(f"damaged: storages are missing: {', '.join(sorted(missing))}")

    def read(storage: Storage) -> bytes:
        start = starts[storage.key]
        bytes_: bytes = data[start : start + storage.numel * storage.dtype.itemsize]
        return bytes_

    return root, read
