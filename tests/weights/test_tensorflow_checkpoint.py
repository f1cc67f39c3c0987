"""A TensorFlow checkpoint is read without TensorFlow, whole or not at all."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fer.io.files import FileError
from fer.weights.tensorflow import _crc32c, read_checkpoint

TINY = Path(__file__).parents[1] / "assets" / "conformance" / "tf_ckpt_tiny"
EXPECTED = json.loads((TINY / "expected.json").read_text())["variables"]
DTYPES = {"<f4": 1, "<f8": 2, "<i4": 3, "<i8": 9, "<f2": 19}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that may be damaged; its prefix."""
    for name in ("checkpoint", "LHC_tiny.index", "LHC_tiny.data-00000-of-00001"):
        shutil.copyfile(TINY / name, tmp_path / name)
    return tmp_path / "LHC_tiny"


def test_the_checksum_is_crc_32c() -> None:
    """Vectors of RFC 3720, appendix B.4, and of the CRC catalogue."""
    assert _crc32c(b"123456789") == 0xE3069283
    assert _crc32c(bytes(32)) == 0x8A9136AA
    assert _crc32c(b"\xff" * 32) == 0x62A8AB43
    assert _crc32c(bytes(range(32))) == 0x46DD794E
    assert _crc32c(b"") == 0


def test_weights_are_those_that_tensorflow_wrote() -> None:
    weights = read_checkpoint(TINY / "LHC_tiny")
    dropped = ("optimizer/", "_CHECKPOINTABLE_OBJECT_GRAPH")
    names = {name for name in EXPECTED if not name.startswith(dropped) and ".OPTIMIZER_SLOT" not in name}
    assert set(weights) == names
    assert len(names) == 15
    for name, array in weights.items():
        expected = EXPECTED[name]
        assert array.dtype == expected["dtype"]
        assert list(array.shape) == expected["shape"]
        values = np.array(expected["values"], np.float32)  # the first of them
        np.testing.assert_array_equal(array.ravel()[: len(values)], values)
        assert array.astype(np.float64).sum() == pytest.approx(expected["sum"], rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("name", ["", "LHC_tiny", "LHC_tiny.index", "LHC_tiny.data-00000-of-00001"])
def test_any_of_its_paths_names_it(name: str) -> None:
    assert len(read_checkpoint(TINY / name)) == 15


def test_the_listing_may_hold_a_path_of_another_machine(copy: Path) -> None:
    (copy.parent / "checkpoint").write_text('model_checkpoint_path: "C:\\\\models\\\\LHC_tiny"\n')
    assert len(read_checkpoint(copy.parent)) == 15
    (copy.parent / "checkpoint").write_text("nothing")
    with pytest.raises(FileError, match="names no model_checkpoint_path"):
        read_checkpoint(copy.parent)
    (copy.parent / "checkpoint").unlink()
    with pytest.raises(FileError, match="no file `checkpoint`"):
        read_checkpoint(copy.parent)


def test_missing_files_are_named(copy: Path) -> None:
    copy.with_name("LHC_tiny.data-00000-of-00001").unlink()
    with pytest.raises(FileError, match=r"LHC_tiny\.data-00000-of-00001: no such file; it belongs beside"):
        read_checkpoint(copy)
    with pytest.raises(FileError, match=r"other\.index: no such file"):
        read_checkpoint(copy.with_name("other"))


@pytest.mark.parametrize("suffix", [".index", ".data-00000-of-00001"])
def test_every_truncation_is_rejected(copy: Path, suffix: str) -> None:
    path = copy.with_name(copy.name + suffix)
    whole = path.read_bytes()
    for length in {*range(60), *range(0, len(whole), 97), *range(len(whole) - 60, len(whole))}:
        path.write_bytes(whole[:length])
        with pytest.raises(FileError) as error:
            read_checkpoint(copy)
        assert str(path) in str(error.value)
        assert "fetch" in str(error.value)


def flip_bits(copy: Path, name: str, every: int, message: str) -> tuple[int, int]:
    """Flips a bit of every so many bytes of a file, one at a time: each is rejected with the message, or harmless.

    Returns:
        how many were rejected, and how many harmless: they lie in what is left out.
    """
    path = copy.with_name(name)
    whole, before, rejected = path.read_bytes(), read_checkpoint(copy), 0
    positions = range(0, len(whole), every)
    for position in positions:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            after = read_checkpoint(copy)
        except FileError as error:
            assert message in str(error)  # noqa: PT017
            rejected += 1
        else:
            assert all(np.array_equal(before[name], after[name]) for name in before)
    return rejected, len(positions) - rejected


def test_every_flipped_bit_of_a_weight_is_rejected(copy: Path) -> None:
    rejected, _ = flip_bits(copy, "LHC_tiny.data-00000-of-00001", 37, "wrong checksum of")
    assert rejected > 15


def test_every_flipped_bit_of_the_index_is_harmless_or_rejected(copy: Path) -> None:
    _, harmless = flip_bits(copy, "LHC_tiny.index", 3, "LHC_tiny")
    assert harmless < 20  # the metaindex and its handle, and the padding of the footer


# ------------------------------------------------------------------------------------ generated checkpoints


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def message(*fields: tuple[int, int | bytes]) -> bytes:
    """A protobuf message of integers and bytes; field 6, the checksum, is a fixed32."""
    out = b""
    for number, value in fields:
        if number == 6:
            assert isinstance(value, int)
            out += varint(number << 3 | 5) + value.to_bytes(4, "little")
        elif isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def masked(data: bytes) -> int:
    crc = _crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def block(pairs: dict[bytes, bytes], compression: int = 0) -> bytes:
    content = b"".join(b"\0" + varint(len(k)) + varint(len(v)) + k + v for k, v in sorted(pairs.items()))
    content += bytes(4) + (1).to_bytes(4, "little") + bytes([compression])
    return content + masked(content).to_bytes(4, "little")


def entry(array: Any, shard: int = 0, offset: int = 0, **changed: Any) -> bytes:
    data = array.tobytes()
    fields: dict[str, Any] = {
        "dtype": DTYPES[array.dtype.str],
        "shape": array.shape,
        "shard": shard,
        "offset": offset,
        "size": len(data),
        "checksum": masked(data),
        **changed,
    }
    shape = message(*((2, message((1, length))) for length in fields["shape"]))
    numbers = {"dtype": 1, "shard": 3, "offset": 4, "size": 5, "checksum": 6}
    extra = [(7, b"")] if fields.get("sliced") else []
    return message((2, shape), *((number, fields[name]) for name, number in numbers.items()), *extra)


def write(folder: Path, entries: dict[bytes, bytes], shards: list[bytes], *, header: Any = None, **how: int) -> Path:
    table = block({b"": message((1, len(shards))) if header is None else header, **entries}, **how)
    meta = block({})
    index = block({b"z": varint(0) + varint(len(table) - 5)})
    handles = varint(len(table)) + varint(len(meta) - 5) + varint(len(table + meta)) + varint(len(index) - 5)
    magic = (0xDB4775248B80FB57).to_bytes(8, "little")
    (folder / "own.index").write_bytes(table + meta + index + handles.ljust(40, b"\0") + magic)
    for number, data in enumerate(shards):
        (folder / f"own.data-{number:05d}-of-{len(shards):05d}").write_bytes(data)
    return folder / "own"


def test_several_shards_and_all_types(tmp_path: Path) -> None:
    arrays = {
        "a/kernel": np.arange(6, dtype="<f4").reshape(2, 3),
        "b": np.array(2.5, dtype="<f8"),
        "c": np.arange(3, dtype="<i4"),
        "d": np.array([-1], dtype="<i8"),
        "e": np.array([[0.5]], dtype="<f2"),
        "empty": np.zeros((0, 4), dtype="<f4"),
    }
    shards = [b"", b"", b"xx" * 4]
    entries = {b"save_counter/.ATTRIBUTES/VARIABLE_VALUE": entry(np.array(1, dtype="<i8"), 2, 0)}
    for number, (name, array) in enumerate(arrays.items()):
        shard = number % 3
        entries[name.encode()] = entry(array, shard, len(shards[shard]))
        shards[shard] += array.tobytes()
    read = read_checkpoint(write(tmp_path, entries, shards))
    assert set(read) == set(arrays)
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)
        assert read[name].shape == array.shape
        assert read[name].flags.writeable


