"""The nodes of the open session: how many workers they hold, whether they answer, and which files they see."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fer.console import log

_NODE_TIMEOUT_SECONDS = 60
_POLL_SECONDS = 0.25

Node = dict[str, Any]
"""Ray's description of a node."""


def living_nodes() -> list[Node]:
    """The nodes that Ray takes for alive."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def max_workers(nodes: Sequence[Node], *, cpus: float = 1, gpus: float = 0) -> int:
    """How many workers with so many CPUs and GPUs each fit on the nodes, where a worker must fit on one node."""
    assert cpus > 0 or gpus > 0, "a worker that needs nothing fits any number of times"
    demand = [(name, count) for name, count in (("CPU", cpus), ("GPU", gpus)) if count > 0]
    return sum(min(int(node["Resources"].get(name, 0) / count + 1e-9) for name, count in demand) for node in nodes)


def require(*, workers: int, cpus: float = 1, gpus: float = 0, wait_minutes: float = 0) -> None:
    """Checks that the session's cluster holds the workers, where Ray would wait forever.

    Args:
        workers: processes at the same time.
        cpus, gpus: of each of them.
        wait_minutes: how long to wait for what the cluster's autoscaler adds on request.

    Raises:
        ValueError: names demand and supply, and what to change.
    """
    nodes = living_nodes()
    found = max_workers(nodes, cpus=cpus, gpus=gpus)
    if found < workers and wait_minutes:
        from ray.autoscaler.sdk import request_resources

        log.info("waiting up to %g minutes for the cluster to grow to %d workers", wait_minutes, workers)
        deadline = time.monotonic() + 60 * wait_minutes
        request_resources(bundles=[{"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}] * workers)
        try:
            while found < workers and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
                nodes = living_nodes()
                found = max_workers(nodes, cpus=cpus, gpus=gpus)
        finally:
            request_resources(bundles=[])  # else the nodes would stay for ever; those there now wait for their workers
    if found >= workers:
        return
    supplies = [node["Resources"] for node in nodes]
    supply = "; ".join(f"{one.get('CPU', 0):g} CPU, {one.get('GPU', 0):g} GPU" for one in supplies)
    raise ValueError(
        f"the Ray cluster is too small: {workers} workers with {cpus:g} CPU and {gpus:g} GPU each were requested, "
        f"it has room for {found} (its {len(nodes)} nodes: {supply}). Request fewer workers or less for each, name a "
        "larger cluster (RAY_ADDRESS or cluster.address), give one that grows the time for it (cluster.wait_minutes), "
        "or raise cluster.cpus to share the CPUs of a local one"
    )


def answering_nodes(address: str | None) -> list[Node]:
    """This node, and those others that run a task.

    Ray lists a dead node as alive for some 15 s, until it has missed enough heartbeats. So each node gets a task, and
    is waited for until it answers, is found dead or has been silent for a minute.

    Args:
        address: of the cluster of the open session; None for the local one.
    """
    import ray

    others = _others(address)
    known = {node["NodeID"] for node in others}
    found = [node for node in living_nodes() if node["NodeID"] not in known]
    pending = {_start_probe(node, []): node for node in others}
    deadline = time.monotonic() + _NODE_TIMEOUT_SECONDS
    while pending and time.monotonic() < deadline:
        for answer in ray.wait(list(pending), num_returns=len(pending), timeout=_POLL_SECONDS)[0]:
            node = pending.pop(answer)
            with suppress(ray.exceptions.RayError):  # the node is found dead
                ray.get(answer)
                found.append(node)
        living = {node["NodeID"] for node in living_nodes()}  # on a node that hangs, no task ever ends
        pending = {answer: node for answer, node in pending.items() if node["NodeID"] in living}
    for node in pending.values():
        log.warning("%s has not answered for %d s; continuing without it", _name(node), _NODE_TIMEOUT_SECONDS)
    return found


def require_paths(paths: Sequence[str], address: str | None) -> None:
    """Asks each other node of the open session whether it sees what this machine sees.

    Args:
        paths: absolute.
        address: of the cluster; None for the local one.

    Raises:
        ValueError: names the node and the remedy.
    """
    import ray

    for node, answer in [(node, _start_probe(node, list(paths))) for node in _others(address)]:
        try:
            missing = ray.get(answer, timeout=_NODE_TIMEOUT_SECONDS)
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ValueError(
                f"{_name(node)} cannot run this project's code ({reason}): install the same `fer` there"
            ) from None
        if missing:
            raise ValueError(
                f"{_name(node)} does not see {' and '.join(missing)}: put the project on storage that all nodes mount "
                "under the same path, or use `fer submit` with --project-dir"
            )


def missing_paths(paths: list[str]) -> list[str]:
    """Those that this machine does not see."""
    return [path for path in paths if not Path(path).exists()]


def _others(address: str | None) -> list[Node]:
    """The living nodes but for this one; all of them where this machine is none, through a `ray://` proxy."""
    import ray

    by_client = address is not None and address.startswith("ray://")
    here = None if by_client else ray.get_runtime_context().get_node_id()
    return [node for node in living_nodes() if node["NodeID"] != here]


def _start_probe(node: Node, paths: list[str]) -> Any:
    """A reference to `missing_paths(paths)` on that node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(missing_paths).remote(paths)


def _name(node: Node) -> str:
    return f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
