"""What is fetched is whole and verified, or has no name."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import resource
import tarfile
import threading
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import fsspec
import pytest
from flaky_server import BODY, Site, serve

from fer.io import disk
from fer.io.files import FileError
from fer.io.transfer import Patience, download, public_url, validator
from fer.io.transfer import http as transfer_http
from fer.io.transfer import part as transfer_part

DIGEST = hashlib.sha256(BODY).hexdigest()
QUICK = Patience(attempts=4, stall=0.3, wait=0.01, longest_wait=5.0)
OTHER = b"another version of the file " * 80_000  # longer than BODY


@pytest.fixture
def site() -> Iterator[Site]:
    with serve(Site()) as running:
        yield running


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "there" / "data.bin"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits that were asked for, in place of waiting."""
    asked: list[float] = []
    monkeypatch.setattr(transfer_part.time, "sleep", asked.append)
    return asked


def in_folder(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir())


def begin(site: Site, target: Path, fault: str = "cut") -> None:
    """Leaves a part as a broken transfer does."""
    site.faults = [fault] * 2
    with pytest.raises(FileError, match=r"run the same command again to go on from there: 699,050 bytes"):
        download(f"{site.url}/a", target, patience=Patience(attempts=1, stall=0.3))
    site.faults.clear()
    site.asked.clear()


# ------------------------------------------------------------------------------------------------ whole files


@pytest.mark.parametrize("faults", [[], ["cut"], ["stall"], ["cut", "stall"], [503, "cut", 429], ["chunked-cut"]])
def test_download_brings_the_whole_file_whatever_breaks(site: Site, target: Path, faults: list[str | int]) -> None:
    site.faults = list(faults)
    download(f"{site.url}/a?token=1", target, sha256_hex=DIGEST.upper(), patience=QUICK)
    assert target.read_bytes() == BODY
    assert in_folder(target) == ["data.bin"]
    assert len(site.asked) == len(faults) + 1


@pytest.mark.parametrize("digest", [None, DIGEST])
def test_a_redirect_is_followed(site: Site, target: Path, digest: str | None) -> None:
    download(f"{site.url}/redirect", target, sha256_hex=digest)
    assert target.read_bytes() == BODY
    assert [path for path, _ in site.asked] == ["/redirect", "/whole"]


def test_a_file_that_is_there_with_its_digest_is_not_asked_for_again(site: Site, target: Path) -> None:
    for _ in range(2):
        download(f"{site.url}/a", target, sha256_hex=DIGEST)
    assert len(site.asked) == 1


def test_names_with_spaces_and_hangul_can_be_fetched(site: Site, target: Path) -> None:
    download(f"{site.url}/기쁨 사진.zip", target)
    assert site.asked[0][0] == "/%EA%B8%B0%EC%81%A8%20%EC%82%AC%EC%A7%84.zip"


def test_a_file_of_unknown_length_is_taken_as_it_comes(site: Site, target: Path) -> None:
    site.faults = ["nothing-said"]
    download(f"{site.url}/a", target)
    assert target.read_bytes() == BODY


