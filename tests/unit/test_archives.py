"""An archive comes out whole, or not at all, and never outside its folder."""

from __future__ import annotations

import gzip
import io
import os
import resource
import signal
import stat
import subprocess
import sys
import tarfile
import time
import unicodedata
import zipfile
from pathlib import Path

import pytest
from hostile_archives import (
    encrypted,
    member,
    overlapping_zip,
    raw_zip,
    tar_gz_of_zeros,
    tar_of,
    zip_of,
    zip_of_zeros,
)

from fer.io import disk
from fer.io.archives import Limits, extract
from fer.io.files import FileError

GOOD = {"set/train/0/a.jpg": b"one" * 1000, "set/train/1/b.jpg": b"", "set/labels.csv": b"a,0\n"}
TARS = ["w", "w:gz", "w:bz2", "w:xz"]


def unpack(tmp_path: Path, data: bytes, **options: object) -> dict[str, bytes]:
    """What comes out of an archive."""
    archive = tmp_path / "any name"
    archive.write_bytes(data)
    extract(archive, tmp_path / "out", **options)  # type: ignore[arg-type]
    found = {
        str(path.relative_to(tmp_path / "out")): path.read_bytes()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["any name", "out"]
    return found


def names_in(folder: Path) -> list[str]:
    """Names of what lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


def refused(tmp_path: Path, data: bytes, told: str, **options: object) -> None:
    """That it is refused, and that nothing is left of it, inside or outside."""
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    archive = folder / "any name"
    archive.write_bytes(data)
    with pytest.raises(FileError, match=told) as failure:
        extract(archive, folder / "out", **options)  # type: ignore[arg-type]
    assert str(archive) in str(failure.value)
    assert len(str(failure.value).splitlines()) == 1
    left = [path for path in tmp_path.rglob("*") if not path.is_dir()]
    assert left == [archive]
    assert list(folder.iterdir()) == [archive]


# ------------------------------------------------------------------------------------------------ good ones


@pytest.mark.parametrize("mode", ["zip", *TARS])
def test_an_archive_is_known_by_its_content_and_comes_out_whole(tmp_path: Path, mode: str) -> None:
    data = zip_of(GOOD) if mode == "zip" else tar_of(*(member(*one) for one in GOOD.items()), mode=mode)
    assert unpack(tmp_path, data) == GOOD


@pytest.mark.parametrize("mode", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_korean_names_come_out_of_every_form_of_tar(tmp_path: Path, mode: int) -> None:
    name = "/".join(["라벨"] * 10 + ["기쁨 (1).jpg"])
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=mode) as archive:
        archive.addfile(tarfile.TarInfo(name))
        folder = tarfile.TarInfo("./set/empty/")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    extract(path, tmp_path / "out")
    assert [str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.jpg")] == [name]


def test_a_zip64_comes_out_whole_and_its_cut_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)  # the format of large archives, without being large
    data = zip_of(GOOD)
    assert b"PK\x06\x06" in data
    assert unpack(tmp_path, data) == GOOD
    at = data.index(b"PK\x06\x06")
    refused(tmp_path / "cut", data[: at - 1] + data[at:], "damaged|cut off")


def test_something_before_a_zip_does_not_matter(tmp_path: Path) -> None:
    assert unpack(tmp_path, zip_of(GOOD) + zip_of({"a": b"b"})) == {"a": b"b"}, "the last is the archive"


def test_modes_are_those_of_new_files(tmp_path: Path) -> None:
    mode = stat.S_IFREG | stat.S_ISUID | stat.S_ISGID | 0o777
    unpack(tmp_path, zip_of({"a": b"x"}, modes={"a": mode}))
    first = (tmp_path / "out" / "a").stat().st_mode
    (tmp_path / "other").mkdir()
    unpack(tmp_path / "other", tar_of(member("a", b"x", mode=0o7777)))
    assert first == (tmp_path / "other" / "out" / "a").stat().st_mode == stat.S_IFREG | (0o666 & ~_umask())


def _umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


def test_an_existing_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(FileError, match="exists already"):
        unpack(tmp_path, zip_of(GOOD))
    assert names_in(tmp_path / "out") == ["mine"]


# ------------------------------------------------------------------------------------------------ names


def test_korean_names_without_a_stated_encoding_are_read_right(test_data: Path, tmp_path: Path) -> None:
    extract(test_data / "bad/cp949_names.zip", tmp_path / "out")
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.jpg"))
    assert found == ["기쁨/0002_여_20_기쁨.jpg", "분노/0001_남_30_분노.jpg"]
    assert all(unicodedata.is_normalized("NFC", name) for name in found)


@pytest.mark.parametrize(
    ("raw", "options", "expected"),
    [
        ("기쁨.jpg".encode("cp949"), {}, "기쁨.jpg"),
        ("기쁨.jpg".encode(), {}, "기쁨.jpg"),
        (b"\xff\xfe.jpg", {}, b"\xff\xfe.jpg".decode("cp437")),
        ("喜び.jpg".encode("shift_jis"), {"encoding": "shift_jis"}, "喜び.jpg"),
        (b"plain.jpg", {"encoding": "cp949"}, "plain.jpg"),
    ],
)
def test_names_without_a_stated_encoding_follow_the_rule(
    tmp_path: Path, raw: bytes, options: dict[str, str], expected: str
) -> None:
    assert list(unpack(tmp_path, raw_zip([(raw, 0)]), **options)) == [expected]


def test_one_encoding_holds_for_a_whole_zip(tmp_path: Path) -> None:
    names = b"\xc2\xa1", "기쁨".encode("cp949")
    assert names[0].decode() == "\xa1", "valid UTF-8 by accident"
    assert set(unpack(tmp_path, raw_zip([(name, 0) for name in names]))) == {"징", "기쁨"}


def test_korean_names_in_an_old_tar_are_read_right(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="cp949") as archive:
        archive.addfile(tarfile.TarInfo("기쁨.jpg"))
    for number, options in enumerate([{}, {"encoding": "cp949"}]):
        extract(path, tmp_path / f"out{number}", **options)
        assert names_in(tmp_path / f"out{number}") == ["기쁨.jpg"]


def test_a_wrong_encoding_is_told(tmp_path: Path) -> None:
    refused(tmp_path, raw_zip([(b"\xff\xfe", 0)]), "is not in encoding 'cp949'", encoding="cp949")
    with pytest.raises(FileError, match="no encoding is called 'cp9949'"):
        extract(tmp_path / "deep/er/any name", tmp_path / "out", encoding="cp9949")


def test_a_wrong_encoding_of_a_tar_is_told(tmp_path: Path) -> None:
    path, name = tmp_path / "a.tar", "기쁨".encode("cp949") + b"\xff"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        archive.addfile(tarfile.TarInfo(name.decode("latin-1")))
    for encoding, told in (("cp949", "is not in encoding 'cp949'"), ("hex", "no encoding is called 'hex'")):
        with pytest.raises(FileError, match=told) as failure:
            extract(path, tmp_path / "out", encoding=encoding)
        assert str(path) in str(failure.value)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("../out.txt", "leads out of its folder"),
        ("a/../../out.txt", "leads out of its folder"),
        ("/etc/out.txt", "is absolute"),
        ("C:/out.txt", "is absolute"),
        ("..\\out.txt", "has a backslash"),
        ("a\nb", "has a control character"),
        ("n" * 256, "is too long"),
        ("n/" * 600 + "a", "is too long"),
    ],
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, kind: str, name: str, told: str) -> None:
    data = raw_zip([(b"good", 0), (name.encode(), 0)]) if kind == "zip" else tar_of(member("good"), member(name, b"x"))
    refused(tmp_path, data, told)


def test_a_file_that_has_the_name_of_its_folder_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, tar_of(member("good"), member("./", b"x")), r"a file with the name '\./'|the archive is damaged")


def test_a_name_with_a_nul_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, raw_zip([(b"a.jpg\0.exe", 0)]), "has a control character")


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        ("a/b.jpg", "a/b.jpg", "twice"),
        ("a/b.jpg", "./a//b.jpg", "twice"),
        ("a/b.jpg", "a/B.JPG", "differ only in case"),
        ("Train/a.jpg", "train/b.jpg", "differ only in case"),
        ("기쁨", unicodedata.normalize("NFD", "기쁨"), "differ only in case or Unicode form"),
        ("straße", "STRASSE", "differ only in case"),
        ("a", "a/b.jpg", "twice"),
        ("a/b.jpg", "a", "twice"),
    ],
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_of_which_one_would_be_lost_are_refused(
    tmp_path: Path, kind: str, one: str, other: str, told: str
) -> None:
    names = [one.encode(), other.encode()]
    refused(
        tmp_path, raw_zip([(n, 0x800) for n in names]) if kind == "zip" else tar_of(member(one), member(other)), told
    )


# ------------------------------------------------------------------------------------------------ kinds


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_links_and_devices_in_a_zip_are_refused(tmp_path: Path, kind: int) -> None:
    data = zip_of({"good": b"x", "bad": b"/etc/passwd"}, modes={"bad": kind | 0o777})
    refused(tmp_path, data, "only files and folders are unpacked")


@pytest.mark.parametrize(
    ("kind", "link"),
    [
        (tarfile.SYMTYPE, "../../out"),
        (tarfile.SYMTYPE, "good"),
        (tarfile.LNKTYPE, "../../out"),
        (tarfile.LNKTYPE, "good"),
        (tarfile.CHRTYPE, ""),
        (tarfile.BLKTYPE, ""),
        (tarfile.FIFOTYPE, ""),
    ],
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, kind: bytes, link: str) -> None:
    data = tar_of(member("good", b"x"), member("bad", kind=kind, link=link), member("bad/out", b"x"))
    refused(tmp_path, data, "only files and folders are unpacked")


def test_encrypted_and_foreign_archives_say_what_to_do(tmp_path: Path) -> None:
    for number, (data, told) in enumerate(
        [
            (encrypted(zip_of(GOOD)), "is encrypted: unpack the archive by hand with its password"),
            (b"Rar!\x1a\x07\x01\x00", "a RAR archive: unpack it with `unrar x`, and give the folder"),
            (b"PK\x07\x08PK\x03\x04", "one part of a split zip"),
            (b"emotion,pixels", "no zip or tar archive"),
            (b"", "the file is empty"),
            (zip_of(GOOD).replace(b"\x14\x00\x00\x00\x08\x00", b"\x14\x00\x00\x00\x09\x00"), "by method 9"),
            (zip_of({}), "holds no file"),
            (tar_of(mode="w:gz"), "holds no file"),
        ]
    ):
        refused(tmp_path / str(number), data, told)


# ------------------------------------------------------------------------------------------------ bombs


def peak() -> int:
    """Bytes of memory this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@pytest.mark.parametrize("make", [zip_of_zeros, tar_gz_of_zeros])
def test_ten_gigabytes_of_zeros_are_refused_at_once(tmp_path: Path, make: object) -> None:
    data = make(10 << 30)  # type: ignore[operator]
    started, memory = time.process_time(), peak()
    refused(tmp_path, data, "unpacks to more than 100 times its 10,[0-9,]+ bytes: a bomb")
    assert time.process_time() - started < 4
    assert peak() - memory < 200 << 20


def test_a_million_empty_files_are_refused_at_once(tmp_path: Path) -> None:
    piece = raw_zip([(b"%03d" % number, 0) for number in range(1000)], b"")
    body, directory = piece[: 1000 * 33], piece[1000 * 33 : -22] * 1000
    data = body + directory + zip_end(len(directory), len(body))
    started, memory = time.process_time(), peak()
    refused(tmp_path, data, "1,000,000 files with hardly anything in them: a bomb")
    assert time.process_time() - started < 4
    assert peak() - memory < 300 << 20


def zip_end(length: int, offset: int) -> bytes:
    """An end record; of the number of entries it lies."""
    return b"PK\x05\x06" + bytes(8) + length.to_bytes(4, "little") + offset.to_bytes(4, "little") + bytes(2)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_each_limit_holds(tmp_path: Path, kind: str) -> None:
    parts = {str(number): bytes(1000) for number in range(20)}
    data = zip_of(parts) if kind == "zip" else tar_of(*(member(*one) for one in parts.items()), mode="w:gz")
    for number, (limits, told) in enumerate(
        [
            (Limits(entries=19), "more than 19 files"),
            (Limits(bytes=19_000), "unpacks to more than 0 GB"),
            (Limits(small_entries=10, bytes_per_entry=1001), "hardly anything in them"),
            (Limits(ratio=5, ratio_from=10_000), "more than 5 times"),
        ]
    ):
        refused(tmp_path / str(number), data, told, limits=limits)
    (tmp_path / "good").mkdir()
    assert len(unpack(tmp_path / "good", data, limits=Limits(entries=20, bytes=45_000))) == 20


def test_members_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    data = overlapping_zip()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert len(archive.infolist()) == 50, "a zip that unpacks, were it not refused"
    refused(tmp_path, data, "overlaps with another member: a zip bomb")


def test_a_size_that_is_a_lie_is_noticed(tmp_path: Path) -> None:
    whole = zip_of({"a": b"x" * 5000})
    for number, size in enumerate((4999, 5001, 100)):
        lie = whole.replace((5000).to_bytes(4, "little"), size.to_bytes(4, "little"))
        refused(tmp_path / str(number), lie, "damaged")


def test_a_header_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 32
    refused(tmp_path, info.tobuf(tarfile.GNU_FORMAT) + bytes(4 << 20), "a header of more than 1 MiB: a bomb")


def test_a_sparse_file_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("GNUSparseFile.0/x")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 40)}
    info.pax_headers["GNU.sparse.name"] = "x"
    data = b"0\n".ljust(512, b"\0")
    info.size = len(data)
    refused(tmp_path, tar_of((info, data)), "sparse")


