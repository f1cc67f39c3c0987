"""FER2013 inside archives and as folders: the layout told by content, each picture in the split that its name says."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import pytest
from small_fer2013 import USAGES, assert_rows, csv_file, fetch, parquet_file, pixels, read

from fer.io.files import FileError, read_json
from fer.labels import space


@pytest.mark.parametrize("ending", ["tar.gz", "zip"])
def test_the_file_is_found_inside_its_archive(tmp_path: Path, ending: str) -> None:
    folder = tmp_path / "in" / "fer2013"
    folder.mkdir(parents=True)
    csv_file(folder / "fer2013.csv")
    (folder / "README").write_text("about")
    (folder / "train.csv").write_text("emotion,pixels\n0,1 2 3\n")
    archive = tmp_path / f"fer2013.{ending}"
    shutil.make_archive(str(tmp_path / "fer2013"), "gztar" if ending == "tar.gz" else "zip", tmp_path / "in")
    assert archive.is_file()
    raw = fetch(tmp_path / "1", archive)
    assert_rows(raw, 9)
    assert sorted(path.name for path in raw.iterdir()) == ["fer2013.csv", "source.json"]
    assert_rows(fetch(tmp_path / "2", archive.as_uri()), 9)
    assert_rows(fetch(tmp_path / "3", tmp_path / "in"), 9)
    assert not (tmp_path / "1" / ".work" / "download").exists()


def test_the_real_truncated_archive_is_refused(tmp_path: Path, test_data: Path) -> None:
    with pytest.raises(FileError, match="cut off"):
        fetch(tmp_path, test_data / "bad" / "archives" / "fer2013_truncated.tar.gz")


def test_two_files_of_rows_are_ambiguous(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    csv_file(tmp_path / "in" / "a.csv")
    parquet_file(tmp_path / "in" / "b.parquet")
    with pytest.raises(FileError, match=r"several files.*a\.csv, b\.parquet"):
        fetch(tmp_path, tmp_path / "in")


def kaggle(root: Path, *, said: bool = True) -> Path:
    classes = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
    for index, name in enumerate(classes):
        for usage, folder in zip(USAGES, ("train", "test", "test"), strict=True):
            path = root / folder / name / (f"{usage}_{index}.png" if said else f"{usage[:7]}{index}x.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), pixels(index))
    return root


def test_kaggle_s_folders_are_read_and_their_test_is_told_apart_by_name(tmp_path: Path) -> None:
    samples = read(fetch(tmp_path, kaggle(tmp_path / "in")))
    basic = space("basic7")
    got = {sample.key: (sample.split, basic.labels[sample.faces[0].label]) for sample in samples}
    assert len(got) == 21
    assert got["fer2013/train/angry/Training_0.png"] == ("train", "anger")
    assert got["fer2013/test/happy/PublicTest_3.png"] == ("validation", "happiness")
    assert got["fer2013/test/neutral/PrivateTest_6.png"] == ("test", "neutral")


def test_kaggle_s_folders_without_these_names_have_no_validation(tmp_path: Path) -> None:
    raw = fetch(tmp_path, kaggle(tmp_path / "in", said=False))
    assert {sample.split for sample in read(raw)} == {"train", "test"}
    published = read_json(raw / "source.json")["published"]
    assert (sum(published["train"].values()), sum(published["test"].values())) == (28709, 7178)


def test_a_test_picture_among_the_training_ones_is_refused(tmp_path: Path) -> None:
    source = kaggle(tmp_path / "in")
    (source / "test" / "sad" / "PrivateTest_4.png").rename(source / "train" / "sad" / "PrivateTest_4.png")
    with pytest.raises(FileError, match="a picture of PrivateTest among those of train"):
        fetch(tmp_path, source)


def test_other_class_folders_name_the_source_that_reads_them(tmp_path: Path) -> None:
    source = kaggle(tmp_path / "in")
    (source / "train" / "contempt").mkdir()
    with pytest.raises(FileError, match=r"contempt: no class of FER2013.*source: folders"):
        fetch(tmp_path, source)


def test_ferplus_s_folders_hold_no_label_of_fer2013(tmp_path: Path, test_data: Path) -> None:
    with pytest.raises(FileError, match="source: ferplus"):
        fetch(tmp_path, test_data / "fer2013" / "ferplus_layout")


def test_a_folder_of_anything_else_says_what_was_found_and_expected(tmp_path: Path) -> None:
    (tmp_path / "in" / "cats").mkdir(parents=True)
    with pytest.raises(FileError, match=r"found cats/; expected one of: fer2013\.csv"):
        fetch(tmp_path, tmp_path / "in")


def test_the_real_kaggle_folders_are_read(tmp_path: Path, test_data: Path) -> None:
    raw = fetch(tmp_path, test_data / "fer2013" / "msambare_layout")
    counts = read_json(raw / "source.json")["counts"]
    assert {split: sum(found.values()) for split, found in counts.items()} == {
        "train": 453,
        "validation": 108,
        "test": 110,
    }
    assert len(read(raw)) == 671
