"""A disk that is full, read-only or forbidden: the stage says so and fails, and what was published stays."""

from __future__ import annotations

import ctypes
import importlib
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from builders.projects import REPOSITORY, TOY, make_project, published
from builders.runs import run_child, run_stage

QUIET = {"recipe": TOY, "epochs": 2, "tracking": {"enabled": False}}


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own; the test is skipped where one may not be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no tmpfs may be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, leave: int) -> Path:
    """A file that leaves so many bytes free."""
    space = os.statvfs(folder)
    filler = folder / "filler"
    filler.write_bytes(bytes(space.f_bavail * space.f_frsize - leave))
    return filler


def stage(root: Path, code: str = "") -> tuple[int | None, str]:
    said = root / "said.txt"
    return run_child(run_stage, str(root), str(said), code), said.read_text()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    root = make_project(tmp_path_factory.mktemp("undisturbed"), **QUIET)
    assert stage(root)[0] == 0
    return published(root)


PIPELINE = {
    "download": ("data/raw", ["--dataset", "toy"]),
    "crop": ("data/faces", ["--dataset", "toy"]),
    "shard": ("data/shards", ["--dataset", "toy"]),
    "train": ("trained", ["--dataset", "toy", "--model", "nano"]),
    "evaluate": ("evaluated", ["--dataset", "toy", "--model", "nano"]),
    "report": ("reports", []),
}
"""Where each stage writes, and its arguments."""

PARAMS = """
seed: 0
run: {datasets: [toy], models: [nano]}
datasets: {toy: {source: synthetic, scenes: 80}}
models: {nano: {recipe: ddamfn/nano, epochs: 1, batch_size: 16, schedule: {warmup_epochs: 0.0}}}
crop: {}
shard: {}
train: {workers: 0}
evaluate: {bootstrap_samples: 100, threads: 1}
report: {}
cluster: {crop_workers: 0}
tracking: {enabled: false}
tune: {}
"""


def run_pipeline(root: str, output: str, name: str, code: str = "") -> None:
    """A stage as `python -m pipelines.<name>` runs it, for `child`. What it says goes to a file."""
    from fer import processes

    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.chdir(root)
    sys.path.insert(0, str(REPOSITORY))
    sys.argv = [name, *PIPELINE[name][1]]
    exec(code, {})
    processes.run(importlib.import_module(f"pipelines.{name}").main)


