"""A Ray cluster of two nodes, on this machine: one is lost, or neither sees the project's folder."""

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import yaml_text
from builders.limits import patience
from builders.places import contents, free_port
from builders.projects import NANO, REPOSITORY, TOY, environment, finish, make_project, run_in, start_training
from builders.runs import assert_same, final_state, make_job, run_ranks, still_alive
from builders.stopping import progress, run_facts, wait_until
from builders.store import s3_server
from safetensors.torch import load_file

from fer.io.files import read_json
from fer.io.storage import Folder
from fer.training.progress import changes
from fer.training.state import TrainState

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


RAY = str(Path(sys.executable).parent / "ray")


class Cluster:
    """Two nodes of one CPU each, the head and another one.

    Args:
        hidden: a folder in whose place the nodes see an empty one; None: they see all.
        variables: of their environment.
    """

    def __init__(self, folder: Path, hidden: Path | None = None, variables: Mapping[str, str] | None = None) -> None:
        self._folder, self._hidden, self._variables = folder, hidden, variables or {}
        self.address = f"127.0.0.1:{free_port()}"
        self.variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        port = self.address.rpartition(":")[2]
        self.head = self._start("head", "--head", "--port", port, "--ray-client-server-port", str(free_port()))
        self.other = self.join()

    def join(self) -> subprocess.Popen[bytes]:
        """Starts another node."""
        return self._start("other", "--address", self.address)

    def announce_end(self) -> None:
        """Tells Ray that all nodes but the head will end soon, as a pod on a spot node does."""
        listing = "import ray; ray.init(log_to_driver=False); print(*(one['NodeID'] for one in ray.nodes() "
        listing += "if one['Alive'] and 'node:__internal_head__' not in one['Resources']))"
        variables = environment() | self.variables | {"RAY_ADDRESS": self.address}
        found = subprocess.run(
            [sys.executable, "-c", listing], env=variables, capture_output=True, text=True, check=True
        )
        for node in found.stdout.split()[-1:]:
            command = [RAY, "drain-node", "--node-id", node, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
            command += ["--reason-message", "spot", "--deadline-remaining-seconds", "600"]
            subprocess.run(command, env=variables, capture_output=True, check=True)

    def _start(self, name: str, *options: str) -> subprocess.Popen[bytes]:
        command = [RAY, "start", "--block", "--num-cpus", "1"]
        command += ["--node-ip-address", "127.0.0.1", "--object-store-memory", str(80 * 2**20), *options]
        command += ["--dashboard-agent-listen-port", str(free_port())]
        if name == "head":
            command += ["--include-dashboard", "false", "--temp-dir", str(self._folder)]
        if self._hidden is not None:
            hide = 'mount -t tmpfs tmpfs "$0" && exec "$@"'
            command = ["unshare", "-m", "sh", "-c", hide, str(self._hidden), *command]
        own = {**self.variables, **self._variables, "FER_CACHE": str(self._folder / f"cache-{name}")}
        path = self._folder / f"{name}.txt"
        with open(path, "wb") as output:
            process = subprocess.Popen(
                command, env=environment() | own, stdout=output, stderr=output, start_new_session=True
            )
        wait_until(lambda: b"Ray runtime started" in path.read_bytes() or process.poll() is not None, seconds=120)
        assert process.poll() is None, path.read_text()
        return process

    def names(self, node: subprocess.Popen[bytes]) -> list[str]:
        """The processes of a node; Ray names its workers after what they do."""
        return still_alive(psutil.Process(node.pid).children(recursive=True), 0)

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """All processes of a node at once, as a power cut does."""
        if node.poll() is None:
            for process in [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]:
                process.send_signal(signal.SIGKILL)
        node.wait()


@contextmanager
def two_nodes(hidden: Path | None = None, variables: Mapping[str, str] | None = None) -> Iterator[Cluster]:
    """A cluster for the block."""
    folder = Path(tempfile.mkdtemp(prefix="fer-two-", dir="/tmp"))
    made = Cluster(folder, hidden, variables)
    try:
        yield made
    finally:
        made.kill(made.other)
        made.kill(made.head)
        shutil.rmtree(folder, ignore_errors=True)


def mount_namespaces() -> bool:
    """Whether this machine may hide a folder from a process."""
    return subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode == 0


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with two_nodes() as made:
        yield made


def test_run_that_loses_a_node_resumes_on_the_other_with_the_same_samples_and_loss(
    cluster: Cluster, tmp_path: Path
) -> None:
    root = make_project(tmp_path / "project", recipe=EXACT, epochs=EXACT["epochs"], workers=2, max_failures=1)
    stage = start_training(root, RAY_ADDRESS=cluster.address, **cluster.variables)
    wait_until(lambda: progress(root)["epoch"] >= 1, stage, 300)
    on_head = {process.pid for process in psutil.Process(cluster.head.pid).children(recursive=True)}
    assert len(on_head & set(progress(root)["pids"])) == 1, "one worker on each node"
    before = set(progress(root)["pids"])
    cluster.kill(cluster.other)
    lost = time.monotonic()
    wait_until(lambda: not before & set(progress(root)["pids"]), stage, 300)
    print(f"training again {time.monotonic() - lost:.0f} s after the loss")  # a number of docs/cluster.md
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


def test_nodes_that_share_no_folder_crop_through_a_store_and_one_of_them_is_lost(tmp_path: Path) -> None:
    if not mount_namespaces():
        pytest.skip("no mount namespaces here")
    root = make_project(tmp_path / "project", tracking={"enabled": False})
    shutil.rmtree(root / "data")
    scenes = {"source": "synthetic", "scenes": 3000, "scene_size": 96, "face_size": [50.0, 80.0]}
    yaml_text.edit(root / "params.yaml", "datasets", {"tiny": scenes})
    yaml_text.edit(root / "params.yaml", "cluster.crop_workers", 0)

    def run(stage: str, **variables: str) -> None:
        done = run_in(root, "-m", f"pipelines.{stage}", "--dataset", "tiny", **variables, PYTHONPATH=str(REPOSITORY))
        assert done.returncode == 0, done.stdout + done.stderr

    run("download")
    run("crop")
    faces = root / "data" / "faces" / "tiny"
    alone = contents(faces)
    shutil.rmtree(faces)
    yaml_text.edit(root / "params.yaml", "cluster.crop_workers", 2)
    with s3_server() as store:
        yaml_text.edit(root / "params.yaml", "storage", f"{store.url}/team")
        with two_nodes(root, store.variables) as cluster, ThreadPoolExecutor(1) as pool:
            crop = pool.submit(run, "crop", RAY_ADDRESS=cluster.address, **cluster.variables, **store.variables)
            while not (crop.done() or [*root.glob(".work/crop/*/faces-*.json")]):
                time.sleep(0.1)
            assert not crop.done(), "it ended before a node could be lost"
            cluster.kill(cluster.other)
            crop.result()
    assert contents(faces) == alone


def test_search_through_a_store_ends_with_the_same_results_although_a_node_is_lost(tmp_path: Path) -> None:
    if not mount_namespaces():
        pytest.skip("no mount namespaces here")
    root = make_project(tmp_path / "project", tracking={"enabled": False})
    space = {"learning_rate": {"choices": [0.003, 0.001, 0.0003, 0.0001]}}
    settings = {"method": "grid", "stopping": "none", "epochs": 4, "grace_epochs": 1, "seeds": 0, "space": space}
    yaml_text.edit(root / "params.yaml", "tune", settings)

    def search(**variables: str) -> list[tuple[str, float]]:
        arguments = ["-m", "fer", "tune", "--dataset", "tiny", "--model", "toy"]
        done = run_in(root, *arguments, **variables, PYTHONPATH=str(REPOSITORY))
        assert done.returncode == 0, done.stdout + done.stderr
        return [(one["status"], one["best"]) for one in read_json(root / "tuned/tiny/toy.json")["trials"]]

    alone = search()
    for name in ("tuned", ".work"):
        shutil.rmtree(root / name)
    with s3_server() as store:
        yaml_text.edit(root / "params.yaml", "storage", f"{store.url}/team")
        trials = Folder(f"{store.url}/team/work")
        with two_nodes(root, store.variables) as cluster, ThreadPoolExecutor(1) as pool:
            found = pool.submit(search, RAY_ADDRESS=cluster.address, **cluster.variables, **store.variables)
            while not (found.done() or len(list(trials.below(("progress.json",)))) >= 2):
                time.sleep(0.1)
            assert not found.done(), "it ended before a node could be lost"
            cluster.kill(cluster.other)
            assert found.result() == alone


def test_workers_follow_announced_ends_and_new_nodes_without_a_failure(cluster: Cluster, tmp_path: Path) -> None:
    root = make_project(
        tmp_path / "project",
        recipe={**EXACT, "patience": None},
        epochs=2000,
        workers={"min": 1, "max": 2},
        max_failures=0,
        checkpoint_every_steps=10_000,
    )
    stage = start_training(root, RAY_ADDRESS=cluster.address, **cluster.variables)
    seen: set[int] = set()

    def await_new(workers: int) -> list[int]:
        """The processes of workers that have trained for a second, none of which was there before."""

        def there() -> list[int]:
            found: list[int] = progress(root)["pids"]
            return found if len(found) == workers and not seen & set(found) else []

        found = wait_until(there, stage, 300)
        seen.update(found)
        return found

    await_new(2)
    cluster.announce_end()
    await_new(1)
    cluster.kill(cluster.other)
    cluster.other = cluster.join()
    _, pid = await_new(2)
    os.kill(pid, signal.SIGTERM)
    await_new(2)
    stage.send_signal(signal.SIGTERM)
    output, _ = stage.communicate(timeout=patience(60))
    assert stage.returncode == 128 + signal.SIGTERM, output
    (work,) = root.glob(".work/*/changes.json")
    found = [(one["workers"], one["resumed_with"], one["why"]) for one in changes(str(work.parent))]
    assert [one[:2] for one in found] == [(2, 1), (1, 2), (2, 2)], output
    for (_, _, why), expected in zip(found, ("will end", "room for 2", f"process {pid} got SIGTERM"), strict=True):
        assert expected in why
    state = TrainState.load(work.parent)
    assert state is not None
    assert {timing["workers"] for timing in state.timings} == {1, 2}
    last = progress(root)
    assert (state.epoch, state.step) >= (last["epoch"], last["step"]), "the driver's end has cost no update"


def test_nodes_that_share_no_folder_train_through_a_store_and_evaluate_though_one_is_lost_to_the_same_bits(
    tmp_path: Path,
) -> None:
    if not mount_namespaces():
        pytest.skip("no mount namespaces here")
    job = make_job(tmp_path, **{**NANO, "epochs": 2})
    assert run_ranks(job, 2, tmp_path / "meeting") == [0, 0]
    state = final_state(job)
    root = make_project(tmp_path / "project", epochs=2, workers=2, tracking={"enabled": False})
    settings = {"workers": 2, "threads": 1, "batch_size": 8, "tta": "lhc", "bootstrap_samples": 100}
    yaml_text.edit(root / "params.yaml", "evaluate", settings)
    evaluated = root / "evaluated/tiny/toy"

    def evaluate(**variables: str) -> bytes:
        arguments = ["-m", "pipelines.evaluate", "--dataset", "tiny", "--model", "toy"]
        done = run_in(root, *arguments, **variables, PYTHONPATH=str(REPOSITORY))
        assert done.returncode == 0, done.stdout + done.stderr
        return (evaluated / "predictions.parquet").read_bytes()

    with s3_server() as store:
        yaml_text.edit(root / "params.yaml", "storage", f"{store.url}/team")
        with two_nodes(root, store.variables) as cluster, ThreadPoolExecutor(1) as pool:
            variables = {"RAY_ADDRESS": cluster.address, **cluster.variables, **store.variables}
            finish(start_training(root, **variables), timeout=500)
            found = pool.submit(evaluate, **variables)
            while not (found.done() or "ray::_outcome" in cluster.names(cluster.other)):
                time.sleep(0.05)
            assert not found.done(), "it ended before a node could be lost"
            cluster.kill(cluster.other)
            predicted = found.result()
    assert_same(load_file(root / "trained/tiny/toy/model.safetensors"), dict(sorted(state.best_model.items())), "model")
    yaml_text.edit(root / "params.yaml", "storage", None)
    yaml_text.edit(root / "params.yaml", "evaluate.workers", 0)
    shutil.rmtree(evaluated)
    assert evaluate() == predicted
