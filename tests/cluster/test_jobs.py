"""`fer submit` against a real `ray start --head` that requires a token."""

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from builders.limits import patience
from builders.places import free_port
from builders.stopping import catches_signals, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
STAGE = """
import os, sys, time
from pathlib import Path
from fer import processes

def main():
    model = sys.argv[sys.argv.index("--model") + 1]
    print("stage", model, "in", Path.cwd(), "with", os.environ.get("MLFLOW_TRACKING_URI"), flush=True)
    if model == "cluster":
        import ray
        ray.init(log_to_driver=False)
        import_it = ray.remote(lambda: __import__("pipelines.train").__name__)
        print("worker imports", ray.get(import_it.remote()), flush=True)
    if model == "sleep":
        time.sleep(120)
    while model == "brief" and not Path("go").exists():
        time.sleep(0.1)
    if model == "wrong":
        raise ValueError("params.yaml: a mistake")
    Path("trained").mkdir(exist_ok=True)
    Path("trained", model).write_text("done")
    return int(model[4:]) if model.startswith("exit") else 0

if __name__ == "__main__":
    processes.run(main)
"""
CLIENT = """
import sys
from pathlib import Path
from fer import processes
from fer.commands.jobs import submit
options = eval(sys.argv[3])
arguments = ["--dataset", "tiny", "--model", sys.argv[1]]
processes.run(lambda: submit("train", arguments, sys.argv[2], root=Path.cwd(), **options))
"""


@dataclass(frozen=True)
class Head:
    address: str
    token: str


def _environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return kept | {"PATH": path, "RAY_USAGE_STATS_ENABLED": "0"} | changes


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A cluster of one node with 1 CPU, ended with exactly the processes that it started."""
    folder = Path(tempfile.mkdtemp(prefix="fer-job-", dir="/tmp"))
    port, dashboard, agent, token = free_port(), free_port(), free_port(), secrets.token_hex(32)
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus", "1"]
    command += ["--node-ip-address", "127.0.0.1", "--port", str(port), "--ray-client-server-port", str(free_port())]
    command += ["--dashboard-port", str(dashboard), "--dashboard-agent-listen-port", str(agent)]
    command += ["--temp-dir", str(folder), "--object-store-memory", str(80 * 2**20)]
    environment = _environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)
    with open(folder / "start.log", "wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        wait_until(lambda: b"Ray runtime started" in (folder / "start.log").read_bytes(), process)
        yield Head(f"http://127.0.0.1:{dashboard}", token)
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        _, alive = psutil.wait_procs(family, timeout=15)
        for one in alive:
            one.kill()
        process.wait(15)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project folder with a space in its name, as small as a job needs it."""
    root = tmp_path / "my project"
    (root / "pipelines").mkdir(parents=True)
    (root / "pipelines" / "__init__.py").touch()
    (root / "pipelines" / "train.py").write_text(STAGE)
    (root / "params.yaml").write_text("seed: 0\n")
    (root / "fer").symlink_to(ROOT / "fer")
    return root


