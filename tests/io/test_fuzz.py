"""For any bytes, a reader returns a valid result or raises its own error: no crash, no undetected change.

Files of every kind are written, then corrupted: bits flipped, pieces removed, inserted, exchanged with another's. The
allowed outcomes are listed; anything else fails. The examples are the same in every run.
"""

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from builders.images import encoded, scene, silence
from builders.shards import write_set
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fer.io import images
from fer.io.files import FileError, read_json, write_json
from fer.io.images import ImageError, decode_image
from fer.shards.manifest import FILE_NAME, parse_manifest
from fer.shards.read import ShardSet
from fer.shards.schema import ShardError
from fer.sources.aihub import Record, parse_record, read_json_records
from fer.sources.base import describe
from fer.sources.csvfile import RowError
from fer.sources.fer2013_rows import CsvColumns, Row, csv_rows, form_of, parse_csv_row

bounded = settings(
    max_examples=100, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


@st.composite
def corrupted(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """The bytes of a file after one to three corruptions."""
    data = draw(whole)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.integers(1, 64))
        kind = draw(st.sampled_from(["flip", "overwrite", "remove", "insert", "repeat", "cut", "splice"]))
        if kind == "flip" and data:
            flipped = data[start] ^ (1 << draw(st.integers(0, 7)))
            data = data[:start] + bytes([flipped]) + data[start + 1 :]
        elif kind == "overwrite":
            data = data[:start] + draw(st.binary(min_size=length, max_size=length)) + data[start + length :]
        elif kind == "remove":
            data = data[:start] + data[start + length :]
        elif kind == "insert":
            data = data[:start] + draw(st.binary(min_size=1, max_size=length)) + data[start:]
        elif kind == "repeat":
            data = data[: start + length] + data[start:]
        elif kind == "cut":
            data = data[:start]
        else:
            data = data[:start] + draw(whole)[start:]
    return data


# ------------------------------------------------------------------------------------------------ images

IMAGES = [
    encoded(scene(), "JPEG"),
    encoded(scene(), "JPEG", progressive=True, restart_marker_blocks=3),
    encoded(Image.fromarray(scene()).convert("CMYK"), "JPEG"),
    encoded(scene(), "PNG"),
    encoded(Image.fromarray(scene()).quantize(16), "PNG", transparency=3),
    encoded(Image.fromarray(scene()).quantize(16), "GIF", save_all=True, append_images=[Image.new("P", (56, 40))]),
    encoded(scene(), "TIFF", compression="tiff_lzw"),
    encoded(scene(), "TIFF", compression="jpeg"),
    encoded(np.full((9, 9), 0.5, np.float32), "TIFF"),
    encoded(scene(), "WEBP"),
    encoded(scene(), "WEBP", lossless=True, save_all=True, append_images=[Image.new("RGB", (56, 40))]),
    encoded(scene()[:9], "BMP"),
    encoded(scene()[:9], "PPM"),
    encoded(scene(), "AVIF"),
]
REASONS = {"empty", "not_an_image", "unsupported", "truncated", "damaged", "too_large"}


@settings(bounded, max_examples=300)
@given(data=corrupted(st.sampled_from(IMAGES)))
def test_corrupted_image_is_decoded_or_an_image_error(data: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch, silence():
        patch.setattr(images, "MAX_PIXELS", 1_000_000)  # a corrupted header may ask for any size
        try:
            image = decode_image(data)
        except ImageError as error:
            reason = error.reason
        else:
            reason = None
    if reason is None:
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.shape[2] == 3
        assert image.size > 0
    else:
        assert reason in REASONS


# ------------------------------------------------------------------------------------------------ tables

PIXELS = b" ".join(b"%d" % (index % 256) for index in range(48 * 48))
ROWS = [b"3," + PIXELS + b",Training\n", b'"0","' + PIXELS + b'","PrivateTest"\r\n', b"6," + PIXELS + b",PublicTest"]


@bounded
@given(text=corrupted(st.sampled_from(ROWS)))
def test_corrupted_row_of_fer2013_is_a_row_or_a_row_error(text: bytes) -> None:
    try:
        row = parse_csv_row(text, CsvColumns(0, 1, 2))
    except RowError:
        return
    assert isinstance(row, Row)
    assert row.pixels.shape == (48, 48)
    assert 0 <= row.label < 7


@bounded
@given(data=corrupted(st.just(b"emotion,pixels,Usage\n" + b"".join(ROWS))))
def test_corrupted_file_of_fer2013_is_read_line_by_line_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fer2013.csv"
    path.write_bytes(data)
    try:
        rows = [row for _, row in csv_rows(path)] if form_of(path) == "csv" else []
    except FileError:
        return
    assert all(row is None or isinstance(row, Row | RowError) for row in rows)


# ------------------------------------------------------------------------------------------------ records

RECORD = {
    "filename": "0" * 64 + "_여_20_기쁨_숙박 및 거주공간_20210126165538-010-011.jpg",
    "gender": "여",
    "age": 20,
    "faceExp_uploader": "기쁨",
    "annot_A": {"boxes": {"minX": 1.5, "minY": 2.0, "maxX": 30.0, "maxY": 40.0}, "faceExp": "기쁨"},
    "annot_B": {"boxes": {"minX": 2, "minY": "3", "maxX": 30.5, "maxY": 41}, "faceExp": "중립"},
    "annot_C": {"boxes": {"minX": 0, "minY": 0, "maxX": 29.0, "maxY": 39.0}, "faceExp": "알수없음"},
}


@bounded
@given(data=corrupted(st.sampled_from([json.dumps([RECORD, RECORD]).encode(), json.dumps([RECORD]).encode("cp949")])))
def test_corrupted_file_of_records_is_read_record_by_record_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "records.json"
    path.write_bytes(data)
    try:
        records = read_json_records(path)
    except FileError:
        return
    for raw in records:
        with contextlib.suppress(RowError):
            assert isinstance(parse_record(raw), Record)


NUMBERS = [b"9" * 5000, b"[" * 100_000, b"\xff\xfe{}", b'{"a": 1' + b"0" * 5000 + b"}"]


@pytest.mark.parametrize("text", NUMBERS, ids=["digits", "depth", "encoding", "digits inside"])
def test_json_that_python_cannot_parse_is_refused_with_the_file(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "source.json"
    path.write_bytes(text)
    for read in (describe, lambda folder: read_json_records(folder / "source.json")):
        with pytest.raises(FileError, match=r"source\.json"):
            read(tmp_path)


@pytest.mark.parametrize("text", [b"1e999", b"NaN", b"[]", b"{}", b'{"request": 1}'])
def test_source_json_of_another_structure_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "source.json").write_bytes(text)
    with pytest.raises(FileError, match=r"source\.json"):
        describe(tmp_path)


def test_flipped_bit_of_sealed_json_is_detected_or_harmless(tmp_path: Path) -> None:
    """source.json and faces.json are written sealed. (A flip in the seal's own name leaves a file without a seal.)"""
    path = tmp_path / "faces.json"
    about = {"dataset": "기쁨", "faces": 4711, "share": 0.125, "files": [{"file": "faces-0.parquet", "rows": 4711}]}
    write_json(path, about, sealed=True)
    data = path.read_bytes()
    for place in range(len(data)):
        for bit in (0, 5):
            path.write_bytes(data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :])
            try:
                found = read_json(path)
            except FileError:
                continue
            assert {key: found[key] for key in about} == about


# ------------------------------------------------------------------------------------------------ shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("fuzz") / "tiny", size=4)


def copy_to_corrupt(folder: Path, work: Path, name: str) -> tuple[Path, bytes]:
    """A copy of the folder, and the bytes of one of its files."""
    copy = work / folder.name
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    return copy, (copy / name).read_bytes()


def test_flipped_byte_of_a_manifest_is_detected_on_open(shards: Path, tmp_path: Path) -> None:
    """Every byte, by a bit that makes another digit or letter of it, and by one that makes it none."""
    copy, data = copy_to_corrupt(shards, tmp_path, FILE_NAME)
    ShardSet.open(copy)
    for place in range(len(data)):
        for bit in (1, 128):
            changed = bytearray(data)
            changed[place] ^= bit
            with pytest.raises(ShardError):
                parse_manifest(bytes(changed), copy / FILE_NAME)
    for place in range(0, len(data), 101):
        (copy / FILE_NAME).write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(ShardError, match=FILE_NAME):
            ShardSet.open(copy)


@pytest.mark.parametrize("name", ["train-f1-0.parquet", "train-f0-0.parquet", "test-0.parquet"])
def test_flipped_byte_of_a_shard_is_detected_on_open(shards: Path, tmp_path: Path, name: str) -> None:
    copy, data = copy_to_corrupt(shards, tmp_path, name)
    ShardSet.open(copy)
    for place in [*range(0, len(data), 97), len(data) - 1]:
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        (copy / name).write_bytes(changed)
        with pytest.raises(ShardError, match=name):
            ShardSet.open(copy)


@settings(bounded, max_examples=60)
@given(data=st.data())
def test_corrupted_shards_are_refused(
    shards: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from([FILE_NAME, "train-f2-0.parquet", "test-0.parquet"]))
    copy, whole = copy_to_corrupt(shards, tmp_path_factory.getbasetemp(), name)
    changed = data.draw(corrupted(st.just(whole)))
    (copy / name).write_bytes(changed)
    if changed == whole:
        ShardSet.open(copy)
    else:
        with pytest.raises(ShardError):
            ShardSet.open(copy)
