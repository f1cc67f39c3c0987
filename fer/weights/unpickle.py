"""Pickles read without Python's pickle: as data, so that nothing in the file can act.

A pickle is a program for a small stack machine, and the standard machine imports and calls whatever the program names.
This one has no import and no call. What the program names becomes one of three things:

* a name in `_BUILDERS`: the handful of functions that tensors, state dicts and sets are written with. A function of
  ours builds the same value;
* a name of a module that acts on the machine (os, subprocess, builtins.eval, ...): the file is refused, and told why.
  No weights file has a use for it;
* anything else: a `Stub`, which remembers its name, the arguments and the state it was given, and does nothing. So a
  whole pickled module can be walked, and a logger that someone pickled beside the weights does no harm.

The refusal is for the reader's sake, not for safety: a name that stood on no list would still only become a stub.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NoReturn

from fer.io.files import FileError


class UnsafeFileError(FileError):
    """The file asks for something that only an attack would; nothing of it was executed."""


@dataclass(frozen=True)
class Global:
    """A name in a pickle. It was not looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Stub:
    """What the pickle would have built with `kind(*args)`; `state` is what it would have been given to restore.

    `mapping` holds its items where it is a mapping.
    """

    kind: Any
    args: tuple[Any, ...] = ()
    state: Any = None
    mapping: dict[Any, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return str(self.kind)


@dataclass(frozen=True)
class TensorRef:
    """A tensor by the place of its numbers: a storage (whatever `persistent` made of it), and the view of it."""

    storage: Any
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def unpickle(stream: BinaryIO, name: str, persistent: Callable[[Any], Any]) -> Any:
    """The value of the one pickle that starts where `stream` stands; the stream is left behind it.

    Dictionaries of every kind are `dict`, `torch.Size` is a tuple, tensors and parameters are `TensorRef`.

    Args:
        name: the file, for the error's text.
        persistent: gives the value for a persistent id, by which a pickle refers to what stands outside it.

    Raises:
        UnsafeFileError: it names what acts on the machine.
        FileError: damaged, cut off, or no pickle.
    """
    try:
        return _Machine(persistent).run(stream)
    except FileError as error:
        raise type(error)(f"{name}: {error}") from None
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError, MemoryError) as error:
        raise FileError(f"{name}: damaged, cut off, or no pickle of PyTorch ({error}); fetch it again") from None


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


def _named(module: str, name: str) -> Global:
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("a name that is no text")
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
    return Global(module, name)


# ------------------------------------------------------------------------------------------------ builders


_MOST_DIMENSIONS = 64  # torch's own limit


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> TensorRef:
    shape, strides = tuple(size), tuple(stride)
    numbers = (offset, *shape, *strides)
    if not len(shape) == len(strides) <= _MOST_DIMENSIONS or not all(
        type(n) is int and 0 <= n < 1 << 63 for n in numbers
    ):
        raise ValueError("a tensor of an impossible shape, stride or offset")
    return TensorRef(storage, offset, shape, strides)


def _mapping(items: Any = ()) -> dict[Any, Any]:
    return {_key(key): value for key, value in items}


def _same(tensor: Any, *_: Any) -> Any:
    return tensor


def _of_a_type(function: Any, _kind: Any, args: tuple[Any, ...], _state: Any) -> Any:
    return _reduced(function, args)


def _instance(kind: Any, *args: Any) -> Stub:
    return Stub(kind, args)


_BUILDERS: Mapping[str, Callable[..., Any]] = {
    "builtins.set": lambda items=(): {_key(item) for item in items},
    "collections.OrderedDict": _mapping,
    "copyreg.__newobj__": _instance,
    "copyreg._reconstructor": _instance,
    "torch.Size": lambda size=(): tuple(size),
    "torch._tensor._rebuild_from_type_v2": _of_a_type,
    "torch._utils._rebuild_parameter": _same,
    "torch._utils._rebuild_parameter_with_state": _same,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
}


def _reduced(function: Any, args: Any) -> Any:
    """In place of `function(*args)`."""
    if not isinstance(args, tuple):
        raise ValueError("arguments that are no tuple")
    builder = _BUILDERS.get(str(function)) if isinstance(function, Global) else None
    return builder(*args) if builder else Stub(function, args)


