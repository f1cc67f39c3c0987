"""A folder on a disk, in memory and on an S3 server: the same files, and writes that only one of several can make."""

import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from builders.store import S3, s3_server

from fer.io import storage
from fer.io.files import FileError
from fer.io.storage import Folder, OutageError, inside


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with s3_server() as running:
        yield running


@pytest.fixture(params=["disk", "memory", "s3"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A folder that does not exist yet."""
    if request.param == "disk":
        yield str(tmp_path / "folder")
    elif request.param == "memory":
        yield f"memory://{tmp_path.name}/folder"
        fsspec.filesystem("memory").store.clear()
    else:
        yield inside(request.getfixturevalue("server").url, tmp_path.name)


@pytest.fixture
def store(server: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    """A folder of the S3 server, which is asked again at once."""
    monkeypatch.setattr(storage, "_WAIT_SECONDS", 0.01)
    yield Folder(inside(server.url, tmp_path.name))
    server.fault = ""


def test_files_are_written_replaced_listed_and_removed(location: str) -> None:
    folder = Folder(location)
    assert folder.names() == set()
    assert folder.find("a") is None
    folder.remove("a")
    folder.write("a", b"one")
    folder.write("a", b"other")
    folder.write_json("b.json", {"z": 1, "a": [None]})
    assert folder.names() == {"a", "b.json"}
    assert folder.read("a") == b"other"
    assert folder.find_json("b.json") == {"a": [None], "z": 1}
    folder.remove("a")
    assert folder.names() == {"b.json"}
    with pytest.raises(FileError, match="a: no such file"):
        folder.read("a")
    with pytest.raises(FileError, match=r"b\.json: larger than 3 bytes"):
        folder.read("b.json", 3)
    folder.check()
    assert folder.names() == {"b.json"}


@pytest.mark.parametrize("location", ["memory", "s3"], indirect=True)
def test_of_many_who_create_a_file_at_once_one_does(location: str) -> None:
    created = []

    def create(number: int) -> None:
        if Folder(location).create("lease", b"%d" % number):
            created.append(b"%d" % number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert created == [Folder(location).read("lease")]
    assert not Folder(location).create("lease", b"another")


@pytest.mark.parametrize("location", ["memory", "s3"], indirect=True)
def test_store_folder_takes_whole_files_and_is_cleared(location: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(1000))
    folder = Folder(location)
    assert folder.sizes() == {}
    folder.put("file", tmp_path / "file")
    Folder(inside(location, "below")).write("deep", b"x")
    assert folder.sizes()["file"] == 1000
    folder.clear()
    assert folder.names() == Folder(inside(location, "below")).names() == set()
    folder.clear()


def test_store_that_is_away_for_a_while_is_asked_again(server: S3, store: Folder) -> None:
    server.fault = "away"
    threading.Timer(0.5, lambda: setattr(server, "fault", "")).start()
    store.write("a", b"data")
    assert store.read("a") == b"data"


@pytest.mark.slow
def test_store_that_stays_away_is_an_outage_that_names_the_file(server: S3, store: Folder) -> None:
    server.fault = "away"
    with pytest.raises(OutageError, match=f"{store.name}/a: "):
        Folder(store.location, attempts=1).write("a", b"data")


def test_store_that_refuses_writes_is_asked_once(server: S3, store: Folder) -> None:
    store.write("a", b"data")
    server.fault = "read only"
    with pytest.raises(FileError, match=f"{store.name}/a: the store refuses .*credentials"):
        store.write("a", b"other")
    assert store.read("a") == b"data"
