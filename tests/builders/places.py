"""What a test finds in a folder, and a port for a server of its own."""

import socket
from pathlib import Path


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file below a folder, by its path from there.

    Two runs gave the same where these are equal; a refused one changed nothing where they are as before. Times and
    permissions do not count, and neither do empty folders.
    """
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def free_port() -> int:
    """A port of this machine where nobody listens.

    Another process may take it before the test does: a server that a test starts must say so when it fails.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
