"""AffectNet in its releases and in what others make of them: the same numbers, the same splits, or a named error."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from builders.layouts import about, fetch, labels, picture, read, text, zipped
from hypothesis import given, settings
from hypothesis import strategies as st

from fer.config import ConfigError, parse
from fer.io.files import FileError
from fer.labels import DATASET_LABELS, SPACES
from fer.sources.affectnet import TEST, TRAIN, AffectNetConfig
from fer.sources.affectnet_csv import five_of_68
from fer.sources.layout import read_npy
from fer.synth import SceneConfig, render

NAMES = SPACES["basic8"].labels
ORDER = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")
HEADER = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal"


def points68(five: Iterable[tuple[float, float]] = ((8, 10), (16, 10), (12, 14), (9, 18), (15, 18))) -> str:
    """68 landmarks whose eyes' means, nose and mouth corners are these five points."""
    right, left, nose, right_mouth, left_mouth = five
    points = [(1.0, 1.0)] * 68
    ring = [(-2, 0), (-1, -1), (1, -1), (2, 0), (1, 1), (-1, 1)]
    points[36:42] = [(right[0] + x, right[1] + y) for x, y in ring]
    points[42:48] = [(left[0] + x, left[1] + y) for x, y in ring]
    points[30], points[48], points[54] = nose, right_mouth, left_mouth
    return ";".join(f"{value:.2f}" for point in points for value in point)


def row(name: str, expression: object, box: str = "4,5,20,16", landmarks: str | None = None) -> str:
    return f"{name},{box},{points68() if landmarks is None else landmarks},{expression},-0.25,0.5"


def release(root: Path, train: list[str] | None = None, test: list[str] | None = None) -> Path:
    """The first release: eleven training and eight validation rows, of each expression."""
    train = [row(f"{index % 3}/a{index}.jpg", index) for index in range(11)] if train is None else train
    test = [row(f"7/b{index}.JPG", index) for index in range(8)] if test is None else test
    text(root / "training.csv", "\n".join([HEADER, *train]) + "\n")
    text(root / "validation.csv", "\n".join([HEADER, *test]) + "\n")
    for line in train + test:
        picture(root / "Manually_Annotated_Images" / line.split(",")[0].replace("\\", "/"), size=30)
    return root


def npy(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.array(value))
    return path


def march(root: Path, validation: str = "val_set") -> Path:
    """The release of March 2021, with numbers as text as it has them."""
    for split, first in (("train_set", 0), (validation, 100)):
        for index in range(first, first + 8):
            picture(root / split / "images" / f"{index}.jpg", index)
            npy(root / split / "annotations" / f"{index}_exp.npy", str(index - first))
            npy(root / split / "annotations" / f"{index}_val.npy", 0.5)
            npy(root / split / "annotations" / f"{index}_lnd.npy", [float(x) for x in points68().split(";")])
    return root


def found(root: Path, path: Path, **options: object) -> dict[str, str]:
    samples, rejects = read(fetch(root, AffectNetConfig, path, **options), AffectNetConfig, **options)
    assert not rejects
    return labels(samples, NAMES)


def test_the_published_numbers_are_mapped_by_name() -> None:
    assert DATASET_LABELS["affectnet8"] == ORDER
    assert DATASET_LABELS["affectnet7"] == ORDER[:7]


def test_the_published_counts_add_up() -> None:
    assert (sum(TRAIN), sum(TRAIN[:7])) == (287651, 283901)
    assert {form: sum(counts) for form, counts in TEST.items()} == {
        "csv release": 4000,
        "folder release": 3999,
        "class folders": 3999,
        "text lists": 3999,
    }


