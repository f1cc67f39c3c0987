"""CAER-S however its folders are spelled: the class of every scene, its box where there is a list, or a named error."""

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders.layouts import about, fetch, found, in_archives, picture, read, rejected, text

from fer.io.files import FileError
from fer.labels import DATASET_LABELS
from fer.sources.caers import PUBLISHED_BOXES, CaersConfig, read_boxes

ORDER = ("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")
SPELLED = ("Anger", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")
ANGRY = ("Angry", *SPELLED[1:])
OTHERS = ("angry", "disgusted", "FEAR", "happiness", "neutral", "sadness", "surprised")
NUMBERED = tuple(f"{index}_{name}" for index, name in enumerate(SPELLED))
EXPECTED = {f"{split}/{name}/000{number}": f"{split} {name}" for split in ("train", "test") for name in ORDER
            for number in (1, 2)}  # fmt: skip
Build = Callable[[Path], Path]


def scenes(root: Path, train: str = "train", test: str = "test", names: tuple[str, ...] = SPELLED) -> Path:
    for split in (train, test):
        for index, name in enumerate(names):
            for number in (1, 2):
                picture(root / split / name / f"{number:04d}.png", index * 10 + number)
    return root


def boxes(path: Path) -> Path:
    """A list as larrylu0426/CAERS-Annotation writes it: train/Angry beside test/Anger."""
    lines = [
        f"{split}/{name}/{number:04d}.png,{index},{10 + number},20,110,{120 + index}"
        for split, names in (("train", ANGRY), ("test", SPELLED))
        for index, name in enumerate(names)
        for number in (1, 2)
    ]
    return text(path, "\n".join(lines) + "\n")


LAYOUTS: dict[str, Build] = {
    "as published": scenes,
    "Train, Angry": lambda root: scenes(root, "Train", "Test", ANGRY),
    "valid": lambda root: scenes(root, "train", "valid", ANGRY),
    "TRAIN, other spellings": lambda root: scenes(root, "TRAIN", "val", OTHERS),
    "numbers and names": lambda root: scenes(root, names=NUMBERED),
    "a folder above": lambda root: scenes(root / "CAER-S").parent,
}


@pytest.mark.parametrize("build", LAYOUTS.values(), ids=LAYOUTS)
def test_every_spelling_of_caers_gives_the_same_samples(tmp_path: Path, build: Build) -> None:
    assert found(tmp_path, CaersConfig, build(tmp_path / "set")) == EXPECTED


def test_caers_may_be_archives_in_a_folder_or_a_list_of_them(tmp_path: Path) -> None:
    packed = in_archives(scenes(tmp_path / "plain"), tmp_path / "set")
    for given in (packed, list(packed.iterdir())):
        assert found(tmp_path, CaersConfig, given) == EXPECTED


def test_published_caers_numbers_are_mapped_by_name_and_boxes_add_up() -> None:
    assert DATASET_LABELS["caers"] == ORDER
    assert {split: sum(counts) for split, counts in PUBLISHED_BOXES.items()} == {"train": 47966, "test": 20868}


def test_order_is_natural_and_names_from_macos_are_normalized(tmp_path: Path) -> None:
    for name in ("10", "2", "1000", "1", unicodedata.normalize("NFD", "é1")):
        picture(tmp_path / "set" / "train" / "Anger" / f"{name}.png")
    samples, _ = read(fetch(tmp_path, CaersConfig, tmp_path / "set"), CaersConfig)
    assert list(samples) == [f"train/anger/{name}" for name in ("1", "2", "10", "1000", "\u00e91")]
    assert all(not one.is_crop and one.faces[0].box is None for one in samples.values())


def test_valid_beside_test_is_a_validation_split_and_two_spellings_are_one_class(tmp_path: Path) -> None:
    root = scenes(tmp_path / "set")
    picture(root / "val" / "Fear" / "0001.png")
    picture(root / "train" / "Angry" / "0003.png")
    assert found(tmp_path, CaersConfig, root) == {
        **EXPECTED, "validation/fear/0001": "validation fear", "train/anger/0003": "train anger",
    }  # fmt: skip


def test_boxes_are_found_by_class_and_number_not_by_spelling(tmp_path: Path) -> None:
    boxes(tmp_path / "annotations" / "all.txt")
    given = "annotations/all.txt"  # relative to the project
    raw = fetch(tmp_path, CaersConfig, scenes(tmp_path / "set", "Train", "Test"), boxes=given)
    samples, rejects = read(raw, CaersConfig)
    assert not rejects
    assert samples["train/anger/0002"].faces[0].box == (12, 20, 110, 120)
    assert samples["test/surprise/0001"].faces[0].box == (11, 20, 110, 126)
    assert about(raw)["request"]["boxes"] == "all.txt"
    assert about(raw)["boxes"] == len(samples) == 28


def test_a_folder_of_lists_gives_the_split_that_their_paths_lack(tmp_path: Path) -> None:
    text(tmp_path / "lists" / "train.txt", "Angry/0001.png,0,1,2,3,4\r\n")
    text(tmp_path / "lists" / "test.txt", "\ufefftest\\Happy\\0007.png,3,1.5,2,3,4\n")
    text(tmp_path / "lists" / "test" / "Happy.txt", "test/Happy/0007.png,3,1.5,2,3,4\n")
    assert read_boxes(tmp_path / "lists") == {"train/anger/0001": (1, 2, 3, 4), "test/happiness/0007": (1.5, 2, 3, 4)}


@pytest.mark.parametrize(("policy", "left"), [("drop", 26), ("find", 28)])
def test_images_without_a_box_are_dropped_or_left_to_a_detector(tmp_path: Path, policy: str, left: int) -> None:
    listed = boxes(tmp_path / "all.txt")
    lines = listed.read_text().splitlines()
    text(listed, "\n".join([*lines[2:], "train/Fear/7000.png,2,1,2,3,4"]))
    options = {"boxes": str(listed), "missing_boxes": policy}
    raw = fetch(tmp_path, CaersConfig, scenes(tmp_path / "set"), **options)
    samples, _ = read(raw, CaersConfig, **options)
    assert len(samples) == left
    assert about(raw)["excluded"] == ({"no_box_in_list": 2} if policy == "drop" else {})
    assert about(raw)["boxes_without_picture"] == 1
    assert ("train/anger/0001" in samples) == (policy == "find")
    assert sum(one.faces[0].box is None for one in samples.values()) == left - 26


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("train/Angry/0001.png,0,1,2,3", "line 1: 5 fields"),
        ("train/Angry/0001.png,1,1,2,3,4", "line 1: class '1' .* anger, which is 0"),
        ("train/Angry/0001.png,0,5,2,3,4", "line 1: box 5, 2, 3, 4"),
        ("train/Angry/0001.png,0,1,2,nan,4", "line 1: 'nan'"),
        ("train/Angry/0001.png,0,1,2,x,4", "line 1: .*'x'"),
        ("Angry/0001.png,0,1,2,3,4", r"line 1: .*'Angry/0001\.png'"),
        ("train/Calm/0001.png,0,1,2,3,4", r"line 1: .*'train/Calm/0001\.png'"),
        ("train/Sad/0001.png,5,1,2,3,4\ntrain/sad/0001.png,5,1,2,3,5", r"line 2: another box of train/sad/0001\.png"),
        ("<html>", "web page"),
        (None, "no such file"),
    ],
)
def test_broken_list_of_boxes_is_refused_with_its_line(tmp_path: Path, line: str | None, said: str) -> None:
    if line is not None:
        text(tmp_path / "boxes.txt", line)
    with pytest.raises(FileError, match=rf"(?s)boxes\.txt: .*{said}"):
        read_boxes(tmp_path / "boxes.txt")


