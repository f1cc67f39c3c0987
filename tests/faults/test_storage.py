"""A disk that is full, read-only or forbidden: the stage reports it and fails, and published files stay."""

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
from builders.places import contents
from builders.projects import REPOSITORY, TOY, make_project, published
from builders.runs import run_child, run_stage, write_output_to
from builders.stopping import resumed

QUIET = {"recipe": TOY, "epochs": 2, "tracking": {"enabled": False}}


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A separate file system; the test is skipped where mounting is not allowed."""
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
    output = root / "output.txt"
    return run_child(run_stage, str(root), str(output), code), output.read_text()


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
datasets: {toy: {source: synthetic, scenes: 60, scene_size: 96, face_size: [40.0, 70.0]}}
models: {nano: {recipe: ddamfn/nano, epochs: 1, batch_size: 16, schedule: {warmup_epochs: 0.0}}}
crop: {}
shard: {folds: 3}
train: {workers: 0}
evaluate: {bootstrap_samples: 100, threads: 1}
report: {}
cluster: {crop_workers: 0}
tracking: {enabled: false}
tune: {}
"""


def run_pipeline(root: str, output: str, names: tuple[str, ...], code: str = "") -> None:
    """Stages in turn, each as `python -m pipelines.<name>` runs it, for `child`. Their output goes to a file."""
    from fer import processes

    write_output_to(output)
    os.chdir(root)
    sys.path.insert(0, str(REPOSITORY))
    exec(code, {})

    def main() -> None:
        for name in names:
            sys.argv = [name, *PIPELINE[name][1]]
            importlib.import_module(f"pipelines.{name}").main()

    processes.run(main)


def pipeline(root: Path, *names: str, code: str = "") -> tuple[int | None, str]:
    output = root.parent / "output.txt"
    return run_child(run_pipeline, str(root), str(output), names, code), output.read_text()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which every stage has run."""
    root = tmp_path_factory.mktemp("finished") / "project"
    root.mkdir()
    (root / "params.yaml").write_text(PARAMS)
    code, output = pipeline(root, *PIPELINE)
    assert code == 0, output
    return root


def refused(
    finished: Path, root: Path, name: str, reason: str, fault: Callable[[Path], AbstractContextManager[str]]
) -> None:
    """The stage ends with one line of path, cause and remedy, and its published files stay to the byte.

    fault: breaks the folder of outputs, and yields code that the child runs first.
    """
    shutil.copytree(finished, root)
    out = root / PIPELINE[name][0]
    if name == "download":  # a complete one is not downloaded again
        (out / "toy" / "scenes-00000.parquet").write_bytes(b"damaged")
    before = contents(out)
    with fault(out) as code:
        ended, output = pipeline(root, name, code=code)
        assert ended == 1, output
        assert "Traceback" not in output
        (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
        assert line.startswith(f"error: {out}"), line
        assert f": {reason}; " in line
        assert line.endswith("run the same command again; existing outputs are unchanged")
        assert {name: data for name, data in contents(out).items() if name != "filler"} == before
        assert not list(root.rglob(".*.tmp-*"))


@contextmanager
def on_small_disk(out: Path) -> Iterator[None]:
    """The folder and its files on a separate file system."""
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
def test_stage_that_cannot_write_fails_in_one_line_and_keeps_published_files(
    finished: Path, tmp_path: Path, name: str, reason: str
) -> None:
    refused(finished, tmp_path / "project", name, reason, FAULTS[reason])


def published_before(root: Path) -> Path:
    """The file of an earlier run, which a failure must not touch."""
    old = root / "trained" / "tiny" / "toy" / "model.safetensors"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"of an earlier run")
    (old.parent / "train.json").touch()  # which marks it as an output of this project
    return old


def test_disk_full_of_checkpoints_fails_with_its_reason_and_resumes_when_there_is_room(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    root = make_project(tmp_path, **QUIET)
    old = published_before(root)
    with small_disk(root / ".work", "2m") as work:
        filler = fill(work, 120_000)  # for the first checkpoint, and not for the second
        code, output = stage(root)
        assert code == 1
        assert "No space left on device; make room and run the same command again; " in output
        assert "Traceback" not in output
        assert old.read_bytes() == b"of an earlier run"
        assert not list(work.rglob(".*.tmp-*"))
        filler.unlink()
        code, output = stage(root)
        assert code == 0, output
        assert resumed(output)
        assert published(root) == undisturbed


def test_full_disk_at_publishing_keeps_published_files_and_trains_nothing_again(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    root = make_project(tmp_path, **QUIET)
    with small_disk(root / "trained", "1m") as disk:
        old = published_before(root)
        filler = fill(disk, 8_000)
        code, output = stage(root)
        assert code == 1
        assert "No space left" in output or "os error 28" in output.lower()
        assert old.read_bytes() == b"of an earlier run"
        assert not list(disk.rglob(".*.tmp-*"))
        filler.unlink()
        code, output = stage(root)
        assert code == 0, output
        assert "is trained already" in output
        assert published(root) == undisturbed


# Root may write anywhere, by two capabilities that a process can drop.
WITHOUT_PRIVILEGES = "import test_storage\ntest_storage.drop_privileges()\n"


def drop_privileges() -> None:
    """Subjects this process to permissions as any user's: it drops CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("II", 0x20080522, 0)
    data = ctypes.create_string_buffer(24)
    assert libc.capget(header, data) == 0
    words = list(struct.unpack("6I", data.raw))
    words[0] &= ~0b110  # effective, the lower half
    assert libc.capset(header, struct.pack("6I", *words)) == 0


def test_checkpoint_above_the_file_size_limit_is_an_error_not_a_signal(tmp_path: Path) -> None:
    root = make_project(tmp_path, **QUIET)
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"  # a quota, to a process
    code, output = stage(root, limit)
    assert code == 1 != -signal.SIGXFSZ
    assert "File too large" in output
    assert not list(root.rglob("state-*.pt"))