def _key(key: Any) -> Any:
    # Tuples inside tuples could be deep enough to overflow the C stack when they are hashed; no state dict has any.
    flat = key if isinstance(key, tuple) else (key,)
    if any(isinstance(part, tuple | list | dict | set | frozenset | bytearray | TensorRef) for part in flat):
        raise ValueError(f"a key of type {type(key).__name__}")
    return key


# ------------------------------------------------------------------------------------------------ machine

_VALUES = _words(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES "
    "SHORT_BINBYTES BINBYTES8 BYTEARRAY8 UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8"
)
_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}


class _Machine:
    """The stack machine; the operations are those of the standard library's `pickletools`."""

    def __init__(self, persistent: Callable[[Any], Any]) -> None:
        self._persistent = persistent
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks under each open mark
        self._memo: dict[int, Any] = {}

    def run(self, stream: BinaryIO) -> Any:
        for operation, argument, _ in pickletools.genops(stream):
            name = operation.name
            if name == "STOP":
                return self._stack.pop()
            if name in _VALUES:
                self._stack.append(argument)
            elif name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name]())
            else:
                self._step(name, argument)
        raise ValueError("no end")

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "MARK":
                self._below.append(stack)
                self._stack = []
            case "POP":
                stack.pop() if stack else self._marked()
            case "POP_MARK":
                self._marked()
            case "DUP":
                stack.append(stack[-1])
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                stack[-count:] = [tuple(self._last(count))]
            case "TUPLE" | "LIST" | "FROZENSET" | "DICT":
                self._collect(name)
            case "APPEND" | "APPENDS" | "ADDITEMS" | "SETITEM" | "SETITEMS":
                self._extend(name)
            case "GLOBAL":
                stack.append(_named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                stack[-2:] = [_named(*self._last(2))]
            case "REDUCE":
                stack[-2:] = [_reduced(*self._last(2))]
            case "NEWOBJ":
                kind, args = self._last(2)
                stack[-2:] = [_reduced(kind, args)]
            case "NEWOBJ_EX":
                kind, args, _ = self._last(3)
                stack[-3:] = [Stub(kind, tuple(args))]
            case "INST":
                args = self._marked()
                self._stack.append(Stub(_named(*argument.split(" ", 1)), tuple(args)))
            case "OBJ":
                kind, *args = self._marked()
                self._stack.append(Stub(kind, tuple(args)))
            case "BUILD":
                self._build(stack.pop())
            case "BINPERSID":
                stack.append(self._persistent(stack.pop()))
            case _:
                _refuse(name)

    def _last(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise ValueError("an empty stack")
        return self._stack[-count:]

    def _marked(self) -> list[Any]:
        """What was pushed since the last mark, which is taken away."""
        items, self._stack = self._stack, self._below.pop()
        return items

    def _collect(self, name: str) -> None:
        items = self._marked()
        value: Any
        if name == "TUPLE":
            value = tuple(items)
        elif name == "LIST":
            value = items
        elif name == "FROZENSET":
            value = frozenset(map(_key, items))
        else:
            value = _mapping(zip(items[::2], items[1::2], strict=True))
        self._stack.append(value)

    def _extend(self, name: str) -> None:
        if name in ("APPEND", "SETITEM"):
            count = 1 if name == "APPEND" else 2
            items = self._last(count)
            del self._stack[-count:]
        else:
            items = self._marked()
        target = self._stack[-1]
        if name.startswith("SETITEM"):
            mapping = target.mapping if isinstance(target, Stub) else target
            if not isinstance(mapping, dict):
                raise ValueError(f"items for a {type(target).__name__}")
            mapping.update(_mapping(zip(items[::2], items[1::2], strict=True)))
        elif isinstance(target, list):
            target.extend(items)
        elif isinstance(target, set):
            target.update(map(_key, items))
        elif not isinstance(target, Stub):  # the elements of a foreign list are of no use to anyone here
            raise ValueError(f"elements for a {type(target).__name__}")

    def _build(self, state: Any) -> None:
        target = self._stack[-1]
        if isinstance(target, Stub):
            target.state = state
        elif not isinstance(target, dict | set | TensorRef):  # those have attributes at most, which are of no use
            raise ValueError(f"a state for a {type(target).__name__}")


def _refuse(operation: str) -> NoReturn:
    raise UnsafeFileError(f"refused: the pickle operation {operation}, for which weights have no use")
