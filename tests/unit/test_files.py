"""Files are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fer.io import files


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    final = tmp_path / "out"
    with files.publish_directory(final) as folder:
        (folder / "a").write_text("1")

    def fail_half_way() -> None:
        with files.publish_directory(final) as folder:
            (folder / "b").write_text("2")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in final.iterdir()] == ["a"]


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"version": 1})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.json'"):
        files.write_json(path, {"version": 2})
    with (
        pytest.raises(OSError, match=r"No space left on device: '.*out'"),
        files.publish_directory(tmp_path / "out") as folder,
    ):
        (folder / "whole").write_text("x")
    monkeypatch.undo()
    assert files.read_json(path) == {"version": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from fer import files\n"
        "with files.publish_directory(Path(sys.argv[1])) as d:\n"
        "    (d / 'half').write_text('x'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "out")], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    with files.publish_directory(tmp_path / "out") as folder:
        (folder / "whole").write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_broken_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text("{")
    with pytest.raises(files.FileError, match=r"m\.json"):
        files.read_json(tmp_path / "m.json")


WANTED = {"faces": int, "files": list, "generator": str, "rejects": dict}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "holds [], expected keys and values"),
        ("null", "holds None, expected keys and values"),
        ('"x"', "holds 'x', expected keys and values"),
        ("", "not valid JSON"),
        ("{}", "lacks the key 'faces'"),
        ('{"faces": 3}', "lacks the key 'files'"),
        ('{"faces": "3"}', "faces = '3', expected a whole number"),
        ('{"faces": true}', "faces = True, expected a whole number"),
        ('{"faces": 3, "files": {}}', "files = {}, expected a list"),
        ('{"faces": 3, "files": [], "generator": null}', "generator = None, expected a text"),
        ('{"faces": 3, "files": [], "generator": "", "rejects": []}', "rejects = [], expected keys and values"),
        (None, "no such file"),
    ],
)
def test_json_of_another_structure_is_told_in_one_line_with_file_key_and_remedy(
    text: str | None, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "faces.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(files.FileError) as caught:
        files.read_object(path, WANTED, "run it again")
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{path}: ")
    assert words in line
    assert line.endswith("; run it again")


def test_json_of_the_expected_structure_is_read_with_whatever_else_it_holds(tmp_path: Path) -> None:
    value = {"faces": 3, "files": [], "generator": "x", "rejects": {}, "more": None}
    files.write_json(tmp_path / "faces.json", value, sealed=True)
    assert files.read_object(tmp_path / "faces.json", WANTED, "") == value


def test_a_folder_that_cannot_be_replaced_is_back_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final = tmp_path / "out"
    final.mkdir()
    (final / "a").write_text("old")
    rename = os.rename

    def refuse_the_second(source: Path, target: Path) -> None:
        if target == final and not str(source).endswith("-old"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse_the_second)
    with pytest.raises(OSError, match="Input/output"), files.publish_directory(final) as folder:
        (folder / "a").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (final / "a").read_text() == "old"
