"""Class folders of any dataset: every image under the class that its folder names, nothing guessed."""

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders.layouts import about, fetch, found, picture, read, text, zipped

from fer.io.files import FileError
from fer.sources.folders import FoldersConfig

USUAL = ["Angry", "DISGUST", "0_fear", "3 - Happy", "neutral", "Sadness", "Surprised"]
CLASSES = ["anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"]
NUMBERS = [str(index) for index in range(7)]
KOREAN, UMLAUT = (unicodedata.normalize("NFD", name) for name in ("기쁨", "Ärger"))


def tree(root: Path, splits: list[str], classes: list[str] = USUAL) -> Path:
    for split in splits:
        for index, name in enumerate(classes):
            picture(root / split / name / "a.jpg", index)
            picture(root / split / name / "b.PNG", index + 20)
    return root


def expected(splits: dict[str, str], classes: dict[str, str] | None = None) -> dict[str, str]:
    """Of folder names and what they mean."""
    return {
        f"{folder}/{name}/{file}": f"{split} {label}"
        for folder, split in splits.items()
        for name, label in (classes or dict(zip(USUAL, CLASSES, strict=True))).items()
        for file in ("a.jpg", "b.PNG")
    }


@pytest.mark.parametrize(
    ("splits", "classes", "options"),
    [
        ({"train": "train", "test": "test"}, None, {}),
        ({"Train": "train", "valid": "validation", "TEST": "test"}, None, {}),
        ({"training": "train", "validation": "validation", "test": "test"}, None, {}),
        (
            {"train": "train", "test": "test"},
            dict(zip(NUMBERS, CLASSES, strict=True)),
            {"classes": dict(zip(NUMBERS, CLASSES, strict=True))},
        ),
        ({"train": "train", "test": "test"}, {"Contempt": "contempt"}, {"label_space": "basic8"}),
    ],
)
def test_split_and_class_folders_give_their_labels(
    tmp_path: Path, splits: dict[str, str], classes: dict[str, str] | None, options: dict[str, Any]
) -> None:
    source = tree(tmp_path / "in", list(splits), list(classes or USUAL))
    assert found(tmp_path, FoldersConfig, source, **options) == expected(splits, classes)


def test_class_folders_alone_are_split_by_hash_and_more_images_move_none(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", ["."])
    for index in range(60):
        picture(source / "Angry" / f"{index}.jpg", index)
    first = found(tmp_path / "1", FoldersConfig, source, test_fraction=0.3)
    assert 8 <= sum(label.startswith("test") for label in first.values()) <= 38
    picture(source / "Angry" / "more.jpg")
    second = found(tmp_path / "2", FoldersConfig, source, test_fraction=0.3)
    assert {key: second[key] for key in first} == first
    assert about(tmp_path / "2" / "data/raw/set")["test_by_hash"] is True


def test_archive_and_a_folder_further_down_are_the_same(tmp_path: Path) -> None:
    source = tree(tmp_path / "in" / "my set" / "images", ["train", "test"])
    samples = found(tmp_path / "1", FoldersConfig, source)
    assert found(tmp_path / "2", FoldersConfig, tmp_path / "in") == samples
    assert found(tmp_path / "3", FoldersConfig, zipped(tmp_path / "in", tmp_path / "in.zip")) == samples


def test_hidden_and_system_files_are_passed_over_and_others_are_counted(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", ["train", "test"])
    samples = found(tmp_path / "1", FoldersConfig, source)
    for name in (".DS_Store", "Thumbs.db", "train/Angry/.hidden.jpg", "train/Angry/._a.jpg", "train/Angry/Thumbs.db"):
        text(source / name, "x")
    picture(source / "__MACOSX" / "train" / "Angry" / "a.jpg")
    text(source / "train" / "Angry" / "labels.txt", "x")
    (source / "train" / "happy").mkdir()
    assert found(tmp_path / "2", FoldersConfig, source) == samples
    assert about(tmp_path / "2" / "data/raw/set")["other_files"] == 1


def test_images_may_be_deeper_and_behind_links(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", ["train", "test"])
    picture(source / "train" / "Angry" / "s001" / "c.jpg")
    picture(tmp_path / "elsewhere" / "d.jpg")
    (source / "train" / "Angry" / "linked").symlink_to(tmp_path / "elsewhere")
    (source / "train" / "Angry" / "circle").symlink_to(source / "train" / "Angry")
    more = found(tmp_path, FoldersConfig, source)
    assert more["train/Angry/s001/c.jpg"] == more["train/Angry/linked/d.jpg"] == "train anger"
    assert len(more) == 30


def test_classes_explain_other_names_in_any_unicode_form(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", ["train", "test"], [KOREAN, "Ärger", "rest"])
    explained = {"기쁨": "happiness", UMLAUT: "anger", "rest": "none"}
    samples = found(tmp_path, FoldersConfig, source, classes=explained)
    assert samples == expected({"train": "train", "test": "test"}, {"기쁨": "happiness", "Ärger": "anger"})


def test_whole_images_keep_their_faces_to_be_found(tmp_path: Path) -> None:
    raw = fetch(tmp_path, FoldersConfig, tree(tmp_path / "in", ["train", "test"]), crops=False)
    samples, _ = read(raw, FoldersConfig, crops=False)
    assert not any(one.is_crop for one in samples.values())


def with_folder(name: str) -> Callable[[Path], Path]:
    return lambda root: picture(tree(root, ["train", "test"]) / "train" / name / "a.jpg") and root


REFUSED: dict[str, tuple[Callable[[Path], Path], dict[str, Any], str]] = {
    "a class in another": (with_folder("Angry/happy"), {}, r"Angry/happy/a\.jpg: .*happiness.*anger"),
    "an unknown class": (with_folder("sleepy"), {}, "'sleepy' .*basic7.*`classes`"),
    "a number beside names": (with_folder("7"), {}, "'7' .*basic7.*`classes`"),
    "a class of another space": (with_folder("contempt"), {}, "'contempt' .*basic7.*`classes`"),
    "numbers": (
        lambda root: tree(root, ["train", "test"], NUMBERS),
        {},
        r"in: .*found test/, train/.*`label_space`.*`classes`",
    ),
    "a class without a folder": (
        lambda root: tree(root, ["train", "test"], ["joy"]),
        {"classes": {"joy": "happiness", "hapy": "happiness"}},
        "`classes` names hapy",
    ),
    "a split twice": (lambda root: tree(root, ["val", "valid", "train"]), {}, "val/ and valid/"),
    "no class": (lambda root: picture(root / "x" / "a.jpg").parents[1], {}, r"found x/.*train/<class>/"),
}


@pytest.mark.parametrize(("build", "options", "said"), REFUSED.values(), ids=REFUSED)
def test_ambiguous_folders_are_refused_with_the_remedy(
    tmp_path: Path, build: Callable[[Path], Path], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(FileError, match=said):
        fetch(tmp_path, FoldersConfig, build(tmp_path / "in"), **options)