def test_the_first_release_is_read_with_boxes_and_five_of_its_landmarks(tmp_path: Path) -> None:
    raw = fetch(tmp_path, AffectNetConfig, release(tmp_path / "set"))
    samples, rejects = read(raw, AffectNetConfig)
    assert not rejects
    assert labels(samples, NAMES) == {
        **{f"{index % 3}/a{index}": f"train {name}" for index, name in enumerate(ORDER)},
        **{f"7/b{index}": f"test {name}" for index, name in enumerate(ORDER)},
    }
    one = samples["1/a4"]
    assert not one.is_crop
    assert one.faces[0].box == (4, 5, 24, 21)
    assert one.faces[0].landmarks == ((8, 10), (16, 10), (12, 14), (9, 18), (15, 18))
    assert about(raw)["excluded"] == {"none": 1, "uncertain": 1, "no_face": 1}


def test_seven_classes_drop_contempt_and_count_it(tmp_path: Path) -> None:
    raw = fetch(tmp_path, AffectNetConfig, release(tmp_path / "set"), classes=7)
    samples, _ = read(raw, AffectNetConfig, classes=7)
    assert set(labels(samples, NAMES).values()) == {f"{split} {n}" for split in ("train", "test") for n in ORDER[:7]}
    assert about(raw)["excluded"]["contempt"] == 2
    assert set(about(raw)["published"]["train"]) == set(ORDER[:7])


def test_the_landmarks_of_a_face_come_out_in_the_order_of_the_person() -> None:
    scene = render(1, 3, SceneConfig(scene_size=160, face_size=(80.0, 100.0), multi_face_probability=0.0))
    (face,) = scene.faces
    taken = five_of_68(points68(face.landmarks).split(";"))
    np.testing.assert_allclose(taken, face.landmarks, atol=0.01)
    assert taken[0][0] < taken[1][0]  # the person's right eye is at the picture's left


@pytest.mark.parametrize("box", ["NULL,NULL,NULL,NULL", "4,5,-1,16", "4,5,20,0", "4,5,nan,3"])
def test_rows_without_a_box_are_left_out_and_counted_as_nobody_counts_them(tmp_path: Path, box: str) -> None:
    rows = [row("1/a.jpg", 1), row("1/b.jpg", 1, box=box)]
    raw = fetch(tmp_path, AffectNetConfig, release(tmp_path / "set", rows))
    assert about(raw)["excluded"] == {"no_box": 1}


def test_windows_paths_byte_order_marks_and_column_order_change_nothing(tmp_path: Path) -> None:
    root = release(tmp_path / "set", [row("1/a.jpg", 1)], [row("7/b.jpg", 2)])
    text(root / "training.csv", "\ufeff" + "\r\n".join([HEADER, row("1\\a.jpg", 1), ""]))
    columns = ["Expression", "SubDirectory_filePath", "face_y", "face_x", "face_height", "face_width"]
    line = f'2;7/b.jpg;5;4;16;20;"{points68()}"'
    text(root / "validation.csv", ";".join([*columns, "facial_landmarks"]) + "\n" + line + "\n")
    samples, _ = read(fetch(tmp_path, AffectNetConfig, root), AffectNetConfig)
    assert labels(samples, NAMES) == {"1/a": "train happiness", "7/b": "test sadness"}
    assert {one.faces[0].box for one in samples.values()} == {(4, 5, 24, 21)}


def test_each_bad_row_is_named_with_its_line(tmp_path: Path) -> None:
    bad = [
        row("1/c.jpg", 11),
        row("1/d.jpg", "happy"),
        row("1/e.jpg", 1, landmarks="1;2;3"),
        row("../secret.jpg", 1),
        "1/f.jpg,1,2",
        row("1/gone.jpg", 1),
        row("1/a.jpg", 2),
    ]
    root = release(tmp_path / "set", [row("1/a.jpg", 1), *bad[:3]])
    text(root / "training.csv", "\n".join([HEADER, row("1/a.jpg", 1), row("1/a.jpg", 1), *bad]))
    raw = fetch(tmp_path, AffectNetConfig, root, max_bad_fraction=1)
    _, rejects = read(raw, AffectNetConfig)
    assert [(reject.origin.rpartition(":")[2], reject.reason) for reject in rejects] == [
        ("4", "bad_row"),
        ("5", "bad_row"),
        ("6", "bad_row"),
        ("7", "bad_row"),
        ("8", "bad_row"),
        ("10", "conflicting_rows"),
    ]
    assert about(raw)["excluded"] == {"listed_twice": 1, "not_in_this_copy": 1}


