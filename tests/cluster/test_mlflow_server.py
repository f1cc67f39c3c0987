"""The MLflow server of `infra/mlflow/compose.yaml` without its containers: its own pip line, command, environment."""

import json
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml_text
from builders.limits import patience
from builders.places import free_port
from builders.projects import environment
from builders.store import BUCKET, S3, s3_server

from fer.tracking import health
from fer.tracking.journal import left_journals

COMPOSE = yaml_text.load((Path(__file__).resolve().parents[2] / "infra" / "mlflow" / "compose.yaml").read_text())
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
    with open(log, "ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, **options)
    try:
        deadline = time.monotonic() + patience(180)
        while not _answers(ready):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
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
    settings = COMPOSE["services"]["database"]["environment"]
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


@pytest.fixture
def bucket() -> Iterator[S3]:
    """An S3 server on this machine."""
    with s3_server() as store:
        yield store


CLIENT = """
import sys
from pathlib import Path
from fer import processes
from fer.tracking import TrackingConfig, open_run
processes.quiet_libraries()
root, name = Path(sys.argv[1]), sys.argv[2]
known = {"experiment": "faces", "run_name": name, "key": name}
with open_run(TrackingConfig(), root, **known, params={"user": name}, tags={}) as run:
    for line in sys.stdin:
        run.log_metrics({"val_accuracy": 1 / int(line)}, step=int(line))
        (root / "history.csv").write_text(f"{name} {line}")
        run.log_artifact(root / "history.csv", f"epoch {int(line)}")
        print(run.connected, flush=True)
"""
"""A driver that records an epoch for each line that it reads."""


def _install(folder: Path) -> dict[str, str]:
    """Runs the compose file's pip line in a new environment; the variables with which its programs are found."""
    instructions = COMPOSE["services"]["server"]["build"]["dockerfile_inline"].replace("\\\n", " ")
    (line,) = re.findall(r"RUN (pip install .*?) &&", instructions)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PIP_", "MLFLOW_"))}
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, env=clean)
    clean["PATH"] = f"{folder / 'bin'}{os.pathsep}{clean['PATH']}"
    subprocess.run(shlex.split(line), check=True, env=clean)
    return clean


def _settings(folder: Path, database: int, artifacts: str) -> dict[str, str]:
    """The compose file's environment, with this machine's database and bucket, and its file of logins."""

    def filled(text: str) -> str:
        text = text.replace("${POSTGRES_PASSWORD}", PASSWORD).replace("@database:5432/", f"@127.0.0.1:{database}/")
        return re.sub(r"\$\{\w+:\?.*?\}", PASSWORD, re.sub(r"\$\{\w+:-(.*?)\}", r"\1", text))

    (folder / "auth.ini").write_text(filled(COMPOSE["configs"]["auth"]["content"]))
    settings = {name: filled(value) for name, value in COMPOSE["services"]["server"]["environment"].items()}
    own = {"MLFLOW_ARTIFACTS_DESTINATION": artifacts, "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini")}
    assert own.keys() <= settings.keys()
    return settings | own


def _add_user(address: str, name: str) -> None:
    """As the admin does."""
    login = b64encode(f"admin:{PASSWORD}".encode()).decode()
    headers = {"Content-Type": "application/json", "Authorization": f"Basic {login}"}
    body = json.dumps({"username": name, "password": PASSWORD}).encode()
    urllib.request.urlopen(urllib.request.Request(f"{address}/api/2.0/mlflow/users/create", body, headers)).close()


def _record(clients: list[subprocess.Popen[str]], epochs: range) -> list[str]:
    """All clients record these epochs, each at the same time; what they say of the store after the last."""
    said = []
    for epoch in epochs:
        for client in clients:
            assert client.stdin is not None
            client.stdin.write(f"{epoch}\n")
            client.stdin.flush()
        said = [client.stdout.readline().strip() for client in clients if client.stdout is not None]
    return said


def test_two_users_at_once_lose_nothing_where_the_server_is_killed_and_comes_back(
    database: int, bucket: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, log = free_port(), tmp_path / "server.log"
    address = f"http://localhost:{port}"
    command = shlex.split(COMPOSE["services"]["server"]["command"])
    for option, value in (("--host", "127.0.0.1"), ("--port", str(port))):
        command[command.index(option) + 1] = value
    variables = _install(tmp_path / "venv") | _settings(tmp_path, database, f"{bucket.url}/mlflow") | bucket.variables
    server: dict[str, Any] = {"env": variables, "cwd": tmp_path}
    clients = []
    with _running(command, log, f"{address}/health", **server):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            health.stale_runs(address)
        for name in ("ada", "grace"):
            _add_user(address, name)
            (tmp_path / name).mkdir()
            login = {"MLFLOW_TRACKING_USERNAME": name, "MLFLOW_TRACKING_PASSWORD": PASSWORD}
            limit = {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(int(patience(20)))}
            client = subprocess.Popen(
                [sys.executable, "-c", CLIENT, str(tmp_path / name), name],
                env=environment() | login | limit | {"MLFLOW_TRACKING_URI": address},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            clients.append(client)
        assert _record(clients, range(1, 3)) == ["True", "True"], log.read_text()
    assert _record(clients, range(3, 5)) == ["False", "False"], "they keep what the killed server does not take"
    with _running(command, log, f"{address}/health", **server):
        _record(clients, range(5, 7))
        for client in clients:
            client.communicate(timeout=patience(120))
            assert client.returncode == 0
        from mlflow.tracking import MlflowClient

        for name, value in login.items():
            monkeypatch.setenv(name, value)
        assert health.stale_runs(address) == []
        store = MlflowClient(tracking_uri=address)
        runs = store.search_runs([store.get_experiment_by_name("faces").experiment_id])
        assert sorted(run.data.params["user"] for run in runs) == ["ada", "grace"]
        for run in runs:
            points = store.get_metric_history(run.info.run_id, "val_accuracy")
            assert sorted((one.step, one.value) for one in points) == [(step, 1 / step) for step in range(1, 7)]
            assert run.info.status == "FINISHED"
            (kept,) = store.list_artifacts(run.info.run_id, "epoch 4")
            path = store.download_artifacts(run.info.run_id, kept.path, str(tmp_path))
            assert Path(path).read_text().split() == [run.data.params["user"], "4"]
            assert not left_journals(tmp_path / run.data.params["user"])
    assert bucket.request("GET", f"/{BUCKET}?list-type=2&prefix=mlflow/").count(b"/history.csv</Key>") == 12
