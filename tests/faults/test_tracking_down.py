"""A tracking store that is locked, created by several processes at once, or killed: the run continues, nothing is lost.

The quick tests of a store that is down are `tests/tracking/test_tracking_journal.py`.
"""

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from builders.limits import patience
from builders.mlflow_runs import recorded, start
from builders.places import free_port
from builders.projects import NANO, environment, finish, make_project, published, start_training
from builders.runs import child
from builders.stopping import checkpoints, slow_updates, wait_until

from fer.tracking import TrackingConfig, TrackingError, compat, health
from fer.tracking.journal import left_journals

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _local_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_database_locked_for_15_seconds_delays_entries_and_loses_none(tmp_path: Path) -> None:
    with start(tmp_path, "locked") as run:
        run.log_metrics({"val_loss": 2.0}, step=1)
        held = threading.Event()

        def hold() -> None:
            with sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None) as store:
                store.execute("begin exclusive")
                held.set()
                time.sleep(15)
                store.execute("commit")

        holder = threading.Thread(target=hold)
        holder.start()
        held.wait()
        started = time.monotonic()
        run.log_metrics({"val_loss": 1.0}, step=2)
        assert time.monotonic() - started < patience(60)
        holder.join()
    assert recorded(tmp_path, "locked") == [("FINISHED", {"val_loss": [(1, 2.0), (2, 1.0)]})]


def one_of_many(root: str, number: int, gate: str) -> None:
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    compat.load_mlflow()
    Path(f"{gate}-{number}").touch()
    while not Path(gate).exists():
        time.sleep(0.005)
    with start(Path(root), f"starter {number}") as run:
        run.log_metrics({"val_loss": float(number)}, step=1)
        assert run.connected


def test_six_processes_at_once_on_a_new_database_all_have_their_run(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    starters = [child(one_of_many, str(tmp_path), number, str(gate)) for number in range(6)]
    wait_until(lambda: len(list(tmp_path.glob("gate-*"))) == 6)
    gate.touch()
    for starter in starters:
        starter.join(patience(200))
    assert [starter.exitcode for starter in starters] == [0] * 6
    for number in range(6):
        assert recorded(tmp_path, f"starter {number}") == [("FINISHED", {"val_loss": [(1, float(number))]})]
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        assert store.execute("pragma integrity_check").fetchall() == [("ok",)]
        assert store.execute("select count(*) from experiments where name = 'toy'").fetchall() == [(1,)]
    assert not left_journals(tmp_path)


class Server:
    """An MLflow server on a folder, that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self._folder}/server.db"]
        with open(self._folder / "server.txt", "a") as output:
            self._process = subprocess.Popen(
                [*command, "--artifacts-destination", str(self._folder / "artifacts")],
                cwd=self._folder, env=environment(), stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        wait_until(self._answers, self._process)

    def _answers(self) -> bool:
        try:
            health.check_server(self.uri)
        except TrackingError:
            return False
        return True

    def kill(self) -> None:
        os.killpg(self._process.pid, 9)
        self._process.wait()


@pytest.mark.timeout(900)
def test_server_killed_in_the_middle_of_a_run_changes_no_bit_and_gets_every_metric_later(tmp_path: Path) -> None:
    server = Server(tmp_path / "server")
    server.start()
    root = make_project(tmp_path / "project", recipe=NANO, epochs=3, tracking={"uri": server.uri})
    try:
        training = start_training(root, code=slow_updates(0.5))
        wait_until(lambda: checkpoints(root), training)
        server.kill()
        assert "entries are kept here until it works" in finish(training, timeout=280)
        assert left_journals(root)
        whole = make_project(tmp_path / "whole", recipe=NANO, epochs=3, tracking={"enabled": False})
        finish(start_training(whole), timeout=280)
        assert published(root) == published(whole)
        server.start()
        with start(root, "next", TrackingConfig(uri=server.uri)):
            pass
    finally:
        server.kill()
    key = json.loads((root / "trained/tiny/toy/train.json").read_text())["fingerprint"]
    ((status, curves),) = recorded(tmp_path, key, "server/server.db")
    assert status == "FINISHED"
    assert [step for step, _ in curves["val_loss"]] == [1, 2, 3]
    assert not left_journals(root)
    required = make_project(tmp_path / "required", recipe=NANO, tracking={"uri": server.uri, "required": True})
    refused = start_training(required)
    output, _ = refused.communicate(timeout=patience(100))
    assert refused.returncode == 1
    assert "tracking.required" in output
    assert not (required / "trained").exists()
