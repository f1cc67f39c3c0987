"""The common way in for datasets that users bring, and the table of all readers."""

import pickle
import re
from pathlib import Path
from typing import get_args

import pytest
from builders.layouts import about, fetch, found, picture, read, text, zipped

from fer.config import ConfigError, parse
from fer.io.files import FileError, sha256
from fer.sources.folders import FoldersConfig
from fer.sources.identities import IdentitiesSource
from fer.sources.registry import READERS, DatasetConfig, get_source
from fer.sources.tree import TreeSource

KINDS = {get_args(kind.model_fields["source"].annotation)[0]: kind for kind in get_args(get_args(DatasetConfig)[0])}
BROUGHT = sorted(KINDS.keys() - {"synthetic"})
SLEEPY = {"happy": "happiness", "sleepy": "sadness"}


def tree(root: Path) -> Path:
    for index in range(3):
        picture(root / "train" / "happy" / f"{index}.jpg", index)
        picture(root / "test" / "happy" / f"{index}.jpg", index + 10)
    return root


@pytest.mark.parametrize("name", BROUGHT)
def test_every_dataset_has_a_reader_and_says_where_to_get_it(name: str, tmp_path: Path) -> None:
    source = get_source(parse(KINDS[name], {"source": name}, "params.yaml"), 0)
    assert isinstance(source, TreeSource)
    assert pickle.loads(pickle.dumps(source)).request == source.request
    if not isinstance(source, IdentitiesSource):  # whose labels are the people at hand
        assert source.label_space.labels
    assert source.request["source"] == name
    assert source.generator == name
    with pytest.raises(FileError, match=rf"(?s){re.escape(source.how_to_get)}.*datasets\.<name>\.path"):
        source.download(tmp_path, tmp_path)


def test_every_reader_belongs_to_a_configuration() -> None:
    assert set(READERS) == {KINDS[name] for name in BROUGHT}


def test_images_are_packed_byte_for_byte_from_a_folder_or_an_archive(tmp_path: Path) -> None:
    source = tree(tmp_path / "in")
    archive = zipped(source, tmp_path / "in.zip")
    first, _ = read(fetch(tmp_path / "1", FoldersConfig, source), FoldersConfig)
    raw = fetch(tmp_path / "2", FoldersConfig, archive, sha256=sha256(archive))
    assert first == read(raw, FoldersConfig)[0]
    assert first["train/happy/1.jpg"].image == (source / "train" / "happy" / "1.jpg").read_bytes()
    assert sorted(path.name for path in raw.iterdir()) == ["pictures-00000.parquet", "source.json"]
    assert not (tmp_path / "2" / ".work" / "download").exists()


def test_archive_that_was_replaced_after_a_refusal_is_opened_again(tmp_path: Path) -> None:
    archive = zipped(tree(tmp_path / "in"), tmp_path / "in.zip")
    with pytest.raises(FileError, match="sleepy"):
        fetch(tmp_path / "1", FoldersConfig, archive, classes=SLEEPY)
    picture(tmp_path / "in" / "train" / "sleepy" / "y.jpg")
    zipped(tmp_path / "in", archive)
    raw = fetch(tmp_path / "1", FoldersConfig, archive, classes=SLEEPY)
    assert about(raw)["counts"]["train"]["sadness"] == 1


def test_a_missing_path_a_wrong_digest_and_another_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"gone: no such file or folder; .*`path`"):
        fetch(tmp_path, FoldersConfig, tmp_path / "gone")
    archive = zipped(tree(tmp_path / "in"), tmp_path / "in.zip")
    with pytest.raises(FileError, match=rf"in\.zip: sha256 is {sha256(archive)}, expected {'0' * 64}"):
        fetch(tmp_path, FoldersConfig, archive, sha256="0" * 64)
    with pytest.raises(FileError, match=r"notes\.txt"):
        fetch(tmp_path, FoldersConfig, text(tmp_path / "notes.txt", "hello"))