FOUR = np.arange(4, dtype="<f4")


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"dtype": 7}, "has the type number 7"),
        ({"sliced": True}, "is cut into slices"),
        ({"shape": (5,)}, r"a of shape \[5\] in 16 bytes"),
        ({"shape": (1 << 62, 1 << 62)}, "in 16 bytes"),
        ({"shape": (0, 1 << 62), "size": 0}, "in 0 bytes"),
        ({"shape": (1,) * 5000}, "in 16 bytes"),
        ({"shape": (1 << 40,), "size": 1 << 42}, "takes 4398046511104 from byte 0 on"),
        ({"offset": 8}, "takes 16 from byte 8 on: the file is truncated"),
        ({"offset": 1 << 60}, "the file is truncated"),
        ({"shard": 1}, "is in shard 1 of 1"),
        ({"checksum": 0}, "wrong checksum of a"),
    ],
)
def test_hostile_entries_are_rejected(tmp_path: Path, changed: dict[str, Any], fault: str) -> None:
    prefix = write(tmp_path, {b"a": entry(FOUR, **changed)}, [FOUR.tobytes()])
    with pytest.raises(FileError, match=fault):
        read_checkpoint(prefix)


def test_overlapping_tensors_are_rejected(tmp_path: Path) -> None:
    entries = {name: entry(FOUR) for name in (b"a", b"b")}
    with pytest.raises(FileError, match="b takes 16"):
        read_checkpoint(write(tmp_path, entries, [FOUR.tobytes()]))


def test_invalid_tables_are_rejected(tmp_path: Path) -> None:
    entries = {b"a": entry(FOUR)}
    shards = [FOUR.tobytes()]
    for how, fault in (
        ({"compression": 1}, "compressed by snappy"),
        ({"compression": 9}, "unknown compression 9"),
        ({"header": message((1, 10**6))}, "names 1000000 shards"),
        ({"header": message((1, 1), (2, 1))}, "big-endian"),
        ({"header": b""}, "names 0 shards"),
    ):
        with pytest.raises(FileError, match=fault):
            read_checkpoint(write(tmp_path, entries, shards, **how))  # type: ignore[arg-type]
    with pytest.raises(FileError, match="leaves its block"):
        read_checkpoint(write(tmp_path, {b"k" * 2000: entries[b"a"]}, shards))
    with pytest.raises(FileError, match="a damaged index"):
        read_checkpoint(write(tmp_path, {b"\xff": entries[b"a"]}, shards))
    with pytest.raises(FileError, match="a damaged index"):
        read_checkpoint(write(tmp_path, {b"a": b"\x0a\xff"}, shards))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"<!doctype html><p>sign in</p>", "this is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"", "the file is empty"),
        (b"PK\x03\x04" + bytes(100), "no index of a TensorFlow checkpoint"),
    ],
)
def test_other_files_are_rejected(copy: Path, content: bytes, fault: str) -> None:
    copy.with_name("LHC_tiny.index").write_bytes(content)
    with pytest.raises(FileError, match=fault):
        read_checkpoint(copy)
