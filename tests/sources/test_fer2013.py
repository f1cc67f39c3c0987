"""FER2013's public layouts: every row read, every bad row counted, nothing else taken for the dataset."""

import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from builders import layouts as brought
from builders.layouts import about
from small_fer2013 import USAGES, assert_rows, csv_file, fetch, parquet_file, pixels, read, text

from fer.io.files import FileError
from fer.labels import SPACES
from fer.sources.base import BLOCK_ROWS, RawSample, Reject
from fer.sources.fer2013 import PUBLISHED, Fer2013Config
from fer.sources.registry import get_source


def table(header: str, row: str) -> Callable[[Path], Path]:
    """A csv of nine rows, each formatted with the label, pixels and Usage."""
    lines = [row.format(label=index % 7, pixels=text(index), usage=USAGES[index % 3]) for index in range(9)]
    return lambda path: brought.text(path, "\n".join([header, *lines]))


# ------------------------------------------------------------------------------------------------ files of rows


@pytest.mark.parametrize(
    "write",
    [
        csv_file,
        lambda path: csv_file(path, end="\r\n", start="\ufeff"),
        table("emotion, Usage, pixels", "{label},{usage},{pixels}"),
        table('"emotion","pixels","Usage"', '"{label}", "{pixels}" ,"{usage}"'),
        parquet_file,
        lambda path: parquet_file(path, wrapped=True),
    ],
    ids=["csv", "BOM and CRLF", "ICML columns", "quotes", "Parquet", "Parquet of structs"],
)
def test_each_form_is_recognized_by_content_and_read_row_for_row(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path / "My FER 2013.csv")
    raw = fetch(tmp_path / "project", path)
    assert_rows(raw, 9)
    assert sorted(p.name for p in raw.iterdir()) == ["My FER 2013.csv", "source.json"]
    assert (raw / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("write", [csv_file, parquet_file])
def test_blocks_hold_every_row_once_in_order(tmp_path: Path, write: Callable[[Path, int], Path]) -> None:
    rows = 2 * BLOCK_ROWS + 3
    raw = fetch(tmp_path, write(tmp_path / "file", rows))
    blocks = get_source(Fer2013Config(source="fer2013"), 0).blocks(raw)
    starts = [0, BLOCK_ROWS, 2 * BLOCK_ROWS, rows]
    assert [(block.start, block.stop) for block in blocks] == list(pairwise(starts))
    assert_rows(raw, rows)


def changed_csv(path: Path, change: Callable[[list[str]], None]) -> Path:
    lines = csv_file(path).read_text().splitlines()
    change(lines)
    return brought.text(path, "\n".join(lines) + "\n")


def test_corrupt_rows_are_refused_with_their_number_lines_kinds_and_values(tmp_path: Path) -> None:
    def change(lines: list[str]) -> None:
        lines[2] = lines[2].replace(lines[2].split()[3], "256", 1)
        lines[4] = "7" + lines[4][1:]

    with pytest.raises(FileError, match=r"2 of 9 .*row_label 1, row_pixel_value 1") as error:
        fetch(tmp_path, changed_csv(tmp_path / "a.csv", change))
    for part in (r"a.csv:3: row_pixel_value: pixel '256'", r"a.csv:5: row_label: label '7'", "max_bad_fraction"):
        assert part in str(error.value)
    assert not (tmp_path / "data" / "raw" / "set").exists()


def test_allowed_corrupt_rows_become_rejects_and_leave_the_other_keys_alone(tmp_path: Path) -> None:
    def change(lines: list[str]) -> None:
        lines[2] += "0 " * 500_000  # an overlong line is one bad row
        lines[3] = "nonsense"
        lines[4] = lines[4].replace(" ", "\0", 1)
        lines.insert(6, "")

    samples = read(fetch(tmp_path, changed_csv(tmp_path / "a.csv", change), max_bad_fraction=0.4))
    assert [(bad.sample_id, bad.reason, bad.origin) for bad in samples if isinstance(bad, Reject)] == [
        ("fer2013/00000001", "row_line_length", "a.csv:3"),
        ("fer2013/00000002", "row_columns", "a.csv:4"),
        ("fer2013/00000003", "row_pixel_count", "a.csv:5"),
    ]
    good = [sample.key for sample in samples if isinstance(sample, RawSample)]
    assert good == [f"fer2013/{row:08d}" for row in (0, 4, 6, 7, 8, 9)]


def test_truncated_files_are_refused_by_name_and_line(tmp_path: Path) -> None:
    for path, message in (
        (csv_file(tmp_path / "a.csv"), r"a\.csv: .*line 10.*truncated"),
        (parquet_file(tmp_path / "a.parquet"), r"a\.parquet: truncated"),
    ):
        path.write_bytes(path.read_bytes()[:-700])
        with pytest.raises(FileError, match=message):
            fetch(tmp_path, path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"emotion,pixels,Usage\n", "no rows"),
        (b"\n\n  <!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "Git LFS pointer"),
        (b"emotion,pixels\n0,1 2 3\n", "lacks Usage"),
        (b"\x1f\x8b\x08\x00somegzip", "cut off"),
        (b"PK\x03\x04zip", "zip"),
        (b"emotion;pixels;Usage\n0;1 2 3;Training\n", "separated by commas"),
        (b"emotion,pixels,Usage\r0,1 2 3,Training\r", "end in CR alone"),
        ("emotion,pixels,Usage\n0,1 2 3,Training\n".encode("utf-16"), "NUL bytes"),
        (b"emotion,pixels,Usage,more\n", "4 columns"),
        (b"\x00\x01\x02\x03" * 5000, "not a FER2013 csv"),
    ],
)
def test_other_content_is_refused_with_the_cause(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(FileError, match=rf"fer2013\.csv.*{message}"):
        fetch(tmp_path, brought.text(tmp_path / "fer2013.csv", content))
    assert not (tmp_path / "data" / "raw" / "set").exists()


def test_real_rows_are_read_as_they_are_stored(tmp_path: Path, test_data: Path) -> None:
    rows = pq.read_table(test_data / "fer2013" / "fer2013.parquet").slice(0, 800)
    pq.write_table(rows, tmp_path / "part.parquet", row_group_size=300)
    samples = read(fetch(tmp_path, tmp_path / "part.parquet"))
    assert len(samples) == 800
    for row in (0, 299, 300, 799):
        sample = samples[row]
        assert isinstance(sample, RawSample)
        stored = cv2.imdecode(np.frombuffer(rows["image"][row].as_py(), np.uint8), cv2.IMREAD_GRAYSCALE)
        assert (sample.image == stored).all()


# ------------------------------------------------------------------------------------------------ counts and downloads


@pytest.mark.parametrize(
    ("change", "bad_rows", "accepted"),
    [({}, 0, True), ({"train": -2}, 2, True), ({"train": -2}, 1, False), ({"train": -2, "test": 2}, 0, False)],
)
def test_published_counts_are_required_except_for_corrupt_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, int], bad_rows: int, accepted: bool
) -> None:
    """On a published set of nine rows, to which rows are added as they are missed."""
    assert [sum(row.values()) for row in PUBLISHED.values()] == [28709, 3589, 3589]
    names = tuple(PUBLISHED["train"])
    published = {split: dict.fromkeys(names, 0) for split in PUBLISHED}
    for row in range(9):
        published[("train", "validation", "test")[row % 3]][names[row % 7]] += 1
    for split, extra in change.items():
        published[split]["anger"] -= extra
    monkeypatch.setattr("fer.sources.fer2013.PUBLISHED", published)
    path = changed_csv(tmp_path / "a.csv", lambda lines: lines.extend(["nonsense"] * bad_rows))
    options = {"subset": False, "max_bad_fraction": 0.5}
    if accepted:
        fetch(tmp_path, path, **options)
    else:
        with pytest.raises(FileError, match=r"(?s)a\.csv.*subset: true"):
            fetch(tmp_path, path, **options)


