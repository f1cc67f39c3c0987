"""`fer doctor`: what it must notice."""

from __future__ import annotations

import argparse
import http.server
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from builders.projects import make_project

from fer.commands import doctor
from fer.params import Params, load
from fer.tracking import health as probes


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return load(make_project(tmp_path) / "params.yaml")


def _levels(findings: Iterator[doctor.Finding]) -> dict[str, str]:
    return {finding.what: finding.level for finding in findings}


@contextmanager
def _server(answer: Callable[[str], tuple[int, str]]) -> Iterator[int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, text = answer(self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, format: str, *args: object) -> None:
            """Silent."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def test_a_sound_machine_has_no_fail(params: Params) -> None:
    failed = [str(one) for one in doctor.check(params) if one.level == "fail" and one.what != "dvc"]
    assert not failed


def test_every_finding_that_is_not_ok_says_what_to_do(params: Params) -> None:
    for finding in doctor.check(params):
        assert (finding.level == "ok") == (not finding.remedy), finding


def test_a_broken_params_file_is_a_fail_and_the_rest_is_still_looked_at(
    params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = params.root / "params.yaml"
    path.write_text(path.read_text().replace("seed: 3", "sead: 3"))
    monkeypatch.chdir(params.root)
    assert doctor.main(argparse.Namespace()) == 1
    printed = capsys.readouterr().out
    assert "did you mean 'seed'" in printed
    assert "ok    ray" in printed


def test_an_old_or_absent_package_fails_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.OLDEST, "torch", (99, 1))
    monkeypatch.setitem(doctor.OLDEST, "no-such-package-of-ours", (1,))
    found = {one.what: one for one in doctor.check_versions()}
    assert found["torch"].level == "fail"
    assert "pip install 'torch>=99.1'" in found["torch"].remedy
    assert found["no-such-package-of-ours"].level == "fail"


def test_more_workers_than_processors_fail_before_ray_would_wait_for_them(params: Params) -> None:
    greedy = params.train.model_copy(update={"workers": 4096})
    assert _levels(doctor.check_processors(_with(params, train=greedy)))["processors"] == "fail"


def test_a_port_that_another_service_holds_is_named_with_its_process() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        (finding,) = doctor.check_ports({port: probes.MLFLOW})
    assert finding.level == "warn"
    assert "another service" in finding.found
    assert "process" in finding.found
    (finding,) = doctor.check_ports({port: probes.MLFLOW})
    assert finding.level == "ok"
    assert "free" in finding.found


def test_the_services_that_belong_on_a_port_are_recognised() -> None:
    with _server(lambda path: (200, "OK") if path == "/health" else (404, "")) as port:
        assert (probes.who_listens(port) or "").startswith(probes.MLFLOW)
    with _server(lambda path: (200, '{"ray_version": "2"}') if path == "/api/version" else (404, "")) as port:
        assert (probes.who_listens(port) or "").startswith(probes.RAY)
    with _server(lambda path: (401, "Unauthorized: Missing authentication token")) as port:
        assert "asking for a token" in (probes.who_listens(port) or "")


def test_a_run_without_a_sign_of_life_is_reported_and_a_living_one_is_not(params: Params) -> None:
    now, old = int(time.time() * 1000), int((time.time() - 3600 * 24) * 1000)
    with sqlite3.connect(params.root / "mlflow.db") as store:
        store.execute("create table runs (run_uuid, name, status, lifecycle_stage, start_time)")
        store.execute("create table metrics (run_uuid, timestamp)")
        rows = [("a", "stale"), ("b", "long but alive")]
        store.executemany("insert into runs values (?, ?, 'RUNNING', 'active', ?)", [(*row, old) for row in rows])
        store.execute("insert into runs values ('c', 'ended', 'FINISHED', 'active', ?)", (old,))
        store.execute("insert into metrics values ('b', ?)", (now,))
    findings = list(doctor.check_tracking(params))
    assert [one.level for one in findings] == ["ok", "warn"]
    assert findings[1].found.endswith(": stale")


def test_stale_runs_of_a_server_are_found_too() -> None:
    def answer(path: str) -> tuple[int, str]:
        if path.endswith("experiments/search"):
            return 200, '{"experiments": [{"experiment_id": "1"}]}'
        return 200, '{"runs": [{"info": {"run_id": "r", "run_name": "left", "start_time": 1000}, "data": {}}]}'

    with _server(answer) as port:
        assert probes.stale_runs(f"http://127.0.0.1:{port}") == ["left"]


def test_a_server_that_is_down_is_told_without_its_password(params: Params) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"http://user:secret@127.0.0.1:{port}"
    tracking = params.tracking.model_copy(update={"uri": uri})
    (finding,) = doctor.check_tracking(_with(params, tracking=tracking))
    assert finding.level == "warn"
    assert "does not answer" in finding.found
    assert "secret" not in str(finding)
    required = tracking.model_copy(update={"required": True})
    (finding,) = doctor.check_tracking(_with(params, tracking=required))
    assert finding.level == "fail"


def test_a_missing_token_is_told_with_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    from fer.cluster import health

    monkeypatch.setattr(health, "authentication", lambda: health.Authentication(wanted=True, token=False))
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    (finding,) = doctor.check_token()
    assert finding.level == "fail"
    assert "RAY_AUTH_TOKEN_PATH" in finding.remedy


def _with(params: Params, **changes: object) -> Params:
    from dataclasses import replace

    return replace(params, **changes)  # type: ignore[arg-type]