def pipeline(root: Path, name: str, code: str = "") -> tuple[int | None, str]:
    said = root.parent / "said.txt"
    return run_child(run_pipeline, str(root), str(said), name, code), said.read_text()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which every stage has run."""
    root = tmp_path_factory.mktemp("finished") / "project"
    root.mkdir()
    (root / "params.yaml").write_text(PARAMS)
    for name in PIPELINE:
        code, said = pipeline(root, name)
        assert code == 0, said
    return root


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(
    finished: Path, root: Path, name: str, reason: str, fault: Callable[[Path], AbstractContextManager[str]]
) -> None:
    """The stage ends with one line of path, cause and remedy, and what it had published stays to the byte.

    fault: puts the folder of outputs into trouble, and gives code for the child to begin with.
    """
    shutil.copytree(finished, root)
    out = root / PIPELINE[name][0]
    if name == "download":  # a whole one is left as it is
        (out / "toy" / "scenes-00000.parquet").write_bytes(b"damaged")
    before = content(out)
    with fault(out) as code:
        ended, said = pipeline(root, name, code)
        assert ended == 1, said
        assert "Traceback" not in said
        (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
        assert line.startswith(f"error: {out}"), line
        assert f": {reason}; " in line
        assert line.endswith("run the same command again; the outputs that stood before are unchanged")
        assert {name: data for name, data in content(out).items() if name != "filler"} == before
        assert not list(root.rglob(".*.tmp-*"))


@contextmanager
def on_small_disk(out: Path) -> Iterator[None]:
    """The folder with what it holds on a file system of its own."""
    aside = out.with_name("aside")
    out.rename(aside)
    with small_disk(out, "16m"):
        shutil.copytree(aside, out, dirs_exist_ok=True)
        yield


@contextmanager
def full(out: Path) -> Iterator[str]:
    with on_small_disk(out):
        fill(out, 8_000)
        yield ""


@contextmanager
def read_only(out: Path) -> Iterator[str]:
    with on_small_disk(out):
        subprocess.run(["mount", "-o", "remount,ro", str(out)], check=True)
        yield ""


@contextmanager
def forbidden(out: Path) -> Iterator[str]:
    folders = [out, *(path for path in out.iterdir() if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        yield f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n{WITHOUT_PRIVILEGES}"
    finally:
        for folder in folders:
            folder.chmod(0o755)


FAULTS = {
    "No space left on device": full,
    "Read-only file system": read_only,
    "Permission denied": forbidden,
}


@pytest.mark.parametrize("reason", FAULTS)
@pytest.mark.parametrize("name", PIPELINE)
def test_a_stage_that_may_not_write_says_so_in_one_line_and_keeps_what_was_published(
    finished: Path, tmp_path: Path, name: str, reason: str
) -> None:
    refused(finished, tmp_path / "project", name, reason, FAULTS[reason])


def published_before(root: Path) -> Path:
    """What an earlier training left, which a failure must not touch."""
    old = root / "trained" / "tiny" / "toy" / "model.safetensors"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"of an earlier training")
    (old.parent / "train.json").touch()  # by which it is known for ours
    return old


def test_a_disk_full_of_checkpoints_fails_with_its_reason_and_goes_on_when_there_is_room(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    root = make_project(tmp_path, **QUIET)
    old = published_before(root)
    with small_disk(root / ".work", "2m") as work:
        filler = fill(work, 120_000)  # for the first checkpoint, and not for the second
        code, said = stage(root)
        assert code == 1
        assert "No space left on device; make room and run the same command again; the outputs that stood" in said
        assert "Traceback" not in said
        assert old.read_bytes() == b"of an earlier training"
        assert not list(work.rglob(".*.tmp-*"))
        filler.unlink()
        code, said = stage(root)
        assert code == 0, said
        assert "resuming after" in said
        assert published(root) == undisturbed


def test_a_full_disk_at_publishing_keeps_what_was_published_and_trains_nothing_again(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    root = make_project(tmp_path, **QUIET)
    with small_disk(root / "trained", "1m") as disk:
        old = published_before(root)
        filler = fill(disk, 8_000)
        code, said = stage(root)
        assert code == 1
        assert "No space left" in said or "os error 28" in said.lower()
        assert old.read_bytes() == b"of an earlier training"
        assert not list(disk.rglob(".*.tmp-*"))
        filler.unlink()
        code, said = stage(root)
        assert code == 0, said
        assert "resuming after 2 epochs" in said
        assert published(root) == undisturbed


def test_read_only_storage_is_named_and_nothing_changes(tmp_path: Path) -> None:
    root = make_project(tmp_path, **QUIET)
    with small_disk(root / "trained", "1m") as disk:
        old = published_before(root)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        code, said = stage(root)
        assert code == 1
        assert "Read-only file system" in said
        assert str(disk) in said
        assert old.read_bytes() == b"of an earlier training"


# Root may write anywhere, by two capabilities that a process can lay down.
WITHOUT_PRIVILEGES = "import test_storage\ntest_storage.lay_down_privileges()\n"


def lay_down_privileges() -> None:
    """Makes this process as bound by permissions as any user's: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH go."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("II", 0x20080522, 0)
    data = ctypes.create_string_buffer(24)
    assert libc.capget(header, data) == 0
    words = list(struct.unpack("6I", data.raw))
    words[0] &= ~0b110  # effective, the lower half
    assert libc.capset(header, struct.pack("6I", *words)) == 0


def test_a_folder_without_permission_is_named_without_a_traceback(tmp_path: Path) -> None:
    root = make_project(tmp_path, **QUIET)
    old = published_before(root)
    with forbidden(root / "trained") as code:
        ended, said = stage(root, code)
    assert ended == 1, said
    assert "Permission denied" in said
    assert str(old.parent.parent) in said
    assert "Traceback" not in said
    assert old.read_bytes() == b"of an earlier training"


def test_a_checkpoint_that_cannot_be_written_for_its_size_is_an_error_not_a_signal(tmp_path: Path) -> None:
    root = make_project(tmp_path, **QUIET)
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"  # a quota, to a process
    code, said = stage(root, limit)
    assert code == 1 != -signal.SIGXFSZ
    assert "File too large" in said
    assert not list(root.rglob("state-*.pt"))