def with_images(*paths: str) -> Build:
    return lambda root: [picture(scenes(root) / path) for path in paths] and root


REFUSED: dict[str, tuple[Build, dict[str, Any], str]] = {
    "a folder too deep": (lambda root: scenes(root) / "train", {}, "folder that holds both"),
    "two folders too deep": (lambda root: scenes(root) / "train" / "Anger", {}, r"train/ and test/.*0001\.png"),
    "empty": (lambda root: text(root / "a.doc", "").parent, {}, "no images"),
    "one image twice": (
        with_images("train/Angry/0001.png"), {}, r"train/Anger/0001\.png.*train/Angry/0001\.png",
    ),
    "others": (with_images("cover.jpg", "train/Calm/0001.png"), {}, r"(?s)2 of 30 .*no_label"),
    "other counts": (scenes, {"subset": False}, r"(?s)44996.*20987.*subset: true"),
    "other boxes": (
        lambda root: boxes(root.with_name("all.txt")) and scenes(root),
        {"subset": False, "boxes": "all.txt"},
        r"(?s)47966.*6856.*subset: true",
    ),
    "no list of boxes": (scenes, {"boxes": "gone.txt"}, r"gone\.txt"),
    "an empty folder of boxes": (scenes, {"boxes": "."}, "no list of boxes"),
}  # fmt: skip


@pytest.mark.parametrize(("build", "options", "said"), REFUSED.values(), ids=REFUSED)
def test_unusable_caers_folder_is_refused_with_what_is_wrong(
    tmp_path: Path, build: Build, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(FileError, match=said):
        fetch(tmp_path, CaersConfig, build(tmp_path / "set"), **options)


def test_images_outside_the_class_folders_are_rejected(tmp_path: Path) -> None:
    root = with_images("cover.jpg", "train/Calm/0001.png")(tmp_path / "set")
    raw = fetch(tmp_path, CaersConfig, root, max_bad_fraction=0.1)
    assert rejected(raw, CaersConfig) == {"cover.jpg": "no_label", "train/Calm/0001.png": "no_label"}
