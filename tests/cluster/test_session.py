"""The Ray session: demand against supply, errors of tasks, order of results. One local cluster for all of it."""

import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path

import psutil
import pytest
from builders.limits import patience
from builders.runs import child, write_output_to

from fer import processes
from fer.cluster import health, nodes, session
from fer.cluster.config import ClusterConfig
from fer.cluster.map import map_blocks
from fer.cluster.nodes import require
from fer.cluster.session import Cluster, connect, run_in_thread
from fer.io.files import FileError, read_json
from fer.processes import LostError

CONFIG = ClusterConfig(cpus=2, object_store_mb=100)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with connect(CONFIG) as found:
        yield found


@pytest.mark.ray
def test_results_come_in_the_order_of_the_work(cluster: Cluster) -> None:
    found = list(map_blocks(math.factorial, range(12), workers=None, cluster=CONFIG))
    assert found == list(map(math.factorial, range(12)))


@pytest.mark.ray
def test_results_that_wait_for_a_slow_one_before_them_are_bounded(cluster: Cluster, tmp_path: Path) -> None:
    def unit(number: int) -> int:
        (tmp_path / str(number)).touch()
        while number == 0 and len(list(tmp_path.iterdir())) < 8:
            time.sleep(0.01)
        if number == 0:
            time.sleep(1)
        return len(list(tmp_path.iterdir()))

    assert next(map_blocks(unit, range(40), workers=2, cluster=CONFIG)) == 8


@pytest.mark.ray
def test_a_process_serves_many_units_and_is_replaced_when_it_dies(cluster: Cluster, tmp_path: Path) -> None:
    def process(unit: int) -> int:  # of the test, so that it is pickled by value: workers cannot import tests
        return os.getpid()

    def dies_once(unit: int) -> int:
        if unit == 1 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return unit

    found = set(map_blocks(process, range(12), workers=1, cluster=CONFIG))
    assert len(found) < 6, "what a task caches serves other units"
    assert os.getpid() not in found
    assert list(map_blocks(dies_once, range(4), workers=2, cluster=CONFIG)) == [0, 1, 2, 3]
    assert (tmp_path / "died").exists()


@pytest.mark.ray
def test_a_tasks_own_error_reaches_the_caller(cluster: Cluster) -> None:
    with pytest.raises(FileError, match=r"missing\.json: no such file"):
        list(map_blocks(read_json, [Path("missing.json")], workers=2, cluster=CONFIG))
    with pytest.raises(RuntimeError, match=r"(?s)in a worker:.*TypeError"):
        list(map_blocks(math.factorial, ["not a number"], workers=2, cluster=CONFIG))  # type: ignore[list-item]


@pytest.mark.ray
def test_a_cluster_that_is_too_small_is_reported_at_once_with_demand_and_supply(cluster: Cluster) -> None:
    assert (cluster.cpus, cluster.gpus, cluster.nodes, cluster.address) == (2, 0, 1, None)
    require(workers=2, cpus=1)
    with pytest.raises(ValueError, match=r"3 workers with 1 CPU and 0 GPU.*room for 2.*2 CPU, 0 GPU"):
        require(workers=3, cpus=1)
    with pytest.raises(ValueError, match="1 workers with 1 CPU and 1 GPU"):
        require(workers=1, cpus=1, gpus=1)


@pytest.mark.parametrize("grows", [True, False])
def test_an_autoscaler_is_asked_for_the_workers_awaited_and_released(
    monkeypatch: pytest.MonkeyPatch, grows: bool
) -> None:
    head = {"Resources": {"CPU": 0.0}}
    worker = {"Resources": {"CPU": 4.0, "GPU": 1.0}}
    requests: list[list[dict[str, float]]] = []
    monkeypatch.setattr("ray.autoscaler.sdk.request_resources", lambda bundles: requests.append(bundles))
    monkeypatch.setattr(nodes, "living_nodes", lambda: [head, worker, worker] if requests and grows else [head])
    monkeypatch.setattr(nodes, "_POLL_SECONDS", 0.001)
    if grows:
        require(workers=2, cpus=4, gpus=1, wait_minutes=10)
    else:
        with pytest.raises(ValueError, match="room for 0"):
            require(workers=2, cpus=4, gpus=1, wait_minutes=0.0005)
    assert requests == [[{"CPU": 4, "GPU": 1}] * 2, []]


