"""Class folders of any dataset: every picture under the class that its folder names, nothing guessed."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from builders.layouts import about, fetch, labels, picture, read, text, zipped

from fer.config import ConfigError, parse
from fer.io.files import FileError
from fer.labels import SPACES
from fer.sources.folders import FoldersConfig

NAMES = SPACES["basic7"].labels
USUAL = ["Angry", "DISGUST", "0_fear", "3 - Happy", "neutral", "Sadness", "Surprised"]
CLASSES = ["anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"]


def tree(root: Path, splits: list[str], classes: list[str] = USUAL) -> Path:
    for split in splits:
        for index, name in enumerate(classes):
            picture(root / split / name / "a.jpg", index)
            picture(root / split / name / "b.PNG", index + 20)
    return root


def found(root: Path, path: Path, **options: object) -> dict[str, str]:
    samples, rejects = read(fetch(root, FoldersConfig, path, **options), FoldersConfig, **options)
    assert not rejects
    return labels(samples, NAMES)


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train", "test"], ["train", "test"]),
        (["Train", "valid", "TEST"], ["train", "validation", "test"]),
        (["training", "validation", "test"], ["train", "validation", "test"]),
    ],
)
def test_split_folders_in_their_usual_spellings(tmp_path: Path, names: list[str], splits: list[str]) -> None:
    want = {
        f"{folder}/{name}/{file}": f"{split} {label}"
        for folder, split in zip(names, splits, strict=True)
        for name, label in zip(USUAL, CLASSES, strict=True)
        for file in ("a.jpg", "b.PNG")
    }
    assert found(tmp_path, tree(tmp_path / "in", names)) == want


def test_class_folders_alone_are_dealt_by_hash_and_more_pictures_move_none(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", ["."])
    for index in range(60):
        picture(source / "Angry" / f"{index}.jpg", index)
    first = found(tmp_path / "1", source, test_fraction=0.3)
    assert 8 <= sum(label.startswith("test") for label in first.values()) <= 38
    picture(source / "Angry" / "more.jpg")
    second = found(tmp_path / "2", source, test_fraction=0.3)
    assert {key: second[key] for key in first} == first
    assert about(tmp_path / "2" / "data/raw/set")["test_by_hash"] is True


def test_an_archive_and_a_folder_further_down_are_the_same(tmp_path: Path) -> None:
    source = tree(tmp_path / "in" / "my set" / "images", ["train", "test"])
    want = found(tmp_path / "1", source)
    assert found(tmp_path / "2", tmp_path / "in") == want
    assert found(tmp_path / "3", zipped(tmp_path / "in", tmp_path / "in.zip")) == want


def test_what_systems_leave_behind_is_passed_over_and_other_files_are_counted(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", ["train", "test"])
    want = found(tmp_path / "1", source)
    for name in (".DS_Store", "Thumbs.db", "train/Angry/.hidden.jpg", "train/Angry/._a.jpg", "train/Angry/Thumbs.db"):
        text(source / name, "x")
    picture(source / "__MACOSX" / "train" / "Angry" / "a.jpg")
    text(source / "train" / "Angry" / "labels.txt", "x")
    (source / "train" / "happy").mkdir()
    assert found(tmp_path / "2", source) == want
    assert about(tmp_path / "2" / "data/raw/set")["other_files"] == 1


def test_pictures_may_lie_deeper_and_behind_links(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", ["train", "test"])
    picture(source / "train" / "Angry" / "s001" / "c.jpg")
    picture(tmp_path / "elsewhere" / "d.jpg")
    (source / "train" / "Angry" / "linked").symlink_to(tmp_path / "elsewhere")
    (source / "train" / "Angry" / "circle").symlink_to(source / "train" / "Angry")
    more = found(tmp_path, source)
    assert more["train/Angry/s001/c.jpg"] == more["train/Angry/linked/d.jpg"] == "train anger"
    assert len(more) == 30


def test_a_class_inside_another_class_is_refused(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", ["train", "test"])
    picture(source / "train" / "Angry" / "happy" / "c.jpg")
    with pytest.raises(FileError, match="happiness inside one of anger"):
        fetch(tmp_path, FoldersConfig, source)


@pytest.mark.parametrize("name", ["sleepy", "7", "contempt"])
def test_an_unknown_class_is_an_error_with_the_remedy(tmp_path: Path, name: str) -> None:
    source = tree(tmp_path / "in", ["train", "test"])
    picture(source / "train" / name / "a.jpg")
    with pytest.raises(FileError, match=rf"'{name}' is no class of label space basic7.*`classes`"):
        fetch(tmp_path, FoldersConfig, source)


def test_numbers_are_never_guessed(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", ["train", "test"], [str(index) for index in range(7)])
    with pytest.raises(FileError, match=r"no class folder.*found test/, train/.*`classes`"):
        fetch(tmp_path, FoldersConfig, source)
    explained = {str(index): name for index, name in enumerate(CLASSES)}
    assert found(tmp_path, source, classes=explained)["test/3/a.jpg"] == "test happiness"


def test_classes_explain_other_names_in_any_unicode_form(tmp_path: Path) -> None:
    names = [unicodedata.normalize("NFD", "기쁨"), "Ärger", "rest"]
    source = tree(tmp_path / "in", ["train", "test"], names)
    explained = {"기쁨": "happiness", unicodedata.normalize("NFD", "Ärger"): "anger", "rest": "none"}
    want = found(tmp_path, source, classes=explained)
    assert want["train/기쁨/a.jpg"] == "train happiness"
    assert want["test/Ärger/b.PNG"] == "test anger"
    assert len(want) == 8


def test_a_class_that_no_folder_has_is_an_error(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", ["train", "test"], ["joy"])
    with pytest.raises(FileError, match="`classes` names hapy, and there is no such folder"):
        fetch(tmp_path, FoldersConfig, source, classes={"joy": "happiness", "hapy": "happiness"})


def test_a_label_that_the_space_lacks_is_refused_before_anything_is_read() -> None:
    with pytest.raises(ConfigError, match=r"'hapiness' - did you mean 'happiness'"):
        parse(FoldersConfig, {"source": "folders", "classes": {"a": "hapiness"}}, "params.yaml")


def test_a_split_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="the same split"):
        fetch(tmp_path, FoldersConfig, tree(tmp_path / "in", ["val", "valid", "train"]))


def test_whole_pictures_keep_their_faces_to_be_found(tmp_path: Path) -> None:
    raw = fetch(tmp_path, FoldersConfig, tree(tmp_path / "in", ["train", "test"]), crops=False)
    samples, _ = read(raw, FoldersConfig, crops=False)
    assert not any(one.is_crop for one in samples.values())


def test_a_folder_without_classes_says_what_was_found(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "x" / "a.jpg")
    with pytest.raises(FileError, match=r"found x/.*Expected train/<class>/"):
        fetch(tmp_path, FoldersConfig, tmp_path / "in")


def test_other_spaces_have_their_own_classes(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", ["train", "test"], ["Contempt", "happy"])
    samples, _ = read(fetch(tmp_path, FoldersConfig, source, label_space="basic8"), FoldersConfig, label_space="basic8")
    assert {SPACES["basic8"].labels[one.faces[0].label] for one in samples.values()} == {"contempt", "happiness"}
