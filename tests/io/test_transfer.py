"""A downloaded file is complete and verified, or does not have its final name."""

import bz2
import gzip
import hashlib
import lzma
import resource
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import fsspec
import pytest
from builders.archives import member, tar_of, zip_of
from flaky_server import BODY, Site, serve

from fer.io import files, remote, transfer
from fer.io.files import FileError
from fer.io.transfer import Patience, download

DIGEST = hashlib.sha256(BODY).hexdigest()
QUICK = Patience(attempts=4, stall=0.3, wait=0.01, longest_wait=5.0)
OTHER = b"another version of the file " * 80_000  # longer than BODY
SAME_LENGTH = OTHER[: len(BODY)]
RECEIVED = 699_050  # bytes of BODY before the server's faults "cut" and "stall"


@pytest.fixture
def site() -> Iterator[Site]:
    with serve(Site()) as running:
        yield running


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "there" / "data.bin"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits that this thread asked for, instead of waiting."""
    asked: list[float] = []
    sleep, own = time.sleep, threading.get_ident()
    monkeypatch.setattr(
        time, "sleep", lambda seconds: asked.append(seconds) if threading.get_ident() == own else sleep(seconds)
    )
    return asked


def in_folder(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir())


def begin(site: Site, target: Path, fault: str = "cut") -> None:
    """Leaves a part as a broken transfer does."""
    site.faults = [fault] * 2
    with pytest.raises(FileError, match=rf"run the same command again to resume: {RECEIVED:,} bytes"):
        download(f"{site.url}/a", target, patience=Patience(attempts=1, stall=0.3))
    site.faults.clear()
    site.asked.clear()


# ------------------------------------------------------------------------------------------------ complete files


@pytest.mark.parametrize("faults", [[], ["cut"], ["stall"], ["cut", "stall"], [503, "cut", 429], ["chunked-cut"]])
def test_file_is_complete_after_any_transient_fault(site: Site, target: Path, faults: list[str | int]) -> None:
    site.faults = list(faults)
    download(f"{site.url}/a?token=1", target, sha256_hex=DIGEST.upper(), patience=QUICK)
    assert target.read_bytes() == BODY
    assert in_folder(target) == ["data.bin"]
    assert len(site.asked) > len(faults)  # a busy machine may add a stall


@pytest.mark.parametrize(
    ("path", "faults", "paths"),
    [
        ("redirect", [], ["/redirect", "/whole"]),
        ("기쁨 사진.zip", [], ["/%EA%B8%B0%EC%81%A8%20%EC%82%AC%EC%A7%84.zip"]),
        ("of-unknown-length", ["nothing-said"], ["/of-unknown-length"]),
    ],
)
@pytest.mark.parametrize("digest", [None, DIGEST])
def test_redirects_odd_names_and_unknown_lengths_are_supported(
    site: Site, target: Path, path: str, faults: list[str | int], paths: list[str], digest: str | None
) -> None:
    site.faults = faults.copy()
    download(f"{site.url}/{path}", target, sha256_hex=digest)
    assert target.read_bytes() == BODY
    if digest is not None:
        download(f"{site.url}/{path}", target, sha256_hex=digest)  # there already: not requested again
    assert [asked for asked, _ in site.asked] == paths


@pytest.mark.parametrize("digest", [None, DIGEST])
def test_concurrent_downloads_share_one_fetch(site: Site, target: Path, digest: str | None) -> None:
    site.piece, site.pause = 1 << 17, 0.05
    options = {"sha256_hex": digest}
    threads = [threading.Thread(target=download, args=(f"{site.url}/a", target), kwargs=options) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert target.read_bytes() == BODY
    assert len(site.asked) == 1
    assert in_folder(target) == ["data.bin"]


def test_file_that_appears_before_the_lock_is_not_fetched_again(
    site: Site, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = transfer.Part.held

    def late(part: transfer.Part) -> AbstractContextManager[bool]:
        target.write_bytes(BODY)  # by another process, which has released the lock
        return held(part)

    monkeypatch.setattr(transfer.Part, "held", late)
    download(f"{site.url}/a", target, sha256_hex=DIGEST)
    assert site.asked == []
    assert in_folder(target) == ["data.bin"]


# ------------------------------------------------------------------------------------------------ resuming


@pytest.mark.parametrize("fault", ["cut", "stall"])
@pytest.mark.parametrize(("tag", "date"), [('"one"', None), (None, "Fri, 20 Nov 2026 10:00:00 GMT")])
def test_broken_transfer_resumes_where_it_stopped(
    site: Site, target: Path, tag: str | None, date: str | None, fault: str
) -> None:
    site.tag, site.date = tag, date
    begin(site, target, fault)
    download(f"{site.url}/a", target)
    assert target.read_bytes() == BODY
    assert site.starts == [RECEIVED]
    assert site.asked[0][1]["If-Range"] == (tag or date)


@pytest.mark.parametrize(
    ("before", "after", "body", "fault"),
    [
        ('"one"', '"two"', OTHER, []),
        ('"one"', None, OTHER, []),
        (None, None, OTHER, []),
        ('W/"one"', 'W/"one"', OTHER, []),
        (None, '"one"', OTHER, []),
        ('"one"', '"two"', SAME_LENGTH, ["cut"]),  # changes, and breaks again
    ],
)
def test_bytes_of_two_versions_are_never_combined(
    site: Site, target: Path, before: str | None, after: str | None, body: bytes, fault: list[str | int]
) -> None:
    site.tag = before
    begin(site, target)
    site.tag, site.body, site.faults = after, body, fault
    download(f"{site.url}/a", target, patience=QUICK)
    assert target.read_bytes() == body


def test_digest_allows_to_resume_without_a_version(site: Site, target: Path) -> None:
    site.tag = None
    begin(site, target)
    download(f"{site.url}/a", target, sha256_hex=DIGEST)
    assert site.starts == [RECEIVED]
    target.unlink()
    begin(site, target)
    site.body = SAME_LENGTH
    download(f"{site.url}/a", target, sha256_hex=hashlib.sha256(site.body).hexdigest())
    assert site.starts == [RECEIVED, 0], "combined, noticed, and fetched from the start"
    assert target.read_bytes() == site.body


def test_server_without_ranges_is_asked_for_the_whole_file_until_the_attempts_end(site: Site, target: Path) -> None:
    site.ranges = False
    site.faults = ["cut", "cut"]
    download(f"{site.url}/a", target, patience=QUICK)
    assert target.read_bytes() == BODY
    target.unlink()
    site.asked.clear()
    site.faults = ["cut"] * 100
    with pytest.raises(FileError, match=rf"closed after {RECEIVED:,} of 2,097,152 bytes \(4 attempts\)"):
        download(f"{site.url}/a", target, patience=QUICK)
    assert len(site.asked) == QUICK.attempts
    assert in_folder(target) == [".data.bin.part", ".data.bin.part.json"]


def test_progress_renews_the_attempts(site: Site, target: Path) -> None:
    site.body = BODY * 6
    site.faults = ["cut"] * 5
    download(f"{site.url}/a", target, patience=QUICK)
    assert target.read_bytes() == BODY * 6


@pytest.mark.parametrize(
    ("path", "part", "faults", "starts"),
    [
        ("a", BODY, [], []),  # complete: no request
        ("a", BODY + b"x", [], [0]),  # longer than the file
        ("a", BODY[:RECEIVED], ["shifted"], [RECEIVED, 0]),  # another range than requested
        ("b", BODY[:RECEIVED], [], [0]),  # of another URL
    ],
)
def test_part_is_resumed_only_where_it_fits(
    site: Site, target: Path, path: str, part: bytes, faults: list[str | int], starts: list[int]
) -> None:
    begin(site, target)
    (target.parent / ".data.bin.part").write_bytes(part)
    site.faults = faults.copy()
    download(f"{site.url}/{path}", target, patience=QUICK)
    assert (target.read_bytes(), site.starts) == (BODY, starts)


def test_part_longer_than_the_file_of_unknown_version_is_discarded(site: Site, target: Path) -> None:
    target.parent.mkdir()
    (target.parent / ".data.bin.part").write_bytes(BODY + b"x")
    download(f"{site.url}/a", target, sha256_hex=DIGEST, patience=QUICK)
    assert site.starts == [len(BODY) + 1, 0], "refused with status 416, and fetched from the start"


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        ([404], "the server answered 404"),
        ([403], "403 Forbidden; the link needs a login or has expired"),
        (["page"], "sent a web page, not the data; the link probably needs a login"),
        (["long"] * 9, "closed after 2,097,152 of 2,098,152 bytes|answered 416"),
        (["short"], "says that the file has 2,096,152 bytes, and sends more"),
        ([500] * 9, r"answered 500 \(4 attempts\)"),
        (["stall"] * 9, "no byte for 0.3 s"),
        ([204], "answered 204 No Content, and sent no file"),
    ],
)
def test_failed_download_leaves_the_existing_file_and_the_next_one_completes(
    site: Site, target: Path, faults: list[str | int], words: str
) -> None:
    target.parent.mkdir()
    target.write_bytes(b"old")
    site.faults = list(faults)
    with pytest.raises(FileError, match=rf"^{site.url}/a: .*({words})"):
        download(f"{site.url}/a", target, patience=QUICK)
    assert target.read_bytes() == b"old"
    site.faults.clear()
    target.unlink()
    download(f"{site.url}/a", target)
    assert (target.read_bytes(), in_folder(target)) == (BODY, ["data.bin"])


def test_wrong_digest_is_refused_and_nothing_is_left(site: Site, target: Path) -> None:
    with pytest.raises(FileError, match=rf"sha256 is {DIGEST}, expected 0000"):
        download(f"{site.url}/a", target, sha256_hex="0" * 64)
    assert in_folder(target) == []


def test_waits_double_unless_the_server_names_one(site: Site, target: Path, waits: list[float]) -> None:
    for headers, expected in (({"Retry-After": "7"}, [7, 7, 7]), ({}, [1, 2, 4])):
        site.faults, site.headers = [503, 502, 429], headers
        download(f"{site.url}/a", target, patience=Patience(attempts=6))
        assert waits == expected
        waits.clear()


def test_server_that_asks_for_an_hour_is_not_waited_for(site: Site, target: Path, waits: list[float]) -> None:
    site.faults, site.headers = [429], {"Retry-After": "Fri, 20 Nov 2099 10:00:00 GMT"}
    with pytest.raises(FileError, match=r"answered 429, and asks for a wait of \d+ s"):
        download(f"{site.url}/a", target)
    assert waits == []


def test_redirect_from_https_to_http_is_refused() -> None:
    redirects = remote._Redirects("https://x/a")
    request = urllib.request.Request("https://x/a")
    with pytest.raises(FileError, match=r"https://x/a: .*redirects from https to http"):
        redirects.redirect_request(request, None, 302, "Found", {}, "http://x/a?secret=1")
    assert redirects.redirect_request(request, None, 302, "Found", {}, "https://y/a").full_url == "https://y/a"


@pytest.mark.parametrize("place", ["file:///etc/passwd", "/circle"])
def test_redirect_to_a_file_or_in_a_circle_is_refused(site: Site, target: Path, place: str) -> None:
    with pytest.raises(FileError, match="redirects in a circle, or to an address that is not http"):
        download(f"{site.url}/redirect?to={place}", target, patience=QUICK)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://me:secret@127.0.0.1:9/a?token=abc", r"http://127.0.0.1:9/a: .*refused \(2 attempts\)$"),
        ("http://me:secret@127.0.0.1:port/a?token=abc", r"http://127.0.0.1:port/a: not a valid URL$"),
        ("gopher://host/a", "gopher://host/a: unknown scheme gopher://; known are http, https"),
        ("file://pc/a", "file://pc/a: a file URL of another machine"),
        ("nowhere.bin", r"nowhere\.bin: no such file"),
        (".", r"\.: is a folder"),
        ("memory://shop", "memory://shop: is a folder"),
        ("memory://shop/none", "memory://shop/none: no such object"),
    ],
)
def test_unreachable_source_is_named(target: Path, store: fsspec.AbstractFileSystem, url: str, words: str) -> None:
    with pytest.raises(FileError, match=f"^{words}"):
        download(url, target, patience=Patience(attempts=2, wait=0.01))
    assert in_folder(target) == []


# ------------------------------------------------------------------------------------------------ secrets


def test_password_is_sent_to_the_server_and_not_along_redirects(site: Site, target: Path) -> None:
    address = site.url.replace("http://", "http://me:p%40ss@")
    download(f"{address}/redirect?to={site.url}/b", target)
    assert site.asked[0][1]["Authorization"] == "Basic bWU6cEBzcw=="
    assert "Authorization" not in site.asked[1][1]


def test_secrets_are_removed_from_urls_and_errors() -> None:
    assert remote.public_url("https://me:secret@host/a.csv?token=abc#key") == "https://host/a.csv"
    assert remote.public_url("s3://key:secret@bucket/a b.csv") == "s3://bucket/a b.csv"
    assert remote.public_url("/data/what?is#it.csv") == "/data/what?is#it.csv"
    text = remote.without_secrets("cannot open abc of me:pw\nat /home", "s3://me:pw@bucket/a?token=abc")
    assert text == "cannot open *** of ***"


def test_no_message_and_no_file_holds_a_secret(
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


# ------------------------------------------------------------------------------------------------ full disk


def test_disk_that_fills_up_is_named_and_the_next_run_resumes(site: Site, target: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limit[1]))  # the system refuses to write any further
    try:
        with pytest.raises(FileError, match=r"\.data\.bin\.part: cannot be written: File too large; .* are kept in"):
            download(f"{site.url}/a", target, patience=QUICK)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert len(site.asked) == 1, "asking again does not make room"
    assert not target.exists()
    download(f"{site.url}/a", target)
    assert (target.read_bytes(), site.starts[1]) == (BODY, 1 << 20)


def test_file_larger_than_the_free_space_is_not_begun(
    site: Site, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(FileError, match=r"needs 0.00 GB in .*there, where 0.00 GB are free"):
        download(f"{site.url}/a", target)
    assert in_folder(target) == []


# ------------------------------------------------------------------------------------------------ local files


def test_local_file_is_copied_from_a_path_or_a_file_url(tmp_path: Path, target: Path) -> None:
    source = tmp_path / "여기 50%.bin"
    source.write_bytes(BODY)
    for one in (str(source), source.as_uri(), f"file://localhost{source.as_uri()[7:]}"):
        download(one, target)
        assert target.read_bytes() == BODY
        target.unlink()


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "csv.bz2", "tar.xz"])
def test_truncated_archive_is_refused_and_a_complete_one_accepted(tmp_path: Path, kind: str) -> None:
    body = BODY[:50_000] + hashlib.sha512(BODY).digest() * 100
    tarred = tar_of(member("a", body))
    whole = {
        "zip": zip_of({"a": body}),
        "tar": tarred,
        "tar.gz": gzip.compress(tarred),
        "csv.bz2": bz2.compress(body),
        "tar.xz": lzma.compress(tarred),
    }[kind]
    source, target = tmp_path / "in", tmp_path / f"out.{kind}"
    source.write_bytes(whole)
    download(str(source), target)
    target.unlink()
    for length in (len(whole) - 1, len(whole) // 2, len(whole) * 9 // 10):
        source.write_bytes(whole[:length])
        with pytest.raises(FileError, match=r"in: .*cut off"):
            download(str(source), target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("archives/fer2013_truncated.tar.gz", "cut off"),
        ("csv/fer2013_lfs_pointer.csv", "git lfs pull"),
        ("csv/fer2013_is_html.csv", "web page"),
    ],
)
def test_published_impostors_are_refused(test_data: Path, tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(FileError, match=f"{name}: .*{words}"):
        download(str(test_data / "bad" / name), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ versions


def test_version_of_a_url_is_read_without_fetching_it(site: Site) -> None:
    assert remote.validator(f"{site.url}/a") == '"one"'
    site.tag, site.date = None, "Mon, 01 Jan 2024 00:00:00 GMT"
    assert remote.validator(f"{site.url}/a") == f"{site.date} {len(BODY)}"
    assert [path for path, _ in site.asked] == ["HEAD /a", "HEAD /a"]
    site.tag, site.heads = '"one"', False  # a link that is signed for GET
    assert remote.validator(f"{site.url}/a?signature=1") == '"one"'
    site.faults = [503]
    with pytest.raises(FileError, match=r"/a: the server answered 503$"):
        remote.validator(f"{site.url}/a?token=secret")
    site.headers = {"Content-Type": "text/html"}
    with pytest.raises(FileError, match=r"/a: the server sent a web page"):
        remote.validator(f"{site.url}/a?token=secret")


# ------------------------------------------------------------------------------------------------ object stores


@pytest.fixture
def store() -> Iterator[fsspec.AbstractFileSystem]:
    system = fsspec.filesystem("memory")
    system.pipe_file("/shop/data.bin", BODY)
    yield system
    system.store.clear()


def test_object_is_downloaded_from_a_store(store: fsspec.AbstractFileSystem, target: Path) -> None:
    download("memory://shop/data.bin", target, sha256_hex=DIGEST)
    assert target.read_bytes() == BODY
    assert in_folder(target) == ["data.bin"]


def test_version_of_an_object_changes_with_it(store: fsspec.AbstractFileSystem) -> None:
    before = remote.validator("memory://shop/data.bin")
    assert remote.validator("memory://shop/data.bin") == before
    store.pipe_file("/shop/data.bin", OTHER)
    assert remote.validator("memory://shop/data.bin") != before
    with pytest.raises(FileError, match="memory://shop/none: no such object"):
        remote.validator("memory://shop/none")


def test_broken_read_of_a_store_resumes_and_a_changed_object_is_fetched_from_the_start(
    store: fsspec.AbstractFileSystem, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    read = type(store).cat_file
    monkeypatch.setattr(remote, "_RANGE", 1 << 19)

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


def test_missing_package_of_a_store_is_named(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(url: str) -> None:
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr("fsspec.core.url_to_fs", absent)
    with pytest.raises(FileError, match=r"^gs://bucket/a: .*install gcsfs"):
        download("gs://bucket/a?token=1", target)