@pytest.mark.parametrize("digest", [None, DIGEST])
def test_those_who_ask_at_once_share_a_fetch(site: Site, target: Path, digest: str | None) -> None:
    site.piece, site.pause = 1 << 17, 0.05
    wanted = {"sha256_hex": digest}
    threads = [threading.Thread(target=download, args=(f"{site.url}/a", target), kwargs=wanted) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert target.read_bytes() == BODY
    assert len(site.asked) == 1
    assert in_folder(target) == ["data.bin"]


def test_a_file_that_came_between_the_look_and_the_lock_is_not_fetched_again(
    site: Site, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = transfer_part.Part.held

    def late(part: transfer_part.Part) -> AbstractContextManager[bool]:
        target.write_bytes(BODY)  # by another process, which has let go of the lock
        return held(part)

    monkeypatch.setattr(transfer_part.Part, "held", late)
    download(f"{site.url}/a", target, sha256_hex=DIGEST)
    assert site.asked == []
    assert in_folder(target) == ["data.bin"]


# ------------------------------------------------------------------------------------------------ going on


@pytest.mark.parametrize("fault", ["cut", "stall"])
@pytest.mark.parametrize(("tag", "date"), [('"one"', None), (None, "Fri, 20 Nov 2026 10:00:00 GMT")])
def test_a_broken_transfer_goes_on_where_it_stopped(
    site: Site, target: Path, tag: str | None, date: str | None, fault: str
) -> None:
    site.tag, site.date = tag, date
    begin(site, target, fault)
    download(f"{site.url}/a", target)
    assert target.read_bytes() == BODY
    assert site.starts == [699_050]
    assert site.asked[0][1]["If-Range"] == tag or date


@pytest.mark.parametrize(
    ("before", "after"), [('"one"', '"two"'), ('"one"', None), (None, None), ('W/"one"', 'W/"one"'), (None, '"one"')]
)
def test_a_changed_file_is_never_glued_to_an_old_part(
    site: Site, target: Path, before: str | None, after: str | None
) -> None:
    site.tag = before
    begin(site, target)
    site.tag, site.body = after, OTHER
    download(f"{site.url}/a", target)
    assert target.read_bytes() == OTHER


def test_a_file_that_changes_between_two_attempts_is_fetched_anew(site: Site, target: Path) -> None:
    begin(site, target)
    site.tag, site.body = '"two"', OTHER[: len(BODY)]  # of the same length
    site.faults = ["cut"]
    download(f"{site.url}/a", target, patience=QUICK)
    assert target.read_bytes() == OTHER[: len(BODY)]


def test_a_digest_lets_a_transfer_go_on_where_the_server_names_no_version(site: Site, target: Path) -> None:
    site.tag = None
    begin(site, target)
    download(f"{site.url}/a", target, sha256_hex=DIGEST)
    assert site.starts == [699_050]
    target.unlink()
    begin(site, target)
    site.body = OTHER[: len(BODY)]
    download(f"{site.url}/a", target, sha256_hex=hashlib.sha256(site.body).hexdigest())
    assert site.starts == [699_050, 0], "glued, noticed, and fetched anew"
    assert target.read_bytes() == site.body


def test_the_part_of_another_address_is_not_gone_on_from(site: Site, target: Path) -> None:
    begin(site, target)
    site.body = OTHER
    download(f"{site.url}/b", target)
    assert target.read_bytes() == OTHER


def test_a_server_without_ranges_is_asked_for_the_whole_file_again(site: Site, target: Path) -> None:
    site.ranges = False
    site.faults = ["cut", "cut"]
    download(f"{site.url}/a", target, patience=QUICK)
    assert target.read_bytes() == BODY


def test_a_server_that_always_cuts_is_given_up(site: Site, target: Path) -> None:
    site.ranges = False
    site.faults = ["cut"] * 100
    with pytest.raises(FileError, match=r"closed after 699,050 of 2,097,152 bytes \(4 attempts\)"):
        download(f"{site.url}/a", target, patience=QUICK)
    assert len(site.asked) == QUICK.attempts
    assert in_folder(target) == [".data.bin.part", ".data.bin.part.json"]


def test_progress_renews_the_patience(site: Site, target: Path) -> None:
    site.body = BODY * 6
    site.faults = ["cut"] * 5
    download(f"{site.url}/a", target, patience=QUICK)
    assert target.read_bytes() == BODY * 6


def test_a_whole_part_needs_no_server(site: Site, target: Path) -> None:
    begin(site, target)
    (target.parent / ".data.bin.part").write_bytes(BODY)
    download(f"{site.url}/a", target)
    assert (target.read_bytes(), site.asked) == (BODY, [])


def test_a_part_that_is_longer_than_the_file_is_forgotten(site: Site, target: Path) -> None:
    target.parent.mkdir()
    (target.parent / ".data.bin.part").write_bytes(BODY + b"x")
    download(f"{site.url}/a", target, sha256_hex=DIGEST, patience=QUICK)
    assert site.starts == [len(BODY) + 1, 0]


def test_another_range_than_asked_for_is_not_taken(site: Site, target: Path) -> None:
    begin(site, target)
    site.faults = ["shifted"]
    download(f"{site.url}/a", target, patience=QUICK)
    assert (target.read_bytes(), site.starts) == (BODY, [699_050, 0])


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("faults", "told"),
    [
        ([404], "the server answered 404"),
        ([403], "403 Forbidden; the link needs a login or has expired"),
        (["page"], "sent a web page, not the data; the link probably needs a login"),
        (["long"] * 9, "closed after 2,097,152 of 2,098,152 bytes|answered 416: the file is shorter"),
        (["short"], "says that the file has 2,096,152 bytes, and sends more"),
        ([500] * 9, r"answered 500 \(4 attempts\)"),
        (["stall"] * 9, "no byte for 0.3 s"),
        ([204], "answered 204 No Content, and sent no file"),
    ],
)
def test_what_is_not_the_file_has_no_name_and_leaves_the_old_one(
    site: Site, target: Path, faults: list[str | int], told: str
) -> None:
    target.parent.mkdir()
    target.write_bytes(b"old")
    site.faults = list(faults)
    with pytest.raises(FileError, match=told):
        download(f"{site.url}/a", target, patience=QUICK)
    assert target.read_bytes() == b"old"


def test_a_wrong_digest_is_refused_and_nothing_of_it_stays(site: Site, target: Path) -> None:
    with pytest.raises(FileError, match="sha256 is"):
        download(f"{site.url}/a", target, sha256_hex="0" * 64)
    assert in_folder(target) == []


def test_waits_double_and_a_servers_own_are_kept(site: Site, target: Path, waits: list[float]) -> None:
    site.faults = [503, 502, 500, 429]
    site.headers = {"Retry-After": "7"}
    download(f"{site.url}/a", target, patience=Patience(attempts=6))
    assert waits == [7, 7, 7, 7]
    waits.clear()
    site.faults, site.headers = [503, 502, 500], {}
    download(f"{site.url}/a", target, patience=Patience(attempts=6))
    assert waits == [1, 2, 4]


def test_a_server_that_asks_for_an_hour_is_not_waited_for(site: Site, target: Path, waits: list[float]) -> None:
    site.faults, site.headers = [429], {"Retry-After": "Fri, 20 Nov 2099 10:00:00 GMT"}
    with pytest.raises(FileError, match=r"answered 429, and asks to come back in \d+ s"):
        download(f"{site.url}/a", target)
    assert waits == []


def test_a_redirect_out_of_encryption_is_refused() -> None:
    redirects = transfer_http._Redirects("https://x/a")
    request = urllib.request.Request("https://x/a")
    with pytest.raises(FileError, match="redirects from https to http"):
        redirects.redirect_request(request, None, 302, "Found", {}, "http://x/a?secret=1")
    assert redirects.redirect_request(request, None, 302, "Found", {}, "https://y/a").full_url == "https://y/a"


@pytest.mark.parametrize("place", ["file:///etc/passwd", "/circle"])
def test_a_redirect_to_files_or_in_a_circle_is_refused(site: Site, target: Path, place: str) -> None:
    with pytest.raises(FileError, match="redirects in a circle, or to no http address"):
        download(f"{site.url}/redirect?to={place}", target, patience=QUICK)


def test_an_address_that_answers_nothing_is_told(target: Path) -> None:
    with pytest.raises(FileError, match=r"^http://127.0.0.1:9/a: .*refused \(2 attempts\)$"):
        download("http://me:secret@127.0.0.1:9/a?token=abc", target, patience=Patience(attempts=2, wait=0.01))
    with pytest.raises(FileError, match="not a valid URL"):
        download("http://me:secret@127.0.0.1:port/a?token=abc", target)


# ------------------------------------------------------------------------------------------------ secrets


def test_user_and_password_go_to_the_server_and_nowhere_else(site: Site, target: Path) -> None:
    address = site.url.replace("http://", "http://me:p%40ss@")
    download(f"{address}/redirect?to={site.url}/b", target)
    assert site.asked[0][1]["Authorization"] == "Basic bWU6cEBzcw=="
    assert "Authorization" not in site.asked[1][1]


def test_urls_are_told_without_secrets() -> None:
    assert public_url("https://me:secret@host/a.csv?token=abc#key") == "https://host/a.csv"
    assert public_url("s3://key:secret@bucket/a b.csv") == "s3://bucket/a b.csv"
    assert public_url("/data/what?is#it.csv") == "/data/what?is#it.csv"
    text = transfer_part.without_secrets("cannot open abc of me:pw\nat /home", "s3://me:pw@bucket/a?token=abc")
    assert text == "cannot open *** of ***"


def test_no_secret_is_in_any_message_or_kept_file(
    site: Site, target: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fer.console.log.propagate", True)
    site.faults = ["cut", 503, "stall", 404]
    address = site.url.replace("http://", "http://me:hunter2@")
    with pytest.raises(FileError) as failure:
        download(f"{address}/a?token=hunter2", target, patience=QUICK)
    kept = (target.parent / ".data.bin.part.json").read_text()
    assert "hunter2" not in f"{failure.value} {caplog.text} {kept}"
    assert "closed after" in caplog.text


# ------------------------------------------------------------------------------------------------ disks


def test_a_full_disk_midway_is_told_and_what_arrived_is_gone_on_from(site: Site, target: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limit[1]))  # the system refuses to write any further
    try:
        with pytest.raises(FileError, match=r"cannot be written: File too large; what has arrived is kept in"):
            download(f"{site.url}/a", target, patience=QUICK)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert len(site.asked) == 1, "asking again does not make room"
    assert not target.exists()
    download(f"{site.url}/a", target)
    assert (target.read_bytes(), site.starts[1]) == (BODY, 1 << 20)


def test_a_file_that_cannot_fit_is_not_begun(site: Site, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(FileError, match=r"needs 0.00 GB in .*there, where 0.00 GB are free"):
        download(f"{site.url}/a", target)
    assert in_folder(target) == []


# ------------------------------------------------------------------------------------------------ paths


def test_local_files_come_by_path_and_by_file_url(tmp_path: Path, target: Path) -> None:
    source = tmp_path / "여기 50%.bin"
    source.write_bytes(BODY)
    for one in (str(source), source.as_uri(), f"file://localhost{source.as_uri()[7:]}"):
        download(one, target)
        assert target.read_bytes() == BODY
        target.unlink()
    for wrong, told in ((str(tmp_path), "is a folder"), ("nowhere.bin", "no such file"), ("file://pc/a", "another")):
        with pytest.raises(FileError, match=told):
            download(wrong, target)
    assert in_folder(target) == []


# ------------------------------------------------------------------------------------------------ impostors


def _archives() -> dict[str, bytes]:
    """A whole archive of each kind."""
    content, body = io.BytesIO(), BODY[:50_000] + hashlib.sha512(BODY).digest() * 100
    with tarfile.open(fileobj=content, mode="w") as tar:
        info = tarfile.TarInfo("a")
        info.size = len(body)
        tar.addfile(info, io.BytesIO(body))
    tarred = content.getvalue()
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("a", body)
    return {
        "zip": zipped.getvalue(),
        "tar": tarred,
        "tar.gz": gzip.compress(tarred),
        "csv.bz2": bz2.compress(body),
        "tar.xz": lzma.compress(tarred),
    }


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "csv.bz2", "tar.xz"])
def test_a_truncated_archive_is_refused_and_a_whole_one_is_taken(tmp_path: Path, kind: str) -> None:
    whole = _archives()[kind]
    source, target = tmp_path / "in", tmp_path / f"out.{kind}"
    source.write_bytes(whole)
    download(str(source), target)
    target.unlink()
    for length in (len(whole) - 1, len(whole) // 2, len(whole) * 9 // 10):
        source.write_bytes(whole[:length])
        with pytest.raises(FileError, match="cut off"):
            download(str(source), target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_the_published_archive_that_is_cut_off_is_refused(test_data: Path, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cut off"):
        download(str(test_data / "bad/archives/fer2013_truncated.tar.gz"), tmp_path / "fer2013.tar.gz")


def test_a_lfs_pointer_and_a_web_page_are_no_data(test_data: Path, tmp_path: Path) -> None:
    for name, told in (("fer2013_lfs_pointer.csv", "git lfs pull"), ("fer2013_is_html.csv", "web page")):
        with pytest.raises(FileError, match=told):
            download(str(test_data / "bad/csv" / name), tmp_path / "out.csv")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ object stores


@pytest.fixture
def store() -> Iterator[fsspec.AbstractFileSystem]:
    system = fsspec.filesystem("memory")
    system.pipe_file("/shop/data.bin", BODY)
    yield system
    system.store.clear()


def test_an_object_store_is_read_like_a_server(store: fsspec.AbstractFileSystem, target: Path) -> None:
    download("memory://shop/data.bin", target, sha256_hex=DIGEST)
    assert target.read_bytes() == BODY
    assert in_folder(target) == ["data.bin"]
    for wrong, told in (("memory://shop/none", "no such object"), ("memory://shop", "is a folder")):
        with pytest.raises(FileError, match=told):
            download(wrong, target)


# ------------------------------------------------------------------------------------------------ versions


def test_the_version_of_a_url_is_asked_for_without_fetching_it(site: Site) -> None:
    assert validator(f"{site.url}/a") == '"one"'
    site.tag, site.date = None, "Mon, 01 Jan 2024 00:00:00 GMT"
    assert validator(f"{site.url}/a") == f"{site.date} {len(BODY)}"
    assert [path for path, _ in site.asked] == ["HEAD /a", "HEAD /a"]


def test_the_version_of_a_link_signed_for_get_is_asked_for_by_get(site: Site) -> None:
    site.heads = False
    assert validator(f"{site.url}/a?signature=1") == '"one"'


def test_no_version_is_taken_from_a_web_page_or_a_refusal(site: Site) -> None:
    site.headers = {"Content-Type": "text/html"}
    with pytest.raises(FileError, match=r"/a: the server sent a web page"):
        validator(f"{site.url}/a?token=secret")
    site.heads, site.headers, site.faults = False, {}, [503]
    with pytest.raises(FileError, match=r"/a: the server answered 503$"):
        validator(f"{site.url}/a?token=secret")


def test_the_version_of_an_object_in_a_store_changes_with_it(store: fsspec.AbstractFileSystem) -> None:
    before = validator("memory://shop/data.bin")
    assert validator("memory://shop/data.bin") == before
    store.pipe_file("/shop/data.bin", OTHER)
    assert validator("memory://shop/data.bin") != before
    with pytest.raises(FileError, match="no such object"):
        validator("memory://shop/none")


def test_a_broken_read_of_a_store_goes_on_and_a_changed_object_is_read_anew(
    store: fsspec.AbstractFileSystem, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    read = type(store).cat_file
    monkeypatch.setattr("fer.io.transfer.store._RANGE", 1 << 19)

    def flaky(self: object, path: str, start: int, end: int) -> bytes:
        asked.append(start)
        if len(asked) == 3:
            raise OSError("connection reset")
        if len(asked) == 5:
            store.pipe_file("/shop/data.bin", OTHER)
        return bytes(read(self, path, start=start, end=end))

    monkeypatch.setattr(type(store), "cat_file", flaky)
    download("memory://shop/data.bin", target, patience=QUICK)
    assert target.read_bytes() == OTHER
    assert asked[:5] == [0, 1 << 19, 1 << 20, 1 << 20, 3 << 19]


def test_a_store_whose_package_is_missing_names_it(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(url: str) -> None:
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr("fsspec.core.url_to_fs", absent)
    with pytest.raises(FileError, match=r"^gs://bucket/a: .*`pip install gcsfs`"):
        download("gs://bucket/a?token=1", target)


def test_an_unknown_scheme_names_the_known(target: Path) -> None:
    with pytest.raises(FileError, match="nothing here reads gopher://; known are http, https"):
        download("gopher://host/a", target)