def test_a_bad_archive_from_a_url_is_downloaded_again(tmp_path: Path) -> None:
    archive = text(tmp_path / "in.zip", b"PK\x03\x04 not much of an archive")
    with pytest.raises(FileError):
        fetch(tmp_path / "1", FoldersConfig, archive.as_uri())  # type: ignore[arg-type]
    zipped(tree(tmp_path / "in"), archive)
    fetch(tmp_path / "1", FoldersConfig, archive.as_uri())  # type: ignore[arg-type]


def test_too_many_unusable_images_refuse_the_data_and_few_are_left_out(tmp_path: Path) -> None:
    source = tree(tmp_path / "in")
    (source / "train" / "happy" / "9.jpg").symlink_to(tmp_path / "gone.jpg")
    with pytest.raises(FileError, match=r"1 of 7 .*\(missing_file 1\)[\s\S]*train/happy/9\.jpg[\s\S]*max_bad_fraction"):
        fetch(tmp_path, FoldersConfig, source)
    samples, rejects = read(fetch(tmp_path, FoldersConfig, source, max_bad_fraction=0.2), FoldersConfig)
    assert len(samples) == 6
    assert [(one.reason, one.origin) for one in rejects] == [("missing_file", "train/happy/9.jpg")]


def test_two_images_of_one_key_are_refused_with_both_paths(tmp_path: Path) -> None:
    source = tree(tmp_path / "in")
    for name in ("e\u0301.jpg", "\u00e9.jpg"):  # one name in two encodings of the accent
        picture(source / "train" / "happy" / name)
    with pytest.raises(FileError, match=r"train/happy/\u00e9\.jpg.*train/happy/e\u0301\.jpg"):
        fetch(tmp_path, FoldersConfig, source)


def test_packed_files_are_filled_by_rows_or_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tree(tmp_path / "in")
    monkeypatch.setattr("fer.sources.tree.BLOCK_ROWS", 4)
    assert [rows for _, rows in about(fetch(tmp_path / "1", FoldersConfig, source))["blocks"]] == [4, 2]
    monkeypatch.setattr("fer.sources.tree.BLOCK_BYTES", 1)
    assert [rows for _, rows in about(fetch(tmp_path / "2", FoldersConfig, source))["blocks"]] == [1] * 6
    assert found(tmp_path / "1", FoldersConfig, source) == found(tmp_path / "2", FoldersConfig, source)


@pytest.mark.parametrize(
    ("source", "key", "value"),
    [
        ("folders", "path", ""), ("folders", "path", []), ("folders", "path", ["a", ""]), ("folders", "sha256", "0"),
        ("affectnet", "classes", 6), ("affectnet", "folder_order", "rafdb"), ("affectnet", "test_fraction", 1.0),
        ("rafdb", "images", "cropped"), ("rafdb", "folder_order", "fer2013"), ("rafdb", "image", "aligned"),
        ("caers", "missing_boxes", "guess"), ("caers", "boxes", ""), ("caers", "box", "a.txt"),
        ("synthetic", "strength", 9.0), ("synthetic", "scene_size", 8), ("synthetic", "face_size", [200, 300]),
        ("synthetic", "scens", 5), ("synthetic", "scenes", 0), ("synthetic", "num_classes", 8),
        ("identities", "min_pictures", 1), ("identities", "test_fraction", 0.0),
        ("aihub", "labels", "minority"), ("aihub", "per_class", [9000]), ("aihub", "per_class", [0, 1]),
        ("aihub", "split", "random"),
    ],
)  # fmt: skip
def test_wrong_option_is_refused_by_name(source: str, key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"params\.yaml: .*{key}"):
        parse(KINDS[source], {"source": source, key: value}, "params.yaml")


def test_unknown_label_of_a_class_folder_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="'hapiness' - did you mean 'happiness'"):
        parse(FoldersConfig, {"source": "folders", "classes": {"a": "hapiness"}}, "params.yaml")


def test_a_request_tells_nothing_of_the_machine(tmp_path: Path) -> None:
    raw = fetch(tmp_path, FoldersConfig, tree(tmp_path / "in"))
    assert about(raw)["request"]["path"] == "in"
    assert str(tmp_path) not in (raw / "source.json").read_text()
