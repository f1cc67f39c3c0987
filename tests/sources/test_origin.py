"""Changed data are noticed, whatever changed; unchanged data are not read again."""

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from builders.layouts import about, fetch, picture, text, zipped
from flaky_server import Site, serve
from hypothesis import given, settings
from hypothesis import strategies as st

from fer.config import ConfigError, parse
from fer.console import log
from fer.io.files import FileError, read_json, write_json
from fer.sources import origin
from fer.sources.folders import FoldersConfig
from fer.sources.muxspace import MuxspaceConfig
from fer.sources.origin import given_paths, origin_digest
from fer.sources.registry import DatasetConfig
from fer.sources.synthetic import SyntheticConfig
from fer.sources.table import TableConfig
from fer.sources.tree import TreeConfig

ONE = "train/happy/1.png"
KINDS = [kind for kind in get_args(get_args(DatasetConfig)[0]) if kind is not SyntheticConfig]


def digest(home: Path, path: Path | str | list[str], kind: type[TreeConfig] = FoldersConfig, /, **options: Any) -> str:
    """Of a dataset whose project is `home`."""
    given = path if isinstance(path, list) else str(path)
    source = get_args(kind.model_fields["source"].annotation)[0]
    config = parse(kind, {"source": source, "path": given, **options}, "params.yaml")
    found = origin_digest("set", config, home, home)  # type: ignore[arg-type]
    assert found is not None
    return found


def tree(root: Path, count: int = 3) -> Path:
    for index in range(count):
        picture(root / "train" / "happy" / f"{index}.png", index)
        picture(root / "test" / "sad" / f"{index}.png", index + 10)
    return root


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that were just written count as old ones."""
    monkeypatch.setattr(origin, "_TICK_NS", -(10**12))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read."""
    names: list[str] = []
    hash_file = origin.hash_file

    def counted(path: str, *others: Any) -> bytes:
        names.append(Path(path).name)
        return hash_file(path, *others)

    monkeypatch.setattr(origin, "hash_file", counted)
    return names


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level(logging.WARNING, logger="fer")
    return caplog


@pytest.fixture
def site() -> Iterator[Site]:
    with serve(Site()) as running:
        yield running


# ------------------------------------------------------------------------------------------------ what changes it


CHANGES: dict[str, Callable[[Path], object]] = {
    "class folder deleted": lambda data: shutil.rmtree(data / "test" / "sad"),
    "image deleted": lambda data: (data / ONE).unlink(),
    "image renamed": lambda data: (data / ONE).rename(data / "train" / "happy" / "x.png"),
    "image moved": lambda data: (data / ONE).rename(data / "test" / "sad" / "x.png"),
    "two images swapped": lambda data: [
        (data / "train" / "happy" / old).rename(data / "train" / "happy" / new)
        for old, new in (("0.png", "x"), ("1.png", "0.png"), ("x", "1.png"))
    ],
    "image added": lambda data: picture(data / "train" / "happy" / "9.png"),
    "empty folder added": lambda data: (data / "train" / "angry").mkdir(),
    "one byte": lambda data: (data / ONE).write_bytes((data / ONE).read_bytes()[:-1] + b"x"),
}


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_of_the_data_changes_the_digest(tmp_path: Path, change: Callable[[Path], object]) -> None:
    data = tree(tmp_path / "in")
    before = digest(tmp_path, data)
    change(data)
    assert digest(tmp_path, data) != before


