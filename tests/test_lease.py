"""One driver at a time for work in an object store."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest

from fer import lease as leases
from fer.io.storage import Folder
from fer.lease import lease
from fer.processes import HeldError, LostError
from fer.stages.study import clear_states

MINE, THEIRS = Path("/mine"), Path("/theirs")


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(leases, "SILENT_SECONDS", 1e6)
    yield Folder("memory://leases/one")
    fsspec.filesystem("memory").store.clear()


def left_behind(folder: Folder, owner: str = "gone:/project", machine: str = "") -> None:
    """The lease of a process that was killed."""
    folder.write_json("lease-4.json", {"owner": owner, "machine": machine, "token": "t", "renewed": 9})


def test_lease_is_given_back(folder: Folder) -> None:
    for project in (MINE, THEIRS):
        with lease(folder, project) as held:
            held.check()
            assert folder.names() == {"lease-1.json"}
        assert folder.names() == set()


def test_living_holder_in_another_project_is_named(folder: Folder) -> None:
    refusal = pytest.raises(HeldError, match=f"{folder.name}: .*{THEIRS} works on it")
    with lease(folder, THEIRS), refusal, lease(folder, MINE):
        raise AssertionError


def test_who_waits_gets_it_when_it_is_given_back(folder: Folder) -> None:
    order = []

    def wait() -> None:
        with lease(folder, MINE, wait=True):
            order.append("mine")

    with lease(folder, THEIRS):
        waiting = threading.Thread(target=wait)
        waiting.start()
        waiting.join(0.2)
        order.append("theirs")
    waiting.join()
    assert order == ["theirs", "mine"]


def test_silent_holder_is_replaced_under_the_next_number(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "SILENT_SECONDS", 0.1)
    left_behind(folder)
    with lease(folder, MINE):
        assert folder.names() == {"lease-5.json"}


def test_own_project_takes_over_from_its_dead_process_at_once(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "localhost")
    monkeypatch.setattr("uuid.getnode", lambda: 0xA)
    left_behind(folder, f"localhost:{MINE}", "a")
    with lease(folder, MINE):
        assert folder.names() == {"lease-5.json"}


def test_another_machine_of_the_same_name_with_the_same_folders_is_another_holder(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "localhost")
    with lease(folder, MINE):
        monkeypatch.setattr("uuid.getnode", lambda: 0xB)
        with pytest.raises(HeldError, match=f"localhost:{MINE} works on it"), lease(folder, MINE):
            raise AssertionError


def test_renewal_on_its_way_does_not_bring_the_lease_back(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    write, ends = Folder.write_json, threading.Event()

    def slow(self: Folder, name: str, value: object) -> None:
        ends.wait(5)
        time.sleep(0.1)
        write(self, name, value)

    with lease(folder, MINE):
        monkeypatch.setattr(Folder, "write_json", slow)
        time.sleep(0.1)
        ends.set()
    time.sleep(0.3)
    assert folder.names() == set()


@pytest.mark.usefixtures("folder")
def test_study_that_starts_over_leaves_the_states_that_another_project_trains_from() -> None:
    cell = SimpleNamespace(job=SimpleNamespace(fingerprint="f" * 64, work_dir="memory://bucket/work/one"))
    params, plan = (
        SimpleNamespace(storage="memory://bucket", home=MINE, queued=False),
        SimpleNamespace(distinct={1: cell}),
    )
    work, held = Folder("memory://bucket/work/one"), Folder(f"memory://bucket/leases/{'f' * 16}")
    work.write("state-00000001.pt", b"theirs")
    with lease(held, THEIRS):
        with pytest.raises(HeldError, match=f"{THEIRS} works on it"):
            clear_states(params, plan)  # type: ignore[arg-type]
        assert work.names() == {"state-00000001.pt"}
    clear_states(params, plan)  # type: ignore[arg-type]
    assert work.names() == set()


def test_holder_that_was_replaced_notices_and_leaves_the_new_lease_alone(folder: Folder) -> None:
    with lease(folder, MINE) as held:
        left_behind(folder)
        held.renew()
        with pytest.raises(LostError, match="another process has taken over"):
            held.check()
    assert "lease-4.json" in folder.names()
