"""A Ray cluster to work on: the one that the user names, or a private local one that leaves nothing behind.

What a local cluster does differently from a bare `ray.init()`: its token lives in the environment of this process and
its children, so that nothing is written to the home folder, which may be empty and read-only; its files stand in a
folder of its own under the system's temporary folder, removed at the end; its logs stay in there.

A named cluster must see the project under the same absolute path on every node (a shared file system), with `fer`
installed: what passes between its processes is paths and counts, never pictures.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from fer import processes
from fer.cluster.config import ClusterConfig
from fer.cluster.health import end_all_of, forget_token, lost_here, watched
from fer.cluster.shared import living_nodes
from fer.console import log
from fer.environment import environment

# A Unix socket's path holds at most 107 bytes on Linux (103 on macOS), and Ray adds about 70 to its folder.
_LONGEST_TEMPORARY_FOLDER = 28
_STARTS = 5
"""Attempts to start a local cluster on a machine that is too busy for Ray's fixed limit."""


@dataclass(frozen=True)
class Cluster:
    """What the work can use.

    Attributes:
        address: of a named cluster, None for the local one.
        cpus, gpus: totals over all living nodes, as Ray counts them.
        nodes: number of living nodes.
        dashboard_url: http address, None without a dashboard.
    """

    address: str | None
    cpus: int
    gpus: int
    nodes: int
    dashboard_url: str | None


@contextmanager
def connect(config: ClusterConfig, *, dashboard: bool | None = None) -> Iterator[Cluster]:
    """Connects to the cluster for the block, and disconnects (a local one: stops) at its end, however it ends.

    Inside an open connection of this process the block shares that connection and leaves it open.

    Args:
        config: RAY_ADDRESS wins over its address.
        dashboard: overrides `config.dashboard`; a search with several workers a trial needs it.

    Raises:
        ValueError: the named cluster cannot be reached.
        LostClusterError: it has lost its head or its raylet; the message says which.
    """
    _quiet()
    import ray
    from ray.exceptions import RayError

    if ray.is_initialized():
        yield _describe(None)
        return
    address = environment().ray_address or config.address
    folder = _private_folder() if address is None else None
    keep = False
    try:
        started = time.monotonic()
        with _signal_handlers_kept():
            if folder is not None:
                url = _start_local(config, folder, config.dashboard if dashboard is None else dashboard)
            else:
                url = _join(str(address))
        cluster = _describe(address, url)
        log.debug("ray: %s, %.1f s", cluster, time.monotonic() - started)
        with watched(address):
            yield cluster
    except processes.LostError as error:
        keep = True
        if folder is None:
            raise
        first = lost_here() or error  # what the others died of, before they are ended
        end_all_of(folder)
        raise first from None
    except RayError:
        keep = True
        raise
    finally:
        ray.shutdown()
        if folder is not None and keep:
            log.warning("the logs of the local Ray cluster are kept in %s", folder)
        elif folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def room(nodes: Sequence[dict[str, Any]], *, cpus: float = 1, gpus: float = 0) -> int:
    """How many workers with so many CPUs and GPUs each the nodes could hold; one must fit on one node."""
    return sum(_capacity(node["Resources"], cpus, gpus) for node in nodes)


def require(*, workers: int, cpus: float = 1, gpus: float = 0) -> None:
    """Says at once what is missing, where Ray would wait for ever.

    Args:
        workers: processes wanted at the same time.
        cpus, gpus: of each of them; one worker must fit on one node.

    Raises:
        ValueError: names demand and supply, and what to change.
    """
    nodes = living_nodes()
    found = room(nodes, cpus=cpus, gpus=gpus)
    if found >= workers:
        return
    supplies = [node["Resources"] for node in nodes]
    supply = "; ".join(f"{one.get('CPU', 0):g} CPU, {one.get('GPU', 0):g} GPU" for one in supplies)
    raise ValueError(
        f"the Ray cluster is too small: {workers} workers with {cpus:g} CPU and {gpus:g} GPU each were asked for, "
        f"it has room for {found} (its {len(nodes)} nodes: {supply}). Ask for fewer workers or less for each, name a "
        "larger cluster (RAY_ADDRESS or cluster.address), or raise cluster.cpus to share the CPUs of a local one"
    )


def _capacity(node: dict[str, float], cpus: float, gpus: float) -> int:
    assert cpus > 0 or gpus > 0, "a worker that needs nothing fits any number of times"
    return min(int(node.get(name, 0) / want + 1e-9) for name, want in (("CPU", cpus), ("GPU", gpus)) if want > 0)


def _quiet() -> None:
    """Ray's libraries log through handlers of their own; what matters reaches us as errors."""
    processes.quiet_libraries()
    logging.getLogger("ray").setLevel(logging.WARNING)
    # Of a lost node it would print the end of the raylet's log, dumps of its state, which stand in Ray's logs anyway.
    worker: Any = import_module("ray._private.worker")
    worker._worker_logs_enabled = log.isEnabledFor(logging.DEBUG)


def _start_local(config: ClusterConfig, folder: Path, dashboard: bool) -> str | None:
    # Ray 2.60 asks for a token even on one machine, and writes a new one to the home folder where it finds none.
    processes.set_environment("RAY_AUTH_TOKEN", _token())
    forget_token()
    for attempt in range(1, _STARTS + 1):
        try:
            return _start_once(config, folder, dashboard)
        except Exception as error:  # Ray raises nothing more special
            if "timed out during startup" not in str(error) or attempt == _STARTS:
                raise
            log.warning("Ray has not started within the 30 s that it gives itself, on a busy machine; once more")
            end_all_of(folder)
    raise AssertionError("the last attempt returns or raises")


def _start_once(config: ClusterConfig, folder: Path, dashboard: bool) -> str | None:
    import ray

    context = ray.init(
        address="local",
        num_cpus=config.cpus,
        object_store_memory=config.object_store_mb * 2**20,
        include_dashboard=dashboard,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=str(folder),
        # A private cluster is for this machine alone, and works where there is no network.
        _node_ip_address="127.0.0.1",
    )
    return f"http://{context.dashboard_url}" if context.dashboard_url else None


@cache
def _token() -> str:
    """One for the life of this process: its workers have seen the first."""
    return secrets.token_hex(32)


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Puts SIGINT and SIGTERM back in our hands: `ray.init` installs handlers that end the process with other codes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)


def _join(address: str) -> str | None:
    import ray

    try:
        context = ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises ConnectionError, RuntimeError or its own kinds for the same cause
        hint = ""
        if "token" in str(error).lower():
            hint = ": the cluster asks for a token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        raise ValueError(
            f"cannot reach the Ray cluster at {address!r} ({type(error).__name__}: {error}){hint}"
        ) from error
    return f"http://{context.dashboard_url}" if context.dashboard_url else None


def _describe(address: str | None, dashboard_url: str | None = None) -> Cluster:
    import ray

    total = ray.cluster_resources()
    return Cluster(address, int(total.get("CPU", 0)), int(total.get("GPU", 0)), len(living_nodes()), dashboard_url)


def _private_folder() -> Path:
    """A new folder for a local cluster's files; what killed processes have left, running or lying, is removed."""
    parent = Path(tempfile.gettempdir()).resolve()
    if len(str(parent)) > _LONGEST_TEMPORARY_FOLDER:
        parent = Path("/tmp")
    for left in parent.glob("fer-ray-*-*"):
        owner = left.name.split("-")[2]
        if owner.isdecimal() and not _alive(int(owner)):
            end_all_of(left)
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"fer-ray-{os.getpid()}-", dir=parent))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
