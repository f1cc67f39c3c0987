"""FER2013's published forms: every row read, every bad row counted, nothing else taken for the set."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from small_fer2013 import USAGES, assert_rows, csv_file, fetch, parquet_file, read, text

from fer.io.files import FileError, sha256
from fer.sources.base import BLOCK_ROWS, RawSample, Reject
from fer.sources.fer2013 import PUBLISHED, Fer2013Config, _check_counts
from fer.sources.registry import get_source
from fer.stages.download import download_dataset


def test_the_original_csv_is_read_row_for_row(tmp_path: Path) -> None:
    assert_rows(fetch(tmp_path, csv_file(tmp_path / "fer2013.csv")), 9)


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path: Path) -> None:
    assert_rows(fetch(tmp_path, csv_file(tmp_path / "a.csv", end="\r\n", start="\ufeff")), 9)


def test_the_icml_variant_with_spaces_and_another_column_order_is_read(tmp_path: Path) -> None:
    path = tmp_path / "icml_face_data.csv"
    rows = [f"{row % 7},{USAGES[row % 3]},{text(row)}" for row in range(6)]
    path.write_text("\n".join(["emotion, Usage, pixels", *rows]))
    assert_rows(fetch(tmp_path, path), 6)


@pytest.mark.parametrize("wrapped", [False, True])
def test_parquet_of_encoded_pictures_is_recognised_by_content(tmp_path: Path, wrapped: bool) -> None:
    assert_rows(fetch(tmp_path, parquet_file(tmp_path / "fer2013.csv", wrapped=wrapped)), 9)


@pytest.mark.parametrize("form", [csv_file, parquet_file])
def test_blocks_hold_every_row_once_in_order(tmp_path: Path, form: object) -> None:
    rows = 2 * BLOCK_ROWS + 3
    raw = fetch(tmp_path, form(tmp_path / "file", rows))  # type: ignore[operator]
    source = get_source(Fer2013Config(source="fer2013"), 0)
    assert [(block.start, block.stop) for block in source.blocks(raw)] == [
        (0, BLOCK_ROWS),
        (BLOCK_ROWS, 2 * BLOCK_ROWS),
        (2 * BLOCK_ROWS, rows),
    ]
    assert_rows(raw, rows)


def test_the_raw_folder_keeps_the_file_s_name_and_bytes(tmp_path: Path) -> None:
    path = csv_file(tmp_path / "My FER 2013.csv")
    raw = fetch(tmp_path / "project", path)
    assert sorted(p.name for p in raw.iterdir()) == ["My FER 2013.csv", "source.json"]
    assert (raw / path.name).read_bytes() == path.read_bytes()


def test_corrupt_rows_are_counted_by_kind_with_their_lines_and_refused(tmp_path: Path) -> None:
    path = csv_file(tmp_path / "a.csv")
    lines = path.read_text().splitlines()
    lines[2] = lines[2].replace(lines[2].split()[3], "256", 1)
    lines[4] = "7" + lines[4][1:]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(FileError) as error:
        fetch(tmp_path, path)
    said = str(error.value)
    for part in ("2 of 9 rows", "pixel_value 1", "label 1", "line 3", "line 5", "max_bad_fraction"):
        assert part in said
    assert not (tmp_path / "data" / "raw" / "set").exists()


def test_allowed_corrupt_rows_become_rejects_and_leave_the_other_keys_alone(tmp_path: Path) -> None:
    path = csv_file(tmp_path / "a.csv")
    lines = path.read_text().splitlines()
    lines[3] = "nonsense"
    lines.insert(5, "")
    path.write_text("\n".join(lines) + "\n")
    samples = read(fetch(tmp_path, path, max_bad_fraction=0.2))
    (bad,) = [sample for sample in samples if isinstance(sample, Reject)]
    assert (bad.sample_id, bad.reason, bad.origin) == ("fer2013/00000002", "row_columns", "a.csv:4")
    good = [sample.key for sample in samples if isinstance(sample, RawSample)]
    assert good == [f"fer2013/{row:08d}" for row in (0, 1, 3, 5, 6, 7, 8, 9)]


def test_a_line_beyond_all_measure_is_one_bad_row_and_no_more(tmp_path: Path) -> None:
    path = csv_file(tmp_path / "a.csv")
    lines = path.read_text().splitlines()
    lines[2] += "0 " * 500_000
    lines[4] = lines[4].replace(" ", "\0", 1)
    path.write_text("\n".join(lines) + "\n")
    samples = read(fetch(tmp_path, path, max_bad_fraction=0.3))
    bad = {sample.sample_id: sample.reason for sample in samples if isinstance(sample, Reject)}
    assert bad == {"fer2013/00000001": "row_line_length", "fer2013/00000003": "row_pixel_count"}
    assert len(samples) == 9


def test_quoted_fields_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = [f'"{row % 7}", "{text(row)}" ,"{USAGES[row % 3]}"' for row in range(9)]
    path.write_text("\n".join(['"emotion","pixels","Usage"', *rows]) + "\n")
    assert_rows(fetch(tmp_path, path), 9)


def test_a_file_cut_in_the_middle_of_a_row_is_called_truncated(tmp_path: Path) -> None:
    path = csv_file(tmp_path / "a.csv")
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(FileError, match=r"line 10.*truncated"):
        fetch(tmp_path, path)


def test_a_truncated_parquet_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = parquet_file(tmp_path / "a.parquet")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FileError, match=r"a\.parquet: truncated"):
        fetch(tmp_path, path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"emotion,pixels,Usage\n", "no rows"),
        (b"\n\n  <!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "Git LFS pointer"),
        (b"emotion,pixels\n0,1 2 3\n", "Usage"),
        (b"\x1f\x8b\x08\x00somegzip", "cut off"),
        (b"PK\x03\x04zip", "zip"),
        (b"emotion;pixels;Usage\n0;1 2 3;Training\n", "separated by commas"),
        (b"emotion,pixels,Usage\r0,1 2 3,Training\r", "end in CR alone"),
        ("emotion,pixels,Usage\n0,1 2 3,Training\n".encode("utf-16"), "NUL bytes"),
        (b"emotion,pixels,Usage,more\n", "4 columns"),
        (b"\x00\x01\x02\x03" * 5000, "not a FER2013 csv"),
    ],
)
def test_what_is_not_fer2013_is_refused_with_the_cause(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "fer2013.csv").write_bytes(content)
    with pytest.raises(FileError, match=said):
        fetch(tmp_path, tmp_path / "fer2013.csv")
    assert not (tmp_path / "data" / "raw" / "set").exists()


def test_other_counts_than_the_published_ones_need_the_users_word(tmp_path: Path) -> None:
    with pytest.raises(FileError) as error:
        fetch(tmp_path, csv_file(tmp_path / "a.csv"), subset=False)
    assert "28709" in str(error.value)
    assert "subset: true" in str(error.value)


def test_the_published_counts_pass_also_where_corrupt_rows_account_for_the_difference() -> None:
    counts = {split: list(row) for split, row in PUBLISHED.items()}
    assert [sum(row) for row in counts.values()] == [28709, 3589, 3589]
    _check_counts("f", counts, 0, False)
    counts["train"][3] -= 2
    _check_counts("f", counts, 2, False)
    with pytest.raises(FileError):
        _check_counts("f", counts, 1, False)
    counts["test"][0] += 2
    with pytest.raises(FileError):
        _check_counts("f", counts, 0, False)


def test_without_a_path_the_error_says_where_the_set_is_and_which_key_to_set(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"kaggle\.com.*path"):
        download_dataset("set", Fer2013Config(source="fer2013"), seed=0, root=tmp_path)


def test_another_digest_is_refused_and_the_right_one_accepted(tmp_path: Path) -> None:
    path = csv_file(tmp_path / "a.csv")
    with pytest.raises(FileError, match="sha256"):
        fetch(tmp_path, path, sha256="0" * 64)
    fetch(tmp_path, path, sha256=sha256(path))


def test_a_second_download_does_nothing_and_a_damaged_one_is_made_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = csv_file(tmp_path / "a.csv")
    raw = fetch(tmp_path, path)
    before = (raw / "source.json").stat().st_mtime_ns
    fetch(tmp_path, path)
    assert (raw / "source.json").stat().st_mtime_ns == before
    (raw / "a.csv").write_bytes(b"emotion")
    assert_rows(fetch(tmp_path, path), 9)


def test_a_failed_download_leaves_what_stood_there(tmp_path: Path) -> None:
    raw = fetch(tmp_path, csv_file(tmp_path / "a.csv"))
    with pytest.raises(FileError):
        fetch(tmp_path, tmp_path / "missing.csv")
    assert_rows(raw, 9)
    assert [path.name for path in raw.parent.iterdir()] == ["set"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fer2013_bad_rows.csv", "pixel_count 2"),
        ("fer2013_header_only.csv", "no rows"),
        ("fer2013_is_html.csv", "web page"),
        ("fer2013_lfs_pointer.csv", "Git LFS pointer"),
        ("fer2013_truncated.csv", "truncated"),
        ("ferplus_bad_rows.csv", "not a FER2013 csv"),
        ("muxspace_500_picts_satz.csv", "not a FER2013 csv"),
    ],
)
def test_hostile_files_met_in_the_wild_are_refused(tmp_path: Path, test_data: Path, name: str, said: str) -> None:
    with pytest.raises(FileError, match=said):
        fetch(tmp_path, test_data / "bad" / "csv" / name)


@pytest.mark.parametrize("name", ["fer2013_bom_crlf.csv", "icml_header_spaces.csv"])
def test_odd_but_valid_files_met_in_the_wild_are_read(tmp_path: Path, test_data: Path, name: str) -> None:
    samples = read(fetch(tmp_path, test_data / "bad" / "csv" / name))
    assert len(samples) == 3
    assert all(isinstance(sample, RawSample) for sample in samples)


def test_rows_of_the_real_set_come_out_as_they_are_stored(tmp_path: Path, test_data: Path) -> None:
    table = pq.read_table(test_data / "fer2013" / "fer2013.parquet").slice(0, 800)
    pq.write_table(table, tmp_path / "part.parquet", row_group_size=300)
    samples = read(fetch(tmp_path, tmp_path / "part.parquet"))
    assert len(samples) == 800
    for row in (0, 299, 300, 799):
        sample = samples[row]
        assert isinstance(sample, RawSample)
        stored = cv2.imdecode(np.frombuffer(table["image"][row].as_py(), np.uint8), cv2.IMREAD_GRAYSCALE)
        assert (sample.image == stored).all()


def test_a_fetched_file_refused_for_its_counts_is_not_fetched_again(tmp_path: Path) -> None:
    path = csv_file(tmp_path / "a.csv")
    with pytest.raises(FileError, match="subset: true"):
        fetch(tmp_path, path.as_uri(), subset=False)
    path.unlink()
    assert_rows(fetch(tmp_path, path.as_uri()), 9)
    assert not (tmp_path / ".work" / "download").exists()
