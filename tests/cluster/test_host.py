"""One local cluster for all stages of a `fer repro`: started when one asks, ended with the command, however it ends."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import yaml_text
from builders.limits import patience
from builders.projects import NANO, environment, run_dvc, run_in, write_params
from builders.runs import still_alive
from builders.stopping import family, wait_until

from fer.cluster import host, session, shared
from fer.cluster.config import ClusterConfig
from fer.cluster.health import LostClusterError
from fer.cluster.shared import SharedCluster

# ------------------------------------------------------------------------------------------------ without Ray


@dataclass
class Host:
    """A host in a thread, with a cluster that only says what is done with it."""

    path: Path
    events: list[str] = field(default_factory=list)
    thread: threading.Thread = field(default_factory=threading.Thread)
    ended: threading.Event = field(default_factory=threading.Event)
    loss: LostClusterError | None = None
    error: Exception | None = None

    @contextmanager
    def connect(self, config: ClusterConfig) -> Iterator[SimpleNamespace]:
        self.events.append("started")
        yield SimpleNamespace(head="localhost:1", watch=SimpleNamespace(loss=lambda: self.loss))
        self.events.append("stopped")

    def serve(self, server: socket.socket) -> None:
        try:
            host.serve(server, ClusterConfig(), self.ended.is_set)
        except LostClusterError as error:
            self.error = error

    def ask(self) -> SharedCluster:
        found = shared.ask(self.path)
        assert found is not None
        return found


@pytest.fixture
def a_host(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    made = Host(Path(os.path.relpath(tmp_path_factory.mktemp("h") / "host")))
    monkeypatch.setattr(host, "connect", made.connect)
    monkeypatch.setattr(host, "_POLL_SECONDS", 0.02)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(made.path))
        server.listen()
        made.thread = threading.Thread(target=made.serve, args=[server], daemon=True)
        made.thread.start()
        yield made
        made.ended.set()
        made.thread.join(patience(20))
        assert not made.thread.is_alive()


def test_the_cluster_starts_at_the_first_request_and_outlives_the_command_until_its_last_user_lets_go(
    a_host: Host,
) -> None:
    assert not a_host.events
    first, second = a_host.ask(), a_host.ask()
    assert (first.address, first.token) == (second.address, second.token) == ("localhost:1", session.token())
    first.close()
    a_host.ended.set()
    assert second.loss() is None
    assert a_host.events == ["started"]
    second.close()
    wait_until(lambda: a_host.events == ["started", "stopped"])


def test_a_command_that_needs_no_ray_starts_none(a_host: Host) -> None:
    a_host.ended.set()
    wait_until(lambda: not a_host.thread.is_alive())
    assert not a_host.events


def test_what_the_cluster_has_lost_is_told_to_all_who_use_it(a_host: Host) -> None:
    users = [a_host.ask(), a_host.ask()]
    a_host.loss = LostClusterError("the local Ray cluster has lost its head")
    for user in users:
        assert wait_until(user.loss) == str(a_host.loss)
        user.close()
    wait_until(lambda: a_host.error is a_host.loss)


def test_the_end_of_the_host_is_a_loss() -> None:
    here, there = socket.socketpair()
    user = SharedCluster(here, "localhost:1", "token")
    assert user.loss() is None
    there.close()
    assert "has ended" in str(user.loss())
    user.close()


def test_a_stage_whose_host_has_ended_starts_a_cluster_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert session._shared() is None
    monkeypatch.setenv("FER_RAY_HOST", str(tmp_path / "host"))
    assert session._shared() is None
    assert "starting one for this stage" in caplog.text


_KILLED = """
import os, signal
from fer.cluster import host
from fer.cluster.config import ClusterConfig
from fer.environment import environment

