"""csv tables as they are met: read right, or refused with the line and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders.layouts import text
from hypothesis import given, settings
from hypothesis import strategies as st

from fer.io.files import FileError
from fer.sources.csvfile import LONGEST_LINE, read_records, read_rows

ROWS = [{"a": "1", "b": "x y"}, {"a": "2", "b": "z"}]


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
def test_a_table_is_read_whatever_wrote_it(tmp_path: Path, content: bytes) -> None:
    assert fields(text(tmp_path / "t.csv", content)) == ROWS


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"  \n\n", "empty"),
        (b"a,c\n1,2\n", r"lacks the column 'b'.*found 'a, c'"),
        (b"a,b,B\n1,2,3\n", "'b' twice"),
        (b'a,b\n1,"2\n3,4\n', "never closed"),
        (b"a,b\n1,2\n3,\x00\n", "NUL bytes in line 3"),
        (b"a,b\n1,\xb1\xe2\n", "not UTF-8"),
        ("a,b\n1,2\n".encode("utf-16"), "not UTF-8"),
        (b"a,b\n1," + b"x" * 200_000 + b"\n", "larger than field limit"),
        (b"a,b\n" + b"x," * LONGEST_LINE, "line 2 has more than"),
        (b"<!DOCTYPE html>", "web page"),
    ],
)
def test_what_is_no_table_is_refused_with_the_cause(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(FileError, match=said):
        fields(text(tmp_path / "t.csv", content))


def test_rows_with_another_number_of_fields_are_told_with_their_lines(tmp_path: Path) -> None:
    records = list(read_records(text(tmp_path / "t.csv", "a,b\n1\n1,2\n1,2,3\n"), ("a", "b"), "a table"))
    assert [(one.line, one.fields is None) for one in records] == [(2, True), (3, False), (4, True)]
    assert records[0].complaint == "1 fields, expected 2"


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no such file"):
        list(read_rows(tmp_path / "t.csv"))


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
