"""Publication replaces the files of this project, and nothing else."""

import shutil
import string
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
from builders.stopping import left_part
from hypothesis import given, settings
from hypothesis import strategies as st

from fer.commands import check
from fer.config import ConfigError
from fer.io.files import FileError, publish_directory
from fer.outputs import EVALUATED, EVALUATIONS, EXPLAINED, FACES, RAW, SHARDS, STATISTICS, TRAINED, Output

KINDS = [RAW, FACES, SHARDS, STATISTICS, TRAINED, EVALUATED, EVALUATIONS, EXPLAINED]
NAMES = ("some", "model")


def write(output: Output, root: Path, text: str = "new") -> Path:
    """A stage: asks for its folder, works, publishes."""
    final = output.folder(root, *NAMES[: output.names])
    with output.publish(final) as out:
        (out / output.marker).write_text(text)
    return final


def snapshot(folder: Path) -> dict[str, bytes | str]:
    return {
        str(path.relative_to(folder)): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture(params=KINDS, ids=lambda kind: kind.parent)
def output(request: pytest.FixtureRequest) -> Output:
    kind: Output = request.param
    return kind


def test_earlier_output_is_replaced(output: Output, tmp_path: Path) -> None:
    write(output, tmp_path, "old")
    assert (write(output, tmp_path) / output.marker).read_text() == "new"
    assert [path.name for path in (tmp_path / output.parent).iterdir()] == ["some"]


def test_empty_folder_is_used(output: Output, tmp_path: Path) -> None:
    tmp_path.joinpath(output.parent, *NAMES[: output.names]).mkdir(parents=True)
    write(output, tmp_path)


def _folder_of_a_user(final: Path, output: Output, outside: Path) -> None:
    final.mkdir(parents=True)
    (final / "faces-0.parquet" if output is FACES else final / "dropped.csv").write_text("mine")
    (final / "model.safetensors").write_text("mine")
    (final / "predictions.parquet").write_text("mine")
    (final / "maps.npz").write_text("mine")


def _file(final: Path, output: Output, outside: Path) -> None:
    final.parent.mkdir(parents=True)
    final.write_text("mine")


def _link(final: Path, output: Output, outside: Path) -> None:
    final.parent.mkdir(parents=True)
    final.symlink_to(outside)


def _broken_link(final: Path, output: Output, outside: Path) -> None:
    _link(final, output, outside / "nothing")


@pytest.mark.parametrize("lay", [_folder_of_a_user, _file, _link, _broken_link])
def test_files_of_a_user_are_left_alone_and_named(
    output: Output, lay: Callable[[Path, Output, Path], None], tmp_path: Path
) -> None:
    root, outside = tmp_path / "project", tmp_path / "precious"
    outside.mkdir()
    (outside / output.marker).write_text("mine")  # even one that looks like ours
    final = root.joinpath(output.parent, *NAMES[: output.names])
    lay(final, output, outside)
    before = snapshot(tmp_path)
    with pytest.raises(FileError) as caught:
        write(output, root)
    assert str(final) in str(caught.value)
    assert snapshot(tmp_path) == before


def test_files_added_while_a_stage_works_are_left_alone(output: Output, tmp_path: Path) -> None:
    final = output.folder(tmp_path, *NAMES[: output.names])
    with pytest.raises(FileError, match="move it away"), output.publish(final) as out:  # noqa: PT012
        (out / output.marker).write_text("new")
        _folder_of_a_user(final, output, tmp_path)
    assert (final / "model.safetensors").read_text() == "mine"
    assert not (final / output.marker).exists()


def test_folder_without_its_marker_is_recognized_by_the_lock_of_dvc(output: Output, tmp_path: Path) -> None:
    final = write(output, tmp_path)
    (final / output.marker).rename(final / "model.safetensors")
    path = final if output.tracked_whole else final / "model.safetensors"
    (tmp_path / "dvc.lock").write_text(
        f"schema: '2.0'\nstages:\n  x:\n    cmd: x\n    outs:\n    - path: {path.relative_to(tmp_path)}\n"
    )
    if output is FACES or output is SHARDS:
        (final / "model.safetensors").unlink()
    write(output, tmp_path)


@pytest.mark.parametrize("output", [STATISTICS, TRAINED, EVALUATED, EXPLAINED], ids=lambda kind: kind.parent)
def test_notes_beside_tracked_files_survive_the_next_result(output: Output, tmp_path: Path) -> None:
    final = write(output, tmp_path, "old")
    (final / "notes.txt").write_text("mine")
    (final / "sketches").mkdir()
    (final / "sketches" / "link").symlink_to("nowhere")
    write(output, tmp_path)
    assert snapshot(final) == {output.marker: b"new", "notes.txt": b"mine", "sketches/link": "nowhere"}


@pytest.mark.parametrize("output", [FACES, SHARDS], ids=lambda kind: kind.parent)
def test_notes_in_a_folder_that_dvc_removes_whole_are_named(output: Output, tmp_path: Path) -> None:
    final = write(output, tmp_path, "old")
    (final / "notes.txt").write_text("mine")
    with pytest.raises(FileError, match=r"notes\.txt: was not made by this project"):
        write(output, tmp_path)
    assert (final / output.marker).read_text() == "old"


def test_parent_that_is_a_link_to_a_larger_disk_is_followed(output: Output, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    root = tmp_path / "project"
    (root / output.parent).parent.mkdir(parents=True)
    (root / output.parent).symlink_to(disk)
    write(output, root)
    assert (disk.joinpath(*NAMES[: output.names]) / output.marker).is_file()


@settings(deadline=None, max_examples=60)  # it waits for the disk
@given(st.lists(st.text(string.ascii_letters + "./\\;$~- \n\0é_", max_size=12), min_size=2, max_size=2))
def test_no_name_publishes_outside_its_own_folder(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    top = tmp_path_factory.mktemp("top")
    root = top / "one" / "two" / "project"
    root.mkdir(parents=True)
    for folder in (top, root.parent, root):
        (folder / "sentinel").write_text("mine")
    for output in KINDS:
        try:
            final = output.folder(root, *names[: output.names])
        except ConfigError:
            continue
        with output.publish(final) as out:
            (out / output.marker).write_text("new")
    made = [path for path in top.rglob("*") if path.is_file() and path.name != "sentinel"]
    assert all(any(path.is_relative_to(root / output.parent) for output in KINDS) for path in made)
    assert all((folder / "sentinel").read_text() == "mine" for folder in (top, root.parent, root))
    shutil.rmtree(top)


def test_folder_that_a_killed_publication_moved_aside_is_restored(tmp_path: Path) -> None:
    part = left_part(tmp_path / "out")
    part.mkdir()
    aside = Path(f"{part}-old")
    aside.mkdir()
    (aside / "notes").write_text("mine")

    def fail() -> None:
        with publish_directory(tmp_path / "out"):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert snapshot(tmp_path) == {"out/notes": b"mine"}


def test_fer_check_reports_a_folder_that_the_pipeline_would_refuse(
    tmp_path: Path, repo_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(repo_root / "params.yaml", tmp_path)
    (tmp_path / "trained" / "synthetic" / "ddamfn_nano" / "model.safetensors").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileError, match=r"trained/synthetic/ddamfn_nano: was not made by this project"):
        check.main(Namespace(json=False))
