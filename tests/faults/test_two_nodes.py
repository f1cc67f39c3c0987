"""A Ray cluster of two nodes, on this machine, loses one of them: the run resumes on the other."""

import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from builders.places import free_port
from builders.projects import TOY, environment, finish, make_project, start_training
from builders.runs import final_state, make_job, run_ranks
from builders.stopping import progress, run_facts, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]

# Without BatchNorm, which is frozen here, and dropout the ranks differ by rounding alone. Adam would magnify it.
EXACT = {
    **TOY,
    "model": "dynamic_vit_nano",
    "options": {"drop_path_rate": 0.0},
    "trainable": ["stages.*", "head.*"],
    "optimizer": "sgd",
    "learning_rate": 0.01,
    "sam": {"rho": 0.05},
    "epochs": 6,
}


class Cluster:
    """Two nodes of one CPU each, the head and another one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.address = f"127.0.0.1:{free_port()}"
        self.variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        port = self.address.rpartition(":")[2]
        self.head = self._start("head", "--head", "--port", port, "--ray-client-server-port", str(free_port()))
        self.other = self._start("other", "--address", self.address)

    def _start(self, name: str, *options: str) -> subprocess.Popen[bytes]:
        command = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--num-cpus", "1"]
        command += ["--node-ip-address", "127.0.0.1", "--object-store-memory", str(80 * 2**20), *options]
        command += ["--dashboard-agent-listen-port", str(free_port())]
        if name == "head":
            command += ["--include-dashboard", "false", "--temp-dir", str(self._folder)]
        path = self._folder / f"{name}.txt"
        with open(path, "wb") as output:
            process = subprocess.Popen(
                command, env=environment() | self.variables, stdout=output, stderr=output, start_new_session=True
            )
        wait_until(lambda: b"Ray runtime started" in path.read_bytes(), process, 120)
        return process

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """All processes of a node at once, as a power cut does."""
        if node.poll() is None:
            for process in [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]:
                process.send_signal(signal.SIGKILL)
        node.wait()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="fer-two-", dir="/tmp"))
    made = Cluster(folder)
    try:
        yield made
    finally:
        made.kill(made.other)
        made.kill(made.head)
        shutil.rmtree(folder, ignore_errors=True)


def test_run_that_loses_a_node_resumes_on_the_other_with_the_same_samples_and_loss(
    cluster: Cluster, tmp_path: Path
) -> None:
    root = make_project(tmp_path / "project", recipe=EXACT, epochs=EXACT["epochs"], workers=2, max_failures=1)
    stage = start_training(root, RAY_ADDRESS=cluster.address, **cluster.variables)
    wait_until(lambda: progress(root)["epoch"] >= 1, stage, 300)
    on_head = {process.pid for process in psutil.Process(cluster.head.pid).children(recursive=True)}
    assert len(on_head & set(progress(root)["pids"])) == 1, "one worker on each node"
    cluster.kill(cluster.other)
    output = finish(stage, timeout=500)
    assert re.findall("(asking which nodes still answer|resuming from the last checkpoint with .)\n", output) == [
        "asking which nodes still answer",
        "resuming from the last checkpoint with 1",
    ]
    assert not re.search(r"state-dump|raylet", output), "Ray's own logs are the place for it"
    assert run_facts(root)["resumes"] >= 1
    job = make_job(tmp_path, **EXACT)
    assert run_ranks(job, 2, tmp_path / "meeting") == [0, 0]
    lines = (root / "trained/tiny/toy/history.csv").read_text().splitlines()
    names = lines[0].split(",")
    assert len(lines) == 1 + EXACT["epochs"]
    for line, row in zip(lines[1:], final_state(job).history, strict=True):
        found = dict(zip(names, map(float, line.split(",")), strict=True))
        for name in ("train_loss", "val_loss"):
            assert found[name] == pytest.approx(row[name], rel=1e-5), f"epoch {row['epoch']}"