@pytest.mark.usefixtures("settled")
def test_a_byte_changed_under_the_same_size_and_time_is_noticed(tmp_path: Path) -> None:
    data = tree(tmp_path / "in")
    before, old = digest(tmp_path, data), (data / ONE).stat()
    content = (data / ONE).read_bytes()[:-1] + b"x"
    while (data / ONE).stat().st_ctime_ns == old.st_ctime_ns:  # until the file system's clock has advanced
        (data / ONE).write_bytes(content)
        os.utime(data / ONE, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert ((data / ONE).stat().st_size, (data / ONE).stat().st_mtime_ns) == (old.st_size, old.st_mtime_ns)
    assert digest(tmp_path, data) != before


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_path_of_a_configuration_counts(tmp_path: Path, kind: type[TreeConfig]) -> None:
    source = get_args(kind.model_fields["source"].annotation)[0]
    keys = ["path", *kind.more_paths]
    config = parse(kind, {"source": source} | dict.fromkeys(keys, "x"), "params.yaml")
    assert list(given_paths(config)) == keys  # type: ignore[arg-type]
    files = {key: text(tmp_path / key, "before") for key in keys}
    for key, file in files.items():
        before = digest(tmp_path, "path", kind, **{other: other for other in kind.more_paths})
        text(file, "after")
        assert digest(tmp_path, "path", kind, **{other: other for other in kind.more_paths}) != before, key


def test_each_part_of_a_list_and_a_replaced_archive_count(tmp_path: Path) -> None:
    parts = [str(tree(tmp_path / name)) for name in ("a", "b")]
    before = digest(tmp_path, parts)
    (tmp_path / "b" / ONE).unlink()
    assert digest(tmp_path, parts) != before
    archive = zipped(tmp_path / "a", tmp_path / "in.zip")
    before = digest(tmp_path, archive)
    zipped(tmp_path / "b", archive)
    assert digest(tmp_path, archive) != before
    assert digest(tmp_path, archive) == digest(tmp_path, archive.as_uri())


def test_a_legend_outside_the_dataset_is_refused_by_name() -> None:
    for legend in ("/data/legend.csv", "data/../../legend.csv"):
        with pytest.raises(ConfigError, match=rf"legend = '{legend}'"):
            parse(MuxspaceConfig, {"source": "muxspace", "legend": legend}, "params.yaml")


# ------------------------------------------------------------------------------------------------ what does not


@pytest.mark.usefixtures("settled")
def test_only_touched_files_are_read_again(tmp_path: Path, read: list[str]) -> None:
    data = tree(tmp_path / "in", 2)
    first = digest(tmp_path, data)
    assert sorted(read) == ["0.png", "0.png", "1.png", "1.png"]
    read.clear()
    assert digest(tmp_path, data) == first
    assert read == []
    (data / "train" / "happy" / "1.png").touch()
    assert digest(tmp_path, data) == first
    assert read == ["1.png"]


def test_a_file_as_recent_as_its_hash_is_read_again(tmp_path: Path, read: list[str]) -> None:
    data = tree(tmp_path / "in", 1)
    first = digest(tmp_path, data)
    read.clear()
    assert digest(tmp_path, data) == first  # what was written within the same tick would have the same times
    assert sorted(read) == ["0.png", "0.png"]


def test_another_copy_has_the_same_digest(tmp_path: Path) -> None:
    first, second = tmp_path / "one" / "project", tmp_path / "two" / "elsewhere"
    before = digest(tree(first / "data").parent, "data")
    shutil.copytree(first / "data", second / "data", copy_function=shutil.copyfile)
    assert digest(second, "data") == before
    assert digest(second, first / "data") == before


def test_hidden_and_system_files_are_passed_over_as_by_the_readers(tmp_path: Path) -> None:
    data = tree(tmp_path / "in")
    before = digest(tmp_path, data)
    for name in (".DS_Store", "Thumbs.db", "train/.git/index", "__MACOSX/train/x.png", "test/@eaDir/y.png"):
        text(data / name, "litter")
    assert digest(tmp_path, data) == before


def test_links_are_followed_but_not_in_a_circle(tmp_path: Path) -> None:
    data = tree(tmp_path / "in")
    outside = picture(tmp_path / "outside.png", 77)
    (data / "train" / "happy" / "linked.png").symlink_to(outside)
    (data / "train" / "up").symlink_to(data)
    (data / "train" / "itself").symlink_to(data / "train" / "itself")
    (data / "train" / "gone").symlink_to(tmp_path / "gone")
    before = digest(tmp_path, data)
    (data / "train" / "happy" / "linked.png").unlink()
    shutil.copyfile(outside, data / "train" / "happy" / "linked.png")
    assert digest(tmp_path, data) == before
    (data / "train" / "happy" / "linked.png").unlink()
    (data / "train" / "happy" / "linked.png").symlink_to(picture(outside, 78))
    assert digest(tmp_path, data) != before


def test_a_pipe_is_never_opened(tmp_path: Path, read: list[str]) -> None:
    data = tree(tmp_path / "in", 1)
    os.mkfifo(data / "train" / "pipe")
    digest(tmp_path, data)
    assert "pipe" not in read
    os.mkfifo(tmp_path / "alone")
    digest(tmp_path, tmp_path / "alone")


def test_generated_datasets_and_those_without_a_path_have_no_origin(tmp_path: Path) -> None:
    for config in (SyntheticConfig(source="synthetic"), TableConfig(source="table", root="x")):
        assert origin_digest("set", config, tmp_path, tmp_path) is None
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ names


NAMES = st.sampled_from([b"a", b"b", b"a b", b"a\nb", b"\xff", b"\xfe", "é".encode(), "e\u0301".encode()])
TREES = st.dictionaries(
    NAMES,
    st.recursive(
        st.sampled_from([b"", b"a", b"b", b"absent"]), lambda inner: st.dictionaries(NAMES, inner, max_size=2)
    ),
    max_size=3,
)


def _write(folder: Path, content: dict[bytes, Any]) -> None:
    folder.mkdir()
    for name, inner in content.items():
        place = folder / os.fsdecode(name)
        if isinstance(inner, dict):
            _write(place, inner)
        else:
            place.write_bytes(inner)


@settings(max_examples=150, deadline=None)
@given(TREES, TREES, st.booleans())
def test_digests_are_equal_where_names_and_contents_are(
    one: dict[bytes, Any], other: dict[bytes, Any], same: bool
) -> None:
    other = one if same else other
    with tempfile.TemporaryDirectory() as home:
        _write(Path(home, "one"), one)
        _write(Path(home, "other"), other)
        assert (digest(Path(home), "one") == digest(Path(home), "other")) == (one == other)


# ------------------------------------------------------------------------------------------------ tables


@pytest.mark.usefixtures("settled")
def test_only_the_images_that_a_table_names_count(tmp_path: Path, read: list[str]) -> None:
    for index in range(3):
        picture(tmp_path / "in" / f"{index}.png", index)
    table = text(tmp_path / "in" / "t.csv", "path,label\n0.png,happy\n./1.png,sad\ngone.png,sad\n../out.png,sad\n")
    before = digest(tmp_path, table, TableConfig)
    assert sorted(read) == ["0.png", "1.png", "t.csv"]
    picture(tmp_path / "in" / "2.png", 9)
    picture(tmp_path / "out.png", 9)
    assert digest(tmp_path, table, TableConfig) == before
    picture(tmp_path / "in" / "gone.png", 9)
    after = digest(tmp_path, table, TableConfig)
    picture(tmp_path / "in" / "1.png", 9)
    assert len({before, after, digest(tmp_path, table, TableConfig)}) == 3


def test_an_image_that_a_table_names_in_another_unicode_form_counts(tmp_path: Path) -> None:
    image = picture(tmp_path / "in" / "e\u0301.png", 1)
    table = text(tmp_path / "in" / "t.csv", "path,label\n\u00e9.png,happy\n")
    before = digest(tmp_path, table, TableConfig)
    picture(image, 2)
    assert digest(tmp_path, table, TableConfig) != before


def test_a_broken_table_is_reported_by_download_alone(tmp_path: Path) -> None:
    table = text(tmp_path / "t.csv", "neither\n1\n")
    before = digest(tmp_path, table, TableConfig)
    text(table, "neither\n2\n")
    assert digest(tmp_path, table, TableConfig) != before


# ------------------------------------------------------------------------------------------------ the cache


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other", "folder"])
def test_a_damaged_cache_is_rebuilt(tmp_path: Path, damage: str, read: list[str]) -> None:
    data = tree(tmp_path / "in", 1)
    before = digest(tmp_path, data)
    cache = tmp_path / ".work" / "plan" / "set.hashes"
    content = cache.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    cache.write_bytes({"flip": flipped, "cut": content[:middle], "other": b"{}\n"}.get(damage, b""))
    if damage == "folder":
        cache.unlink()
    read.clear()
    assert digest(tmp_path, data) == before
    assert len(read) == 2
    assert cache.read_bytes() == content


@pytest.mark.usefixtures("settled")
def test_the_cache_holds_only_files_that_exist(tmp_path: Path) -> None:
    data = tree(tmp_path / "in", 20)
    cache = tmp_path / ".work" / "plan" / "set.hashes"
    digest(tmp_path, data)
    many = cache.stat().st_size
    shutil.rmtree(data / "train")
    digest(tmp_path, data)
    assert cache.stat().st_size < 0.6 * many
    digest(tmp_path, tree(tmp_path / "other", 1))
    assert b"19.png" not in cache.read_bytes()
    assert sorted(path.name for path in cache.parent.iterdir()) == ["set.hashes"]


@pytest.mark.usefixtures("settled")
def test_an_unreadable_file_is_named_and_what_was_hashed_before_is_kept(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [str(tree(tmp_path / "a", 2)), str(tree(tmp_path / "b", 1))]
    refused = str(tmp_path / "b" / "train" / "happy" / "9.png")
    picture(Path(refused), 9)

    def guarded(path: Any, *args: Any, **options: Any) -> Any:
        if path == refused:
            raise PermissionError(13, "Permission denied")
        return open(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(origin, "open", guarded, raising=False)
        with pytest.raises(FileError, match=r"^.*/b/train/happy/9\.png: cannot be read: Permission denied; .*$"):
            digest(tmp_path, parts)
    read.clear()
    digest(tmp_path, parts)
    assert "9.png" in read
    assert "1.png" not in read  # of the first part, which was hashed before the error


# ------------------------------------------------------------------------------------------------ unavailable now


def test_a_new_version_of_a_url_is_noticed_and_an_unreachable_one_is_assumed_unchanged(
    tmp_path: Path, told: pytest.LogCaptureFixture
) -> None:
    with serve(Site()) as site:
        url = f"{site.url}/in.zip?token=secret"
        first = digest(tmp_path, url)
        assert digest(tmp_path, url) == first
        site.tag = '"two"'
        second = digest(tmp_path, url)
        assert second != first
        assert [path for path, _ in site.asked] == ["HEAD /in.zip?token=secret"] * 3  # never the data
    assert not told.messages
    assert digest(tmp_path, url) == second
    assert any("/in.zip: unavailable" in line for line in told.messages)
    assert "secret" not in told.text
    assert b"secret" not in (tmp_path / ".work" / "plan" / "set.hashes").read_bytes()
    assert digest(tmp_path / "new", url) == digest(tmp_path / "newer", url)  # offline from the beginning


def test_a_url_with_a_digest_is_not_requested(tmp_path: Path, site: Site) -> None:
    one = digest(tmp_path, f"{site.url}/in.zip", sha256="a" * 64)
    assert one != digest(tmp_path, f"{site.url}/in.zip", sha256="b" * 64)
    assert site.asked == []


@pytest.mark.parametrize("path", ["a\0b", "a\ud800b", "x" * 5000, "~nobody-of-that-name/x", "file://elsewhere/x", ""])
def test_an_impossible_path_is_reported_by_download_alone(tmp_path: Path, path: str) -> None:
    config = FoldersConfig.model_construct(source="folders", path=path)
    assert origin_digest("set", config, tmp_path, tmp_path) is not None


@pytest.mark.usefixtures("settled")
def test_a_disk_that_comes_back_is_not_read_again(tmp_path: Path, read: list[str]) -> None:
    data = tree(tmp_path / "in")
    before = digest(tmp_path, data)
    for name, there in (("away", False), ("in", True)):
        data = data.rename(tmp_path / name)
        read.clear()
        assert digest(tmp_path, tmp_path / "in") == before, there
    assert read == []


def test_an_absent_disk_is_not_a_change(tmp_path: Path, told: pytest.LogCaptureFixture) -> None:
    home, data = tmp_path / "project", tree(tmp_path / "disk" / "in")
    before = digest(home, data)
    raw = fetch(home, FoldersConfig, data)
    shutil.copytree(raw, tmp_path / "other" / "data" / "raw" / "set")
    (tmp_path / "disk").rename(tmp_path / "unmounted")
    assert digest(home, data) == before
    assert digest(tmp_path / "other", data, subset=True) == before  # another machine, with what DVC pulled
    assert fetch(home, FoldersConfig, data) == raw
    assert "/disk/in: unavailable now" in told.messages[0]
    assert digest(tmp_path / "third", data) != before


# ------------------------------------------------------------------------------------------------ download


def test_only_changed_data_are_downloaded_again(tmp_path: Path) -> None:
    data = tree(tmp_path / "in")
    raw = fetch(tmp_path, FoldersConfig, data)
    written = (raw / "source.json").stat().st_ino
    for path in data.rglob("*"):
        path.touch()
    fetch(tmp_path, FoldersConfig, data)
    assert (raw / "source.json").stat().st_ino == written
    (data / "train" / "happy" / "1.png").unlink()
    fetch(tmp_path, FoldersConfig, data)
    assert about(raw)["counts"]["train"]["happiness"] == 2


def _forget_origin(raw: Path) -> int:
    """Makes the folder one of an earlier version; its source.json's inode."""
    described = read_json(raw / "source.json")
    del described["origin"]
    write_json(raw / "source.json", described, sealed=True)
    return (raw / "source.json").stat().st_ino


def test_a_folder_without_its_origin_is_made_again_from_local_data_alone(tmp_path: Path, site: Site) -> None:
    data = tree(tmp_path / "in")
    raw = fetch(tmp_path, FoldersConfig, data)
    _forget_origin(raw)
    fetch(tmp_path, FoldersConfig, data)
    assert about(raw)["origin"]
    site.body = zipped(data, tmp_path / "in.zip").read_bytes()
    url: Any = f"{site.url}/in.zip"
    raw = fetch(tmp_path / "url", FoldersConfig, url)
    inode = _forget_origin(raw)
    fetch(tmp_path / "url", FoldersConfig, url)
    assert (raw / "source.json").stat().st_ino == inode
    shutil.rmtree(data)
    shutil.rmtree(tmp_path / ".work")
    _forget_origin(tmp_path / "data" / "raw" / "set")
    fetch(tmp_path, FoldersConfig, data)  # nothing to read again: as it was


def test_a_new_version_of_a_url_is_not_taken_from_the_cache(tmp_path: Path, site: Site) -> None:
    data, archive = tree(tmp_path / "in"), tmp_path / "in.zip"
    url: Any = f"{site.url}/in.zip"
    classes = {"happy": "happiness", "sad": "sadness", "sleepy": "neutral"}
    site.body = zipped(data, archive).read_bytes()
    with pytest.raises(FileError, match="sleepy"):
        fetch(tmp_path, FoldersConfig, url, classes=classes)
    picture(data / "train" / "sleepy" / "1.png")
    site.body, site.tag = zipped(data, archive).read_bytes(), '"two"'
    raw = fetch(tmp_path, FoldersConfig, url, classes=classes)
    assert about(raw)["counts"]["train"]["neutral"] == 1


def test_an_archive_replaced_under_the_same_size_and_time_is_extracted_again(tmp_path: Path) -> None:
    data, archive = tree(tmp_path / "in"), tmp_path / "in.zip"
    classes = {"happy": "happiness", "sad": "sadness"}
    (data / "train" / "happy").rename(data / "train" / "hoppy")
    old = zipped(data, archive).stat()
    with pytest.raises(FileError, match="hoppy"):
        fetch(tmp_path, FoldersConfig, archive, classes=classes)
    (data / "train" / "hoppy").rename(data / "train" / "happy")
    new = zipped(data, archive).stat()
    os.utime(archive, ns=(new.st_atime_ns, old.st_mtime_ns))
    assert new.st_size == old.st_size
    raw = fetch(tmp_path, FoldersConfig, archive, classes=classes)
    assert about(raw)["counts"]["train"]["happiness"] == 3