def test_two_faces_of_one_picture_are_two_samples(tmp_path: Path) -> None:
    rows = [row("1/a.jpg", 1), row("1/a.jpg", 4, box="40,50,20,16")]
    samples, _ = read(fetch(tmp_path, AffectNetConfig, release(tmp_path / "set", rows)), AffectNetConfig)
    assert {key: one.faces[0].label for key, one in samples.items() if one.split == "train"} == {
        "1/a": NAMES.index("happiness"),
        "1/a-40-50": NAMES.index("fear"),
    }


def test_tables_without_pictures_and_the_automatic_part_are_explained(tmp_path: Path) -> None:
    root = release(tmp_path / "set")
    (root / "Manually_Annotated_Images").rename(tmp_path / "elsewhere")
    with pytest.raises(FileError, match=r"Manually_Annotated_Images/0/a0\.jpg"):
        fetch(tmp_path, AffectNetConfig, root)
    text(tmp_path / "auto" / "automatically_annotated.csv", HEADER + "\n" + row("1/a.jpg", 1))
    with pytest.raises(FileError, match="a network gave"):
        fetch(tmp_path, AffectNetConfig, tmp_path / "auto")
    text(tmp_path / "odd" / "list.csv", HEADER + "\n" + row("1/a.jpg", 1))
    with pytest.raises(FileError, match="of which split"):
        fetch(tmp_path, AffectNetConfig, tmp_path / "odd")
    text(tmp_path / "html" / "training.csv", "<html>login")
    with pytest.raises(FileError, match="web page"):
        fetch(tmp_path, AffectNetConfig, tmp_path / "html")


@pytest.mark.parametrize("deep", ["", "AffectNet/", "x/y/AffectNet/"])
def test_the_march_2021_release_is_read_from_any_height(tmp_path: Path, deep: str) -> None:
    march(tmp_path / "set" / deep)
    raw = fetch(tmp_path, AffectNetConfig, tmp_path / "set")
    samples, rejects = read(raw, AffectNetConfig)
    assert not rejects
    assert labels(samples, NAMES) == {
        **{f"train/{index}": f"train {name}" for index, name in enumerate(ORDER)},
        **{f"test/{index + 100}": f"test {name}" for index, name in enumerate(ORDER)},
    }
    one = samples["test/103"]
    assert one.is_crop
    assert one.faces[0].landmarks == ((8, 10), (16, 10), (12, 14), (9, 18), (15, 18))
    assert about(raw)["form"] == "folder release"


def test_the_sets_as_archives_in_a_folder_are_opened_where_they_lie(tmp_path: Path) -> None:
    march(tmp_path / "plain")
    (tmp_path / "packed").mkdir()
    for part in ("train_set", "val_set"):
        zipped(tmp_path / "plain" / part, tmp_path / "packed" / f"{part}.zip")
    assert found(tmp_path / "a", tmp_path / "packed") == found(tmp_path / "b", tmp_path / "plain")


def test_landmarks_may_be_absent_and_the_validation_folder_may_be_called_valid_set(tmp_path: Path) -> None:
    root = march(tmp_path / "set", "valid_set")
    for path in root.rglob("*_lnd.npy"):
        path.unlink()
    samples, _ = read(fetch(tmp_path, AffectNetConfig, root), AffectNetConfig)
    assert {one.faces[0].landmarks for one in samples.values()} == {None}
    assert sum(one.split == "test" for one in samples.values()) == 8


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"0",
        b"\x93NUMPY\x01\x00",
        b"PK\x03\x04 an npz",
        pytest.param(np.array([1, 2]), id="two numbers"),
        pytest.param(np.array(8), id="none"),
        pytest.param(np.array("happy"), id="a word"),
        pytest.param(np.array(1.5), id="a fraction"),
        pytest.param(np.array([{"a": 1}], dtype=object), id="a pickle"),
    ],
)
def test_an_odd_npy_refuses_its_picture_alone_and_is_never_unpickled(
    tmp_path: Path, content: bytes | np.ndarray
) -> None:
    root = march(tmp_path / "set")
    path = root / "train_set" / "annotations" / "3_exp.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    samples, (bad,) = read(fetch(tmp_path, AffectNetConfig, root, max_bad_fraction=0.1), AffectNetConfig)
    assert (bad.sample_id, bad.reason) == ("affectnet/train/3", "bad_annotation")
    assert bad.origin == "train_set/annotations/3_exp.npy"
    assert len(samples) == 15


