"""What Ray itself says about its token, without a cluster; and whether a cluster has lost what it cannot be without.

Ray's core notices a lost raylet after some 15 s and a lost head after 60 s, and then ends this process on the spot, in
C++: nothing is closed, nothing is told. `watched` looks more often, and ends the work as an error does.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from fer import processes

_LOOK_SECONDS = 0.5
_INSIST_SECONDS = 2.0
_HEAD_SECONDS = 40.0
"""So long a named cluster's head may be away, to be started again; Ray's own core gives it 60 s."""

_PARTS = {
    "gcs_server": "its head, which keeps its books (gcs_server)",
    "raylet": "what starts and holds its workers (raylet)",
}


class LostClusterError(processes.LostError):
    """The cluster has lost a process that it cannot be without."""


@dataclass(frozen=True)
class Authentication:
    """How a connection to a cluster would be made from here.

    Attributes:
        wanted: RAY_AUTH_MODE is `token`.
        token: one is there, in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.
    """

    wanted: bool
    token: bool


def authentication() -> Authentication:
    """Reads Ray's own settings, so that what is told is what Ray will do."""
    processes.quiet_libraries()
    from ray.exceptions import AuthenticationError

    native = import_module("ray._raylet")  # a compiled module, without types

    try:
        token = bool(native.AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True))
    except AuthenticationError:  # RAY_AUTH_TOKEN_PATH names a file that cannot be read
        token = False
    return Authentication(wanted=native.get_authentication_mode() == native.AuthenticationMode.TOKEN, token=token)


def forget_token() -> None:
    """Makes Ray read its token anew: it keeps the first answer that this process got, that there is none included."""
    import_module("ray._raylet").AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def watched(address: str | None) -> Iterator[None]:
    """Ends the block with an error once the cluster that this process is connected to has lost its head or its raylet.

    Works in the main thread, which it reaches by SIGUSR1, whatever call it waits in; in another one Ray's own way
    stays.

    Args:
        address: of a named cluster, None for the local one that this process has started.

    Raises:
        LostClusterError: names what was lost.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    look, over, found = _local_loss if address is None else _HeadOf(address).loss, threading.Event(), [""]

    def tell(*_: object) -> None:
        if not over.is_set() and not processes.on_its_way(processes.LostError):
            raise _lost(found[0])

    def watch(main: int) -> None:
        while not over.wait(_INSIST_SECONDS if found[0] else _LOOK_SECONDS):
            if loss := found[0] or look():  # told again where some library has swallowed the error
                found[0] = loss
                signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, tell)
    watcher = threading.Thread(target=watch, args=(threading.get_ident(),), name="cluster-watch", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        signal.signal(signal.SIGUSR1, before)


def lost_here() -> LostClusterError | None:
    """What this process's own cluster has lost, if it has lost anything."""
    loss = _local_loss()
    return None if loss is None else _lost(loss)


def _lost(what: str) -> LostClusterError:
    return LostClusterError(f"{what}; what stood before is unchanged, and the same command goes on")


def end_all_of(folder: Path) -> None:
    """Kills what a local cluster has left: the processes that write into its folder, where Linux lists them.

    Without a raylet or a head, workers would train on for up to a minute, beside those of the same command run again.
    """
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) != os.getpid() and _writes_below(process, folder):
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(int(process.name), signal.SIGKILL)


def _writes_below(process: Path, folder: Path) -> bool:
    with suppress(OSError):  # it has just ended, or is another user's
        for one in (process / "fd").iterdir():
            with suppress(FileNotFoundError):  # closed by now
                if one.lstat().st_mode & stat.S_IWUSR and Path(os.readlink(one)).is_relative_to(folder):
                    return True
    return False


def _local_loss() -> str | None:
    """What this process's own cluster has lost."""
    worker = import_module("ray._private.worker")
    for part, process in worker._global_node.dead_processes() if worker._global_node else ():
        if part in _PARTS:
            return f"the local Ray cluster has lost {_PARTS[part]}, process {process.pid}, {_ended(process.returncode)}"
    return None


def _ended(code: int) -> str:
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


class _HeadOf:
    """Whether the head of a named cluster takes connections."""

    def __init__(self, address: str) -> None:
        import ray

        host, _, port = str(getattr(ray.get_runtime_context(), "gcs_address", "")).rpartition(":")
        self._name, self._where = address, (host.strip("[]"), int(port)) if host else None
        self._answered = time.monotonic()

    def loss(self) -> str | None:
        """Says that it has been away for too long."""
        if self._where is None:  # through a `ray://` proxy, which has its own way to tell
            return None
        with suppress(OSError):  # away, perhaps to be started again: what counts is since when
            socket.create_connection(self._where, timeout=_INSIST_SECONDS).close()
            self._answered = time.monotonic()
        if time.monotonic() - self._answered < _HEAD_SECONDS:
            return None
        return f"the head of the Ray cluster at {self._name} has not answered for {_HEAD_SECONDS:.0f} s"
