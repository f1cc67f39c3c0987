"""`fer doctor`: the findings that each fault of a machine and its services must give."""

import argparse
import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import yaml_text
from builders.places import free_port
from builders.projects import make_project

from fer.commands import doctor
from fer.params import Params, load
from fer.tracking import health


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return load(make_project(tmp_path) / "params.yaml")


def test_inputs_of_the_runs_that_are_not_there_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FER_CACHE", str(tmp_path / "cache"))
    root = make_project(tmp_path)
    assert [one.level for one in doctor.check_inputs(load(root / "params.yaml"))] == ["ok"]
    values = yaml_text.load((root / "params.yaml").read_text())
    (dataset,), (model,) = values["run"]["datasets"], values["run"]["models"]
    values["datasets"][dataset] = {"source": "folders", "path": "nope"}
    values["models"][model] |= {"pretrained": {"features": "weights/mine.pth"}}
    values["crop"] = {"detector": "yunet"}
    (root / "params.yaml").write_text(yaml_text.dump(values))
    found = {one.what: (one.level, one.remedy) for one in doctor.check_inputs(load(root / "params.yaml"))}
    assert found == {
        f"datasets.{dataset}": ("fail", "correct its path in params.yaml"),
        "weights weights/mine.pth": ("fail", "put the file there"),
        "weights yunet_2023mar": ("fail", "run `fer weights pull yunet_2023mar`"),
    }


@contextmanager
def _server(respond: Callable[[str], tuple[int, str]]) -> Iterator[int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, text = respond(self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, format: str, *args: object) -> None:
            """Silent."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


def test_sound_machine_has_no_fail_and_every_other_finding_has_a_remedy(params: Params) -> None:
    findings = doctor.check(params)
    assert not [str(one) for one in findings if one.level == "fail" and one.what != "dvc"]
    assert not [str(one) for one in findings if (one.level == "ok") == bool(one.remedy)]


def test_invalid_params_are_a_fail_and_the_other_checks_still_run(
    params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = params.root / "params.yaml"
    path.write_text(path.read_text().replace("seed: 3", "sead: 3"))
    monkeypatch.chdir(params.root)
    assert doctor.main(argparse.Namespace(json=False)) == 1
    printed = capsys.readouterr().out
    assert "did you mean 'seed'" in printed
    assert "ok    ray" in printed


def test_old_or_absent_package_fails_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.OLDEST, "torch", (99, 1))
    monkeypatch.setitem(doctor.OLDEST, "no-such-package-of-ours", (1,))
    found = {one.what: one for one in doctor.check_versions()}
    assert found["torch"].level == found["no-such-package-of-ours"].level == "fail"
    assert "pip install 'torch>=99.1'" in found["torch"].remedy


def test_more_workers_than_processors_fail_before_ray_would_wait_for_them(params: Params) -> None:
    greedy = params.train.model_copy(update={"workers": 4096})
    (finding,) = (one for one in doctor.check_processors(replace(params, train=greedy)) if one.what == "processors")
    assert finding.level == "fail"


def test_port_of_another_service_is_named_with_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_PROBE_SECONDS", 0.2)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        (taken,) = doctor.check_ports({port: doctor.MLFLOW})
    assert taken.level == "warn"
    assert "another service" in taken.found
    assert "process" in taken.found
    (free,) = doctor.check_ports({port: doctor.MLFLOW})
    assert (free.level, "free" in free.found) == ("ok", True)


@pytest.mark.parametrize(
    ("respond", "service"),
    [
        (lambda path: (200, "OK") if path == "/health" else (404, ""), doctor.MLFLOW),
        (lambda path: (200, '{"ray_version": "2"}') if path == "/api/version" else (404, ""), doctor.RAY),
        (lambda path: (401, "Unauthorized: Missing authentication token"), f"{doctor.RAY}, which requires a token"),
        (lambda path: (401, "who are you?"), "another service"),
    ],
)
def test_services_on_their_ports_are_recognized(respond: Callable[[str], tuple[int, str]], service: str) -> None:
    with _server(respond) as port:
        assert (doctor.listening_service(port) or "").startswith(service)


def test_run_that_logs_nothing_for_hours_is_reported_and_an_active_one_is_not(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = int(time.time() * 1000)
    running = [("abandoned", now - 24 * 3600 * 1000), ("active", now)]
    monkeypatch.setattr(health, "running_in_database", lambda *_: running)
    (params.root / "mlflow.db").touch()
    findings = list(doctor.check_tracking(params))
    assert [one.level for one in findings] == ["ok", "warn"]
    assert findings[1].found.endswith(": abandoned")


def test_abandoned_runs_of_a_server_are_found() -> None:
    def respond(path: str) -> tuple[int, str]:
        if path.endswith("experiments/search"):
            return 200, '{"experiments": [{"experiment_id": "1"}]}'
        return 200, '{"runs": [{"info": {"run_id": "r", "run_name": "left", "start_time": 1000}, "data": {}}]}'

    with _server(respond) as port:
        assert health.stale_runs(f"http://user:secret@127.0.0.1:{port}/") == ["left"]


@pytest.mark.parametrize(("required", "level"), [(False, "warn"), (True, "fail")])
def test_dead_server_is_reported_without_its_password(params: Params, required: bool, level: str) -> None:
    uri = f"http://user:secret@127.0.0.1:{free_port()}"
    tracking = params.tracking.model_copy(update={"uri": uri, "required": required})
    (finding,) = doctor.check_tracking(replace(params, tracking=tracking))
    assert finding.level == level
    assert "does not answer" in finding.found
    assert "secret" not in str(finding)


def test_missing_token_is_reported_with_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    from fer.cluster import health as cluster

    monkeypatch.setattr(cluster, "authentication", lambda: cluster.Authentication(required=True, token=False))
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    (finding,) = doctor.check_token()
    assert finding.level == "fail"
    assert "RAY_AUTH_TOKEN_PATH" in finding.remedy
