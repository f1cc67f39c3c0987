"""RAF-DB in the layouts that are met: every label read in its published order, or an error that says what is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from builders.layouts import about, fetch, labels, picture, read, text, zipped

from fer.config import ConfigError, parse
from fer.io.files import FileError
from fer.io.images import decode_image
from fer.labels import DATASET_LABELS, SPACES
from fer.sources.base import RawSample
from fer.sources.rafdb import PUBLISHED, RafDbConfig, RafDbSource

NAMES = SPACES["basic7"].labels
ORDER = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
LIST = "EmoLabel/list_patition_label.txt"


def names() -> list[tuple[str, int]]:
    """Two training pictures and a test picture of each class, with the published number."""
    train = [(f"train_{index:05d}", index % 7 + 1) for index in range(1, 15)]
    return train + [(f"test_{index:04d}", index % 7 + 1) for index in range(1, 8)]


def published(root: Path, end: str = "\n", start: str = "") -> Path:
    text(root / LIST, start + "".join(f"{name}.jpg {label}{end}" for name, label in names()))
    for index, (name, _) in enumerate(names()):
        picture(root / "Image" / "aligned" / f"{name}_aligned.jpg", index)
    return root


def original(root: Path) -> Path:
    text(root / LIST, "".join(f"{name}.jpg {label}\n" for name, label in names()))
    for index, (name, _) in enumerate(names()):
        picture(root / "Image" / "original" / f"{name}.jpg", index, size=20)
        text(root / "Annotation" / "boundingbox" / f"{name}_boundingbox.txt", "2.500000 3 15.5 18.25 \n")
        points = "".join(f"{x}\t{y}\n" for x, y in ((5, 7.5), (11, 7), (8, 10), (6, 14), (10, 14)))
        text(root / "Annotation" / "manual" / f"{name}_manu_attri.txt", points + "0\n2\n3\n")
    return root


def folders(root: Path, classes: list[str], test: str = "test") -> Path:
    """One training and one test picture in each class folder."""
    for index, name in enumerate(classes):
        picture(root / "train" / name / f"train_{index:05d}_aligned.jpg", index)
        picture(root / test / name / f"test_{index:04d}_aligned.jpg", index)
    return root


def expected() -> dict[str, str]:
    return {name: f"{name.split('_')[0]} {ORDER[label - 1]}" for name, label in names()}


def found(root: Path, path: Path | list[Path], **options: object) -> dict[str, str]:
    samples, rejects = read(fetch(root, RafDbConfig, path, **options), RafDbConfig)
    assert not rejects
    return labels(samples, NAMES)


def test_the_published_numbers_are_mapped_by_name() -> None:
    assert DATASET_LABELS["rafdb"] == ORDER


def test_the_published_counts_add_up() -> None:
    assert {split: sum(counts) for split, counts in PUBLISHED.items()} == {"train": 12271, "test": 3068}


def test_the_published_layout_is_read_picture_for_picture(tmp_path: Path) -> None:
    raw = fetch(tmp_path, RafDbConfig, published(tmp_path / "basic"))
    samples, rejects = read(raw, RafDbConfig)
    assert not rejects
    assert labels(samples, NAMES) == expected()
    one = samples["train_00003"]
    assert one.is_crop
    assert one.faces[0].box is None
    assert one.origin == "Image/aligned/train_00003_aligned.jpg"
    assert one.image == (tmp_path / "basic" / one.origin).read_bytes()
    assert about(raw)["form"] == "label list, aligned pictures"


@pytest.mark.parametrize(("end", "start"), [("\r\n", ""), ("\n", "\ufeff"), (" \r\n\n", "\ufeff\n")])
def test_byte_order_marks_line_ends_and_blank_lines_change_nothing(tmp_path: Path, end: str, start: str) -> None:
    assert found(tmp_path, published(tmp_path / "basic", end, start)) == expected()


def test_a_folder_too_high_is_read_and_a_folder_too_deep_is_named(tmp_path: Path) -> None:
    published(tmp_path / "sets" / "RAF-DB" / "basic")
    assert found(tmp_path, tmp_path / "sets") == expected()
    with pytest.raises(FileError, match=r"(?s)list_patition_label.*folder above"):
        fetch(tmp_path, RafDbConfig, tmp_path / "sets" / "RAF-DB" / "basic" / "Image" / "aligned")


def test_the_archives_of_the_distribution_are_opened_where_they_lie(tmp_path: Path) -> None:
    plain = published(tmp_path / "plain")
    packed = tmp_path / "basic"
    text(packed / LIST, (plain / LIST).read_bytes())
    (packed / "Image").mkdir()
    holder = tmp_path / "holder"
    holder.mkdir()
    (plain / "Image" / "aligned").rename(holder / "aligned")
    zipped(holder, packed / "Image" / "aligned.zip")
    text(packed / "Image" / "original.zip", b"not opened for aligned pictures")
    before = sorted(str(path) for path in packed.rglob("*"))
    assert found(tmp_path, packed) == expected()
    assert sorted(str(path) for path in packed.rglob("*")) == before
    (tmp_path / "downloads").mkdir()
    whole = zipped(packed, tmp_path / "downloads" / "basic.zip")
    assert found(tmp_path / "again", whole) == expected()
    assert found(tmp_path / "folder", tmp_path / "downloads") == expected()


def test_original_pictures_come_with_box_and_five_landmarks(tmp_path: Path) -> None:
    raw = fetch(tmp_path, RafDbConfig, original(tmp_path / "basic"), images="original")
    samples, _ = read(raw, RafDbConfig, images="original")
    assert labels(samples, NAMES) == expected()
    for one in samples.values():
        (face,) = one.faces
        assert not one.is_crop
        assert face.box == (2.5, 3, 15.5, 18.25)
        assert face.landmarks == ((5, 7.5), (11, 7), (8, 10), (6, 14), (10, 14))


@pytest.mark.parametrize("content", ["", "1 2 3", "1 2 3 nan", "5 5 5 9", "a b c d"])
def test_a_broken_box_refuses_its_picture_alone(tmp_path: Path, content: str) -> None:
    root = original(tmp_path / "basic")
    text(root / "Annotation" / "boundingbox" / "train_00004_boundingbox.txt", content)
    options = {"images": "original", "max_bad_fraction": 0.1}
    samples, (bad,) = read(fetch(tmp_path, RafDbConfig, root, **options), RafDbConfig, images="original")
    assert (bad.sample_id, bad.reason) == ("rafdb/train_00004", "bad_annotation")
    assert len(samples) == 20


def test_version_1_0_without_boxes_is_an_error_that_says_so(tmp_path: Path) -> None:
    root = original(tmp_path / "basic")
    (root / "Annotation" / "boundingbox").rename(tmp_path / "elsewhere")
    with pytest.raises(FileError, match=r"boundingbox.*1\.1"):
        fetch(tmp_path, RafDbConfig, root, images="original")


def test_pictures_of_the_other_kind_are_pointed_at(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="set images: original"):
        fetch(tmp_path, RafDbConfig, original(tmp_path / "basic"))


@pytest.mark.parametrize(
    ("classes", "order", "meant"),
    [
        ([str(number) for number in range(1, 8)], None, ORDER),
        ([str(number) for number in range(7)], "rafdb", ORDER),
        ([str(number) for number in range(7)], "affectnet", DATASET_LABELS["affectnet7"]),
        (["Surprised", "fearful", "Disgust", "happy", "SAD", "angry", "0_neutral"], None, ORDER),
    ],
)
@pytest.mark.parametrize("test", ["test", "valid", "val"])
def test_class_folders_are_read_in_their_order(
    tmp_path: Path, classes: list[str], order: str | None, meant: tuple[str, ...], test: str
) -> None:
    root = folders(tmp_path / "set", classes, test)
    assert found(tmp_path, root, folder_order=order) == {
        f"{split}_{index:0{width}d}": f"{split} {name}"
        for index, name in enumerate(meant)
        for split, width in (("train", 5), ("test", 4))
    }


def test_folders_0_to_6_without_an_order_are_an_error_that_explains_both(tmp_path: Path) -> None:
    with pytest.raises(FileError) as error:
        fetch(tmp_path, RafDbConfig, folders(tmp_path / "set", [str(number) for number in range(7)]))
    said = str(error.value)
    for part in ("folder_order", "surprise, fear, disgust", "neutral, happiness, sadness", "DDAMFN"):
        assert part in said
    assert "fits folder_order" not in said


def test_the_published_sizes_of_folders_tell_which_order_they_are_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PUBLISHED, "train", (1, 2, 3, 4, 5, 6, 7))
    order = DATASET_LABELS["affectnet7"]
    for number, name in enumerate(order):
        for index in range(ORDER.index(name) + 1):
            picture(tmp_path / "set" / "train" / str(number) / f"{number}-{index}.jpg")
    with pytest.raises(FileError, match="fits folder_order: affectnet"):
        fetch(tmp_path, RafDbConfig, tmp_path / "set")


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (["1", "2", "3"], r"1 \.\. 3, expected 1 \.\. 7 or 0 \.\. 6"),
        ([str(number) for number in range(8)], r"0 \.\. 7"),
        ([str(number) for number in range(1, 12)], "compound"),
        (["happy", "sad", "3"], "3 beside folders named by class"),
        (["happy", "sad", "contempt"], "contempt beside"),
        (["aligned", "original"], "no classes of RAF-DB"),
    ],
)
def test_folders_that_can_mean_nothing_are_refused(tmp_path: Path, classes: list[str], said: str) -> None:
    with pytest.raises(FileError, match=said):
        fetch(tmp_path, RafDbConfig, folders(tmp_path / "set", classes))


def test_a_picture_in_the_other_split_s_folder_is_an_error(tmp_path: Path) -> None:
    root = folders(tmp_path / "set", [str(number) for number in range(1, 8)])
    picture(root / "test" / "1" / "train_00099_aligned.jpg")
    with pytest.raises(FileError, match=r"train_00099.*not RAF-DB's split"):
        fetch(tmp_path, RafDbConfig, root)


def test_a_picture_outside_the_class_folders_is_named(tmp_path: Path) -> None:
    root = folders(tmp_path / "set", [str(number) for number in range(1, 8)])
    picture(root / "cover.png")
    with pytest.raises(FileError, match=r"1 of 15 pictures.*no_label"):
        fetch(tmp_path, RafDbConfig, root)


def test_flat_train_and_valid_folders_have_no_labels(tmp_path: Path) -> None:
    picture(tmp_path / "set" / "train" / "train_00001_aligned.jpg")
    picture(tmp_path / "set" / "valid" / "test_0001_aligned.jpg")
    with pytest.raises(FileError, match="without a folder for each class"):
        fetch(tmp_path, RafDbConfig, tmp_path / "set")


def test_the_compound_list_is_recognised_and_refused_and_the_basic_one_beside_it_read(tmp_path: Path) -> None:
    compound = tmp_path / "RAF" / "compound"
    text(compound / LIST, "train_0001.jpg 11\ntrain_0002.jpg 3\n")
    with pytest.raises(FileError, match=r"compound.*basic"):
        fetch(tmp_path, RafDbConfig, tmp_path / "RAF")
    published(tmp_path / "RAF" / "basic")
    assert found(tmp_path, tmp_path / "RAF") == expected()


def test_two_label_lists_are_an_error_that_names_both(tmp_path: Path) -> None:
    published(tmp_path / "RAF" / "one")
    published(tmp_path / "RAF" / "two")
    with pytest.raises(FileError, match=r"one/EmoLabel.*two/EmoLabel"):
        fetch(tmp_path, RafDbConfig, tmp_path / "RAF")


def test_each_bad_line_and_each_stray_picture_is_named_with_its_reason(tmp_path: Path) -> None:
    root = published(tmp_path / "basic")
    lines = (root / LIST).read_text().splitlines()
    lines[0] = "train_00001.jpg 0"
    lines[1] = "train_00002.jpg"
    lines[2] = "train_00003.jpg drei"
    lines += ["train_00004.jpg 1", "train_00005.jpg 6", "photo.jpg 3"]
    text(root / LIST, "\n".join(lines))
    picture(root / "Image" / "aligned" / "test_0099_aligned.jpg")
    (root / "Image" / "aligned" / "train_00006_aligned.jpg").unlink()
    raw = fetch(tmp_path, RafDbConfig, root, max_bad_fraction=1)
    samples, rejects = read(raw, RafDbConfig)
    reasons = {reject.sample_id.partition("/")[2]: reject.reason for reject in rejects}
    assert reasons == {
        "train_00001": "bad_label",
        "train_00002": "bad_label",
        "train_00003": "bad_label",
        "line-22": "conflicting_labels",
        "line-24": "bad_row",
        "test_0099": "no_label",
    }
    assert about(raw)["excluded"] == {"listed_twice": 1, "not_in_this_copy": 1}
    assert len(samples) == 17


def test_a_missing_picture_of_the_whole_set_is_no_subset(tmp_path: Path) -> None:
    root = published(tmp_path / "basic")
    (root / "Image" / "aligned" / "train_00006_aligned.jpg").unlink()
    with pytest.raises(FileError, match=r"(?s)found.*published.*4772.*subset: true"):
        fetch(tmp_path, RafDbConfig, root, subset=False)


def test_the_same_picture_in_two_places_is_an_error_that_names_both(tmp_path: Path) -> None:
    root = published(tmp_path / "basic")
    picture(root / "Image" / "copy" / "train_00001_aligned.jpg")
    assert found(tmp_path, root) == expected()  # Image/aligned is the published place
    picture(root / "more" / "aligned" / "train_00001_aligned.jpg")
    with pytest.raises(FileError, match=r"Image/aligned/train_00001_aligned.*more/aligned"):
        fetch(tmp_path / "other", RafDbConfig, root)


def test_upper_case_endings_windows_paths_and_links_are_understood(tmp_path: Path) -> None:
    root = published(tmp_path / "basic")
    lines = [rf"Image\aligned\{name}.jpg {label}" for name, label in names()]
    text(root / LIST, "\n".join(lines))
    aligned = root / "Image" / "aligned"
    (aligned / "train_00001_aligned.jpg").rename(aligned / "train_00001_aligned.JPG")
    aligned.rename(tmp_path / "elsewhere")
    aligned.symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere" / "circle").symlink_to(root, target_is_directory=True)
    assert found(tmp_path, root) == expected()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"<html><body>login", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"train_00001.jpg 5\n\xff\xfe\xfa 3\n", "UTF-8"),
    ],
)
def test_a_list_that_is_none_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    root = published(tmp_path / "basic")
    text(root / LIST, content)
    with pytest.raises(FileError, match=said):
        fetch(tmp_path, RafDbConfig, root)


def test_what_macos_leaves_in_folders_is_no_picture(tmp_path: Path) -> None:
    root = published(tmp_path / "basic")
    picture(root / "__MACOSX" / "Image" / "aligned" / "train_00001_aligned.jpg")
    text(root / "Image" / "aligned" / "._train_00002_aligned.jpg", b"\0")
    assert found(tmp_path, root) == expected()


def test_the_same_bytes_come_out_wherever_the_folder_lies(tmp_path: Path) -> None:
    one = fetch(tmp_path / "a", RafDbConfig, published(tmp_path / "one" / "basic"))
    other = fetch(tmp_path / "b", RafDbConfig, published(tmp_path / "other" / "deep" / "basic"))
    assert {path.name: path.read_bytes() for path in one.iterdir()} == {
        path.name: path.read_bytes() for path in other.iterdir()
    }


def test_without_a_path_the_error_draws_the_folder(tmp_path: Path) -> None:
    with pytest.raises(FileError) as error:
        fetch(tmp_path, RafDbConfig, None)
    for part in ("whdeng.cn", "list_patition_label.txt", "_aligned.jpg", "path"):
        assert part in str(error.value)


@pytest.mark.parametrize(("key", "value"), [("images", "cropped"), ("folder_order", "fer2013"), ("image", "aligned")])
def test_a_wrong_knob_is_refused_by_name(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=key):
        parse(RafDbConfig, {"source": "rafdb", key: value}, "params.yaml")


def test_pictures_come_out_as_they_went_in(tmp_path: Path) -> None:
    samples, _ = read(fetch(tmp_path, RafDbConfig, published(tmp_path / "basic")), RafDbConfig)
    one: RawSample = samples["test_0001"]
    assert isinstance(one.image, bytes)
    assert np.array_equal(decode_image(one.image).shape, (6, 6, 3))
    assert RafDbSource.generator == "rafdb"
    assert os.sep not in one.key.removeprefix("rafdb/")
