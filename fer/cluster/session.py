"""A Ray cluster to work on: the one that the user names, or a local one that leaves nothing behind.

A local one is this process's own, or, below `fer repro`, that of all stages (`fer.cluster.host`).

What a local cluster does differently from a bare `ray.init()`: its token lives in the environment of this process and
its children, so that nothing is written to the home folder, which may be empty and read-only; its files are in a
folder of its own under the system's temporary folder, removed at the end; its logs stay in there.

A named cluster must see the project under the same absolute path on every node (a shared file system), with `fer`
installed: what passes between its processes is paths and counts, never images.
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
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from fer import processes
from fer.cluster import compat
from fer.cluster.config import ClusterConfig
from fer.cluster.health import Watch, end_all_of
from fer.cluster.nodes import living_nodes
from fer.cluster.shared import SharedCluster, ask
from fer.console import log
from fer.environment import environment
from fer.io.files import process_is_alive

T = TypeVar("T")

_LONGEST_TEMPORARY_FOLDER = 10
"""A Unix socket's path holds at most 107 bytes on Linux (103 on macOS), and those of Ray's dashboard have about 95:
`fer-ray-<pid>-<random>/session_<time>_<pid>/sockets/dash_TaskEventsHead`."""
_STARTS = 5
"""Attempts to start a local cluster on a machine that is too busy for Ray's fixed limit."""
_POLL_SECONDS = 0.25


@dataclass(frozen=True)
class Cluster:
    """What the work can use.

    Attributes:
        address: of a named cluster, or of one that a host keeps; None for one's own local one.
        head: host:port of its head; empty through a `ray://` proxy.
        cpus, gpus: totals over all living nodes, as Ray counts them.
        nodes: number of living nodes.
        dashboard_url: http address, None without a dashboard.
        watch: to be asked again and again by whatever waits for the cluster.
    """

    address: str | None
    head: str
    cpus: int
    gpus: int
    nodes: int
    dashboard_url: str | None
    watch: Watch


_open: Cluster | None = None
"""What this process has connected to."""


@contextmanager
def connect(config: ClusterConfig, *, dashboard: bool | None = None) -> Iterator[Cluster]:
    """Connects to the cluster for the block, and disconnects (a local one: stops) at its end, however it ends.

    Inside an open connection of this process the block shares that connection and leaves it open.

    Args:
        config: RAY_ADDRESS takes precedence over its address.
        dashboard: overrides `config.dashboard`; a search needs one.

    Raises:
        ValueError: the named cluster cannot be reached.
        LostClusterError: it has lost its head or its raylet; the message says which.
    """
    _quiet()
    import ray
    from ray.exceptions import RayError

    global _open
    if ray.is_initialized():
        yield _open or _describe(None, None)
        return
    address = environment().ray_address or config.address
    shared = _shared() if address is None else None
    if shared is not None:
        address = shared.address
    folder = private_folder() if address is None else None
    keep, found = False, None
    try:
        started = time.monotonic()
        with _signal_handlers_kept():
            if folder is not None:
                context = _start_local(config, folder, config.dashboard if dashboard is None else dashboard)
            else:
                if shared is not None:
                    _use_token(shared.token)
                context = _join(str(address))
        found = _open = _describe(address, context, shared)
        log.debug("ray: %s, %.1f s", found, time.monotonic() - started)
        yield found
    except (processes.LostError, RayError) as error:
        keep = True
        # What the others died of, before they are ended.
        loss = found.watch.loss() if found and (folder or shared) else None
        if folder is not None and (loss or isinstance(error, processes.LostError)):
            end_all_of(folder)
        if loss is None:
            raise
        raise loss from None
    finally:
        _open = None
        ray.shutdown()
        if shared is not None:
            shared.close()
        if folder is not None and keep:
            log.warning("the logs of the local Ray cluster are kept in %s", folder)
        elif folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def run_in_thread(work: Callable[[], T], poll: Callable[[], object], on_stop: Callable[[], float] = lambda: 0.0) -> T:
    """Runs blocking work of a library in a thread, and returns or raises what it does.

    So this thread, the main one, hears signals at once, and the library installs no handlers of its own.

    Args:
        poll: called again and again meanwhile, in this thread; what it raises ends the wait.
        on_stop: called where the wait is ended by an exception; the seconds that the work then has to end.
    """
    future = start_thread(work)
    try:
        while wait([future], _POLL_SECONDS).not_done:
            poll()
    except BaseException:
        wait([future], on_stop())
        raise
    return future.result()


