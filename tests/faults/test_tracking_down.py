"""A tracking store that is down, dies, is locked or just being made: the training goes on, and no figure is lost."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from builders.limits import patience
from builders.projects import NANO, environment, finish, make_project, published, start_training
from builders.runs import child

from fer.tracking import Run, TrackingConfig, TrackingError, open_run, store
from fer.tracking import run as run_module
from fer.tracking.journal import left_journals


@pytest.fixture(autouse=True)
def _local_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for the module: making an MLflow database takes seconds."""
    return tmp_path_factory.mktemp("project")


@pytest.fixture
def down(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """A store that does not answer as long as the list holds something."""
    is_down, probe = [True], store.probe

    def answer(uri: str) -> None:
        if is_down:
            raise TrackingError("the MLflow server does not answer")
        probe(uri)

    monkeypatch.setattr(store, "probe", answer)
    return is_down


class Dead:
    """A client whose server has gone."""

    def __getattr__(self, name: str) -> object:
        raise OSError("connection refused")


def start(root: Path, key: str) -> Run:
    config = TrackingConfig(log_model=False)
    return open_run(config, root, experiment="tiny", run_name="toy", key=key, params={"lr": 0.1}, tags={"by": "test"})


def stored(root: Path, key: str, database: str = "mlflow.db") -> list[tuple[str, dict[str, list[tuple[int, float]]]]]:
    """Status and curves of the runs of a training."""
    with sqlite3.connect(root / database) as store:
        ids = store.execute("select run_uuid from tags where key = 'fer.fingerprint' and value = ?", (key,)).fetchall()
        found = []
        for (run,) in ids:
            ((status,),) = store.execute("select status from runs where run_uuid = ?", (run,)).fetchall()
            curves: dict[str, list[tuple[int, float]]] = {}
            rows = "select key, step, value from metrics where run_uuid = ? order by step"
            for name, step, value in store.execute(rows, (run,)):
                curves.setdefault(name, []).append((step, value))
            found.append((status, curves))
    return found


def test_down_at_the_start_the_figures_wait_in_a_file_and_are_sent_at_the_end(root: Path, down: list[bool]) -> None:
    with start(root, "late") as run:
        run.log_metrics({"val_loss": 2.0}, step=1)
        (journal,) = left_journals(root)
        lines = [json.loads(line) for line in journal.read_text().splitlines()]
        assert lines[-1][0] == "log_metrics"
        assert lines[-1][1]["metrics"] == {"val_loss": 2.0}
        assert not run.connected
        down.clear()
        run.log_metrics({"val_loss": 1.0}, step=2)
    assert stored(root, "late") == [("FINISHED", {"val_loss": [(1, 2.0), (2, 1.0)]})]
    assert not left_journals(root)


def test_dead_in_the_middle_the_rest_is_sent_when_the_next_run_is_opened(root: Path, down: list[bool]) -> None:
    down.clear()
    with start(root, "dying") as run:
        run.log_metrics({"val_loss": 2.0}, step=1)
        assert run._stored is not None
        run._stored.client = Dead()
        down.append(True)
        for step in (2, 3):
            run.log_metrics({"val_loss": 2.0 / step}, step=step)
        before = int(time.time() * 1000)
    assert stored(root, "dying") == [("RUNNING", {"val_loss": [(1, 2.0)]})]
    time.sleep(0.01)
    down.clear()
    with start(root, "next"):
        pass
    assert stored(root, "dying") == [("FINISHED", {"val_loss": [(1, 2.0), (2, 1.0), (3, 2.0 / 3)]})]
    with sqlite3.connect(root / "mlflow.db") as store:
        ((last,),) = store.execute("select max(timestamp) from metrics where step = 3").fetchall()
    assert last <= before, "the time of a figure is when it was measured"
    assert not left_journals(root)


def test_an_answer_after_a_minute_ends_the_waiting(
    root: Path, down: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    with start(root, "back") as run:
        down.clear()
        run.log_metrics({"val_loss": 2.0}, step=1)
        assert not run.connected
        monkeypatch.setattr(run_module, "RETRY_SECONDS", 0.0)
        run.log_metrics({"val_loss": 1.0}, step=2)
        assert run.connected
    assert stored(root, "back") == [("FINISHED", {"val_loss": [(1, 2.0), (2, 1.0)]})]


def test_what_a_killed_writer_left_is_sent_but_not_what_a_living_one_still_writes(root: Path, down: list[bool]) -> None:
    living = start(root, "living")
    killed = start(root, "killed")
    killed.log_metrics({"val_loss": 2.0}, step=1)
    assert killed._journal is not None
    killed._journal.close()  # as the kernel does
    with open(killed._journal.path, "a") as handle:
        handle.write('["log_metrics", {"metr')
    down.clear()
    with start(root, "killed") as again:
        again.log_metrics({"val_loss": 2.0}, step=1)
        again.log_metrics({"val_loss": 1.0}, step=2)
    assert stored(root, "killed") == [("FINISHED", {"val_loss": [(1, 2.0), (2, 1.0)]})]
    assert stored(root, "living") == []
    assert len(left_journals(root)) == 1
    living.finish("KILLED")
    assert stored(root, "living") == [("KILLED", {})]


def test_the_same_name_with_other_data_or_parameters_is_another_run(root: Path) -> None:
    runs = [start(root, key) for key in ("of one recipe", "of another")]
    for number, run in enumerate(runs):
        run.log_metrics({"val_loss": float(number)}, step=1)
        run.finish("KILLED")
    assert runs[0].run_id != runs[1].run_id
    assert stored(root, "of another") == [("KILLED", {"val_loss": [(1, 1.0)]})]


# ---------------------------------------------------------------------------------------------- slower


@pytest.mark.slow
def test_a_database_locked_for_15_seconds_holds_the_figures_up_and_loses_none(root: Path) -> None:
    with start(root, "locked") as run:
        run.log_metrics({"val_loss": 2.0}, step=1)
        held = threading.Event()

        def hold() -> None:
            with sqlite3.connect(root / "mlflow.db", isolation_level=None) as store:
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
    assert stored(root, "locked") == [("FINISHED", {"val_loss": [(1, 2.0), (2, 1.0)]})]


def one_of_many(root: str, number: int, gate: str) -> None:
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    store.load_mlflow()
    Path(f"{gate}-{number}").touch()
    while not Path(gate).exists():
        time.sleep(0.005)
    with start(Path(root), f"starter {number}") as run:
        run.log_metrics({"val_loss": float(number)}, step=1)
        assert run.connected


@pytest.mark.slow
def test_six_that_start_at_once_on_a_fresh_database_all_have_their_run(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    starters = [child(one_of_many, str(tmp_path), number, str(gate)) for number in range(6)]
    while len(list(tmp_path.glob("gate-*"))) < 6:
        time.sleep(0.05)
    gate.touch()
    for starter in starters:
        starter.join(patience(200))
    assert [starter.exitcode for starter in starters] == [0] * 6
    for number in range(6):
        assert stored(tmp_path, f"starter {number}") == [("FINISHED", {"val_loss": [(1, float(number))]})]
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        assert store.execute("pragma integrity_check").fetchall() == [("ok",)]
        assert store.execute("select count(*) from experiments where name = 'tiny'").fetchall() == [(1,)]
    assert not left_journals(tmp_path)


class Server:
    """An MLflow server on a folder, that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._folder = folder
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self._folder}/server.db"]
        with open(self._folder / "server.txt", "a") as said:
            self._process = subprocess.Popen(
                [*command, "--artifacts-destination", str(self._folder / "artifacts")],
                cwd=self._folder, env=environment(), stdout=said, stderr=said, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + patience(200)
        while True:
            try:
                store.probe(self.uri)
                return
            except TrackingError:
                assert time.monotonic() < deadline, (self._folder / "server.txt").read_text()
                time.sleep(0.2)

    def kill(self) -> None:
        os.killpg(self._process.pid, 9)
        self._process.wait()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_server_killed_in_the_middle_of_a_training_changes_no_bit_and_gets_every_figure_later(tmp_path: Path) -> None:
    server = Server(tmp_path / "server")
    server.start()
    settings = {"recipe": NANO, "epochs": 3, "tracking": {"uri": server.uri}}
    slowly = "import fer.training.loop as loop, time\nrate = loop.set_learning_rate\n"
    slowly += "loop.set_learning_rate = lambda *args: (time.sleep(0.5), rate(*args))\n"
    root = make_project(tmp_path / "project", **settings)
    try:
        training = start_training(root, code=slowly)
        deadline = time.monotonic() + patience(200)
        while not list(root.glob(".work/*/state-*.pt")):
            assert training.poll() is None, training.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        server.kill()
        assert "entries are kept here until it works" in finish(training, timeout=280)
        assert left_journals(root)
        whole = make_project(tmp_path / "whole", recipe=NANO, epochs=3, tracking={"enabled": False})
        finish(start_training(whole), timeout=280)
        assert published(root) == published(whole)
        server.start()
        with open_run(
            TrackingConfig(uri=server.uri), root, experiment="tiny", run_name="toy", key="next", params={}, tags={}
        ):
            pass
    finally:
        server.kill()
    key = json.loads((root / "trained/tiny/toy/train.json").read_text())["fingerprint"]
    ((status, curves),) = stored(tmp_path, key, "server/server.db")
    assert status == "FINISHED"
    assert [step for step, _ in curves["val_loss"]] == [1, 2, 3]
    assert not left_journals(root)
    required = make_project(tmp_path / "required", recipe=NANO, tracking={"uri": server.uri, "required": True})
    refused = start_training(required)
    output, _ = refused.communicate(timeout=patience(100))
    assert refused.returncode == 1
    assert "tracking.required" in output
    assert not (required / "trained").exists()
