"""Tables of paths and labels: any writer, any column names, nothing guessed, every unusable row counted."""

import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders.layouts import about, fetch, found, picture, read, text, zipped
from hypothesis import given, settings
from hypothesis import strategies as st

from fer.config import ConfigError, parse
from fer.io.files import FileError
from fer.sources.csvfile import LONGEST_LINE, read_records, read_rows
from fer.sources.table import TableConfig

# ------------------------------------------------------------------------------------------------ csv


def fields(path: Path) -> list[dict[str, str] | None]:
    return [record.fields for record in read_records(path, ("a", "b"), "a table")]


@pytest.mark.parametrize(
    "content",
    [
        b"a,b\n1,x y\n2,z\n",
        b"a,b\n1,x y\n2,z",
        b"\xef\xbb\xbfa,b\r\n1,x y\r\n2,z\r\n",
        b"a,b\r1,x y\r2,z\r",
        b"A;b\n1;x y\n2;z\n",
        b"b\ta\nx y\t1\nz\t2\n",
        b'"a", "b"\n\n"1","x y"\n , \n 2 , z \n',
        b"a,other,b\n1,,x y\n2,3,z\n",
    ],
)
def test_csv_of_any_writer_is_read(tmp_path: Path, content: bytes) -> None:
    assert fields(text(tmp_path / "t.csv", content)) == [{"a": "1", "b": "x y"}, {"a": "2", "b": "z"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "empty"),
        (b"  \n\n", "empty"),
        (b"a,c\n1,2\n", r"lacks the column 'b'.*found 'a, c'"),
        (b"a,b,B\n1,2,3\n", "'b' twice"),
        (b'a,b\n1,"2\n3,4\n', "line 2 .*quote"),
        (b"a,b\n1,2\n3,\x00\n", "NUL bytes in line 3"),
        (b"a,b\n1,\xb1\xe2\n", "not UTF-8"),
        ("a,b\n1,2\n".encode("utf-16"), "not UTF-8"),
        (b"a,b\n1," + b"x" * 200_000 + b"\n", "larger than field limit"),
        (b"a,b\n" + b"x," * LONGEST_LINE, "line 2 has more than"),
        (b"<!DOCTYPE html>", "web page"),
    ],
)
def test_broken_csv_is_refused_by_name_and_cause(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "t.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FileError, match=rf"t\.csv: .*{message}"):
        fields(path)
    with pytest.raises(FileError, match=r"t\.csv: no such file"):
        list(read_rows(tmp_path / "other" / "t.csv"))


def test_rows_with_another_number_of_fields_are_reported_with_their_lines(tmp_path: Path) -> None:
    records = list(read_records(text(tmp_path / "t.csv", "a,b\n1\n1,2\n1,2,3\n"), ("a", "b"), "a table"))
    assert [(one.line, one.fields is None) for one in records] == [(2, True), (3, False), (4, True)]
    assert records[0].complaint == "1 fields, expected 2"


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.lists(st.sampled_from([b"a", b"b", b",", b";", b'"', b"\r", b"\n", b" ", b"\0", b"\xff"])).map(b"".join),
    )
)
def test_any_bytes_are_a_table_or_a_named_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = text(tmp_path_factory.getbasetemp() / "fuzz" / "t.csv", b"a,b\n" + content)
    try:
        found = fields(path)
    except FileError:
        return
    assert all(one is None or set(one) == {"a", "b"} for one in found)


# ------------------------------------------------------------------------------------------------ datasets

BOX: dict[str, Any] = {"columns": {"box": ["x1", "y1", "x2", "y2"]}, "crops": False}
LANDMARKS = [f"{axis}{point}" for point in range(5) for axis in "xy"]


def images(root: Path, count: int = 4) -> Path:
    for index in range(count):
        picture(root / "img" / f"{index}.png", index, size=20)
    return root