def start_thread(work: Callable[[], T]) -> Future[T]:
    """Runs work in a thread of its own, for which the process does not wait at its end, as for an executor's."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            future.set_exception(error)

    threading.Thread(target=run, name="ray-work", daemon=True).start()
    return future


def _quiet() -> None:
    """Ray's libraries log through handlers of their own; what matters reaches us as errors."""
    processes.quiet_libraries()
    logging.getLogger("ray").setLevel(logging.WARNING)
    compat.show_worker_logs(log.isEnabledFor(logging.DEBUG))


def _start_local(config: ClusterConfig, folder: Path, dashboard: bool) -> Any:
    _use_token(token())
    for attempt in range(1, _STARTS + 1):
        try:
            return compat.start_local_cluster(
                folder, cpus=config.cpus, object_store_bytes=config.object_store_mb * 2**20, dashboard=dashboard
            )
        except Exception as error:  # Ray raises nothing more special
            if not compat.is_startup_timeout(error) or attempt == _STARTS:
                raise
            log.warning("Ray has not started within its limit of 30 s, on a busy machine; retrying")
            end_all_of(folder)
    raise AssertionError("the last attempt returns or raises")


@cache
def token() -> str:
    """Of the local clusters of this process, for its life: its workers have seen the first."""
    return secrets.token_hex(32)


def _use_token(value: str) -> None:
    # Ray 2.60 requires a token even on one machine, and writes a new one to the home folder where it finds none.
    processes.set_environment("RAY_AUTH_TOKEN", value)
    compat.forget_token()


def _shared() -> SharedCluster | None:
    """The cluster of this process's host; None where it has none, or it has ended."""
    if (host := environment().ray_host) is None:
        return None
    if (found := ask(host)) is None:
        log.warning("the process that kept a local Ray cluster for all stages has ended; starting one for this stage")
    return found


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Puts our handlers of SIGINT and SIGTERM back.

    `ray.init` replaces that of SIGTERM by one that ends the process with another exit code. In another thread than the
    main one it installs none, but a signal would then leave `ray.init` half done, with nobody to undo it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)


def _join(address: str) -> Any:
    import ray

    try:
        return ray.init(
            address=address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=compat.worker_environment()
        )
    except Exception as error:  # Ray raises ConnectionError, RuntimeError or its own kinds for the same cause
        hint = ""
        if "token" in str(error).lower():
            hint = ": the cluster requires a token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        raise ValueError(
            f"cannot reach the Ray cluster at {address!r} ({type(error).__name__}: {error}){hint}"
        ) from error


def _describe(address: str | None, context: Any, shared: SharedCluster | None = None) -> Cluster:
    import ray

    total, url = ray.cluster_resources(), getattr(context, "dashboard_url", None)
    return Cluster(
        address=address,
        head=str(getattr(ray.get_runtime_context(), "gcs_address", "")),
        cpus=int(total.get("CPU", 0)),
        gpus=int(total.get("GPU", 0)),
        nodes=len(living_nodes()),
        dashboard_url=f"http://{url}" if url else None,
        watch=Watch(address, shared),
    )


def private_folder() -> Path:
    """A new folder for a local cluster's files; what killed processes have left, running or not, is removed.

    A container that shares the folder of temporary files sees no process of another one, but its lock.
    """
    parent = Path(tempfile.gettempdir()).resolve()
    if len(str(parent)) > _LONGEST_TEMPORARY_FOLDER:
        parent = Path("/tmp")
    for left in parent.glob("fer-ray-*-*"):
        owner = left.name.split("-")[2]
        if owner.isdecimal() and not process_is_alive(int(owner)) and (descriptor := _locked(left)) is not None:
            os.close(descriptor)
            end_all_of(left)
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"fer-ray-{os.getpid()}-", dir=parent))
    _locked(folder)  # until this process ends
    return folder


def _locked(folder: Path) -> int | None:
    """The descriptor by which this process locks a folder; None where another one does."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        if processes.take_lock(descriptor):
            return descriptor
        os.close(descriptor)
    return None
