"""The MLflow server of `infra/mlflow/compose.yaml` without its containers: its own pip line, command and PostgreSQL."""

import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml_text
from builders.limits import patience
from builders.places import free_port

COMPOSE = Path(__file__).resolve().parents[2] / "infra" / "mlflow" / "compose.yaml"
PASSWORD = secrets.token_hex(16)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


def _programs() -> Path:
    """Where PostgreSQL's own programs lie; Debian keeps them off the PATH."""
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else []
    places += [path.parent for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))]
    for place in places:
        if (place / "postgres").exists():
            return place
    pytest.skip("no PostgreSQL here (apt-get install postgresql): initdb and postgres were not found")


@contextmanager
def _running(command: list[str], log: Path, ready: list[str] | str, **options: Any) -> Iterator[None]:
    """A server as a child of its own group, once it is ready: a command succeeds, or an address answers."""
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, **options)
    try:
        deadline = time.monotonic() + patience(180)
        while not _answers(ready):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()


def _answers(ready: list[str] | str) -> bool:
    if isinstance(ready, list):
        return subprocess.run(ready, capture_output=True, check=False).returncode == 0
    try:
        with urllib.request.urlopen(ready, timeout=3) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture
def database() -> Iterator[int]:
    """Debian's PostgreSQL with the user, database and password of compose.yaml; its port. Ended with its folder."""
    programs = _programs()
    settings = yaml_text.load(COMPOSE.read_text())["services"]["database"]["environment"]
    user, name = settings["POSTGRES_USER"], settings["POSTGRES_DB"]
    folder = Path(tempfile.mkdtemp(prefix="fer-postgres-", dir="/tmp"))  # a folder of pytest's is closed to others
    someone: dict[str, Any] = {"cwd": folder}
    if os.geteuid() == 0:  # as which PostgreSQL refuses to run
        shutil.chown(folder, "nobody")
        someone |= {"user": "nobody", "extra_groups": []}
    port = free_port()
    try:
        (folder / "password").write_text(PASSWORD)
        (folder / "password").chmod(0o644)
        subprocess.run(
            [programs / "initdb", "--pgdata=data", f"--username={user}", "--pwfile=password", "--auth=scram-sha-256"],
            capture_output=True, check=True, **someone,
        )  # fmt: skip
        at = ["--host=127.0.0.1", f"--port={port}", f"--username={user}"]
        server = [str(programs / "postgres"), "-D", "data", "-h", "127.0.0.1", "-p", str(port), "-k", ""]
        with _running(server, folder / "log", [str(programs / "pg_isready"), *at], **someone):
            subprocess.run(
                [programs / "createdb", *at, name], check=True, env={**os.environ, "PGPASSWORD": PASSWORD}, **someone
            )
            yield port
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_the_compose_files_own_line_and_command_keep_runs_in_postgresql(database: int, tmp_path: Path) -> None:
    server = yaml_text.load(COMPOSE.read_text())["services"]["server"]
    instructions = server["build"]["dockerfile_inline"].replace("\\\n", " ")
    (line,) = re.findall(r"RUN (pip install .*?) &&", instructions)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PIP_", "MLFLOW_"))}
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True, env=clean)
    clean["PATH"] = f"{tmp_path / 'venv' / 'bin'}{os.pathsep}{clean['PATH']}"
    subprocess.run(shlex.split(line), check=True, env=clean)

    artifacts, port = tmp_path / "artifacts", free_port()
    command = shlex.split(server["command"].replace("/artifacts", shlex.quote(str(artifacts))))
    for option, value in (("--host", "127.0.0.1"), ("--port", str(port))):
        command[command.index(option) + 1] = value
    settings = {key: re.sub(r"\$\{\w+:-(.*)\}", r"\1", value) for key, value in server["environment"].items()}
    uri = settings["MLFLOW_BACKEND_STORE_URI"].replace("${POSTGRES_PASSWORD}", PASSWORD)
    settings["MLFLOW_BACKEND_STORE_URI"] = uri.replace("@database:5432/", f"@127.0.0.1:{database}/")
    assert settings["MLFLOW_BACKEND_STORE_URI"] != uri
    address = f"http://localhost:{port}"
    with _running(command, tmp_path / "server.log", f"{address}/health", env=clean | settings, cwd=tmp_path):
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=address)
        run = client.create_run(client.create_experiment("faces")).info.run_id
        client.log_param(run, "model", "nano")
        client.log_metric(run, "val_accuracy", 0.5, step=1)
        client.log_text(run, "epoch,loss\n", "training/history.csv")
        client.set_terminated(run)
        found = client.get_run(run)
        assert (found.data.params, found.data.metrics) == ({"model": "nano"}, {"val_accuracy": 0.5})
        assert found.info.status == "FINISHED"
        assert [one.path for one in client.list_artifacts(run, "training")] == ["training/history.csv"]
    assert [path.read_text() for path in artifacts.rglob("history.csv")] == ["epoch,loss\n"]
    s3 = "from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository as of\n"
    s3 += "of('s3://bucket/path')._get_s3_client()"
    subprocess.run(["python", "-c", s3], check=True, env=clean | {"AWS_DEFAULT_REGION": "eu-central-1"})
