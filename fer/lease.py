"""One driver at a time for work whose files lie in an object store, where no kernel holds locks.

The rule. Who holds `lease-<n>.json` with the highest n works; it rewrites the file every 15 s. Another one watches, by
its own clock: where the file changes, its holder lives, and the work is refused; where it stays as it is for two
minutes, the holder is gone, and `lease-<n + 1>.json` is taken by a write that only one of several can make. A holder
that finds a higher number, after its machine slept for minutes, ends. The same project on the same machine, which holds
its own file lock already, takes over at once: the holder was its own process, and has died.

Between a takeover and the next look of the old holder both may work. They write the same bits.
"""

from __future__ import annotations

import secrets
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fer.console import log
from fer.io.files import FileError, json_text
from fer.io.storage import Folder, inside
from fer.processes import HeldError, LostError

RENEW_SECONDS, SILENT_SECONDS = 15.0, 120.0


class Lease:
    """A lease that is held."""

    def __init__(self, folder: Folder, number: int, content: dict[str, Any]) -> None:
        self._folder, self._number, self._content = folder, number, content
        self._lost, self._ended = threading.Event(), threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="fer-lease", daemon=True)
        self._keeper.start()

    def check(self) -> None:
        """LostError where another one has taken over."""
        if self._lost.is_set():
            raise LostError(
                f"{self._folder.name}: another process has taken over, since this one was silent for "
                f"{SILENT_SECONDS:.0f} s; it continues there"
            )

    def renew(self) -> None:
        """Shows that this process lives, or notices that it has lost the lease."""
        held = _held(self._folder)
        if held is None or held[0] != self._number or held[1]["token"] != self._content["token"]:
            self._lost.set()
        else:
            self._content["renewed"] += 1
            self._folder.write_json(_name(self._number), self._content)

    def _keep(self) -> None:
        """Renews it until `end`."""
        while not self._ended.wait(RENEW_SECONDS) and not self._lost.is_set():
            with suppress(FileError):  # the store is away: it counts how long nobody renews, and nobody can look
                self.renew()

    def end(self) -> None:
        """Gives it back."""
        self._ended.set()
        self._keeper.join()  # else a renewal on its way would bring the file back
        if not self._lost.is_set():
            with suppress(FileError):  # it is silent from now on
                self._folder.remove(_name(self._number))


@contextmanager
def leased(storage: str | None, name: str, project: Path, *, wait: bool = False) -> Iterator[Callable[[], object]]:
    """Holds what is called `name` among the projects that work through a store; yields what raises where it was lost.

    Args:
        storage: None: there is none, and nothing to hold. project, wait: as `lease`.
    """
    if storage is None:
        yield lambda: None
    else:
        with lease(Folder(inside(storage, f"leases/{name}")), project, wait=wait) as held:
            yield held.check


@contextmanager
def lease(folder: Folder, project: Path, *, wait: bool = False) -> Iterator[Lease]:
    """Holds the lease of a folder in a store for the block.

    Args:
        project: of this process, which holds a file lock for the same work there.
        wait: for another one that works, which is logged.

    Raises:
        HeldError: another one works.
    """
    who = {"owner": f"{socket.gethostname()}:{project}", "machine": f"{uuid.getnode():x}"}
    taken = _take(folder, {**who, "token": secrets.token_hex(8)}, wait)
    try:
        yield taken
    finally:
        taken.end()


def _take(folder: Folder, me: dict[str, Any], wait: bool) -> Lease:
    content = {**me, "renewed": 0}
    while True:
        held = _held(folder)
        other = held is not None and any(held[1].get(key) != me[key] for key in ("owner", "machine"))
        if held is not None and other and not _is_silent(folder, held, wait):
            continue
        number = 1 if held is None else held[0] + 1
        if folder.create(_name(number), json_text(content).encode()):
            if (now := _held(folder)) is not None and now[0] == number:
                if held is not None:
                    folder.remove(_name(held[0]))
                return Lease(folder, number, content)
            folder.remove(_name(number))  # somebody took a higher one meanwhile


def _is_silent(folder: Folder, held: tuple[int, dict[str, Any]], wait: bool) -> bool:
    """Watches a lease: whether its holder is gone; False where it has changed and is to be looked at again."""
    owner = held[1]["owner"]
    log.info("%s: held by %s; looking for up to %.0f s whether it lives", folder.name, owner, SILENT_SECONDS)
    deadline = time.monotonic() + SILENT_SECONDS
    while time.monotonic() < deadline:
        time.sleep(RENEW_SECONDS / 5)
        now = _held(folder)
        if now is None or now[0] != held[0]:
            return False
        if now != held:
            if not wait:
                raise HeldError(f"{folder.name}: {owner} works on it; wait for it to end or stop it")
            held, deadline = now, time.monotonic() + SILENT_SECONDS
    log.warning("%s: %s has been silent for %.0f s; taking over", folder.name, owner, SILENT_SECONDS)
    return True


def _held(folder: Folder) -> tuple[int, dict[str, Any]] | None:
    """Number and content of the highest lease; None where there is none."""
    numbers = [int(name[6:-5]) for name in folder.names() if name.startswith("lease-") and name[6:-5].isdecimal()]
    content = folder.find_json(_name(max(numbers))) if numbers else None
    return None if content is None else (max(numbers), content)


def _name(number: int) -> str:
    return f"lease-{number}.json"
