"""CAER-S however its folders are spelt: the class of every scene, its box where there is a list, or a named error."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from builders.layouts import about, fetch, labels, picture, read, text, zipped

from fer.config import ConfigError, parse
from fer.io.files import FileError, read_json
from fer.labels import DATASET_LABELS, SPACES
from fer.sources.caers import PUBLISHED_BOXES, CaersConfig, Place, read_boxes

NAMES = SPACES["basic7"].labels
ORDER = ("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")
SPELT = ("Anger", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")
ANGRY = ("Angry", *SPELT[1:])


def scenes(
    root: Path, train: str = "train", test: str = "test", names: tuple[str, ...] = SPELT, pictures: int = 2
) -> Path:
    for split in (train, test):
        for index, name in enumerate(names):
            for number in range(1, pictures + 1):
                picture(root / split / name / f"{number:04d}.png", index * 10 + number)
    return root


def boxes(path: Path, pictures: int = 2) -> Path:
    """A list as larrylu0426/CAERS-Annotation writes it: train/Angry beside test/Anger."""
    lines = [
        f"{split}/{name}/{number:04d}.png,{index},{10 + number},20,110,{120 + index}"
        for split, names in (("train", ANGRY), ("test", SPELT))
        for index, name in enumerate(names)
        for number in range(1, pictures + 1)
    ]
    return text(path, "\n".join(lines) + "\n")


def expected(pictures: int = 2) -> dict[str, str]:
    return {
        f"{split}/{name}/{number:04d}": f"{split} {name}"
        for split in ("train", "test")
        for name in ORDER
        for number in range(1, pictures + 1)
    }


def test_the_published_numbers_are_mapped_by_name() -> None:
    assert DATASET_LABELS["caers"] == ORDER


def test_the_published_boxes_add_up() -> None:
    assert {split: sum(counts) for split, counts in PUBLISHED_BOXES.items()} == {"train": 47966, "test": 20868}


@pytest.mark.parametrize(
    ("train", "test", "names"),
    [
        ("train", "test", SPELT),
        ("Train", "Test", ANGRY),
        ("train", "valid", ANGRY),
        ("TRAIN", "val", ("angry", "disgusted", "FEAR", "happiness", "neutral", "sadness", "surprised")),
        ("train", "test", tuple(f"{index}_{name}" for index, name in enumerate(SPELT))),
    ],
)
def test_every_spelling_met_gives_the_same_samples(
    tmp_path: Path, train: str, test: str, names: tuple[str, ...]
) -> None:
    raw = fetch(tmp_path, CaersConfig, scenes(tmp_path / "set", train, test, names))
    samples, rejects = read(raw, CaersConfig)
    assert not rejects
    assert labels(samples, NAMES) == expected()
    assert all(not one.is_crop and one.faces[0].box is None for one in samples.values())


def test_the_order_is_natural_whatever_the_number_of_digits(tmp_path: Path) -> None:
    for number in (10, 2, 1000, 1):
        picture(tmp_path / "set" / "train" / "Anger" / f"{number}.png")
    samples, _ = read(fetch(tmp_path, CaersConfig, tmp_path / "set"), CaersConfig)
    assert list(samples) == [f"train/anger/{number}" for number in (1, 2, 10, 1000)]


def test_valid_beside_test_is_a_validation_split(tmp_path: Path) -> None:
    root = scenes(tmp_path / "set")
    picture(root / "val" / "Fear" / "0001.png")
    samples, _ = read(fetch(tmp_path, CaersConfig, root), CaersConfig)
    assert {one.split for one in samples.values()} == {"train", "validation", "test"}


def test_boxes_are_found_by_class_and_number_not_by_spelling(tmp_path: Path) -> None:
    listed = boxes(tmp_path / "annotations" / "all.txt")
    raw = fetch(tmp_path, CaersConfig, scenes(tmp_path / "set", "Train", "Test"), boxes=str(listed))
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
    assert read_boxes(tmp_path / "lists") == {
        Place("train", "anger", "0001"): (1, 2, 3, 4),
        Place("test", "happiness", "0007"): (1.5, 2, 3, 4),
    }


@pytest.mark.parametrize(("policy", "left"), [("drop", 26), ("find", 28)])
def test_pictures_without_a_box_are_dropped_or_left_to_a_detector(tmp_path: Path, policy: str, left: int) -> None:
    listed = boxes(tmp_path / "all.txt")
    lines = listed.read_text().splitlines()
    text(listed, "\n".join([*lines[2:], "train/Fear/7000.png,2,1,2,3,4"]))
    options = {"boxes": str(listed), "missing_boxes": policy}
    raw = fetch(tmp_path, CaersConfig, scenes(tmp_path / "set"), **options)
    samples, _ = read(raw, CaersConfig, **options)
    assert len(samples) == left
    assert about(raw)["excluded"] == ({"no_box_in_list": 2} if policy == "drop" else {})
    assert about(raw)["boxes_without_picture"] == 1
    if policy == "find":
        assert samples["train/anger/0001"].faces[0].box is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("train/Angry/0001.png,0,1,2,3", "5 fields"),
        ("train/Angry/0001.png,1,1,2,3,4", "class '1' of a picture of anger, which is 0"),
        ("train/Angry/0001.png,0,5,2,3,4", "box 5, 2, 3, 4"),
        ("train/Angry/0001.png,0,1,2,nan,4", "box"),
        ("train/Angry/0001.png,0,1,2,x,4", "float"),
        ("Angry/0001.png,0,1,2,3,4", "no split and class"),
        ("train/Calm/0001.png,0,1,2,3,4", "no split and class"),
        ("train/Sad/0001.png,5,1,2,3,4\ntrain/sad/0001.png,5,1,2,3,5", "another box"),
        ("<html>", "web page"),
    ],
)
def test_a_broken_list_of_boxes_is_named_with_its_line(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(FileError, match=rf"(?s)boxes\.txt.*{said}"):
        read_boxes(text(tmp_path / "boxes.txt", line))


def test_a_list_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"gone\.txt"):
        fetch(tmp_path, CaersConfig, scenes(tmp_path / "set"), boxes=str(tmp_path / "gone.txt"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match="no list of boxes"):
        read_boxes(tmp_path / "empty")


def test_other_counts_than_the_printed_ones_need_the_users_word(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"(?s)44996.*20987.*subset: true"):
        fetch(tmp_path, CaersConfig, scenes(tmp_path / "set"), subset=False)
    listed = str(boxes(tmp_path / "all.txt"))
    with pytest.raises(FileError, match=r"(?s)47966.*6856.*subset: true"):
        fetch(tmp_path, CaersConfig, scenes(tmp_path / "set"), subset=False, boxes=listed)


@pytest.mark.parametrize(
    ("deep", "said"),
    [
        ("train", "give the folder that holds both"),
        ("train/Anger", "no class folders below train/ and test/"),
    ],
)
def test_a_folder_too_deep_is_told_where_to_go(tmp_path: Path, deep: str, said: str) -> None:
    scenes(tmp_path / "set")
    with pytest.raises(FileError, match=said):
        fetch(tmp_path, CaersConfig, tmp_path / "set" / deep)


def test_a_folder_too_high_and_archives_of_the_splits_are_read(tmp_path: Path) -> None:
    scenes(tmp_path / "plain" / "CAER-S")
    raw = fetch(tmp_path / "a", CaersConfig, tmp_path / "plain")
    assert labels(read(raw, CaersConfig)[0], NAMES) == expected()
    (tmp_path / "packed").mkdir()
    for split in ("train", "test"):
        zipped(tmp_path / "plain" / "CAER-S" / split, tmp_path / "packed" / f"{split}.zip")
    raw = fetch(tmp_path / "b", CaersConfig, tmp_path / "packed")
    assert labels(read(raw, CaersConfig)[0], NAMES) == expected()
    raw = fetch(tmp_path / "c", CaersConfig, [tmp_path / "packed" / f"{split}.zip" for split in ("train", "test")])
    assert labels(read(raw, CaersConfig)[0], NAMES) == expected()


def test_one_class_spelt_twice_is_read_and_one_picture_twice_is_an_error(tmp_path: Path) -> None:
    root = scenes(tmp_path / "set")
    picture(root / "train" / "Angry" / "0003.png")
    samples, _ = read(fetch(tmp_path, CaersConfig, root), CaersConfig)
    assert samples["train/anger/0003"].origin == "train/Angry/0003.png"
    picture(root / "train" / "Angry" / "0001.png")
    with pytest.raises(FileError, match=r"train/Anger/0001\.png.*train/Angry/0001\.png"):
        fetch(tmp_path / "other", CaersConfig, root)


def test_pictures_outside_the_class_folders_are_named(tmp_path: Path) -> None:
    root = scenes(tmp_path / "set")
    picture(root / "cover.jpg")
    picture(root / "train" / "Calm" / "0001.png")
    with pytest.raises(FileError, match=r"(?s)2 of 30 pictures.*no_label"):
        fetch(tmp_path, CaersConfig, root)
    _, rejects = read(fetch(tmp_path, CaersConfig, root, max_bad_fraction=0.1), CaersConfig)
    assert {reject.origin for reject in rejects} == {"cover.jpg", "train/Calm/0001.png"}


def test_names_come_out_the_same_from_macos(tmp_path: Path) -> None:
    picture(tmp_path / "set" / "train" / "Anger" / unicodedata.normalize("NFD", "é1.png"))
    samples, _ = read(fetch(tmp_path, CaersConfig, tmp_path / "set"), CaersConfig)
    assert list(samples) == [unicodedata.normalize("NFC", "train/anger/é1")]


def test_without_a_path_the_error_draws_the_folder(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"(?s)caer-dataset.*train/Anger/0001\.png"):
        fetch(tmp_path, CaersConfig, None)


@pytest.mark.parametrize(("key", "value"), [("missing_boxes", "guess"), ("boxes", ""), ("box", "a.txt")])
def test_a_wrong_knob_is_refused_by_name(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=key):
        parse(CaersConfig, {"source": "caers", key: value}, "params.yaml")


def test_the_list_of_boxes_is_relative_to_the_project(tmp_path: Path) -> None:
    boxes(tmp_path / "lists" / "all.txt")
    raw = fetch(tmp_path, CaersConfig, scenes(tmp_path / "set"), boxes="lists/all.txt")
    assert read_json(raw / "source.json")["boxes"] == 28