def test_a_second_download_does_nothing_and_a_damaged_one_is_repaired(tmp_path: Path) -> None:
    path = csv_file(tmp_path / "a.csv")
    raw = fetch(tmp_path, path)
    before = (raw / "source.json").stat().st_mtime_ns
    fetch(tmp_path, path)
    assert (raw / "source.json").stat().st_mtime_ns == before
    (raw / "a.csv").write_bytes(b"emotion")
    assert_rows(fetch(tmp_path, path), 9)


def test_a_failed_download_leaves_the_earlier_one(tmp_path: Path) -> None:
    raw = fetch(tmp_path, csv_file(tmp_path / "a.csv"))
    with pytest.raises(FileError):
        fetch(tmp_path, tmp_path / "missing.csv")
    assert_rows(raw, 9)
    assert [path.name for path in raw.parent.iterdir()] == ["set"]


def test_a_fetched_file_refused_for_its_counts_is_not_fetched_again(tmp_path: Path) -> None:
    path = csv_file(tmp_path / "a.csv")
    with pytest.raises(FileError, match=r"(?s)28709.*datasets\.set\.subset: true"):
        fetch(tmp_path, path.as_uri(), subset=False)
    path.unlink()
    assert_rows(fetch(tmp_path, path.as_uri()), 9)
    assert not (tmp_path / ".work" / "download").exists()


