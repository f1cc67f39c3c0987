"""Rows are ranked as promised, and a sheet shows every face with its text."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from builders.shards import picture, write_split

from fer.explain.hard_cases import (
    Line,
    Predicted,
    captions,
    disagreements,
    faces_of,
    mistakes,
    read_predictions,
    sheet,
)  # fmt: skip
from fer.io.files import FileError
from fer.shards.schema import prediction_schema
from fer.shards.table import write_table

LABELS = (0, 0, 1, 1, 2)


def model(name: str, *of_rows: tuple[float, float, float], ids: str = "abcde") -> Predicted:
    return Predicted(
        name=name, sample_ids=tuple(ids), classes=("neutral", "fear", "anger"), labels=np.array(LABELS),
        probabilities=np.array(of_rows), data_digest="d",
    )  # fmt: skip


ONE = model("one", (0.9, 0.1, 0), (0.4, 0.6, 0), (0.2, 0.8, 0), (0.7, 0.2, 0.1), (0, 0.95, 0.05))
OTHER = model("other", (0.1, 0.9, 0), (0.45, 0.55, 0), (0.1, 0.9, 0), (0.4, 0.6, 0), (0, 0.1, 0.9))


def test_mistakes_come_the_most_confident_first() -> None:
    assert mistakes(ONE).tolist() == [4, 3, 1]
    assert mistakes(ONE, actual=1).tolist() == [3]
    assert mistakes(ONE, actual=0, predicted=1).tolist() == [1]
    assert mistakes(ONE, actual=0, predicted=2).tolist() == []


def test_disagreements_come_by_the_difference_of_the_labels_probability() -> None:
    # Row 1 both get wrong, row 2 both right; |0.05 - 0.9|, |0.9 - 0.1|, |0.2 - 0.6| for the others.
    assert disagreements([ONE, OTHER]).tolist() == disagreements([OTHER, ONE]).tolist() == [4, 0, 3]


def test_models_of_other_rows_are_not_compared() -> None:
    with pytest.raises(ValueError, match="one and renamed"):
        disagreements([ONE, model("renamed", *OTHER.probabilities.tolist(), ids="vwxyz")])


def test_predictions_are_read_as_an_evaluation_wrote_them(tmp_path: Path) -> None:
    path, rows = tmp_path / "predictions.parquet", ONE.probabilities.astype(np.float32)
    columns = {
        "sample_id": list(ONE.sample_ids), "label": np.array(LABELS, np.int8), "predicted": np.int8(rows.argmax(1)),
        "probabilities": list(rows), "correct": rows.argmax(1) == LABELS,
    }  # fmt: skip
    write_table(path, columns, prediction_schema())
    with pytest.raises(FileError, match=r"predictions\.parquet.*fer\.data_digest"):
        read_predictions(path, "one")
    write_table(
        path, columns, prediction_schema(), metadata={"fer.labels": "neutral,fear,anger", "fer.data_digest": "d"}
    )
    found = read_predictions(path, "one")
    assert (found.name, found.sample_ids, found.classes, found.data_digest) == ("one", tuple("abcde"), ONE.classes, "d")
    assert mistakes(found).tolist() == mistakes(ONE).tolist()
    np.testing.assert_allclose(found.of_label, ONE.of_label, rtol=1e-6)


def test_a_caption_says_the_label_and_each_models_prediction() -> None:
    assert captions(4, [ONE, OTHER]) == [
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