@pytest.mark.parametrize(
    ("content", "options", "expected"),
    [
        (
            "id,path,label\n7,img/0.png,Happy\n8,./img/1.png,anger\n9,img\\2.png,sad\n",
            {"test_fraction": 0.0},
            {"img/0.png": "train happiness", "img/1.png": "train anger", "img/2.png": "train sadness"},
        ),
        (
            "path,label\nimg/0.png,1\nimg/1.png,AN\nimg/2.png,contempt\n",
            {"classes": {"1": "surprise", "AN": "anger", "contempt": "none"}, "test_fraction": 0.0},
            {"img/0.png": "train surprise", "img/1.png": "train anger"},
        ),
        (
            "path,label,part\nimg/0.png,fear,Train\nimg/1.png,fear,valid\nimg/2.png,fear,test\n",
            {"columns": {"split": "part"}},
            {"img/0.png": "train fear", "img/1.png": "validation fear", "img/2.png": "test fear"},
        ),
    ],
    ids=["names", "mapped classes", "split column"],
)
def test_a_csv_gives_its_images_labels_and_splits(
    tmp_path: Path, content: str, options: dict[str, Any], expected: dict[str, str]
) -> None:
    assert found(tmp_path, TableConfig, text(images(tmp_path / "in") / "t.csv", content), **options) == expected
    left_out = about(tmp_path / "data/raw/set")["excluded"]
    assert left_out == ({"left_out_by_classes": 1} if "none" in str(options) else {})


def test_parquet_of_the_same_rows_is_the_same(tmp_path: Path) -> None:
    root = images(tmp_path / "in")
    columns: dict[str, list[object]] = {"file": ["img/0.png", "img/1.png"], "y": [3, 0], "who": ["x", None]}
    pq.write_table(pa.table(columns), root / "t.parquet")
    text(root / "t.csv", "file;y;who\nimg/0.png;3;x\nimg/1.png;0;\n")
    options: dict[str, Any] = {
        "columns": {"path": "file", "label": "y", "subject": "who"},
        "classes": ["anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral"],
    }
    first = found(tmp_path / "1", TableConfig, root / "t.parquet", **options)
    assert first == found(tmp_path / "2", TableConfig, root / "t.csv", **options)
    assert {key: value.split()[1] for key, value in first.items()} == {"img/0.png": "happiness", "img/1.png": "anger"}


def test_without_a_split_column_subjects_stay_together(tmp_path: Path) -> None:
    root = images(tmp_path / "in", 24)
    rows = [f"img/{index}.png,fear,p{index // 4}" for index in range(24)]
    table = text(root / "t.csv", "\n".join(["path,label,who", *rows]))
    options: dict[str, Any] = {"columns": {"subject": "who"}, "test_fraction": 0.5}
    samples, _ = read(fetch(tmp_path, TableConfig, table, **options), TableConfig, **options)
    assert len(samples) == 24
    assert len({(one.faces[0].subject, one.split) for one in samples.values()}) == 6


def test_rows_of_one_image_are_its_faces(tmp_path: Path) -> None:
    rows = "img/0.png,fear,1,2,9,9.5\nimg/0.png,anger,10,2,19,9\nimg/0.png,anger,10,2,19,9\nimg/1.png,sad,,,,\n"
    table = text(images(tmp_path / "in") / "t.csv", "path,label,x1,y1,x2,y2\n" + rows)
    raw = fetch(tmp_path, TableConfig, table, **BOX)
    samples, _ = read(raw, TableConfig, **BOX)
    assert [face.box for face in samples["img/0.png"].faces] == [(1.0, 2.0, 9.0, 9.5), (10.0, 2.0, 19.0, 9.0)]
    assert samples["img/1.png"].faces[0].box is None
    assert not samples["img/0.png"].is_crop
    assert about(raw)["excluded"] == {"same_row_again": 1}


def test_landmarks_are_five_points_in_the_order_of_this_project(tmp_path: Path) -> None:
    content = f"path,label,{','.join(LANDMARKS)}\nimg/0.png,fear,{','.join(map(str, range(10)))}\n"
    table = text(images(tmp_path / "in") / "t.csv", content)
    samples, _ = read(fetch(tmp_path, TableConfig, table, columns={"landmarks": LANDMARKS}), TableConfig)
    assert samples["img/0.png"].faces[0].landmarks == ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))


