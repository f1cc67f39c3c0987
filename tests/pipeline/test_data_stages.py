"""download, crop and shard as a user runs them: scripts in a project folder, in-process and on a Ray cluster."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from builders.limits import patience
from builders.places import contents
from builders.projects import environment
from builders.stopping import wait_until

from fer import processes
from fer.io.files import read_json
from fer.shards.table import read_table
from fer.shards.verify import verify

PARAMS = """
seed: 1
run: {{datasets: [small], models: [nano]}}
datasets:
  small: {{source: synthetic, scenes: {scenes}, scene_size: 96, face_size: [40.0, 70.0], train_subjects: 30,
           broken_fraction: 0.1, no_face_probability: 0.1}}
  missing: {{source: fer2013}}
models: {{nano: {{recipe: ddamfn/nano}}}}
crop: {{size: 48, max_bad_fraction: 0.5}}
shard: {{folds: 3}}
train: {{}}
evaluate: {{}}
report: {{}}
cluster: {{cpus: 2, object_store_mb: 100, crop_workers: {workers}}}
tracking: {{}}
tune: {{}}
"""


def project(root: Path, *, scenes: int = 60, workers: int = 0) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "params.yaml").write_text(PARAMS.format(scenes=scenes, workers=workers))
    return root


IN_TURN = """
import sys
from importlib import import_module
from fer import processes
def main():
    for stage in sys.argv.pop(1).split(","):
        import_module(f"pipelines.{stage}").main()
processes.run(main)
"""


def command(stage: str, dataset: str = "small") -> list[str]:
    return [sys.executable, "-m", f"pipelines.{stage}", "--dataset", dataset]


def outside(root: Path) -> dict[str, Any]:
    """Where a stage runs: in its project, without a home."""
    return {"cwd": root, "env": environment() | {"HOME": "/nonexistent"}}


def run(root: Path, stages: str, dataset: str = "small") -> subprocess.CompletedProcess[str]:
    """Stages in turn, in one process."""
    words = [sys.executable, "-c", IN_TURN, stages, "--dataset", dataset]
    return subprocess.run(words, **outside(root), capture_output=True, text=True, timeout=patience(200))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after download, crop and shard, without Ray and with a home folder that does not exist."""
    root = project(tmp_path_factory.mktemp("project"))
    done = run(root, "download,crop,shard")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"(\w+)@small: done in", done.stdout) == ["download", "crop", "shard"]
    assert "Traceback" not in done.stderr
    return root


def test_every_scene_is_a_face_or_a_counted_reject(finished: Path) -> None:
    about = read_json(finished / "data/faces/small/faces.json")
    rejects = read_table(finished / "data/faces/small/rejects.parquet")
    assert about["samples"] == 60
    assert sum(about["rejects"].values()) == len(rejects["reason"]) > 0
    assert {"no_face"} < set(rejects["reason"]), "broken and empty scenes were asked for"
    seen = {sample.partition("#")[0] for sample in rejects["sample_id"]}
    for entry in about["files"]:
        seen |= {
            sample.partition("#")[0]
            for sample in read_table(finished / "data/faces/small" / entry["file"], ["sample_id"])["sample_id"]
        }
    assert len(seen) == 60
    manifest = verify(finished / "data/shards/small")
    assert sum(manifest.rows(split) for split in ("train", "validation", "test")) == about["faces"]
    assert manifest.crop == about["crop"]
    assert set(manifest.near_pictures.values()) == {0}, "every drawn face is another"
    summary = read_json(finished / "data/statistics/small/statistics.json")
    assert summary["splits"]["train"]["rows"] == manifest.rows("train")


def test_running_a_stage_again_gives_the_same_bytes(finished: Path) -> None:
    before = contents(finished / "data")
    assert run(finished, "download,crop,shard").returncode == 0
    assert contents(finished / "data") == before


def test_no_output_names_the_folder_of_the_project(finished: Path) -> None:
    for name, data in contents(finished / "data").items():
        assert str(finished).encode() not in data, name


def test_crop_refuses_data_downloaded_with_other_parameters(finished: Path) -> None:
    text = (finished / "params.yaml").read_text()
    try:
        (finished / "params.yaml").write_text(text.replace("scenes: 60", "scenes: 61"))
        done = run(finished, "crop")
    finally:
        (finished / "params.yaml").write_text(text)
    assert done.returncode == 1
    assert "dvc repro download@small" in done.stdout


@pytest.mark.parametrize(
    ("stage", "dataset", "said"),
    [
        ("download", "smal", "did you mean 'small'"),
        ("download", "missing", "kaggle.com"),
        ("crop", "missing", "dvc repro download@missing"),
        ("shard", "missing", "dvc repro crop@missing"),
    ],
)
def test_user_error_ends_without_a_traceback(tmp_path: Path, stage: str, dataset: str, said: str) -> None:
    done = run(project(tmp_path), stage, dataset)
    assert done.returncode == 1
    assert said in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert not list(tmp_path.glob("data/*/*"))


def test_second_process_at_the_same_stage_is_refused(tmp_path: Path) -> None:
    root = project(tmp_path)
    with processes.lock(root / ".work" / "locks" / "download@small"):
        done = run(root, "download")
    assert done.returncode == 1
    assert str(os.getpid()) in done.stdout


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_stopped_download_leaves_no_output_and_no_process(tmp_path: Path, number: signal.Signals, code: int) -> None:
    psutil = pytest.importorskip("psutil")
    root = project(tmp_path, scenes=200_000)
    stage = subprocess.Popen(command("download"), **outside(root), stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: list(root.glob("data/raw/.small*/scenes-*.parquet")), stage)
        workers = psutil.Process(stage.pid).children(recursive=True)
        stage.send_signal(number)
        assert stage.wait(60) == code
        _, alive = psutil.wait_procs(workers, timeout=20)
        assert not alive
    finally:
        stage.kill()
        stage.wait()
    assert not list((root / "data" / "raw").iterdir())


@pytest.mark.ray
def test_two_ray_workers_crop_to_the_same_bytes_and_leave_nothing_behind(finished: Path, tmp_path: Path) -> None:
    root = project(tmp_path / "ray", workers=2)
    (root / "data").mkdir()
    (root / "data" / "raw").symlink_to(finished / "data" / "raw")
    home = tmp_path / "home"
    home.mkdir(mode=0o555)
    stage = subprocess.Popen(
        command("crop"),
        cwd=root,
        env=environment() | {"HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said, _ = stage.communicate(timeout=250)
    assert stage.returncode == 0, said
    assert len(said.splitlines()) == 2, f"two readable lines, not Ray's: {said}"
    assert contents(root / "data" / "faces") == contents(finished / "data" / "faces")
    assert not list(Path("/tmp").glob(f"fer-ray-{stage.pid}-*"))
    assert not list(home.iterdir())
