"""Reading a published file runs nothing from it, and asks for no more memory than the file has bytes."""

from __future__ import annotations

import builtins
import copyreg
import functools
import importlib
import io
import itertools
import os
import pickle
import random
import runpy
import struct
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fer.io.files import FileError
from fer.weights.published import read_published
from fer.weights.torchfile import LEGACY_MAGIC, Stub, TensorRef, TorchFile, UnsafeFileError

Save = Callable[[Any, Path], None]


def save_zip(value: Any, path: Path) -> None:
    torch.save(value, path)


def save_legacy(value: Any, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


def save_raw(data: bytes, path: Path) -> None:
    """A zip file of torch.save with the pickle `data` in it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", b"3\n")


class Reduced:
    """Pickles as a call of anything."""

    def __init__(self, function: Any, *args: Any, state: Any = None) -> None:
        self.parts = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> Any:
        return self.parts


class Attributes:
    """An instance of a class that is gone when the file is read."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


def short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """The file that every attack below would write."""
    return tmp_path / "marker"


def attacks(command: str, marker: Path) -> dict[str, tuple[str, Any]]:
    """Objects whose unpickling acts on the machine, each with the name that the refusal must tell.

    torch.save writes the names of Python 2: there, Popen would stand in the module `commands`.
    """
    code = f"open({str(marker)!r}, 'w')"
    run = Reduced(os.system, command)
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.note = run  # type: ignore[attr-defined]
    return {
        "alone": ("posix.system", run),
        "beside the weights": ("posix.system", {"state_dict": {"weight": torch.zeros(2)}, "recorder": run}),
        "in a tensor": ("posix.system", {"weight": parameter}),
        "in an object": ("posix.system", {"recorder": Attributes(best=run)}),
        "as a state": ("posix.system", Reduced(OrderedDict, state={"_metadata": run})),
        "in a partial": ("posix.system", functools.partial(os.system, command)),
        "as a key": ("posix.system", {run: 1}),
        "a process": ("commands.Popen", Reduced(subprocess.Popen, command)),
        "eval": ("builtins.eval", Reduced(eval, code)),
        "exec": ("builtins.exec", Reduced(exec, code)),
        "getattr": ("builtins.getattr", Reduced(getattr, "", "format")),
        "import": ("builtins.__import__", Reduced(builtins.__import__, "os")),
        "open": ("io.open", Reduced(open, str(marker), "w")),
        "runpy": ("runpy.run_path", Reduced(runpy.run_path, str(marker))),
        "importlib": ("importlib.import_module", Reduced(importlib.import_module, "antigravity")),
        "copyreg": ("copyreg.add_extension", Reduced(copyreg.add_extension, "os", "system", 1)),
        "numpy": ("numpy.testing._private.utils.runstring", Reduced(np.testing._private.utils.runstring, code, {})),
        "a pickle in bytes": ("torch.storage._load_from_bytes", Reduced(torch.storage._load_from_bytes, b"anything")),
        "a pickle in a pickle": ("pickle.loads", Reduced(pickle.loads, b"cos\nsystem\n(S'true'\ntR.")),
    }


NAMES = list(attacks("", Path("nowhere")))


@pytest.mark.parametrize("save", [save_zip, save_legacy], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", NAMES)
def test_an_attack_is_rejected_by_name_and_nothing_runs(name: str, save: Save, marker: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.pth"
    asked_for, attack = attacks(f"touch {marker}", marker)[name]
    save(attack, path)
    with pytest.raises(UnsafeFileError, match=r"bad\.pth: refused: the file asks for ") as error:
        TorchFile(path)
    assert f"asks for {asked_for}," in str(error.value)
    assert not marker.exists()


def test_python_itself_would_have_run_them(marker: Path, tmp_path: Path) -> None:
    """The attacks are real: what is refused above writes the marker when it is unpickled."""
    for name in ("alone", "in an object", "eval"):
        save_zip(attacks(f"touch {marker}", marker)[name][1], tmp_path / "bad.pth")
        torch.load(tmp_path / "bad.pth", weights_only=False)
        marker.unlink()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch", "serialization.os.system"),
        ("torch.serialization", "os.system"),
        ("numpy", "f2py.sys.modules"),
        ("collections", "OrderedDict.__subclasses__"),
        ("torch.utils", "data.dataloader.os.system"),
        ("__builtin__", "eval"),
        ("copy_reg", "constructor"),
        ("nt", "system"),
        ("torch.hub", "load"),
        ("types", "FunctionType"),
        ("torch", "Tensor.__init__.__globals__"),
    ],
)
def test_dotted_names_reach_nothing(module: str, name: str, marker: Path, tmp_path: Path) -> None:
    call = b"\x80\x04" + short(module) + short(name) + b"\x93" + short(f"touch {marker}") + b"\x85R."
    save_raw(call, tmp_path / "bad.pth")
    with pytest.raises(UnsafeFileError, match="Nothing of it was executed"):
        TorchFile(tmp_path / "bad.pth")
    assert not marker.exists()


def test_an_unknown_name_is_neither_imported_nor_called(marker: Path, tmp_path: Path) -> None:
    """Even where no list knows the name: the module below would be importable, and its function writes the marker."""
    module = types.ModuleType("innocent")
    exec(f"def touch(*_):\n    open({str(marker)!r}, 'w')", module.__dict__)
    sys.modules["innocent"] = module
    try:
        for build in (b"R", b"\x81", b"R}b"):  # called; made; called and given a state
            save_raw(b"\x80\x02cinnocent\ntouch\n)" + build + b".", tmp_path / "a.pth")
            root = TorchFile(tmp_path / "a.pth").root
            assert isinstance(root, Stub)
            assert str(root) == "innocent.touch"
            save_raw(b"\x80\x02(cinnocent\ntouch\no.", tmp_path / "a.pth")
            assert str(TorchFile(tmp_path / "a.pth").root) == "innocent.touch"
            save_raw(b"\x80\x02(iinnocent\ntouch\n.", tmp_path / "a.pth")
            assert str(TorchFile(tmp_path / "a.pth").root) == "innocent.touch"
    finally:
        del sys.modules["innocent"]
    assert not marker.exists()


@pytest.mark.parametrize("operation", [b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00", b"Pname\n", b"\x97"])
def test_extension_codes_and_external_buffers_are_rejected(operation: bytes, tmp_path: Path) -> None:
    save_raw(b"\x80\x02" + operation + b".", tmp_path / "bad.pth")
    with pytest.raises(UnsafeFileError, match="operation"):
        TorchFile(tmp_path / "bad.pth")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02.",
        b"\x80\x02h\x07.",  # a memo that was never put
        b"\x80\x02t.",  # a tuple without a mark
        b"\x80\x02K\x01\x86.",  # a pair of one
        b"\x80\x02K\x01K\x02a.",  # an element for a number
        b"\x80\x02}]K\x01s.",  # a list as a key
        b"\x80\x02ccollections\nOrderedDict\nK\x01R.",  # arguments that are no tuple
        b"\x80\x02ccollections\nOrderedDict\n}b.",  # a state for a name
        b"\x80\x02X\xff\xff\xff\x7fabc.",  # a text of 2 GB in three bytes
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",  # bytes of 8 EB
        b"\x80\x02K\x01Q.",  # a persistent id that is a number
        b"\x80\x02" + b"K\x01" + b"\x85" * 50_000 + b"}q\x00h\x00K\x02s0.",
        b"\x80\x02}K\x01" + b"\x85" * 50_000 + b"K\x02s.",  # a key of 50,000 nested tuples
        b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\nq\x00" + b"(h\x00N" * 5000 + b")" + b"Nt" * 5000 + b"R.",
        b"\x80\x02}K\x01" + b"\x85" * 500_000 + b"K\x02s.",  # as many as would end the process
        b"\x80\x02K\x01r\xff\xff\xff\x7f.",  # an entry of the memo that would make it 16 GB
        b"\x80\x02\xfe.",
    ],
)
def test_broken_pickles_are_rejected_as_damaged(data: bytes, tmp_path: Path) -> None:
    save_raw(data, tmp_path / "bad.pth")
    with pytest.raises(FileError, match=r"bad\.pth: (damaged|a persistent id)"):
        TorchFile(tmp_path / "bad.pth")


def test_a_pickle_cannot_change_the_functions_and_classes_of_other_files(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    for name in (b"ccollections\nOrderedDict\n", b"cinnocent\nKind\n"):
        attributes = b"}(X\x05\x00\x00\x00buildNX\x04\x00\x00\x00nameX\x01\x00\x00\x00xu"
        save_raw(b"\x80\x02" + name + b"N" + attributes + b"\x86b.", path)
        with pytest.raises(FileError, match=r"a\.pth: damaged"):
            TorchFile(path)
        save_zip(OrderedDict(a=torch.ones(2)), path)
        assert list(TorchFile(path).root) == ["a"]
        save_raw(b"\x80\x02cinnocent\nKind\n)\x81.", path)
        assert str(TorchFile(path).root) == "innocent.Kind"


# ------------------------------------------------------------------------------------------------ what is read


@pytest.mark.parametrize("save", [save_zip, save_legacy], ids=["zip", "legacy"])
def test_every_dtype_is_read(save: Save, tmp_path: Path) -> None:
    shared = torch.arange(24, dtype=torch.float32)
    saved = OrderedDict(
        {
            str(dtype): torch.tensor([[1, 0], [3, 4]]).to(dtype)
            for dtype in (torch.float64, torch.float16, torch.bfloat16)
        }
        | {
            str(dtype): torch.tensor([1, 0, 3]).to(dtype)
            for dtype in (torch.int64, torch.int32, torch.int16, torch.int8)
        }
        | {"uint8": torch.tensor([255], dtype=torch.uint8), "bool": torch.tensor([True, False])}
        | {"parameter": torch.nn.Parameter(torch.ones(3)), "scalar": torch.tensor(5), "empty": torch.zeros(0, 3)}
        | {"view": shared[4:10], "strided": shared.view(4, 6).t(), "again": shared}
    )
    path = tmp_path / "a.pth"
    save(saved, path)
    file = TorchFile(path)
    assert list(file.root) == list(saved)
    for key, tensor in saved.items():
        read = file.tensor(file.root[key])
        assert torch.equal(read, tensor.detach()), key
        assert read.dtype == tensor.dtype
        assert read.is_contiguous()


@pytest.mark.parametrize("save", [save_zip, save_legacy], ids=["zip", "legacy"])
def test_plain_values_and_unknown_objects_are_read_as_data(save: Save, tmp_path: Path) -> None:
    recorder = Attributes(epoch_losses=np.zeros((3, 2), dtype=np.float32), best=np.float64(0.5))
    saved = {"epoch": 3, "ratio": 0.5, "none": None, "flags": [True, False], "shape": torch.Size([1, 2])}
    path = tmp_path / "a.pth"
    save(saved | {"names": {"a", "b"}, "recorder": recorder, "large": 1 << 80}, path)
    root = TorchFile(path).root
    assert {key: root[key] for key in saved} == saved
    assert root["names"] == {"a", "b"}
    assert root["large"] == 1 << 80
    assert isinstance(root["recorder"], Stub)
    assert str(root["recorder"]).endswith("test_torchfile.Attributes")
    assert set(root["recorder"].state) == {"epoch_losses", "best"}


def test_an_optimizer_is_read_too(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.Adam([weight])
    weight.grad = torch.ones(3)
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "a.pth")
    root = TorchFile(tmp_path / "a.pth").root
    assert isinstance(root["state"][0]["exp_avg"], TensorRef)
    assert root["param_groups"][0]["params"] == [0]


# ------------------------------------------------------------------------------------------------ sizes


def tensor_pickle(shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, count: int = 4) -> bytes:
    """The pickle of one tensor with any sizes."""

    def pushed(numbers: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", number) for number in numbers) + b"t"

    storage = b"(" + b"".join(b"X" + struct.pack("<I", len(t)) + t for t in (b"storage",))
    storage += b"ctorch\nFloatStorage\n" + b"X\x01\x00\x00\x000" + b"X\x03\x00\x00\x00cpu"
    storage += b"\x8a\x08" + struct.pack("<q", count) + b"tQ"
    rest = b"\x8a\x08" + struct.pack("<q", offset) + pushed(shape) + pushed(stride) + b"\x89)"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"tR."


def tensor_file(path: Path, data: bytes, numbers: bytes = bytes(16)) -> Path:
    save_raw(data, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", numbers)
    return path


def test_the_sizes_of_a_tensor_fit_its_storage(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    file = TorchFile(tensor_file(path, tensor_pickle((2, 2), (2, 1))))
    assert file.tensor(file.root).shape == (2, 2)
    for shape, stride, offset, count in [
        ((5,), (1,), 0, 4),  # longer than the storage
        ((4,), (1,), 1, 4),  # beyond its end
        ((2, 2), (1 << 40, 1), 0, 4),
        ((1 << 40,), (0,), 0, 4),  # one number, a trillion times
        ((1 << 30, 1 << 30, 1 << 30), (0, 0, 0), 0, 4),
        ((4,), (1,), 0, 1 << 40),  # a storage of four numbers that claims a trillion
        ((0,), (1,), 1 << 40, 4),
    ]:
        file = TorchFile(tensor_file(path, tensor_pickle(shape, stride, offset, count)))
        if shape == (0,):
            assert file.tensor(file.root).shape == (0,)
            continue
        with pytest.raises(FileError, match=r"a\.pth: .*storage"):
            file.tensor(file.root)
    for shape, stride in [((-1,), (1,)), ((4,), (-1,)), ((4,), (1, 1)), ((1,) * 65, (1,) * 65)]:
        with pytest.raises(FileError, match="impossible shape"):
            TorchFile(tensor_file(path, tensor_pickle(shape, stride)))


def test_a_file_cannot_read_itself_into_more_memory_than_it_has(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save([torch.zeros(1000)], path)
    file = TorchFile(path)
    read = iter(lambda: file.tensor(file.root[0]), None)
    with pytest.raises(FileError, match="declares more numbers than it holds"):
        list(itertools.islice(read, 1000))


def test_compressed_and_overlapping_archives_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10_000_000))
    with pytest.raises(FileError, match="compressed or overlapping"):
        TorchFile(path)


@pytest.mark.parametrize("save", [save_zip, save_legacy], ids=["zip", "legacy"])
def test_a_file_truncated_anywhere_is_rejected(save: Save, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    save({"state_dict": {"weight": torch.ones(50), "bias": torch.zeros(3)}}, path)
    whole = path.read_bytes()
    for length in range(2, len(whole) - 1, 37):
        path.write_bytes(whole[:length])
        with pytest.raises(FileError, match=r"a\.pth: "):
            TorchFile(path)


def test_a_flipped_bit_in_a_tensor_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save([torch.full((64,), 7.0)], path)
    data = bytearray(path.read_bytes())
    data[data.index(struct.pack("<f", 7.0) * 4)] ^= 1
    path.write_bytes(data)
    file = TorchFile(path)
    with pytest.raises(FileError, match="CRC"):
        file.tensor(file.root[0])


def test_other_archives_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(FileError, match=r"no data\.pkl"):
        TorchFile(path)
    save_raw(b"\x80\x02}.", path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/constants.pkl", b"\x80\x02).")
    with pytest.raises(FileError, match="TorchScript"):
        TorchFile(path)
    save_raw(b"\x80\x02}.", path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/byteorder", "big" if sys.byteorder == "little" else "little")
    with pytest.raises(FileError, match="byte order"):
        TorchFile(path)


def test_legacy_files_of_unknown_versions_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    stream = io.BytesIO()
    for value in (1002, {"little_endian": True}, {}, []):
        pickle.dump(value, stream, 2)
    path.write_bytes(LEGACY_MAGIC + stream.getvalue())
    with pytest.raises(FileError, match="protocol 1002"):
        TorchFile(path)


@pytest.mark.parametrize("save", [save_zip, save_legacy], ids=["zip", "legacy"])
def test_random_damage_never_raises_anything_but_file_errors(save: Save, tmp_path: Path) -> None:
    """400 files with a few bytes changed at random: read as something else, or rejected; never another exception."""
    path = tmp_path / "a.pth"
    save({"state_dict": torch.nn.Linear(3, 2).state_dict(), "epoch": 1}, path)
    whole = path.read_bytes()
    draws = random.Random(0)
    rejected = 0
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(draws.choice((1, 2, 5))):
            data[draws.randrange(len(data))] = draws.choice((draws.randrange(256), draws.choice(whole)))
        path.write_bytes(data)
        try:
            read_published(path)
        except FileError:
            rejected += 1
    assert rejected > 100