# ------------------------------------------------------------------------------------------------ damage


@pytest.mark.parametrize("mode", ["zip", *TARS])
def test_an_archive_that_is_cut_anywhere_is_refused(tmp_path: Path, mode: str) -> None:
    parts = {str(number): os.urandom(700) for number in range(4)}
    data = zip_of(parts) if mode == "zip" else tar_of(*(member(*one) for one in parts.items()), mode=mode)
    if mode == "w":
        data = data[: len(data) - len(data) % 10240 or None].rstrip(b"\0")  # its last zeros may be missing, not all
        cuts = [*range(1, len(data), 97), 1536, 3072]
    else:
        cuts = [*range(1, len(data), max(1, len(data) // 25)), len(data) - 1]
    for number, cut in enumerate(cuts):
        refused(tmp_path / str(number), data[:cut], "cut off|damaged|no zip or tar|one compressed file|no archive")


@pytest.mark.parametrize("mode", ["zip", "w:gz", "w:bz2", "w:xz"])
def test_a_flipped_byte_in_the_content_is_noticed(tmp_path: Path, mode: str) -> None:
    content = os.urandom(3000)
    data = bytearray(zip_of({"a": content}) if mode == "zip" else tar_of(member("a", content), mode=mode))
    data[len(data) // 2] ^= 0x10
    refused(tmp_path, bytes(data), "damaged|cut off")


def test_two_tars_joined_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, tar_of(member("a", b"x")) + tar_of(member("b", b"x")), "several archives joined")


def test_one_compressed_file_is_no_archive(tmp_path: Path) -> None:
    refused(tmp_path, gzip.compress(b"emotion,pixels\n" * 100), "one compressed file, no archive")


def test_the_published_archive_that_is_cut_off_leaves_nothing(test_data: Path, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"fer2013_truncated\.tar\.gz: the archive is cut off"):
        extract(test_data / "bad/archives/fer2013_truncated.tar.gz", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ disk and kills


def test_a_full_disk_is_told_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10_000})())
    refused(tmp_path, zip_of(GOOD), r"needs 0\.\d+ GB in .*, where 0.00 GB are free")


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_full_disk_midway_is_told_and_leaves_nothing(tmp_path: Path, kind: str) -> None:
    parts = {"a": os.urandom(1000), "b": os.urandom(100_000)}
    data = zip_of(parts) if kind == "zip" else tar_of(*(member(*one) for one in parts.items()))
    archive = tmp_path / "any name"
    archive.write_bytes(data)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))
    try:
        with pytest.raises(FileError, match="b: cannot be written: File too large; make room"):
            extract(archive, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert list(tmp_path.iterdir()) == [archive]


def test_what_a_killed_extraction_left_is_removed_by_the_next(tmp_path: Path) -> None:
    archive, out = tmp_path / "a.zip", tmp_path / "out"
    archive.write_bytes(zip_of({f"{number}": bytes(100) for number in range(5000)}))
    script = (
        "import sys; from pathlib import Path; from fer.io.archives import extract; extract(*map(Path, sys.argv[1:]))"
    )
    child = subprocess.Popen([sys.executable, "-c", script, str(archive), str(out)])
    while not list(tmp_path.glob(".out.tmp-*/*")):
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not out.exists()
    assert len(list(tmp_path.iterdir())) == 2
    archive.write_bytes(zip_of(GOOD))
    extract(archive, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "out"]