def test_unusable_rows_are_counted_by_reason(tmp_path: Path) -> None:
    root = images(tmp_path / "in")
    text(tmp_path / "secret.png", "x")
    reasons = {
        "img/gone.png,fear,1,1,5,5": "missing_file",
        "img/1.png,sleepy,1,1,5,5": "unknown_label",
        "img/1.png,fear,5,1,1,5": "bad_box",
        "img/1.png,fear,a,1,1,5": "bad_box",
        "img/1.png,fear,nan,1,1,5": "bad_box",
        "../secret.png,fear,1,1,5,5": "outside_root",
        "/etc/hostname,fear,1,1,5,5": "outside_root",
        ",fear,1,1,5,5": "bad_row",
        "img/1.png,fear,1": "bad_row",
    }
    contradicting = ["img/2.png,fear,,,,", "img/2.png,anger,,,,"]
    rows = ["img/0.png,fear,1,1,5,5", *reasons, *contradicting]
    table = text(root / "t.csv", "\n".join(["path,label,x1,y1,x2,y2", *rows]))
    raw = fetch(tmp_path, TableConfig, table, **BOX, max_bad_fraction=1.0)
    samples, rejects = read(raw, TableConfig, **BOX)
    assert list(samples) == ["img/0.png"]
    assert sorted(one.reason for one in rejects) == sorted([*reasons.values(), "contradicting_rows"])
    lines = {one.origin: one.reason for one in rejects}
    assert lines["t.csv:4"] == "unknown_label"


def test_paths_are_found_in_any_unicode_form_and_from_another_root(tmp_path: Path) -> None:
    name = unicodedata.normalize("NFD", "기쁨 é.png")
    picture(tmp_path / "elsewhere" / name)
    written = unicodedata.normalize("NFC", name)
    table, root = tmp_path / "in" / "t.csv", str(tmp_path / "elsewhere")
    for number, path in enumerate((written, f"{root}/{name}")):
        text(table, f'path,label\n"{path}",fear\n')
        assert list(found(tmp_path / str(number), TableConfig, table, root=root)) == [written]


def test_an_archive_holds_the_one_table_with_its_images(tmp_path: Path) -> None:
    root = images(tmp_path / "in" / "set")
    text(root / "labels" / "t.csv", "path,label\n../img/0.png,fear\n")
    archive = zipped(tmp_path / "in", tmp_path / "in.zip")
    assert list(found(tmp_path / "1", TableConfig, archive)) == ["set/img/0.png"]
    with pytest.raises(FileError, match=r"in\.zip: `root`"):
        fetch(tmp_path / "2", TableConfig, archive, root=str(tmp_path))
    text(root / "u.csv", "path,label\n")
    with pytest.raises(FileError, match=r"one table.*set/labels/t\.csv, set/u\.csv.*`path`"):
        fetch(tmp_path / "3", TableConfig, tmp_path / "in")


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (None, {}, r"t\.csv: no such file.*`path`"),
        ("path,emotion\na,b\n", {}, r"t\.csv: .*lacks the column 'label'"),
        ("path,label\n", {}, r"not one labeled"),
        ("<html>", {}, r"t\.csv: .*web page"),
        ('path,label\n"a,b\n', {}, r"t\.csv: .*line 2 .*quote"),
        ("path,label\nimg/0.png,3\n", {}, r"t\.csv:2: label '3' .*`classes`"),
        (
            "path,label\nimg/0.png,2\nimg/1.png,1\n",
            {"classes": ["anger", "fear"]},
            r"(?s)unknown_label 1.*t\.csv:2: .*label 2, .*`classes`",
        ),
        ("path,label\n", {"root": "gone"}, r"gone: no such folder.*`root`"),
        ("path,label\n", {"sha256": "0" * 64}, r"t\.csv: sha256 is [0-9a-f]{64}, expected 0{64}"),
    ],
)
def test_broken_table_is_refused_by_file_key_and_value(
    tmp_path: Path, content: str | None, options: dict[str, Any], message: str
) -> None:
    table = images(tmp_path / "in") / "t.csv"
    if content is not None:
        text(table, content)
    with pytest.raises(FileError, match=message):
        fetch(tmp_path, TableConfig, table, **options)


def test_parquet_without_the_columns_or_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"path": ["a"], "lable": [1]}), path)
    with pytest.raises(FileError, match=r"t\.parquet: .*lacks the column 'label' - did you mean 'lable'"):
        fetch(tmp_path, TableConfig, path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(FileError, match=r"t\.parquet: .*truncated"):
        fetch(tmp_path, TableConfig, path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["hapiness"]}, "'hapiness' - did you mean 'happiness'"),
        ({"columns": {"label": "path"}}, "'path' is named twice"),
        ({"columns": {"box": ["a", "b", "c", "d"]}}, "columns.box: .*crops: false"),
        ({"columns": {"box": ["a"]}}, "columns.box .*at least 4 items"),
        ({"columns": {"lable": "x"}}, "columns.lable.* did you mean 'label'"),
    ],
)
def test_wrong_configuration_is_refused_by_key_and_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(TableConfig, {"source": "table", **options}, "params.yaml")
