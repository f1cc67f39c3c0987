"""RAF-DB in the layouts that are met: every label read in its published order, or an error that says what is wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders.layouts import about, fetch, found, labels, picture, read, rejected, text, zipped
from builders.places import contents

from fer.io.files import FileError
from fer.io.images import decode_image
from fer.labels import DATASET_LABELS, SPACES
from fer.sources.rafdb import PUBLISHED, RafDbConfig

ORDER = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
LIST = "EmoLabel/list_patition_label.txt"
Build = Callable[[Path], Path]

# Two training images and a test image of each class, with the published number.
NAMES = [(f"train_{index:05d}", index % 7 + 1) for index in range(1, 15)]
NAMES += [(f"test_{index:04d}", index % 7 + 1) for index in range(1, 8)]
EXPECTED = {name: f"{name.split('_')[0]} {ORDER[label - 1]}" for name, label in NAMES}


def published(root: Path, end: str = "\n", start: str = "") -> Path:
    text(root / LIST, start + "".join(f"{name}.jpg {label}{end}" for name, label in NAMES))
    for index, (name, _) in enumerate(NAMES):
        picture(root / "Image" / "aligned" / f"{name}_aligned.jpg", index)
    return root


def original(root: Path) -> Path:
    text(root / LIST, "".join(f"{name}.jpg {label}\n" for name, label in NAMES))
    for index, (name, _) in enumerate(NAMES):
        picture(root / "Image" / "original" / f"{name}.jpg", index, size=20)
        text(root / "Annotation" / "boundingbox" / f"{name}_boundingbox.txt", "2.500000 3 15.5 18.25 \n")
        points = "".join(f"{x}\t{y}\n" for x, y in ((5, 7.5), (11, 7), (8, 10), (6, 14), (10, 14)))
        text(root / "Annotation" / "manual" / f"{name}_manu_attri.txt", points + "0\n2\n3\n")
    return root


def without_boxes(root: Path) -> Path:
    (original(root) / "Annotation" / "boundingbox").rename(root.with_name("elsewhere"))
    return root


def folders(classes: list[Any], test: str = "test") -> Build:
    """One training and one test image in each class folder."""

    def build(root: Path) -> Path:
        for index, name in enumerate(classes):
            picture(root / "train" / str(name) / f"train_{index:05d}_aligned.jpg", index)
            picture(root / test / str(name) / f"test_{index:04d}_aligned.jpg", index)
        return root

    return build


def linked(root: Path) -> Path:
    """Windows paths in the list, endings in upper case, and a link to the images with a circle in it."""
    text(published(root) / LIST, "\n".join(rf"Image\aligned\{name}.jpg {label}" for name, label in NAMES))
    aligned, elsewhere = root / "Image" / "aligned", root.with_name("elsewhere")
    (aligned / "train_00001_aligned.jpg").rename(aligned / "train_00001_aligned.JPG")
    aligned.rename(elsewhere)
    aligned.symlink_to(elsewhere, target_is_directory=True)
    (elsewhere / "circle").symlink_to(root, target_is_directory=True)
    return root


def from_macos(root: Path) -> Path:
    picture(published(root) / "__MACOSX" / "Image" / "aligned" / "train_00001_aligned.jpg")
    text(root / "Image" / "aligned" / "._train_00002_aligned.jpg", b"\0")
    return root


def beside_compound(root: Path) -> Path:
    text(root / "compound" / LIST, "train_0001.jpg 11\ntrain_0002.jpg 3\n")
    published(root / "basic")
    return root


def copied(root: Path) -> Path:
    picture(published(root) / "Image" / "copy" / "train_00001_aligned.jpg")
    return root


LAYOUTS: dict[str, Build] = {
    "as published": published,
    "CRLF": lambda root: published(root, "\r\n"),
    "byte order mark": lambda root: published(root, "\n", "\ufeff"),
    "blank lines": lambda root: published(root, " \r\n\n", "\ufeff\n"),
    "two folders above": lambda root: published(root / "RAF-DB" / "basic").parents[1],
    "Windows paths, upper case, links": linked,
    "what macOS leaves": from_macos,
    "compound list beside": beside_compound,
    "copies elsewhere": copied,  # Image/aligned is the published place
}


@pytest.mark.parametrize("build", LAYOUTS.values(), ids=LAYOUTS)
def test_rafdb_list_gives_every_label(tmp_path: Path, build: Build) -> None:
    assert found(tmp_path, RafDbConfig, build(tmp_path / "set")) == EXPECTED


def test_published_rafdb_numbers_are_mapped_by_name_and_counts_add_up() -> None:
    assert DATASET_LABELS["rafdb"] == ORDER
    assert {split: sum(counts) for split, counts in PUBLISHED.items()} == {"train": 12271, "test": 3068}


def test_images_are_packed_as_published_and_equally_wherever_the_folder_is(tmp_path: Path) -> None:
    raw = fetch(tmp_path / "a", RafDbConfig, published(tmp_path / "basic"))
    one = read(raw, RafDbConfig)[0]["train_00003"]
    assert (one.is_crop, one.faces[0].box, one.origin) == (True, None, "Image/aligned/train_00003_aligned.jpg")
    assert one.image == (tmp_path / "basic" / one.origin).read_bytes()
    assert decode_image(one.image).shape == (6, 6, 3)
    assert about(raw)["form"] == "label list, aligned images"
    other = fetch(tmp_path / "b", RafDbConfig, published(tmp_path / "other" / "deep" / "basic"))
    assert contents(raw) == contents(other)


def test_archives_of_the_distribution_are_opened_in_place(tmp_path: Path) -> None:
    plain = published(tmp_path / "plain")
    packed = tmp_path / "basic"
    text(packed / LIST, (plain / LIST).read_bytes())
    (packed / "Image").mkdir()
    (tmp_path / "holder").mkdir()
    (plain / "Image" / "aligned").rename(tmp_path / "holder" / "aligned")
    zipped(tmp_path / "holder", packed / "Image" / "aligned.zip")
    text(packed / "Image" / "original.zip", b"not opened for aligned images")
    before = sorted(str(path) for path in packed.rglob("*"))
    assert found(tmp_path, RafDbConfig, packed) == EXPECTED
    assert sorted(str(path) for path in packed.rglob("*")) == before
    (tmp_path / "downloads").mkdir()
    whole = zipped(packed, tmp_path / "downloads" / "basic.zip")
    assert found(tmp_path / "again", RafDbConfig, whole) == EXPECTED
    assert found(tmp_path / "folder", RafDbConfig, tmp_path / "downloads") == EXPECTED


def test_original_images_have_a_box_and_five_landmarks(tmp_path: Path) -> None:
    raw = fetch(tmp_path, RafDbConfig, original(tmp_path / "basic"), images="original")
    samples, _ = read(raw, RafDbConfig, images="original")
    assert labels(samples, SPACES["basic7"].labels) == EXPECTED
    assert {(one.is_crop, one.faces[0].box, one.faces[0].landmarks) for one in samples.values()} == {
        (False, (2.5, 3, 15.5, 18.25), ((5, 7.5), (11, 7), (8, 10), (6, 14), (10, 14)))
    }


@pytest.mark.parametrize("content", ["", "1 2 3", "1 2 3 nan", "5 5 5 9", "a b c d"])
def test_broken_box_rejects_its_image_alone(tmp_path: Path, content: str) -> None:
    root = original(tmp_path / "basic")
    text(root / "Annotation" / "boundingbox" / "train_00004_boundingbox.txt", content)
    raw = fetch(tmp_path, RafDbConfig, root, images="original", max_bad_fraction=0.1)
    assert rejected(raw, RafDbConfig, images="original") == {"train_00004": "bad_annotation"}


@pytest.mark.parametrize(
    ("classes", "order", "meant"),
    [
        (range(1, 8), None, ORDER),
        (range(7), "rafdb", ORDER),
        (range(7), "affectnet", DATASET_LABELS["affectnet7"]),
        (["Surprised", "fearful", "Disgust", "happy", "SAD", "angry", "0_neutral"], None, ORDER),
    ],
)
@pytest.mark.parametrize("test", ["test", "valid", "val"])
def test_rafdb_class_folders_are_read_in_their_order(
    tmp_path: Path, classes: list[Any], order: str | None, meant: tuple[str, ...], test: str
) -> None:
    root = folders(classes, test)(tmp_path / "set")
    assert found(tmp_path, RafDbConfig, root, folder_order=order) == {
        f"{split}_{index:0{width}d}": f"{split} {name}"
        for index, name in enumerate(meant)
        for split, width in (("train", 5), ("test", 4))
    }


def test_sizes_of_folders_tell_which_order_they_are_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileError, match=r"(?s)folder_order.*surprise, fear, disgust.*neutral, happiness") as error:
        fetch(tmp_path, RafDbConfig, folders(list(range(7)))(tmp_path / "even"))
    assert "fits folder_order" not in str(error.value)
    monkeypatch.setitem(PUBLISHED, "train", (1, 2, 3, 4, 5, 6, 7))
    for number, name in enumerate(DATASET_LABELS["affectnet7"]):
        for index in range(ORDER.index(name) + 1):
            picture(tmp_path / "set" / "train" / str(number) / f"{number}-{index}.jpg")
    with pytest.raises(FileError, match="fits folder_order: affectnet"):
        fetch(tmp_path, RafDbConfig, tmp_path / "set")


def with_image(build: Build, path: str) -> Build:
    return lambda root: picture(build(root) / path) and root


def with_list(content: bytes) -> Build:
    return lambda root: text(published(root) / LIST, content) and root


def two_lists(root: Path) -> Path:
    return published(published(root / "one").with_name("two")).parent


FOLDERS = folders(list(range(1, 8)))
REFUSED: dict[str, tuple[Build, dict[str, Any], str]] = {
    "a folder too deep": (
        lambda root: published(root) / "Image" / "aligned", {}, r"(?s)list_patition_label.*folder above",
    ),
    "version 1.0 without boxes": (without_boxes, {"images": "original"}, r"boundingbox.*1\.1"),
    "images of the other kind": (original, {}, "images: original"),
    "three numbers": (folders([1, 2, 3]), {}, r"1 \.\. 3, expected 1 \.\. 7 or 0 \.\. 6"),
    "eight numbers": (folders(list(range(8))), {}, r"0 \.\. 7"),
    "compound numbers": (folders(list(range(1, 12))), {}, "compound"),
    "names and a number": (folders(["happy", "sad", 3]), {}, "3 beside"),
    "contempt": (folders(["happy", "sad", "contempt"]), {}, "contempt beside"),
    "other names": (folders(["aligned", "original"]), {}, "aligned, original"),
    "image of the other split": (
        with_image(FOLDERS, "test/1/train_00099_aligned.jpg"), {}, r"train_00099.*test folder",
    ),
    "image beside": (with_image(FOLDERS, "cover.png"), {}, r"(?s)1 of 15 .*no_label.*cover\.png"),
    "flat folders": (
        with_image(lambda root: picture(root / "train" / "train_00001_aligned.jpg").parents[1], "valid/test_1.jpg"),
        {},
        "without a folder for each class",
    ),
    "compound list": (lambda root: text(root / LIST, "train_0001.jpg 11\n").parents[1], {}, "compound.*basic"),
    "two lists": (two_lists, {}, r"one/EmoLabel.*two/EmoLabel.*`path`"),
    "one image in two places": (
        with_image(published, "more/aligned/train_00001_aligned.jpg"),
        {},
        r"Image/aligned/train_00001_aligned.*more/aligned",
    ),
    "a missing image of the whole set": (published, {"subset": False}, r"(?s)found.*published.*4772.*subset: true"),
    "empty list": (with_list(b""), {}, r"label\.txt.*empty"),
    "web page": (with_list(b"<html><body>login"), {}, r"label\.txt.*web page"),
    "LFS pointer": (with_list(b"version https://git-lfs.github.com/spec/v1\n"), {}, r"label\.txt.*Git LFS"),
    "another encoding": (with_list(b"train_00001.jpg 5\n\xff\xfe\xfa 3\n"), {}, r"label\.txt.*UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize(("build", "options", "said"), REFUSED.values(), ids=REFUSED)
def test_unusable_rafdb_folder_is_refused_with_what_is_wrong(
    tmp_path: Path, build: Build, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(FileError, match=said):
        fetch(tmp_path, RafDbConfig, build(tmp_path / "set"), **options)


def test_each_bad_line_and_stray_image_is_rejected_with_its_reason(tmp_path: Path) -> None:
    root = published(tmp_path / "basic")
    lines = (root / LIST).read_text().splitlines()
    lines[:3] = ["train_00001.jpg 0", "train_00002.jpg", "train_00003.jpg drei"]
    lines += ["train_00004.jpg 1", "train_00005.jpg 6", "photo.jpg 3"]
    text(root / LIST, "\n".join(lines))
    picture(root / "Image" / "aligned" / "test_0099_aligned.jpg")
    (root / "Image" / "aligned" / "train_00006_aligned.jpg").unlink()
    raw = fetch(tmp_path, RafDbConfig, root, max_bad_fraction=1)
    assert rejected(raw, RafDbConfig) == {
        "train_00001": "bad_label",
        "train_00002": "bad_label",
        "train_00003": "bad_label",
        "line-22": "conflicting_labels",
        "line-24": "bad_row",
        "test_0099": "no_label",
    }
    assert about(raw)["excluded"] == {"listed_twice": 1, "not_in_this_copy": 1}
    assert len(read(raw, RafDbConfig)[0]) == 17
