"""Whether all nodes of a cluster see the files that work on it needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_NODE_TIMEOUT_SECONDS = 60


def require_paths(paths: Sequence[str], address: str | None) -> None:
    """Asks each other node of the open session whether it sees what this machine sees.

    Args:
        paths: absolute.
        address: of the cluster; None for the local one.

    Raises:
        ValueError: names the node and the remedy.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    by_client = address is not None and address.startswith("ray://")
    here = None if by_client else ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    look = ray.remote(num_cpus=0)(missing_paths)
    answers = [
        (
            node,
            look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                list(paths)
            ),
        )
        for node in others
    ]
    for node, answer in answers:
        name = f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        try:
            missing = ray.get(answer, timeout=_NODE_TIMEOUT_SECONDS)
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ValueError(
                f"{name} cannot run this project's code ({reason}): install the same `fer` there"
            ) from None
        if missing:
            raise ValueError(
                f"{name} does not see {' and '.join(missing)}: put the project on storage that all nodes mount under "
                "the same path, or use `fer submit` with --project-dir"
            )


def missing_paths(paths: list[str]) -> list[str]:
    """Those that this machine does not see."""
    return [path for path in paths if not Path(path).exists()]
