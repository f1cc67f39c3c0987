"""Whether a cluster has lost a process that it cannot be without, and whether a connection would carry a token.

Ray's core notices a lost raylet after some 15 s and a lost head after 60 s, and then ends this process on the spot, in
C++: nothing is closed, nothing is reported. `Watch` looks more often, and raises. It is asked by whatever waits for the
cluster, so that neither a thread nor a signal of its own is needed.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fer import processes
from fer.cluster import compat
from fer.cluster.shared import SharedCluster

_CONNECT_SECONDS = 2.0
_LOOK_SECONDS = 0.5
_HEAD_SECONDS = 40.0
"""So long a named cluster's head may be away, to be started again; Ray's own core gives it 60 s."""

_PARTS = {
    "gcs_server": "its head, which keeps its state (gcs_server)",
    "raylet": "what starts and holds its workers (raylet)",
}


class LostClusterError(processes.LostError):
    """The cluster has lost a process that it cannot be without."""


@dataclass(frozen=True)
class Authentication:
    """How a connection to a cluster would be made from here.

    Attributes:
        required: RAY_AUTH_MODE is `token`.
        token: one is there, in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.
    """

    required: bool
    token: bool


def authentication() -> Authentication:
    """Ray's own settings, so that what is reported is what Ray will do."""
    processes.quiet_libraries()
    return Authentication(*compat.token_state())


class Watch:
    """Looks at the cluster that this process is connected to.

    Args:
        address: of a named cluster, None for the local one that this process has started.
        shared: the cluster, where a host keeps it, which looks after it.
    """

    def __init__(self, address: str | None, shared: SharedCluster | None = None) -> None:
        import ray

        self._address, self._shared = address, shared
        host, _, port = str(getattr(ray.get_runtime_context(), "gcs_address", "")).rpartition(":")
        # A `ray://` proxy has no such address, and its own way to report a loss.
        self._head = (host.strip("[]"), int(port)) if address is not None and host else None
        self._looked = self._answered = time.monotonic()

    def check(self) -> None:
        """Looks, at most twice a second.

        Raises:
            LostClusterError: names what was lost.
        """
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        if (loss := self.loss()) is not None:
            raise loss

    def loss(self) -> LostClusterError | None:
        """What was lost, looked for now."""
        if self._shared is not None:
            if (text := self._shared.loss()) is not None:
                return LostClusterError(text)
        elif self._address is None:
            dead = compat.dead_processes()
            for part in _PARTS.keys() & dead.keys():
                pid, end = dead[part]
                return _lost(f"the local Ray cluster has lost {_PARTS[part]}, process {pid}, {end}")
        elif self._head is not None:
            with suppress(OSError):  # away, perhaps to be started again: what counts is since when
                socket.create_connection(self._head, timeout=_CONNECT_SECONDS).close()
                self._answered = time.monotonic()
            if time.monotonic() - self._answered >= _HEAD_SECONDS:
                return _lost(
                    f"the head of the Ray cluster at {self._address} has not answered for {_HEAD_SECONDS:.0f} s"
                )
        return None


def _lost(what: str) -> LostClusterError:
    return LostClusterError(f"{what}; existing outputs are unchanged, and the same command resumes")


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
