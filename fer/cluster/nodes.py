"""The nodes of the open session: how many workers they hold, whether they answer, and which files they see."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from fer.cluster import compat
from fer.console import log
from fer.io.storage import Folder
from fer.training.job import TrainJob

T = TypeVar("T")
_NODE_TIMEOUT_SECONDS = 60
_POLL_SECONDS = 0.25

Node = dict[str, Any]
"""Ray's description of a node."""


def living_nodes() -> list[Node]:
    """The nodes that Ray takes for alive, and that take work: one that will end soon does not."""
    import ray

    leaving = compat.draining_nodes()
    return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]


def max_workers(nodes: Sequence[Node], *, cpus: float = 1, gpus: float = 0) -> int:
    """How many workers with so many CPUs and GPUs each fit on the nodes, where a worker must fit on one node."""
    assert cpus > 0 or gpus > 0, "a worker that needs nothing fits any number of times"
    demand = [(name, count) for name, count in (("CPU", cpus), ("GPU", gpus)) if count > 0]
    return sum(min(int(node["Resources"].get(name, 0) / count + 1e-9) for name, count in demand) for node in nodes)


def free_workers(*, cpus: float = 1, gpus: float = 0) -> int:
    """How many more workers at most the cluster has room for now."""
    import ray

    return max_workers([{"Resources": ray.available_resources()}], cpus=cpus, gpus=gpus)


_requests: list[dict[str, float]] = []
"""Of the open blocks of `requested`, in whatever threads: a call to the autoscaler replaces the one before."""


@contextmanager
def requested(workers: int, *, cpus: float = 1, gpus: float = 0) -> Iterator[None]:
    """Asks the cluster's autoscaler, if it has one, for room for the workers as long as the block lasts."""
    from ray.autoscaler.sdk import request_resources

    own = {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}
    _requests.extend([own] * workers)
    request_resources(bundles=[*_requests])
    try:
        yield
    finally:
        for _ in range(workers):
            _requests.remove(own)
        request_resources(bundles=[*_requests])  # else the nodes would stay for ever


def require(
    *,
    workers: int,
    most: int | None = None,
    cpus: float = 1,
    gpus: float = 0,
    wait_minutes: float = 0,
    nodes: Callable[[], list[Node]] | None = None,
) -> int:
    """Checks that the session's cluster holds the workers, where Ray would wait forever.

    Args:
        workers: processes at the same time, at least.
        most: so many are requested of the cluster's autoscaler; None: no more than `workers`.
        cpus, gpus: of each of them.
        wait_minutes: how long to wait for nodes that join, on request or by themselves.
        nodes: what counts, asked again and again; None: `living_nodes`.

    Returns:
        How many there is room for.

    Raises:
        ValueError: names demand and supply, and what to change.
    """
    look = nodes or living_nodes
    there = look()
    found = max_workers(there, cpus=cpus, gpus=gpus)
    if found < workers and wait_minutes:
        log.info("waiting up to %g minutes for the cluster to grow to %d workers", wait_minutes, workers)
        deadline = time.monotonic() + 60 * wait_minutes
        with requested(most or workers, cpus=cpus, gpus=gpus):
            while found < workers and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
                there = look()
                found = max_workers(there, cpus=cpus, gpus=gpus)
    if found >= workers:
        return found
    supplies = [node["Resources"] for node in there]
    supply = "; ".join(f"{one.get('CPU', 0):g} CPU, {one.get('GPU', 0):g} GPU" for one in supplies)
    raise ValueError(
        f"the Ray cluster is too small: {workers} workers with {cpus:g} CPU and {gpus:g} GPU each were requested, "
        f"it has room for {found} (its {len(there)} nodes: {supply}). Request fewer workers or less for each, name a "
        "larger cluster (RAY_ADDRESS or cluster.address), give one that grows the time for it (cluster.wait_minutes), "
        "or raise cluster.cpus to share the CPUs of a local one"
    )


def gpu_models() -> list[str]:
    """The models of the accelerators in the session's cluster, as Ray names them: "H200"."""
    prefix = "accelerator_type:"
    names = {name for node in living_nodes() for name in node["Resources"] if name.startswith(prefix)}
    return sorted(name.removeprefix(prefix) for name in names)


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
    pending = {_start_probe(node, missing_paths, []): node for node in others}
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
    for name, missing in _ask_others(missing_paths, list(paths), address):
        if missing:
            raise ValueError(
                f"{name} does not see {' and '.join(missing)}: put the project on storage that all nodes mount under "
                "the same path, name an object store in params.yaml (storage), or use `fer submit` with --project-dir"
            )


def require_store(url: str, address: str | None) -> None:
    """Asks this machine and each other node of the open session to write, read and remove a file in a store.

    Args:
        address: of the cluster; None for the local one.

    Raises:
        FileError: this machine cannot. ValueError: names the node that cannot, and the remedy.
    """
    Folder(url).check()
    for name, problem in _ask_others(store_problem, url, address):
        if problem:
            raise ValueError(
                f"{name} cannot use the storage of params.yaml ({problem}): give its processes the credentials, the "
                "endpoint and the extra (`s3`) that this machine has"
            )


def with_inputs(job: TrainJob, storage: str | None, address: str | None) -> TrainJob:
    """The run as all nodes of the open session get it: from a store, or from this machine's folders, which they see.

    Raises:
        FileError, ValueError: as `require_store` and `require_paths`.
    """
    if storage is not None:
        require_store(storage, address)
        return job.sent_to(storage)
    own = [str(Path(job.shards, "manifest.json")), job.work_dir]
    require_paths([*own, *(source.path for source in job.pretrained)], address)
    return job


def store_problem(url: str) -> str:
    """Why this machine cannot write, read and remove a file in a store; empty where it can."""
    try:
        Folder(url, attempts=2).check()
    except ValueError as error:
        return str(error)
    return ""


def _ask_others(question: Callable[[Any], T], argument: object, address: str | None) -> Iterator[tuple[str, T]]:
    """Name of each other node of the open session, and what it answers.

    Raises:
        ValueError: names a node that cannot run this project's code.
    """
    import ray

    for node, answer in [(node, _start_probe(node, question, argument)) for node in _others(address)]:
        try:
            yield _name(node), ray.get(answer, timeout=_NODE_TIMEOUT_SECONDS)
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ValueError(
                f"{_name(node)} cannot run this project's code ({reason}): install the same `fer` there"
            ) from None


def missing_paths(paths: list[str]) -> list[str]:
    """Those that this machine does not see."""
    return [path for path in paths if not Path(path).exists()]


def _others(address: str | None) -> list[Node]:
    """The living nodes but for this one; all of them where this machine is none, through a `ray://` proxy."""
    import ray

    by_client = address is not None and address.startswith("ray://")
    here = None if by_client else ray.get_runtime_context().get_node_id()
    return [node for node in living_nodes() if node["NodeID"] != here]


def _start_probe(node: Node, question: Callable[[Any], object], argument: object) -> Any:
    """A reference to `question(argument)` on that node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(question).remote(argument)


def _name(node: Node) -> str:
    return f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
