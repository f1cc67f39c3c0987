"""A local cluster that another process, its host (`fer.cluster.host`), keeps for this one: asked for, and watched.

They talk over a Unix socket, which FER_RAY_HOST names. The host sends where its cluster is. Then the connection stays
open as long as the cluster is used: the kernel closes it with either process, so that each knows of the other's end.
"""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from pathlib import Path

_LONGEST_MESSAGE = 2**16


class SharedCluster:
    """The cluster of a host, in use until it is closed.

    Attributes:
        address: host:port of its head.
        token: what it asks for.
    """

    def __init__(self, connection: socket.socket, address: str, token: str) -> None:
        self.address, self.token = address, token
        self._connection = connection

    def loss(self) -> str | None:
        """What the cluster or its host was lost of; None while both live."""
        try:
            self._connection.setblocking(False)
            message = self._connection.recv(_LONGEST_MESSAGE)
        except BlockingIOError:
            return None
        except OSError:  # reset
            message = b""
        return message.decode() or "the process that keeps the local Ray cluster for all stages has ended"

    def close(self) -> None:
        """Tells the host that the cluster is no longer used."""
        self._connection.close()


def ask(host: Path) -> SharedCluster | None:
    """Asks a host for its cluster, and waits until that has started; None where the host has ended.

    Args:
        host: path of its socket.
    """
    connection = socket.socket(socket.AF_UNIX)
    try:
        with suppress(OSError):
            connection.connect(str(host))
            if message := connection.recv(_LONGEST_MESSAGE):
                return SharedCluster(connection, **json.loads(message))
    except BaseException:
        connection.close()
        raise
    connection.close()
    return None
