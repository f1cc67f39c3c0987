"""The Ray session: demand against supply, errors of tasks, order of results. One local cluster for all of it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path

import pytest

from fer.cluster import shared
from fer.cluster.config import ClusterConfig
from fer.cluster.map import map_blocks
from fer.cluster.session import Cluster, connect, require
from fer.console import log
from fer.io.files import FileError, read_json

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
def test_a_task_s_own_error_reaches_the_caller(cluster: Cluster) -> None:
    with pytest.raises(FileError, match=r"missing\.json: no such file"):
        list(map_blocks(read_json, [Path("missing.json")], workers=2, cluster=CONFIG))


@pytest.mark.ray
def test_too_small_a_cluster_is_told_at_once_with_demand_and_supply(cluster: Cluster) -> None:
    assert (cluster.cpus, cluster.gpus, cluster.nodes, cluster.address) == (2, 0, 1, None)
    require(workers=2, cpus=1)
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"3 workers with 1 CPU and 0 GPU.*room for 2.*2 CPU, 0 GPU"):
        require(workers=3, cpus=1)
    with pytest.raises(ValueError, match="1 workers with 1 CPU and 1 GPU"):
        require(workers=1, cpus=1, gpus=1)
    assert time.monotonic() - started < 5


@pytest.mark.ray
def test_a_node_that_is_dead_or_hangs_has_no_room_although_ray_lists_it(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    (node,) = shared.living_nodes()
    dead, hangs = ({**node, "NodeID": letter * 56} for letter in "ab")
    listed = chain([[node, dead, hangs]] * 3, repeat([node]))
    monkeypatch.setattr(shared, "living_nodes", lambda: next(listed))
    ask, for_ever = shared._ask, ray.remote(resources={"nowhere": 1})(lambda: None)
    monkeypatch.setattr(shared, "_ask", lambda at, *rest: for_ever.remote() if at is hangs else ask(at, *rest))
    assert shared.answering_nodes("ray://through-a-proxy") == [node]


@pytest.mark.ray
def test_what_ray_tells_of_a_lost_node_is_shown_for_debugging_alone(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._private.worker import print_to_stdstream

    told = {"lines": ["Raylet is terminated. [state-dump] NodeManager:"], "pid": "raylet", "is_err": False}
    print_to_stdstream(told, ignore_prefix=False)
    assert capsys.readouterr() == ("", "")
    try:
        with monkeypatch.context() as debug:
            debug.setattr(log, "isEnabledFor", lambda level: True)
            with connect(CONFIG):
                print_to_stdstream(told, ignore_prefix=False)
        assert "[state-dump]" in capsys.readouterr().out
    finally:
        with connect(CONFIG):
            pass


@pytest.mark.ray
def test_a_connection_inside_another_shares_it_and_leaves_it_open(cluster: Cluster) -> None:
    import ray

    with connect(CONFIG):
        pass
    assert ray.is_initialized()


def test_without_ray_the_map_is_a_plain_map() -> None:
    assert list(map_blocks(abs, [-1, 2, -3], workers=0, cluster=CONFIG)) == [1, 2, 3]