def _start(
    project: Path, head: Head, model: str, environment: dict[str, str] | None = None, **options: object
) -> subprocess.Popen[str]:
    environment = environment if environment is not None else {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": head.token}
    return subprocess.Popen(
        [sys.executable, "-c", CLIENT, model, head.address, repr(options)],
        cwd=project,
        env=_environment(PYTHONPATH=str(ROOT), **environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _submit(
    project: Path, head: Head, model: str, environment: dict[str, str] | None = None, **options: object
) -> tuple[int, str]:
    process = _start(project, head, model, environment, **options)
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def _wait_for_line(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdout is not None
    read = ""
    for line in process.stdout:
        read += line
        if text in line:
            return read
    raise AssertionError(f"{text!r} never came:\n{read}")


def test_exit_code_log_and_error_of_the_stage_are_returned(project: Path, head: Head) -> None:
    exits, raises = (_start(project, head, model) for model in ("exit3", "wrong"))
    output, _ = exits.communicate(timeout=120)
    assert exits.returncode == 3, output
    assert f"stage exit3 in {project}" in output
    (line,) = [line for line in output.splitlines() if "Running entrypoint" in line]
    assert line.endswith(f"'{project}' python -m pipelines.train --dataset tiny --model exit3")
    assert len(line.replace(str(project), "")) < 200, "the log begins with what runs, not with how it is prepared"
    assert "failed with exit code 3" in output
    output, _ = raises.communicate(timeout=120)
    assert raises.returncode == 1
    assert "a mistake" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_outputs_land_in_the_project_folder_where_dvc_looks_and_workers_import_the_code(
    project: Path, head: Head
) -> None:
    started = time.monotonic()
    process = _start(project, head, "cluster", tracking_uri="http://mlflow.example:5000", target="train@tiny-cluster")
    output = _wait_for_line(process, "stage cluster in")
    print(f"the stage's first line after {time.monotonic() - started:.1f} s")  # a number of docs/cluster.md
    assert process.stdout is not None
    output += process.stdout.read()
    assert process.wait(120) == 0, output
    assert (project / "trained" / "cluster").read_text() == "done"
    assert "worker imports pipelines" in output
    assert "with http://mlflow.example:5000" in output
    assert "dvc commit --force train@tiny-cluster" in output


@pytest.mark.slow  # quick: tests/commands/test_job_request.py
def test_upload_copies_code_to_shared_storage_and_no_data(project: Path, head: Head, tmp_path: Path) -> None:
    (project / "data").mkdir()
    (project / "data" / "large.bin").write_bytes(b"0" * 1000)
    (project / "tuned").mkdir()
    (project / "tuned" / "best.yaml").write_text("model: toy\n")
    (project / ".gitignore").write_text("/data/\n/tuned/\n")
    (project / ".env").write_text("PASSWORD=secret\n")
    (project / "fer").unlink()
    shutil.copytree(ROOT / "fer", project / "fer", ignore=shutil.ignore_patterns("__pycache__"))
    shared = tmp_path / "shared storage"
    code, output = _submit(project, head, "cluster", project_dir=str(shared), upload=True)
    assert code == 0, output
    assert (shared / "trained" / "cluster").read_text() == "done"
    assert (shared / "pipelines" / "train.py").read_text() == STAGE
    assert (shared / "tuned" / "best.yaml").is_file(), "params.yaml may name it"
    assert not (shared / "data").exists()
    assert not (shared / ".env").exists()
    assert not (project / "trained").exists()


POINTS = {
    "running": "stage sleep in",
    "just submitted": "submitted",
    "running for a while": "stage sleep in",
    "stopping": "stage sleep in",
    "before it is submitted": None,
}


@pytest.mark.parametrize(
    ("signum", "expected", "point"),
    [
        pytest.param(*ending, point, marks=() if (ending[1], point) == (130, "running") else pytest.mark.slow)
        for point in POINTS
        for ending in ((signal.SIGINT, 130), (signal.SIGTERM, 143))
    ],
)
def test_interrupting_the_client_stops_the_job_and_leaves_no_process(
    project: Path, head: Head, signum: int, expected: int, point: str
) -> None:
    process = _start(project, head, "sleep")
    line = POINTS[point]
    if line is None:
        wait_until(lambda: catches_signals(process.pid), process)
    else:
        _wait_for_line(process, line)
    time.sleep(2 if point == "running for a while" else 0)
    process.send_signal(signum)
    if point == "stopping":
        time.sleep(0.05)
        process.send_signal(signum)  # an impatient user
    output, _ = process.communicate(timeout=patience(100))
    assert process.returncode == expected, output
    assert line is None or "stopped; no partial output was left" in output
    wait_until(lambda: not _stages_that_sleep(), seconds=5)
    assert not (project / "trained").exists()


def _stages_that_sleep() -> list[int]:
    return [
        one.pid
        for one in psutil.process_iter(["cmdline"])
        if "sleep" in (one.info["cmdline"] or []) and "pipelines.train" in one.info["cmdline"]
    ]


@pytest.mark.slow  # quick: tests/commands/test_job_request.py
def test_a_detached_job_runs_on_and_the_same_command_follows_it(project: Path, head: Head) -> None:
    code, output = _submit(project, head, "brief", detach=True)
    assert code == 0, output
    first = re.search(r"job (fer-train-tiny-brief-\d+): submitted", output)
    assert first
    follower = _start(project, head, "brief")
    output = _wait_for_line(follower, f"job {first[1]}: already running with the same parameters")
    (project / "go").touch()
    output += follower.communicate(timeout=120)[0]
    assert follower.returncode == 0, output
    assert "stage brief in" in output
    assert (project / "trained" / "brief").exists()


def test_missing_and_wrong_token_and_wrong_address_name_the_variable_to_set(project: Path, head: Head) -> None:
    token, wrong = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": head.token}, f"http://127.0.0.1:{free_port()}"
    cases: list[tuple[Head, dict[str, str], tuple[str, ...]]] = [
        (head, {}, ("requires a token", "RAY_AUTH_MODE=token")),
        (head, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}, ("refuses the token", "RAY_AUTH_TOKEN")),
        (head, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/nowhere"}, ("RAY_AUTH_TOKEN_PATH",)),
        (Head(wrong, head.token), token, ("does not answer", "--address")),
    ]
    clients = [_start(project, cluster, "exit0", environment=variables) for cluster, variables, _ in cases]
    for client, (_, _, words) in zip(clients, cases, strict=True):
        output, _ = client.communicate(timeout=120)
        assert client.returncode == 1
        assert all(word in output for word in words), output
        assert "Traceback" not in output
        assert head.token not in output