# ------------------------------------------------------------------------------------------------ archives and folders


@pytest.mark.parametrize("ending", ["tar.gz", "zip"])
def test_the_file_is_found_inside_its_archive(tmp_path: Path, ending: str) -> None:
    folder = csv_file(tmp_path / "in" / "fer2013" / "fer2013.csv").parent
    brought.text(folder / "README", "about")
    brought.text(folder / "train.csv", "emotion,pixels\n0,1 2 3\n")
    kind = "gztar" if ending == "tar.gz" else "zip"
    archive = Path(shutil.make_archive(str(tmp_path / "fer2013"), kind, tmp_path / "in"))
    for number, path in enumerate((archive, archive.as_uri(), tmp_path / "in")):
        root = tmp_path / str(number)
        raw = fetch(root, path)
        assert_rows(raw, 9)
        assert sorted(path.name for path in raw.iterdir()) == ["fer2013.csv", "source.json"]
        assert not (root / ".work" / "download").exists()


def kaggle(root: Path, *, named: bool = True) -> Path:
    """Kaggle's class folders; `named`: the Usage is in the files' names."""
    for index, name in enumerate(("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")):
        for usage, folder in zip(USAGES, ("train", "test", "test"), strict=True):
            path = root / folder / name / (f"{usage}_{index}.png" if named else f"{usage[:7]}{index}x.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), pixels(index))
    return root


def test_kaggle_s_test_folder_is_divided_by_the_usage_in_the_names(tmp_path: Path) -> None:
    samples, rejects = brought.read(fetch(tmp_path, kaggle(tmp_path / "in")), Fer2013Config)
    got = brought.labels(samples, SPACES["basic7"].labels)
    assert (len(got), rejects) == (21, [])
    assert got["train/angry/Training_0.png"] == "train anger"
    assert got["test/happy/PublicTest_3.png"] == "validation happiness"
    assert got["test/neutral/PrivateTest_6.png"] == "test neutral"


def test_kaggle_s_folders_without_usage_in_the_names_have_no_validation(tmp_path: Path) -> None:
    raw = fetch(tmp_path, kaggle(tmp_path / "in", named=False))
    assert {sample.split for sample in read(raw) if isinstance(sample, RawSample)} == {"train", "test"}
    published = about(raw)["published"]
    assert (sum(published["train"].values()), sum(published["test"].values())) == (28709, 7178)


def move_private_test(root: Path) -> None:
    (root / "test" / "sad" / "PrivateTest_4.png").rename(root / "train" / "sad" / "PrivateTest_4.png")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (move_private_test, r"train/sad/PrivateTest_4\.png: .*PrivateTest .* train"),
        (lambda root: (root / "train" / "contempt").mkdir(), r"train/contempt: .*source: folders"),
        (lambda root: shutil.copytree(root / "train", root / "Train"), r"Train/ and train/ are the same split"),
        (
            lambda root: [(root / name).rename(root / f"cat_{name}") for name in ("train", "test")],
            r"found cat_.*fer2013\.csv",
        ),
        (lambda root: [csv_file(root / "a.csv"), parquet_file(root / "b.parquet")], r"a\.csv, b\.parquet.*`path`"),
    ],
    ids=["test among train", "another class", "a split twice", "no split", "two files"],
)
def test_ambiguous_or_other_folders_are_refused_with_their_names(
    tmp_path: Path, change: Callable[[Path], object], message: str
) -> None:
    root = kaggle(tmp_path / "in")
    change(root)
    with pytest.raises(FileError, match=message):
        fetch(tmp_path, root)


def test_ferplus_folders_name_the_source_that_reads_them(tmp_path: Path, test_data: Path) -> None:
    with pytest.raises(FileError, match=r"ferplus_layout.*source: ferplus"):
        fetch(tmp_path, test_data / "fer2013" / "ferplus_layout")


def test_real_kaggle_folders_are_read(tmp_path: Path, test_data: Path) -> None:
    raw = fetch(tmp_path, test_data / "fer2013" / "msambare_layout")
    totals = {split: sum(found.values()) for split, found in about(raw)["counts"].items()}
    assert totals == {"train": 453, "validation": 108, "test": 110}
    assert len(read(raw)) == 671
