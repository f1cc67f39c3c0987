"""The common way in for brought datasets, and the table of all readers."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from builders.layouts import about, fetch, picture, read, text, zipped

from fer.config import ConfigError, parse
from fer.io.files import FileError, sha256
from fer.sources.base import Source
from fer.sources.folders import FoldersConfig
from fer.sources.identities import IdentitiesSource
from fer.sources.registry import READERS, DatasetConfig, get_source
from fer.sources.synthetic import SyntheticConfig
from fer.sources.tree import TreeConfig


def tree(root: Path, count: int = 3) -> Path:
    for index in range(count):
        picture(root / "train" / "happy" / f"{index}.jpg", index)
        picture(root / "test" / "happy" / f"{index}.jpg", index + 10)
    return root


KINDS = [kind for kind in get_args(get_args(DatasetConfig)[0]) if kind is not SyntheticConfig]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_dataset_has_a_reader_and_says_where_it_is_to_be_had(kind: type[TreeConfig], tmp_path: Path) -> None:
    name = get_args(kind.model_fields["source"].annotation)[0]
    config = parse(kind, {"source": name}, "params.yaml")
    source: Source = get_source(config, 0)  # type: ignore[arg-type]
    if not isinstance(source, IdentitiesSource):  # whose labels are the people at hand
        assert source.label_space.labels
    assert source.request["source"] == name
    assert source.generator == name or kind in READERS
    with pytest.raises(FileError, match="path"):
        source.download(tmp_path, tmp_path)


def test_every_reader_belongs_to_a_configuration() -> None:
    assert set(READERS) == set(KINDS)


def test_pictures_are_packed_byte_for_byte_whatever_they_came_in(tmp_path: Path) -> None:
    source = tree(tmp_path / "in")
    archive = zipped(source, tmp_path / "in.zip")
    first, _ = read(fetch(tmp_path / "1", FoldersConfig, source), FoldersConfig)
    second, _ = read(fetch(tmp_path / "2", FoldersConfig, archive, sha256=sha256(archive)), FoldersConfig)
    assert first == second
    assert first["train/happy/1.jpg"].image == (source / "train" / "happy" / "1.jpg").read_bytes()
    assert [path.name for path in sorted((tmp_path / "2" / "data/raw/set").iterdir())] == [
        "pictures-00000.parquet",
        "source.json",
    ]


def test_nothing_of_the_cache_is_left_behind(tmp_path: Path) -> None:
    archive = zipped(tree(tmp_path / "in"), tmp_path / "in.zip")
    fetch(tmp_path / "1", FoldersConfig, archive)
    assert not (tmp_path / "1" / ".work" / "download").exists()


def test_an_archive_that_was_replaced_after_a_refusal_is_opened_anew(tmp_path: Path) -> None:
    archive = zipped(tree(tmp_path / "in"), tmp_path / "in.zip")
    with pytest.raises(FileError, match="sleepy"):
        fetch(tmp_path / "1", FoldersConfig, archive, classes={"happy": "happiness", "sleepy": "sadness"})
    picture(tmp_path / "in" / "train" / "sleepy" / "y.jpg")
    zipped(tmp_path / "in", archive)
    raw = fetch(tmp_path / "1", FoldersConfig, archive, classes={"happy": "happiness", "sleepy": "sadness"})
    assert about(raw)["counts"]["train"]["sadness"] == 1


def test_a_missing_path_a_wrong_digest_and_no_archive_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no such file or folder; set the key `path`"):
        fetch(tmp_path, FoldersConfig, tmp_path / "gone")
    archive = zipped(tree(tmp_path / "in"), tmp_path / "in.zip")
    with pytest.raises(FileError, match="sha256 is"):
        fetch(tmp_path, FoldersConfig, archive, sha256="0" * 64)
    with pytest.raises(FileError, match=r"notes\.txt"):
        fetch(tmp_path, FoldersConfig, text(tmp_path / "notes.txt", "hello"))


def test_a_bad_archive_from_a_url_is_fetched_anew(tmp_path: Path) -> None:
    archive = text(tmp_path / "in.zip", b"PK\x03\x04 not much of an archive")
    url = archive.as_uri()
    with pytest.raises(FileError):
        fetch(tmp_path / "1", FoldersConfig, url)  # type: ignore[arg-type]
    zipped(tree(tmp_path / "in"), archive)
    fetch(tmp_path / "1", FoldersConfig, url)  # type: ignore[arg-type]


def test_too_many_unusable_pictures_refuse_the_data_and_few_are_left_out(tmp_path: Path) -> None:
    source = tree(tmp_path / "in")
    (source / "train" / "happy" / "9.jpg").symlink_to(tmp_path / "gone.jpg")
    with pytest.raises(FileError, match=r"1 of 7 pictures are unusable \(missing_file 1\)[\s\S]*max_bad_fraction"):
        fetch(tmp_path, FoldersConfig, source)
    samples, rejects = read(fetch(tmp_path, FoldersConfig, source, max_bad_fraction=0.2), FoldersConfig)
    assert len(samples) == 6
    assert [(one.reason, one.origin) for one in rejects] == [("missing_file", "train/happy/9.jpg")]


@pytest.mark.parametrize("path", ["", [], ["a", ""]])
def test_an_empty_path_is_a_mistake_in_the_configuration(path: object) -> None:
    with pytest.raises(ConfigError, match="an empty path"):
        parse(FoldersConfig, {"source": "folders", "path": path}, "params.yaml")


def test_a_request_tells_nothing_of_the_machine(tmp_path: Path) -> None:
    raw = fetch(tmp_path, FoldersConfig, tree(tmp_path / "in"))
    assert about(raw)["request"]["path"] == "in"
    assert str(tmp_path) not in (raw / "source.json").read_text()