def test_a_header_that_claims_a_huge_array_costs_nothing(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (10**13,)})
    (tmp_path / "a.npy").write_bytes(stream.getvalue() + bytes(8))
    with pytest.raises(ValueError, match="shape"):
        read_npy(tmp_path / "a.npy", 1)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_one_value_or_a_named_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, head: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.npy"
    path.write_bytes((b"\x93NUMPY\x01\x00" if head else b"") + data)
    with contextlib.suppress(ValueError):
        assert read_npy(path, 1).shape == (1,)


def test_pictures_and_annotations_without_their_partner_are_named(tmp_path: Path) -> None:
    root = march(tmp_path / "set")
    (root / "train_set" / "images" / "1.jpg").unlink()
    (root / "val_set" / "annotations" / "102_exp.npy").unlink()
    _, rejects = read(fetch(tmp_path, AffectNetConfig, root, max_bad_fraction=1), AffectNetConfig)
    assert {(reject.sample_id, reject.reason) for reject in rejects} == {
        ("affectnet/train/1", "missing_file"),
        ("affectnet/test/102", "no_label"),
    }


@pytest.mark.parametrize(
    ("names", "order"),
    [
        ([str(number) for number in range(8)], ORDER),
        (["Neutral", "happy", "Sad", "surprise", "fear", "Disgust", "angry", "contempt"], ORDER),
        (["0_neutral", "1_happy", "2_sad", "3_surprise", "4_fear", "5_disgust", "6_anger", "7_contempt"], ORDER),
    ],
)
def test_the_folders_of_dan_s_converter_are_read(tmp_path: Path, names: list[str], order: tuple[str, ...]) -> None:
    for index, name in enumerate(names):
        picture(tmp_path / "set" / "train" / name / f"{index}.jpg", index)
        picture(tmp_path / "set" / "val" / name / f"{index + 100}.png", index)
    assert found(tmp_path, tmp_path / "set") == {
        **{f"train/{index}": f"train {name}" for index, name in enumerate(order)},
        **{f"test/{index + 100}": f"test {name}" for index, name in enumerate(order)},
    }


@pytest.mark.parametrize("classes", [7, 8])
def test_folders_numbered_by_the_alphabet_need_their_own_word(tmp_path: Path, classes: int) -> None:
    for number in range(classes):
        picture(tmp_path / "set" / "train" / str(number) / f"{number}.jpg")
    assert found(tmp_path, tmp_path / "set", folder_order="alphabetical", classes=classes) == {
        f"train/{number}": f"train {name}" for number, name in enumerate(sorted(ORDER[:classes]))
    }


def test_a_crop_has_the_same_key_in_the_release_and_in_folders_made_of_it(tmp_path: Path) -> None:
    march(tmp_path / "release")
    for number in range(8):
        picture(tmp_path / "made" / "train" / str(number) / f"{number}.jpg", number)
        picture(tmp_path / "made" / "val" / str(number) / f"{number + 100}.jpg", number)
    assert found(tmp_path / "a", tmp_path / "release") == found(tmp_path / "b", tmp_path / "made")


def lists(root: Path) -> Path:
    for split, first in (("train", 0), ("valid", 100)):
        rows = [f"{index}.jpg {index - first}" for index in range(first, first + 7)]
        text(root / f"{split}_set" / f"{split}_annotations_7class.txt", "\r\n".join(rows))
        for index in range(first, first + 7):
            picture(root / f"{split}_set" / "images" / f"{index}.jpg", index)
    return root