host.start(ClusterConfig())
print(environment().ray_host, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_host_of_a_killed_command_ends_and_leaves_no_file(tmp_path: Path) -> None:
    variables = {"PYTHONPATH": environment()["PYTHONPATH"]}
    killed = run_in(tmp_path, "-c", _KILLED, **variables)  # returns once the host, too, has closed the output
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    place = Path(killed.stdout.strip())
    assert place.name == "host"
    assert not place.parent.exists()


# ------------------------------------------------------------------------------------------------ with DVC

_STAGE = """
import sys, time
from fer import params, processes
from fer.cluster.session import connect, run_in_thread

def main():
    with connect(params.load().cluster) as cluster:
        with open("heads", "a") as heads:
            heads.write(cluster.head + "\\n")
        if sys.argv[1] == "waits":
            run_in_thread(lambda: time.sleep(900), cluster.watch.check)

processes.run(main)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Stages that connect, one after another; the last one stays."""
    write_params(tmp_path, "tiny", {"toy": NANO}, cluster={"cpus": 1, "object_store_mb": 100})
    (tmp_path / "stage.py").write_text(_STAGE)
    names = ["first", "second", "waits"]
    stages = {name: {"cmd": f"{sys.executable} stage.py {name}", "always_changed": True} for name in names}
    for name, before in zip(names[1:], names, strict=False):
        stages[name]["deps"] = [before]
    for name in names[:2]:
        stages[name] |= {"cmd": f"{stages[name]['cmd']} && touch {name}", "outs": [name]}
    (tmp_path / "dvc.yaml").write_text(yaml_text.dump({"stages": stages}))
    run_dvc(tmp_path, "init", "--no-scm")
    return tmp_path


def test_arguments_output_and_exit_code_are_those_of_dvc(project: Path) -> None:
    variables = {"PYTHONPATH": environment()["PYTHONPATH"]}
    plain, ours = (run_in(project, "-m", tool, "repro", "no_such_stage", **variables) for tool in ("dvc", "fer"))
    assert ours.returncode != 0
    assert "no_such_stage" in ours.stderr
    assert (ours.returncode, ours.stdout, ours.stderr) == (plain.returncode, plain.stdout, plain.stderr)


def test_wrong_parameters_are_refused_before_dvc_starts(tmp_path: Path) -> None:
    write_params(tmp_path, "tiny", {}, no_such_section={})
    done = run_in(tmp_path, "-m", "fer", "repro", PYTHONPATH=environment()["PYTHONPATH"])
    assert done.returncode == 1
    assert "params.yaml" in done.stdout
    assert not done.stderr, "DVC would say that this is no repository"


def _interrupt(repro: psutil.Process) -> None:
    os.killpg(repro.pid, signal.SIGINT)  # as a terminal does


def _kill_host(repro: psutil.Process) -> None:
    (one,) = [child for child in repro.children() if "fer.cluster.host" in child.cmdline()]
    one.kill()


@pytest.mark.ray
@pytest.mark.parametrize(
    "end",
    [
        psutil.Process.kill,
        pytest.param(psutil.Process.terminate, marks=pytest.mark.slow),
        pytest.param(_interrupt, marks=pytest.mark.slow),
        pytest.param(_kill_host, marks=pytest.mark.slow),
    ],
)
def test_all_stages_use_one_cluster_which_ends_with_the_command(
    end: Callable[[psutil.Process], None], project: Path
) -> None:
    with (project / "output").open("w") as output:
        repro = subprocess.Popen(
            [sys.executable, "-m", "fer", "repro"],
            cwd=project, env=environment(), stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    heads = project / "heads"
    wait_until(lambda: heads.exists() and len(heads.read_text().split()) == 3, repro)
    assert len(set(heads.read_text().split())) == 1
    processes = family(repro)
    assert len([one for one in processes if one.name() == "raylet"]) == 1
    places = [path for path in Path("/tmp").glob("fer-ray-*") if int(path.name.split("-")[2]) in _ids(processes, repro)]
    end(psutil.Process(repro.pid))
    assert repro.wait(patience(60)) != 0
    assert not [name for name in still_alive(processes, 60) if not name.endswith("Agent")]
    assert "Traceback" not in (project / "output").read_text()
    if end is not _kill_host:  # what it leaves, the next cluster removes
        assert not [path for path in places if path.exists()]


def _ids(processes: list[psutil.Process], repro: subprocess.Popen[bytes]) -> set[int]:
    return {repro.pid, *(one.pid for one in processes)}
