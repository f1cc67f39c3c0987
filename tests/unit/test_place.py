"""Code that is laid into a shared folder replaces and removes what an upload brought, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from fer.commands.place import LIST_NAME, place
from fer.io.files import write_json


def test_code_is_brought_up_to_date_and_what_else_lies_there_stays(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "a.py").write_text("1")
    (source / "b.py").write_text("1")
    assert place(source, target) == 2
    (target / "results.txt").write_text("mine")
    (source / "a.py").unlink()
    (source / "b.py").write_text("2")
    assert place(source, target) == 1
    assert {path.name: path.read_text() for path in target.iterdir() if path.name != LIST_NAME} == {
        "b.py": "2",
        "results.txt": "mine",
    }


@pytest.mark.parametrize("name", ["../precious", "/precious", "link/precious"])
def test_a_list_that_names_a_file_outside_removes_nothing(name: str, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (tmp_path / "precious").write_text("mine")
    (target / "link").symlink_to(tmp_path)
    write_json(target / LIST_NAME, [str(tmp_path / "precious") if name.startswith("/") else name])
    with pytest.raises(ValueError, match="which lies outside"):
        place(source, target)
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_folder_of_the_users_is_not_filled(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something that no upload brought"):
        place(tmp_path, tmp_path / "mine")