def test_poster_s_text_lists_are_in_affectnet_s_order(tmp_path: Path) -> None:
    assert found(tmp_path, lists(tmp_path / "set"), classes=7) == {
        **{f"train/{index}": f"train {name}" for index, name in enumerate(ORDER[:7])},
        **{f"test/{index + 100}": f"test {name}" for index, name in enumerate(ORDER[:7])},
    }


def test_text_lists_and_pictures_that_do_not_match_are_named(tmp_path: Path) -> None:
    root = lists(tmp_path / "set")
    text(root / "train_set" / "train_annotations_7class.txt", "0.jpg 0\n0.jpg 0\n1.JPG 9\n2.jpg 2\n2.jpg 3\n3.jpg\n")
    _, rejects = read(fetch(tmp_path, AffectNetConfig, root, max_bad_fraction=1), AffectNetConfig)
    assert sorted(reject.reason for reject in rejects) == [
        "bad_label",
        "bad_label",
        "conflicting_labels",
        "no_label",
        "no_label",
        "no_label",
    ]


def kaggle(root: Path, split: str = "") -> Path:
    rows = [",pth,label,relFCs"]
    for index, (folder, label) in enumerate([("anger", "surprise"), ("happy", "happy"), ("contempt", "neutral")] * 8):
        picture(root / split / folder / f"image{index:07d}.jpg", index)
        rows.append(f"{index},{folder}/image{index:07d}.jpg,{label},0.87")
    text(root / "labels.csv", "\n".join(rows))
    return root


def test_kaggle_s_labels_come_from_its_table_and_not_from_its_folders(tmp_path: Path) -> None:
    raw = fetch(tmp_path, AffectNetConfig, kaggle(tmp_path / "set"), test_fraction=0.3)
    samples, rejects = read(raw, AffectNetConfig)
    assert not rejects
    given = {key: label.split()[1] for key, label in labels(samples, NAMES).items()}
    assert given["anger/image0000000"] == "surprise"
    assert given["happy/image0000001"] == "happiness"
    assert {one.split for one in samples.values()} == {"train", "test"}
    assert about(raw)["folder_and_list_disagree"] == 16
    assert about(raw)["published"] == {}


def test_kaggle_s_own_splits_win_over_the_hash(tmp_path: Path) -> None:
    samples, _ = read(fetch(tmp_path, AffectNetConfig, kaggle(tmp_path / "set", "Test")), AffectNetConfig)
    assert {one.split for one in samples.values()} == {"test"}


def test_two_layouts_at_once_and_none_are_errors_that_say_what_is_there(tmp_path: Path) -> None:
    root = march(release(tmp_path / "set"))
    with pytest.raises(FileError, match=r"csv release \(training\.csv\), folder release \(train_set"):
        fetch(tmp_path, AffectNetConfig, root)
    picture(tmp_path / "flat" / "a.jpg")
    with pytest.raises(FileError, match=r"(?s)pictures without labels.*train_set/annotations/0_exp\.npy"):
        fetch(tmp_path, AffectNetConfig, tmp_path / "flat")
    for deep in ("train_set", "train_set/annotations"):
        with pytest.raises(FileError, match="give the folder that holds"):
            fetch(tmp_path, AffectNetConfig, tmp_path / "set" / deep)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match="no pictures and no tables"):
        fetch(tmp_path, AffectNetConfig, tmp_path / "empty")
    text(tmp_path / "empty" / "Manually_Annotated.part01.rar", b"Rar!")
    with pytest.raises(FileError, match="unrar x"):
        fetch(tmp_path, AffectNetConfig, tmp_path / "empty")


def test_without_a_path_the_error_draws_the_folders(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"(?s)mohammadmahoor\.com.*Manually_Annotated_Images.*_exp\.npy"):
        fetch(tmp_path, AffectNetConfig, None)


@pytest.mark.parametrize(("key", "value"), [("classes", 6), ("folder_order", "rafdb"), ("test_fraction", 1.0)])
def test_a_wrong_knob_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key):
        parse(AffectNetConfig, {"source": "affectnet", key: value}, "params.yaml")
