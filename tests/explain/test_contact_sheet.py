"""A sheet shows every face with its text."""

from pathlib import Path

import cv2
import numpy as np
from builders.shards import picture, write_split

from fer.evaluation.predicted import Predicted
from fer.explain.contact_sheet import Line, captions, faces_of, sheet


def model(name: str, *probabilities: float) -> Predicted:
    """Predictions of one row, of class anger."""
    return Predicted(
        name=name, sample_ids=("a",), classes=("neutral", "fear", "anger"), labels=np.array([2]),
        probabilities=np.array([probabilities]), data_digest="d",
    )  # fmt: skip


ONE, OTHER = model("one", 0, 0.95, 0.05), model("other", 0, 0.1, 0.9)


def test_a_caption_says_the_label_and_each_models_prediction() -> None:
    assert captions(0, [ONE, OTHER]) == [
        Line("label: anger"), Line("one: fear 95 %", False), Line("other: anger 90 %", True),
    ]  # fmt: skip


def test_the_faces_of_samples_come_in_their_order(tmp_path: Path) -> None:
    split = write_split(tmp_path, rows=40)
    for face, row in zip(faces_of(split, ["small/0033", "small/0002"]), (33, 2), strict=True):
        np.testing.assert_array_equal(face, picture(row, 12))


def test_a_sheet_shows_gray_and_color_faces_in_rows() -> None:
    red = np.zeros((20, 20, 3), np.uint8)
    red[..., 0] = 255
    faces = [red, np.full((300, 300), 128, np.uint8), red]
    page = cv2.imdecode(np.frombuffer(sheet(faces, [captions(0, [ONE])] * 3, columns=2), np.uint8), cv2.IMREAD_COLOR)
    cell = page.shape[1] // 2
    height = page.shape[0] // 2
    assert page[60, 60].tolist() == [0, 0, 255], "RGB in, red"
    assert page[60, cell + 60].tolist() == [128, 128, 128]
    assert page[height + 60, 60].tolist() == [0, 0, 255]
    assert (page[height:, cell:] == 255).all(), "no fourth face"
    assert (page[122:height, :cell] < 200).any(), "its text"


def test_a_sheet_of_no_faces_is_blank() -> None:
    assert (cv2.imdecode(np.frombuffer(sheet([], []), np.uint8), cv2.IMREAD_COLOR) == 255).all()
