"""A file is complete or absent, whatever happens while it is written."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fer.io import files


def test_folder_is_published_completely_or_not_at_all(tmp_path: Path) -> None:
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


def test_full_disk_keeps_the_old_file_and_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_leftovers_of_a_killed_writer_are_removed_by_the_next(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from fer.io import files\n"
        "with files.publish_directory(Path(sys.argv[1])) as d:\n"
        "    (d / 'half').write_text('x'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "out")], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    with files.publish_directory(tmp_path / "out") as folder:
        (folder / "whole").write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_files_of_another_machines_writer_stay_for_a_week_and_a_folder_moved_aside_for_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = tmp_path / ".out.tmp-999999999-01234567"
    part.mkdir()
    aside = Path(f"{part}-old")
    aside.mkdir()
    now = time.time()
    for later, left in (
        (0, {part, aside}), (100, {part, tmp_path / "out"}), (6 * 86400, {part, tmp_path / "out"}),
        (8 * 86400, {tmp_path / "out"}),
    ):  # fmt: skip
        monkeypatch.setattr(time, "time", lambda later=later: now + later)
        files.remove_leftovers(tmp_path, "out")
        assert set(tmp_path.iterdir()) == left


EXPECTED = {"faces": int, "files": list, "generator": str, "rejects": dict}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "holds [], expected an object"),
        ("null", "holds None, expected an object"),
        ('"x"', "holds 'x', expected an object"),
        ("", "not valid JSON"),
        ("{}", "missing key 'faces'"),
        ('{"faces": 3}', "missing key 'files'"),
        ('{"faces": "3"}', "faces = '3', expected an integer"),
        ('{"faces": true}', "faces = True, expected an integer"),
        ('{"faces": 3, "files": {}}', "files = {}, expected a list"),
        ('{"faces": 3, "files": [], "generator": null}', "generator = None, expected a string"),
        ('{"faces": 3, "files": [], "generator": "", "rejects": []}', "rejects = [], expected an object"),
        (None, "no such file"),
    ],
)
def test_json_of_another_structure_is_refused_with_file_key_and_remedy(
    text: str | None, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "faces.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(files.FileError) as caught:
        files.read_object(path, EXPECTED, "run it again")
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{path}: ")
    assert words in line
    assert line.endswith("; run it again")


def test_json_may_hold_more_than_the_expected_keys(tmp_path: Path) -> None:
    value = {"faces": 3, "files": [], "generator": "x", "rejects": {}, "more": None}
    files.write_json(tmp_path / "faces.json", value, sealed=True)
    assert files.read_object(tmp_path / "faces.json", EXPECTED, "") == value


def test_folder_that_cannot_be_replaced_is_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_process_is_alive_until_it_ends() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert files.process_is_alive(child.pid)
    child.communicate()
    assert not files.process_is_alive(child.pid)
    assert files.process_is_alive(1), "of another user, perhaps"


@pytest.mark.parametrize("number", sorted(files._REMEDIES))
def test_disk_errors_name_path_cause_and_remedy(number: int) -> None:
    error = OSError(number, "in other words", "from", None, "to/file")
    assert files.is_storage_error(error)
    assert files.storage_error_message(error).startswith(f"to/file: {os.strerror(number)}; ")
    assert not files.is_storage_error(ValueError(number))
