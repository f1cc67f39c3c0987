"""What the other nodes of a cluster say: whether they answer, and whether they see the files that work on it needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fer.console import log

_NODE_TIMEOUT_SECONDS = 60
_POLL_SECONDS = 0.25


def answering_nodes(address: str | None) -> list[dict[str, Any]]:
    """Ray's descriptions of this node and of those others that run a task.

    Ray lists a dead node as alive for some 15 s, until its head has missed it often enough. So each one is asked, and
    waited for until it answers, is found dead or has been silent for a minute.

    Args:
        address: of the cluster of the open session; None for the local one.
    """
    import ray

    others = _others(address)
    known = {node["NodeID"] for node in others}
    found = [node for node in living_nodes() if node["NodeID"] not in known]
    answers = {_ask(node, missing_paths, []): node for node in others}
    deadline = time.monotonic() + _NODE_TIMEOUT_SECONDS
    while answers and time.monotonic() < deadline:
        for answer in ray.wait(list(answers), num_returns=len(answers), timeout=_POLL_SECONDS)[0]:
            node = answers.pop(answer)
            with suppress(ray.exceptions.RayError):  # it is found dead
                ray.get(answer)
                found.append(node)
        living = {node["NodeID"] for node in living_nodes()}  # asked too: on a node that hangs, no task ever ends
        answers = {answer: node for answer, node in answers.items() if node["NodeID"] in living}
    for node in answers.values():
        log.warning("%s has not answered for %d s; going on without it", _name(node), _NODE_TIMEOUT_SECONDS)
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

    for node, answer in [(node, _ask(node, missing_paths, list(paths))) for node in _others(address)]:
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


def living_nodes() -> list[dict[str, Any]]:
    """Ray's descriptions of the nodes that it takes for alive."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _others(address: str | None) -> list[dict[str, Any]]:
    """The living nodes but for this one; all of them where this machine is none, through a `ray://` proxy."""
    import ray

    by_client = address is not None and address.startswith("ray://")
    here = None if by_client else ray.get_runtime_context().get_node_id()
    return [node for node in living_nodes() if node["NodeID"] != here]


def _ask(node: dict[str, Any], task: Callable[..., Any], *arguments: Any) -> Any:
    """A reference to what the task returns on that node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(task).remote(*arguments)


def _name(node: dict[str, Any]) -> str:
    return f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
