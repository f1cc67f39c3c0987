"""One local cluster for all stages of a `dvc repro`: `python -m fer.cluster.host`, a process beside it.

    fer repro ─becomes─▶ dvc repro ─▶ stage ─▶ stage ─▶ ...
        └─starts─▶ host      the first stage that asks the host (`fer.cluster.shared`) makes it start Ray

The host ends the cluster when the process that started it has ended, however that was, and the stages have let go.
Ray's own processes end with the host, by the kernel, so that no signal to any of them leaves the cluster behind.
"""

from __future__ import annotations

import json
import logging
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Event

from fer import console, processes
from fer.cluster.config import ClusterConfig
from fer.cluster.health import LostClusterError
from fer.cluster.session import Cluster, connect, private_folder, token
from fer.environment import environment

_POLL_SECONDS = 0.5
_GRACE_SECONDS = 60.0
"""So long stages may take to end once their `dvc repro` has: one that was stopped writes its last checkpoint."""


def start(config: ClusterConfig) -> None:
    """Starts the host of this process, which names it to its children by FER_RAY_HOST."""
    path = private_folder() / "host"
    processes.set_environment("RAY_AUTH_MODE", "token")  # as Ray itself sets where it starts a local cluster
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        arguments = [str(server.fileno()), str(os.getpid()), config.model_dump_json()]
        # A session of its own: Ctrl-C is for the stages, which end first.
        subprocess.Popen(
            [sys.executable, "-m", "fer.cluster.host", *arguments],
            pass_fds=[server.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    processes.set_environment("FER_RAY_HOST", str(path))


def serve(server: socket.socket, config: ClusterConfig, ended: Callable[[], bool]) -> None:
    """Lends a cluster, which the first request starts, until `ended`, and then until nobody uses it.

    Raises:
        LostClusterError: it has lost its head or its raylet, which all who use it were told.
    """
    users: list[socket.socket] = []
    cluster: Cluster | None = None
    deadline: float | None = None
    with ExitStack() as stack:
        while deadline is None or (users and time.monotonic() < deadline):
            for one in select.select([server, *users], [], [], _POLL_SECONDS)[0]:
                if one is not server:  # users say nothing: it has let go
                    users.remove(one)
                    one.close()
                    continue
                users.append(server.accept()[0])
                if cluster is None:
                    cluster = stack.enter_context(connect(config))
                with suppress(OSError):  # it has ended meanwhile
                    users[-1].sendall(json.dumps({"address": cluster.head, "token": token()}).encode())
            if cluster is not None and (loss := cluster.watch.loss()) is not None:
                for one in users:
                    with suppress(OSError):
                        one.sendall(str(loss).encode())
                raise loss
            if deadline is None and ended():
                deadline = time.monotonic() + _GRACE_SECONDS


def _main(descriptor: int, parent: int, config: str) -> None:
    stopped = Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    console.set_up(logging.DEBUG if environment().debug else logging.INFO)
    processes.quiet_libraries()
    with socket.socket(fileno=descriptor) as server:
        place = Path(server.getsockname()).parent
        try:
            serve(server, ClusterConfig.model_validate_json(config), lambda: stopped.is_set() or os.getppid() != parent)
        except LostClusterError:
            sys.exit(1)
        finally:
            shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
