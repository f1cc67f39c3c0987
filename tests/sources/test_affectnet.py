"""AffectNet in its releases and in what others make of them: the same numbers, the same splits, or a named error."""

import contextlib
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders.layouts import about, fetch, found, in_archives, labels, picture, read, rejected, text
from hypothesis import given, settings
from hypothesis import strategies as st

from fer.io.files import FileError
from fer.labels import DATASET_LABELS, SPACES
from fer.sources.affectnet import TEST, TRAIN, AffectNetConfig, five_of_68
from fer.sources.drawn import landmarks68
from fer.sources.layout import read_npy
from fer.synth import SceneConfig, render

NAMES = SPACES["basic8"].labels
ORDER = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")
HEADER = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal"
FIVE = ((8, 10), (16, 10), (12, 14), (9, 18), (15, 18))
BOX = (4, 5, 24, 21)  # as `row` gives it, x1, y1, x2, y2
Build = Callable[[Path], Path]


def points68(five: Iterable[tuple[float, float]] = FIVE) -> str:
    """68 landmarks whose eyes' means, nose and mouth corners are these five points."""
    return ";".join(f"{value:.2f}" for value in landmarks68(np.array(list(five))).ravel())


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


def spelled(root: Path) -> Path:
    """The first release with Windows paths, a byte order mark, and columns in another order."""
    release(root, [row("1/a.jpg", 1)], [row("7/b.jpg", 2)])
    text(root / "training.csv", "\ufeff" + "\r\n".join([HEADER, row("1\\a.jpg", 1), ""]))
    columns = ["Expression", "SubDirectory_filePath", "face_y", "face_x", "face_height", "face_width"]
    line = f'2;7/b.jpg;5;4;16;20;"{points68()}"'
    text(root / "validation.csv", ";".join([*columns, "facial_landmarks"]) + "\n" + line + "\n")
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


def folders(names: Iterable[object], *splits: str) -> Build:
    """Class folders, with one image in each of each split."""

    def build(root: Path) -> Path:
        for first, split in enumerate(splits):
            for index, name in enumerate(names):
                picture(root / split / str(name) / f"{index + 100 * first}.jpg", index)
        return root

    return build


def lists(root: Path) -> Path:
    """POSTER's text files."""
    for split, first in (("train", 0), ("valid", 100)):
        rows = [f"{index}.jpg {index - first}" for index in range(first, first + 7)]
        text(root / f"{split}_set" / f"{split}_annotations_7class.txt", "\r\n".join(rows))
        for index in range(first, first + 7):
            picture(root / f"{split}_set" / "images" / f"{index}.jpg", index)
    return root


def kaggle(root: Path, split: str = "") -> Path:
    """Kaggle's part: two of three folders are not what the table says."""
    rows = [",pth,label,relFCs"]
    for index, (folder, label) in enumerate([("anger", "surprise"), ("happy", "happy"), ("contempt", "neutral")] * 8):
        picture(root / split / folder / f"image{index:07d}.jpg", index)
        rows.append(f"{index},{folder}/image{index:07d}.jpg,{label},0.87")
    text(root / "labels.csv", "\n".join(rows))
    return root


def expected(order: Iterable[str] = ORDER, *splits: str) -> dict[str, str]:
    """Images 0, 1, ... of train and 100, 101, ... of test."""
    return {
        f"{split}/{index + first}": f"{split} {name}"
        for split, first in (("train", 0), ("test", 100))
        for index, name in enumerate(order)
        if not splits or split in splits
    }


NAMED = ["Neutral", "happy", "Sad", "surprise", "fear", "Disgust", "angry", "contempt"]
LAYOUTS: dict[str, tuple[Build, dict[str, Any], dict[str, str]]] = {
    "first release": (
        release,
        {},
        {f"{index % 3}/a{index}": f"train {name}" for index, name in enumerate(ORDER)}
        | {f"7/b{index}": f"test {name}" for index, name in enumerate(ORDER)},
    ),
    "first release, other spelling": (spelled, {}, {"1/a": "train happiness", "7/b": "test sadness"}),
    "first release, two faces of an image": (
        lambda root: release(root, [row("1/a.jpg", 1), row("1/a.jpg", 4, box="40,50,20,16")], [row("7/b.jpg", 2)]),
        {},
        {"1/a": "train happiness", "1/a-40-50": "train fear", "7/b": "test sadness"},
    ),
    "March 2021": (march, {}, expected()),
    "March 2021, seven classes": (march, {"classes": 7}, expected(ORDER[:7])),
    "March 2021, a folder above": (lambda root: march(root / "AffectNet") and root, {}, expected()),
    "March 2021, three folders above": (lambda root: march(root / "x" / "y" / "AffectNet") and root, {}, expected()),
    "March 2021, archives": (lambda root: in_archives(march(root.with_name("plain")), root), {}, expected()),
    "March 2021, valid_set": (lambda root: march(root, "valid_set"), {}, expected()),
    "DAN's folders, numbers": (folders(range(8), "train", "val"), {}, expected()),
    "DAN's folders, two digits": (folders(["00", "01"], "train"), {}, expected(ORDER[:2], "train")),
    "DAN's folders, names": (folders(NAMED, "train", "val"), {}, expected()),
    "DAN's folders, both": (folders([f"{n}_{one}" for n, one in enumerate(NAMED)], "train", "val"), {}, expected()),
    "folders by the alphabet, 8": (
        folders(range(8), "train"), {"folder_order": "alphabetical"}, expected(sorted(ORDER), "train"),
    ),
    "folders by the alphabet, 7": (
        folders(range(7), "train"),
        {"folder_order": "alphabetical", "classes": 7},
        expected(sorted(ORDER[:7]), "train"),
    ),
    "POSTER's lists": (lists, {"classes": 7}, expected(ORDER[:7])),
}  # fmt: skip


