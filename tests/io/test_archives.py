"""An archive is extracted completely or not at all, and never outside its folder."""

import gzip
import io
import os
import resource
import stat
import tarfile
import time
import unicodedata
import zipfile
from pathlib import Path

import pytest
from builders.archives import (
    encrypted,
    member,
    overlapping_zip,
    raw_zip,
    tar_gz_of_zeros,
    tar_of,
    zip_of,
    zip_of_zeros,
)
from builders.places import contents

from fer.io import files
from fer.io.archives import Limits, extract
from fer.io.files import FileError

GOOD = {"set/train/0/a.jpg": b"one" * 1000, "set/train/1/b.jpg": b"", "set/labels.csv": b"a,0\n"}
TARS = ["w", "w:gz", "w:bz2", "w:xz"]


def packed(parts: dict[str, bytes], mode: str) -> bytes:
    """An archive: "zip", or a mode of `tarfile`."""
    return zip_of(parts) if mode == "zip" else tar_of(*(member(*one) for one in parts.items()), mode=mode)


def unpack(tmp_path: Path, data: bytes, **options: object) -> dict[str, bytes]:
    """The files of an archive."""
    archive, out = tmp_path / "any name", tmp_path / "out"
    archive.write_bytes(data)
    extract(archive, out, **options)  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["any name", "out"]
    return contents(out)


def assert_refused(tmp_path: Path, data: bytes, words: str, **options: object) -> None:
    """One line with the archive's path and the words, and nothing is left, inside or outside."""
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    archive = folder / "any name"
    archive.write_bytes(data)
    with pytest.raises(FileError, match=words) as refusal:
        extract(archive, folder / "out", **options)  # type: ignore[arg-type]
    assert str(archive) in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1
    assert [path for path in tmp_path.rglob("*") if path != folder and path != folder.parent] == [archive]


# ------------------------------------------------------------------------------------------------ whole archives


@pytest.mark.parametrize("mode", ["zip", *TARS])
def test_content_decides_the_kind_and_every_file_is_extracted(tmp_path: Path, mode: str) -> None:
    assert unpack(tmp_path, packed(GOOD, mode)) == GOOD


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar_keeps_long_and_korean_names(tmp_path: Path, form: int) -> None:
    name = "/".join(["라벨"] * 10 + ["기쁨 (1).jpg"])
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        archive.addfile(tarfile.TarInfo(name))
        folder = tarfile.TarInfo("./set/empty/")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    assert unpack(tmp_path, out.getvalue()) == {name: b""}


def test_zip64_is_extracted_and_its_truncation_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)  # the format of large archives, without being large
    data = zip_of(GOOD)
    at = data.index(b"PK\x06\x06")
    assert unpack(tmp_path, data) == GOOD
    assert_refused(tmp_path / "cut", data[: at - 1] + data[at:], "damaged|cut off")


def test_data_before_a_zip_is_ignored(tmp_path: Path) -> None:
    assert unpack(tmp_path, zip_of(GOOD) + zip_of({"a": b"b"})) == {"a": b"b"}, "the last is the archive"


@pytest.mark.parametrize(
    "data",
    [zip_of({"a": b"x"}, modes={"a": stat.S_IFREG | 0o6777}), tar_of(member("a", b"x", mode=0o7777))],
    ids=["zip", "tar"],
)
def test_permissions_are_those_of_new_files(tmp_path: Path, data: bytes) -> None:
    unpack(tmp_path, data)
    (tmp_path / "new").touch()
    assert (tmp_path / "out" / "a").stat().st_mode == (tmp_path / "new").stat().st_mode


def test_existing_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(FileError, match="out: exists already"):
        unpack(tmp_path, zip_of(GOOD))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


# ------------------------------------------------------------------------------------------------ names


