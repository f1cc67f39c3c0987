"""Tables of paths and labels: any column names, nothing guessed, every unusable row counted."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders.layouts import about, fetch, labels, picture, read, text, zipped

from fer.config import ConfigError, parse
from fer.io.files import FileError
from fer.labels import SPACES
from fer.sources.table import TableConfig

NAMES = SPACES["basic7"].labels


def pictures(root: Path, count: int = 4) -> Path:
    for index in range(count):
        picture(root / "img" / f"{index}.png", index, size=20)
    return root


def found(root: Path, path: Path, /, **options: Any) -> dict[str, str]:
    samples, rejects = read(fetch(root, TableConfig, path, **options), TableConfig, **options)
    assert not rejects
    return labels(samples, NAMES)


def test_a_csv_of_paths_and_names_is_read(tmp_path: Path) -> None:
    root = pictures(tmp_path / "in")
    table = text(root / "t.csv", "id,path,label\n7,img/0.png,Happy\n8,./img/1.png,anger\n9,img\\2.png,sad\n")
    want = {"img/0.png": "train happiness", "img/1.png": "train anger", "img/2.png": "train sadness"}
    assert found(tmp_path, table, test_fraction=0.0) == want


def test_parquet_of_the_same_rows_is_the_same(tmp_path: Path) -> None:
    root = pictures(tmp_path / "in")
    columns: dict[str, list[object]] = {"file": ["img/0.png", "img/1.png"], "y": [3, 0], "who": ["x", None]}
    pq.write_table(pa.table(columns), root / "t.parquet")
    text(root / "t.csv", "file;y;who\nimg/0.png;3;x\nimg/1.png;0;\n")
    options: dict[str, Any] = {
        "columns": {"path": "file", "label": "y", "subject": "who"},
        "classes": ["anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral"],
    }
    first = found(tmp_path / "1", root / "t.parquet", **options)
    assert first == found(tmp_path / "2", root / "t.csv", **options)
    assert {key: value.split()[1] for key, value in first.items()} == {"img/0.png": "happiness", "img/1.png": "anger"}


def test_numbers_without_their_order_are_an_error(tmp_path: Path) -> None:
    table = text(pictures(tmp_path / "in") / "t.csv", "path,label\nimg/0.png,3\n")
    with pytest.raises(FileError, match=r"t\.csv:2: label '3' is a number.*`classes`"):
        fetch(tmp_path, TableConfig, table)


def test_a_number_beyond_the_order_is_counted(tmp_path: Path) -> None:
    table = text(pictures(tmp_path / "in") / "t.csv", "path,label\nimg/0.png,2\nimg/1.png,1\n")
    with pytest.raises(FileError, match=r"unknown_label 1.*\n.*label 2, and `classes` names 2, from 0 on"):
        fetch(tmp_path, TableConfig, table, classes=["anger", "fear"])


def test_classes_may_map_any_number_or_name_and_leave_some_out(tmp_path: Path) -> None:
    table = text(pictures(tmp_path / "in") / "t.csv", "path,label\nimg/0.png,1\nimg/1.png,AN\nimg/2.png,contempt\n")
    classes = {"1": "surprise", "AN": "anger", "contempt": "none"}
    got = found(tmp_path, table, classes=classes, test_fraction=0.0)
    assert got == {"img/0.png": "train surprise", "img/1.png": "train anger"}
    assert about(tmp_path / "data/raw/set")["excluded"] == {"left_out_by_classes": 1}


def test_a_split_column_is_followed_and_without_one_subjects_stay_together(tmp_path: Path) -> None:
    root = pictures(tmp_path / "in", 24)
    rows = [f"img/{index}.png,fear,{('Train', 'valid', 'test')[index % 3]},p{index // 4}" for index in range(24)]
    table = text(root / "t.csv", "\n".join(["path,label,split,who", *rows]))
    got = found(tmp_path / "1", table, columns={"split": "split"})
    assert got["img/1.png"] == "validation fear"
    assert got["img/3.png"] == "train fear"
    options: dict[str, Any] = {"columns": {"subject": "who"}, "test_fraction": 0.5}
    samples, _ = read(fetch(tmp_path / "2", TableConfig, table, **options), TableConfig, **options)
    assert len({(one.faces[0].subject, one.split) for one in samples.values()}) == 6


def test_rows_of_one_picture_are_its_faces(tmp_path: Path) -> None:
    root = pictures(tmp_path / "in")
    rows = "img/0.png,fear,1,2,9,9.5\nimg/0.png,anger,10,2,19,9\nimg/0.png,anger,10,2,19,9\nimg/1.png,sad,,,,\n"
    table = text(root / "t.csv", "path,label,x1,y1,x2,y2\n" + rows)
    options: dict[str, Any] = {"columns": {"box": ["x1", "y1", "x2", "y2"]}, "crops": False}
    raw = fetch(tmp_path, TableConfig, table, **options)
    samples, _ = read(raw, TableConfig, **options)
    assert [face.box for face in samples["img/0.png"].faces] == [(1.0, 2.0, 9.0, 9.5), (10.0, 2.0, 19.0, 9.0)]
    assert samples["img/1.png"].faces[0].box is None
    assert not samples["img/0.png"].is_crop
    assert about(raw)["excluded"] == {"same_row_again": 1}


def test_landmarks_are_five_points_in_the_house_s_order(tmp_path: Path) -> None:
    names = [f"{axis}{point}" for point in range(5) for axis in "xy"]
    table = text(
        pictures(tmp_path / "in") / "t.csv",
        f"path,label,{','.join(names)}\nimg/0.png,fear,{','.join(map(str, range(10)))}\n",
    )
    samples, _ = read(fetch(tmp_path, TableConfig, table, columns={"landmarks": names}), TableConfig)
    assert samples["img/0.png"].faces[0].landmarks == ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))


def test_unusable_rows_are_counted_by_reason(tmp_path: Path) -> None:
    root = pictures(tmp_path / "in")
    text(tmp_path / "secret.png", "x")
    rows = [
        "img/0.png,fear,1,1,5,5",
        "img/gone.png,fear,1,1,5,5",
        "img/1.png,sleepy,1,1,5,5",
        "img/1.png,fear,5,1,1,5",
        "img/1.png,fear,a,1,1,5",
        "img/1.png,fear,nan,1,1,5",
        "../secret.png,fear,1,1,5,5",
        "/etc/hostname,fear,1,1,5,5",
        ",fear,1,1,5,5",
        "img/1.png,fear,1",
        "img/2.png,fear,,,,",
        "img/2.png,anger,,,,",
    ]
    table = text(root / "t.csv", "\n".join(["path,label,x1,y1,x2,y2", *rows]))
    options: dict[str, Any] = {"columns": {"box": ["x1", "y1", "x2", "y2"]}, "crops": False, "max_bad_fraction": 1.0}
    raw = fetch(tmp_path, TableConfig, table, **options)
    samples, rejects = read(raw, TableConfig, **options)
    assert list(samples) == ["img/0.png"]
    assert about(raw)["rejects"] == {
        "bad_box": 3,
        "bad_row": 2,
        "contradicting_rows": 1,
        "missing_file": 1,
        "outside_root": 2,
        "unknown_label": 1,
    }
    assert len(rejects) == 10


def test_paths_are_found_in_any_unicode_form_and_from_another_root(tmp_path: Path) -> None:
    name = unicodedata.normalize("NFD", "기쁨 é.png")
    picture(tmp_path / "elsewhere" / name)
    written = unicodedata.normalize("NFC", name)
    table = text(tmp_path / "in" / "t.csv", f'path,label\n"{written}",fear\n')
    root = str(tmp_path / "elsewhere")
    assert list(found(tmp_path / "1", table, root=root)) == [written]
    text(table, f"path,label\n{tmp_path}/elsewhere/{name},fear\n")
    assert list(found(tmp_path / "2", table, root=root)) == [written]
    with pytest.raises(FileError, match=r"no such folder.*`root`"):
        fetch(tmp_path / "3", TableConfig, table, root=str(tmp_path / "gone"))


def test_an_archive_holds_the_one_table_with_its_pictures(tmp_path: Path) -> None:
    root = pictures(tmp_path / "in" / "set")
    text(root / "labels" / "t.csv", "path,label\n../img/0.png,fear\n")
    archive = zipped(tmp_path / "in", tmp_path / "in.zip")
    assert list(found(tmp_path / "1", archive)) == ["set/img/0.png"]
    text(root / "u.csv", "path,label\n")
    with pytest.raises(FileError, match=r"expected one table.*found set/labels/t\.csv, set/u\.csv"):
        fetch(tmp_path / "2", TableConfig, tmp_path / "in")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("path,emotion\na,b\n", "lacks the column 'label'"),
        ("path,label\n", "not one labeled image"),
        ("<html>", "web page"),
        ('path,label\n"a,b\n', "never closed"),
    ],
)
def test_another_table_is_refused(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(FileError, match=said):
        fetch(tmp_path, TableConfig, text(tmp_path / "in" / "t.csv", content))


def test_a_parquet_without_the_columns_or_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"path": ["a"], "lable": [1]}), path)
    with pytest.raises(FileError, match="lacks the column 'label' - did you mean 'lable'"):
        fetch(tmp_path, TableConfig, path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(FileError, match="truncated"):
        fetch(tmp_path, TableConfig, path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"classes": ["hapiness"]}, "did you mean 'happiness'"),
        ({"columns": {"label": "path"}}, "'path' is named twice"),
        ({"columns": {"box": ["a", "b", "c", "d"]}}, "crops: false"),
        ({"columns": {"box": ["a"]}}, "at least 4 items"),
        ({"columns": {"lable": "x"}}, "did you mean 'label'"),
    ],
)
def test_a_wrong_configuration_is_refused_before_anything_is_read(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse(TableConfig, {"source": "table", **options}, "params.yaml")