@pytest.mark.parametrize(("build", "options", "samples"), LAYOUTS.values(), ids=LAYOUTS)
def test_affectnet_layout_gives_its_labels_and_splits(
    tmp_path: Path, build: Build, options: dict[str, Any], samples: dict[str, str]
) -> None:
    assert found(tmp_path, AffectNetConfig, build(tmp_path / "set"), **options) == samples


def test_published_affectnet_numbers_are_mapped_by_name_and_counts_add_up() -> None:
    assert (DATASET_LABELS["affectnet8"], DATASET_LABELS["affectnet7"]) == (ORDER, ORDER[:7])
    assert (sum(TRAIN), sum(TRAIN[:7])) == (287651, 283901)
    assert {form: sum(counts) for form, counts in TEST.items()} == {
        "csv release": 4000, "folder release": 3999, "class folders": 3999, "text lists": 3999,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("build", "key", "is_crop", "box"),
    [
        (release, "1/a4", False, (4, 5, 24, 21)),
        (spelled, "7/b", False, (4, 5, 24, 21)),
        (march, "test/103", True, None),
    ],
)
def test_boxes_and_five_landmarks_are_read(
    tmp_path: Path, build: Build, key: str, is_crop: bool, box: tuple[float, ...] | None
) -> None:
    samples, _ = read(fetch(tmp_path, AffectNetConfig, build(tmp_path / "set")), AffectNetConfig)
    (face,) = samples[key].faces
    assert (samples[key].is_crop, face.box, face.landmarks) == (is_crop, box, FIVE)


def test_landmarks_of_march_2021_may_be_absent(tmp_path: Path) -> None:
    for path in march(tmp_path / "set").rglob("*_lnd.npy"):
        path.unlink()
    samples, _ = read(fetch(tmp_path, AffectNetConfig, tmp_path / "set"), AffectNetConfig)
    assert {one.faces[0].landmarks for one in samples.values()} == {None}
    assert len(samples) == 16


def test_rows_without_expression_and_dropped_contempt_are_counted(tmp_path: Path) -> None:
    none = {"none": 1, "uncertain": 1, "no_face": 1}
    assert about(fetch(tmp_path / "8", AffectNetConfig, release(tmp_path / "set")))["excluded"] == none
    seven = about(fetch(tmp_path / "7", AffectNetConfig, tmp_path / "set", classes=7))
    assert seven["excluded"] == {**none, "contempt": 2}
    assert set(seven["published"]["train"]) == set(ORDER[:7])


def test_landmarks_are_in_the_order_of_the_person() -> None:
    scene = render(1, 3, SceneConfig(scene_size=160, face_size=(80.0, 100.0), multi_face_probability=0.0))
    (face,) = scene.faces
    taken = five_of_68(points68(face.landmarks).split(";"))
    np.testing.assert_allclose(taken, face.landmarks, atol=0.01)
    assert taken[0][0] < taken[1][0]  # the person's right eye is at the image's left


@pytest.mark.parametrize("box", ["NULL,NULL,NULL,NULL", "4,5,-1,16", "4,5,20,0", "4,5,nan,3"])
def test_rows_without_a_box_are_left_out_and_counted(tmp_path: Path, box: str) -> None:
    rows = [row("1/a.jpg", 1), row("1/b.jpg", 1, box=box)]
    raw = fetch(tmp_path, AffectNetConfig, release(tmp_path / "set", rows))
    assert about(raw)["excluded"] == {"no_box": 1}


def test_each_bad_row_of_a_table_is_rejected_with_its_line(tmp_path: Path) -> None:
    bad = [
        row("1/c.jpg", 11), row("1/d.jpg", "happy"), row("1/e.jpg", 1, landmarks="1;2;3"), row("../secret.jpg", 1),
        "1/f.jpg,1,2", row("1/gone.jpg", 1), row("1/a.jpg", 2),
    ]  # fmt: skip
    root = release(tmp_path / "set", [row("1/a.jpg", 1), *bad[:3]])
    text(root / "training.csv", "\n".join([HEADER, row("1/a.jpg", 1), row("1/a.jpg", 1), *bad]))
    raw = fetch(tmp_path, AffectNetConfig, root, max_bad_fraction=1)
    reasons = [(one.origin.rpartition(":")[2], one.reason) for one in read(raw, AffectNetConfig)[1]]
    assert reasons == [*((str(line), "bad_row") for line in range(4, 9)), ("10", "conflicting_rows")]
    assert about(raw)["excluded"] == {"listed_twice": 1, "not_in_this_copy": 1}