def old_tar(name: bytes) -> bytes:
    """A tar with a name of no stated encoding."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        archive.addfile(tarfile.TarInfo(name.decode("latin-1")))
    return out.getvalue()


JOY = "기쁨.jpg".encode("cp949")


@pytest.mark.parametrize(
    ("data", "options", "names"),
    [
        (raw_zip([(JOY, 0)]), {}, {"기쁨.jpg"}),
        (raw_zip([("기쁨.jpg".encode(), 0)]), {}, {"기쁨.jpg"}),
        (raw_zip([(b"\xff\xfe.jpg", 0)]), {}, {b"\xff\xfe.jpg".decode("cp437")}),
        (raw_zip([("喜び.jpg".encode("shift_jis"), 0)]), {"encoding": "shift_jis"}, {"喜び.jpg"}),
        (raw_zip([(b"plain.jpg", 0)]), {"encoding": "cp949"}, {"plain.jpg"}),
        (raw_zip([(b"\xc2\xa1", 0), (JOY, 0)]), {}, {"징", "기쁨.jpg"}),  # one encoding, though the first is UTF-8 too
        (old_tar(JOY), {}, {"기쁨.jpg"}),
        (old_tar(JOY), {"encoding": "cp949"}, {"기쁨.jpg"}),
    ],
)
def test_names_without_a_stated_encoding_follow_the_rule(
    tmp_path: Path, data: bytes, options: dict[str, str], names: set[str]
) -> None:
    assert set(unpack(tmp_path, data, **options)) == names


@pytest.mark.parametrize("data", [raw_zip([(JOY + b"\xff", 0)]), old_tar(JOY + b"\xff")], ids=["zip", "tar"])
@pytest.mark.parametrize("encoding", ["cp949", "cp9949", "hex"])
def test_wrong_or_unknown_encoding_is_refused(tmp_path: Path, data: bytes, encoding: str) -> None:
    assert_refused(tmp_path, data, f"encoding '{encoding}'", encoding=encoding)


@pytest.mark.parametrize(
    ("name", "words"),
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
def test_unsafe_names_are_refused(tmp_path: Path, kind: str, name: str, words: str) -> None:
    data = raw_zip([(b"good", 0), (name.encode(), 0)]) if kind == "zip" else tar_of(member("good"), member(name, b"x"))
    assert_refused(tmp_path, data, words)


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        ("a/b.jpg", "a/b.jpg", "twice"),
        ("a", "a", "twice"),
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
def test_colliding_names_are_refused(tmp_path: Path, kind: str, one: str, other: str, words: str) -> None:
    names = [(one.encode(), 0x800), (other.encode(), 0x800)]
    assert_refused(tmp_path, raw_zip(names) if kind == "zip" else tar_of(member(one), member(other)), words)


# ------------------------------------------------------------------------------------------------ kinds


def sparse_tar() -> bytes:
    data = b"0\n".ljust(512, b"\0")
    info = tarfile.TarInfo("GNUSparseFile.0/x")
    info.size = len(data)
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 40)}
    info.pax_headers["GNU.sparse.name"] = "x"
    return tar_of((info, data))


def endless_header() -> bytes:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 32
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(4 << 20)


def special(kind: bytes, link: str) -> bytes:
    return tar_of(member("good", b"x"), member("bad", kind=kind, link=link), member("bad/out", b"x"))


REFUSED = {
    **{
        f"zip of {kind:o}": (zip_of({"good": b"x", "bad": b"/etc/passwd"}, modes={"bad": kind | 0o777}), "only files")
        for kind in (stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK)
    },
    **{
        f"tar of {kind!r} to {link!r}": (special(kind, link), "'bad' is a .*; only files and folders")
        for kind, link in (
            (tarfile.SYMTYPE, "../../out"), (tarfile.SYMTYPE, "good"), (tarfile.LNKTYPE, "../../out"),
            (tarfile.LNKTYPE, "good"), (tarfile.CHRTYPE, ""), (tarfile.BLKTYPE, ""), (tarfile.FIFOTYPE, ""),
        )
    },
    "file named as its folder": (tar_of(member("good"), member("./", b"x")), r"the name '\./'|is damaged"),
    "name with a NUL": (raw_zip([(b"a.jpg\0.exe", 0)]), "has a control character"),
    "encrypted": (encrypted(zip_of(GOOD)), "is encrypted: unpack the archive by hand with its password"),
    "RAR": (b"Rar!\x1a\x07\x01\x00", "a RAR archive: unpack it with `unrar x`, and give the folder"),
    "split zip": (b"PK\x07\x08PK\x03\x04", "one part of a split zip"),
    "table": (b"emotion,pixels", "not a zip or tar archive"),
    "empty file": (b"", "the file is empty"),
    "Deflate64": (zip_of(GOOD).replace(b"\x14\0\0\0\x08\0", b"\x14\0\0\0\x09\0"), "method 9"),
    "zip of nothing": (zip_of({}), "holds no file"),
    "tar of nothing": (tar_of(mode="w:gz"), "holds no file"),
    "sparse file": (sparse_tar(), "sparse"),
    "endless header": (endless_header(), "a header of more than 1 MiB: a bomb"),
    "overlapping members": (overlapping_zip(), "overlaps with another member: a zip bomb"),
    "tars joined": (tar_of(member("a", b"x")) + tar_of(member("b", b"x")), "several archives joined"),
    "compressed table": (gzip.compress(b"emotion,pixels\n" * 100), "one compressed file, not an archive"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_and_unsupported_archives_are_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    assert_refused(tmp_path, *REFUSED[name])


def test_overlapping_zip_would_be_extracted_by_the_standard_library() -> None:
    with zipfile.ZipFile(io.BytesIO(overlapping_zip())) as archive:
        assert len(archive.infolist()) == 50


# ------------------------------------------------------------------------------------------------ bombs


def zip_of_a_million() -> bytes:
    piece = raw_zip([(b"%03d" % number, 0) for number in range(1000)], b"")
    body, directory = piece[: 1000 * 33], piece[1000 * 33 : -22] * 1000
    sizes = len(directory).to_bytes(4, "little") + len(body).to_bytes(4, "little")
    return body + directory + b"PK\x05\x06" + bytes(8) + sizes + bytes(2)  # its number of entries is false


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (zip_of_zeros(10 << 30), "unpacks to more than 100 times its 10,[0-9,]+ bytes: a bomb"),
        (tar_gz_of_zeros(10 << 30), "unpacks to more than 100 times its 10,[0-9,]+ bytes: a bomb"),
        (zip_of_a_million(), "1,000,000 files with almost no content: a bomb"),
    ],
    ids=["zip", "tar.gz", "entries"],
)
def test_bombs_are_refused_within_seconds_and_little_memory(tmp_path: Path, data: bytes, words: str) -> None:
    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

    started, memory = time.process_time(), peak()
    assert_refused(tmp_path, data, words)
    assert time.process_time() - started < 4
    assert peak() - memory < 300 << 20


@pytest.mark.parametrize("mode", ["zip", "w:gz"])
def test_each_limit_holds(tmp_path: Path, mode: str) -> None:
    data = packed({str(number): bytes(1000) for number in range(20)}, mode)
    for number, (limits, words) in enumerate(
        [
            (Limits(entries=19), "more than 19 files"),
            (Limits(bytes=19_000), "unpacks to more than 0 GB"),
            (Limits(small_entries=10, bytes_per_entry=1001), "almost no content"),
            (Limits(ratio=5, ratio_from=10_000), "more than 5 times"),
        ]
    ):
        assert_refused(tmp_path / str(number), data, words, limits=limits)
    (tmp_path / "good").mkdir()
    assert len(unpack(tmp_path / "good", data, limits=Limits(entries=20, bytes=45_000))) == 20


# ------------------------------------------------------------------------------------------------ damage


@pytest.mark.parametrize("size", [4999, 5001, 100])
def test_false_declared_size_is_detected(tmp_path: Path, size: int) -> None:
    whole = zip_of({"a": b"x" * 5000})
    assert_refused(tmp_path, whole.replace((5000).to_bytes(4, "little"), size.to_bytes(4, "little")), "damaged")


@pytest.mark.parametrize("mode", ["zip", *TARS])
def test_archive_truncated_anywhere_is_refused(tmp_path: Path, mode: str) -> None:
    data = packed({str(number): os.urandom(700) for number in range(4)}, mode)
    if mode == "w":
        data = data[: len(data) - len(data) % 10240 or None].rstrip(b"\0")  # its last zeros may be missing, not all
        cuts = [*range(1, len(data), 97), 1536, 3072]
    else:
        cuts = [*range(1, len(data), max(1, len(data) // 25)), len(data) - 1]
    for cut in set(cuts):
        assert_refused(
            tmp_path / str(cut), data[:cut], "cut off|damaged|not a zip or tar|one compressed|not an archive"
        )


@pytest.mark.parametrize("mode", ["zip", "w:gz", "w:bz2", "w:xz"])
def test_flipped_byte_in_the_content_is_detected(tmp_path: Path, mode: str) -> None:
    data = bytearray(packed({"a": os.urandom(3000)}, mode))
    data[len(data) // 2] ^= 0x10
    assert_refused(tmp_path, bytes(data), "damaged|cut off")


@pytest.mark.parametrize("member_number", [0, 1, 2])
def test_damaged_tar_header_is_not_taken_for_the_end(tmp_path: Path, member_number: int) -> None:
    data = bytearray(tar_of(*(member(name) for name in "abc")))
    data[512 * member_number + 150] ^= 1  # of the checksum; all members are empty, so that only zeros follow the last
    assert_refused(tmp_path, bytes(data), "damaged|not an archive")


# ------------------------------------------------------------------------------------------------ full disk


def test_full_disk_is_detected_before_extraction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10_000})())
    assert_refused(tmp_path, zip_of(GOOD), r"needs 0\.\d+ GB in .*, where 0.00 GB are free")


@pytest.mark.parametrize("mode", ["zip", "w"])
def test_disk_that_fills_up_is_named_and_nothing_is_left(tmp_path: Path, mode: str) -> None:
    archive = tmp_path / "any name"
    archive.write_bytes(packed({"a": os.urandom(1000), "b": os.urandom(100_000)}, mode))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))
    try:
        with pytest.raises(FileError, match="b: cannot be written: File too large; make room"):
            extract(archive, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert list(tmp_path.iterdir()) == [archive]