@pytest.mark.ray
def test_a_dead_or_hanging_node_has_no_room_although_ray_lists_it(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    (node,) = nodes.living_nodes()
    dead, hangs = ({**node, "NodeID": letter * 56} for letter in "ab")
    listed = chain([[node, dead, hangs]] * 3, repeat([node]))
    monkeypatch.setattr(nodes, "living_nodes", lambda: next(listed))
    probe, forever = nodes._start_probe, ray.remote(resources={"nowhere": 1})(lambda: None)
    monkeypatch.setattr(
        nodes, "_start_probe", lambda at, *asked: forever.remote() if at is hangs else probe(at, *asked)
    )
    assert nodes.answering_nodes("ray://through-a-proxy") == [node]


@pytest.mark.ray
def test_a_connection_inside_another_shares_it_and_leaves_it_open(cluster: Cluster) -> None:
    import ray

    with connect(CONFIG):
        pass
    assert ray.is_initialized()


@pytest.mark.ray
def test_the_head_of_a_named_cluster_may_be_away_for_a_while_only(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = health.Watch("127.0.0.1:6379")
    assert watch.loss() is None, "it takes connections"
    watch._head = ("127.0.0.1", 1)  # where nobody listens
    assert watch.loss() is None
    now = time.monotonic()
    monkeypatch.setattr(health.time, "monotonic", lambda: now + 2 * health._HEAD_SECONDS)
    with pytest.raises(health.LostClusterError, match=r"head of the Ray cluster at 127\.0\.0\.1:6379 has not answered"):
        watch.check()


def lose_the_head(output: str) -> None:
    """Work on a local cluster, for `child`, whose head dies meanwhile."""
    write_output_to(output)

    def main() -> None:
        with connect(ClusterConfig(cpus=1, object_store_mb=100)) as found:
            family = psutil.Process().children(recursive=True)
            (head,) = [one for one in family if one.name().startswith("gcs_server")]
            head.kill()
            run_in_thread(lambda: time.sleep(200), found.watch.check)

    processes.run(main)


@pytest.mark.ray
@pytest.mark.slow
def test_a_local_cluster_that_loses_its_head_ends_the_work_with_its_name_and_leaves_no_process(tmp_path: Path) -> None:
    work = child(lose_the_head, str(tmp_path / "output"))
    work.join(patience(100))
    output = (tmp_path / "output").read_text()
    assert work.exitcode == 1, output
    assert re.search(r"error: the local Ray cluster has lost its head, .*\(gcs_server\), .*, ended by SIGKILL", output)
    assert "the same command" in output
    assert "Traceback" not in output
    (logs,) = re.findall(r"logs of the local Ray cluster are kept in (\S+)", output)
    assert not [one for one in psutil.process_iter(["cmdline"]) if logs in " ".join(one.info["cmdline"] or [])]
    shutil.rmtree(logs)


def test_a_local_cluster_that_is_too_slow_for_the_limit_of_ray_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[Path] = []
    outcomes = iter([Exception("The current node timed out during startup. This could"), "a context", OSError("no")])

    def start(*_: object, **__: object) -> object:
        if isinstance(outcome := next(outcomes), Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(session.compat, "start_local_cluster", start)
    monkeypatch.setattr(session, "end_all_of", ended.append)
    assert session._start_local(CONFIG, tmp_path, False) == "a context"
    assert ended == [tmp_path]
    with pytest.raises(OSError, match="no"):
        session._start_local(CONFIG, tmp_path, False)


def test_files_of_a_local_cluster_in_another_container_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "process_is_alive", lambda pid: False)  # none is seen from here
    monkeypatch.setattr(session, "_LONGEST_TEMPORARY_FOLDER", 1000)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    script = (
        "import tempfile; from fer.cluster import session; session._LONGEST_TEMPORARY_FOLDER = 1000\n"
        f"tempfile.tempdir = {str(tmp_path)!r}; print(session.private_folder(), flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout
        theirs = Path(other.stdout.readline().strip())
        mine = session.private_folder()
        assert set(tmp_path.iterdir()) == {mine, theirs}
        other.communicate("\n")
    another = session.private_folder()
    assert set(tmp_path.iterdir()) == {mine, another}


def test_without_ray_the_map_is_a_plain_map() -> None:
    assert list(map_blocks(abs, [-1, 2, -3], workers=0, cluster=CONFIG)) == [1, 2, 3]


def test_work_in_a_thread_returns_raises_and_is_told_to_stop() -> None:
    from threading import Event

    assert run_in_thread(lambda: 42, lambda: None) == 42
    with pytest.raises(ZeroDivisionError):
        run_in_thread(lambda: 1 / 0, lambda: None)
    stop, polled = Event(), []

    def lost() -> None:
        polled.append(stop.is_set())
        raise LostError("the cluster")

    with pytest.raises(LostError):
        run_in_thread(lambda: stop.wait(60), lost, lambda: stop.set() or 60)
    assert polled == [False]
    assert stop.is_set()