def without_partners(root: Path) -> Path:
    (march(root) / "train_set" / "images" / "1.jpg").unlink()
    (root / "val_set" / "annotations" / "102_exp.npy").unlink()
    return root


def contradicting(root: Path) -> Path:
    rows = "0.jpg 0\n0.jpg 0\n1.JPG 9\n2.jpg 2\n2.jpg 3\n3.jpg\n"
    text(lists(root) / "train_set" / "train_annotations_7class.txt", rows)
    return root


@pytest.mark.parametrize(
    ("build", "reasons"),
    [
        (without_partners, {"train/1": "missing_file", "test/102": "no_label"}),
        (
            contradicting,
            {f"train/{number}": "bad_label" for number in (1, 3)}
            | {f"train/{number}": "no_label" for number in (4, 5, 6)}
            | {"train_set/train_annotations_7class.txt-5": "conflicting_labels"},
        ),
    ],
)
def test_images_and_labels_without_their_partner_are_rejected(
    tmp_path: Path, build: Build, reasons: dict[str, str]
) -> None:
    raw = fetch(tmp_path, AffectNetConfig, build(tmp_path / "set"), max_bad_fraction=1)
    assert rejected(raw, AffectNetConfig) == reasons


def automatic(root: Path) -> Path:
    return text(root / "automatically_annotated.csv", HEADER + "\n" + row("1/a.jpg", 1)).parent


def without_images(root: Path) -> Path:
    (release(root) / "Manually_Annotated_Images").rename(root.with_name("elsewhere"))
    return root


REFUSED: dict[str, tuple[Build, str]] = {
    "no images": (without_images, r"Manually_Annotated_Images/0/a0\.jpg"),
    "automatic part": (automatic, r"automatically_annotated\.csv: .*network"),
    "table of no split": (
        lambda root: text(root / "list.csv", HEADER + "\n" + row("1/a.jpg", 1)).parent, r"list\.csv: which split",
    ),
    "web page": (lambda root: text(root / "training.csv", "<html>login").parent, r"training\.csv: .*web page"),
    "two layouts": (
        lambda root: march(release(root)), r"csv release \(training\.csv\), folder release \(train_set.*`path`",
    ),
    "flat": (lambda root: picture(root / "a.jpg").parent, r"(?s)without labels.*train_set/annotations/0_exp\.npy"),
    "one set": (lambda root: march(root) / "train_set", "folder that holds train_set"),
    "annotations": (lambda root: march(root) / "train_set" / "annotations", "folder that holds train_set"),
    "empty": (lambda root: text(root / "a.doc", "").parent, "no images and no tables"),
    "RAR": (lambda root: text(root / "Manually_Annotated.part01.rar", b"Rar!").parent, "unrar x"),
}  # fmt: skip


@pytest.mark.parametrize(("build", "said"), REFUSED.values(), ids=REFUSED)
def test_unusable_affectnet_folder_is_refused_with_what_is_there(tmp_path: Path, build: Build, said: str) -> None:
    with pytest.raises(FileError, match=said):
        fetch(tmp_path, AffectNetConfig, build(tmp_path / "set"))


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
def test_odd_npy_rejects_its_image_alone_and_is_never_unpickled(tmp_path: Path, content: bytes | np.ndarray) -> None:
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


def test_npy_header_that_claims_a_huge_array_costs_nothing(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (10**13,)})
    (tmp_path / "a.npy").write_bytes(stream.getvalue() + bytes(8))
    with pytest.raises(ValueError, match="shape"):
        read_npy(tmp_path / "a.npy", 1)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_one_npy_value_or_a_value_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, head: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.npy"
    path.write_bytes((b"\x93NUMPY\x01\x00" if head else b"") + data)
    with contextlib.suppress(ValueError):
        assert read_npy(path, 1).shape == (1,)


def test_kaggle_labels_come_from_its_table_and_not_from_its_folders(tmp_path: Path) -> None:
    raw = fetch(tmp_path, AffectNetConfig, kaggle(tmp_path / "set"), test_fraction=0.3)
    samples, rejects = read(raw, AffectNetConfig)
    assert not rejects
    given = {key: label.split()[1] for key, label in labels(samples, NAMES).items()}
    assert (given["anger/image0000000"], given["happy/image0000001"]) == ("surprise", "happiness")
    assert {one.split for one in samples.values()} == {"train", "test"}
    assert (about(raw)["folder_and_list_disagree"], about(raw)["published"]) == (16, {})


def test_kaggle_split_folders_win_over_the_hash(tmp_path: Path) -> None:
    samples, _ = read(fetch(tmp_path, AffectNetConfig, kaggle(tmp_path / "set", "Test")), AffectNetConfig)
    assert {one.split for one in samples.values()} == {"test"}
