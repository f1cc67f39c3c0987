"""Faces are followed from frame to frame, their probabilities smoothed; a row a face a frame."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from builders.scenes import LABELS

from fer import cli
from fer.faces.crop import Finder
from fer.faces.detection import Detection, Image
from fer.inference import model as model_module
from fer.inference.model import Face, Model
from fer.inference.video import PATIENCE, Tracker, Video, overlap
from fer.processes import Interrupted

SIDE = 60


def face(x: float, happiness: float = 0.5, y: float = 0.0) -> Face:
    probabilities = {"happiness": happiness, "anger": 1 - happiness}
    label = max(probabilities, key=probabilities.__getitem__)
    return Face(box=(x, y, x + 40, y + 40), score=0.9, label=label, probabilities=probabilities, logits={})


def tracks(tracker: Tracker, *faces: Face) -> list[int | None]:
    return [one.track for one in tracker.follow(faces)]


# ------------------------------------------------------------------------------------------------ tracks


@pytest.mark.parametrize(
    ("other", "expected"),
    [((0, 0, 4, 4), 1.0), ((4, 0, 8, 4), 0.0), ((2, 0, 6, 4), 8 / 24), ((9, 9, 12, 12), 0.0), ((1, 1, 3, 3), 4 / 16)],
)
def test_overlap_is_intersection_over_union(other: tuple[float, ...], expected: float) -> None:
    assert overlap((0, 0, 4, 4), other) == overlap(other, (0, 0, 4, 4)) == pytest.approx(expected)


def test_moving_faces_keep_their_numbers_in_any_order() -> None:
    tracker = Tracker()
    assert tracks(tracker, face(0), face(100)) == [1, 2]
    for step in range(1, 6):
        assert tracks(tracker, face(100 - 8 * step), face(8 * step)) == [2, 1], "sorted by score, which changes"
    assert tracks(tracker, face(60), face(300)) == [2, 3]


def test_two_faces_never_share_a_track() -> None:
    tracker = Tracker()
    assert tracks(tracker, face(0)) == [1]
    assert tracks(tracker, face(5), face(1)) == [2, 1], "the nearer one continues it"


def test_face_that_is_hidden_for_some_frames_keeps_its_number() -> None:
    for hidden, number in ((PATIENCE, 1), (PATIENCE + 1, 2)):
        tracker = Tracker()
        tracker.follow((face(0),))
        for _ in range(hidden):
            tracker.follow(())
        assert tracks(tracker, face(0)) == [number]


def test_probabilities_are_an_exponential_mean() -> None:
    tracker = Tracker(smooth=0.6)
    values = [tracker.follow((face(0, value),))[0] for value in (0.9, 0.1, 0.1, 0.1)]
    expected = [0.9, 0.6 * 0.9 + 0.4 * 0.1, 0.388, 0.2728]
    assert [one.probabilities["happiness"] for one in values] == pytest.approx(expected)
    assert [one.label for one in values] == ["happiness", "happiness", "anger", "anger"]
    assert all(sum(one.probabilities.values()) == pytest.approx(1) for one in values)
    alone = Tracker(smooth=0)
    assert [alone.follow((face(0, value),))[0].probabilities["happiness"] for value in (0.9, 0.1)] == [0.9, 0.1]


@pytest.mark.parametrize("smooth", [1.0, -0.1])
def test_smoothing_out_of_range_is_refused(smooth: float) -> None:
    with pytest.raises(ValueError, match=f"smooth = {smooth}"):
        Tracker(smooth)


# ------------------------------------------------------------------------------------------------ videos


class Bright:
    """Finds the one bright square."""

    def detect(self, images: Sequence[Image]) -> list[list[Detection]]:
        found = []
        for image in images:
            rows, columns = np.nonzero((image if image.ndim == 2 else image[:, :, 0]) > 128)
            if not len(rows):
                found.append([])
                continue
            x, y = float(columns.min()), float(rows.min())
            found.append([Detection(box=(x, y, x + SIDE, y + SIDE), landmarks=None, score=0.9)])
        return found


@pytest.fixture
def seeing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model_module, "detector_file", lambda *_: Path("detector"))
    monkeypatch.setattr(model_module, "finder", lambda *_: Finder(detector=Bright(), min_score=0.5))


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Twelve frames at 8 a second; a square moves to the right, and is gone in the last two."""
    writer = cv2.VideoWriter(str(tmp_path / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 8, (200, 100))
    for index in range(12):
        image = np.zeros((100, 200, 3), np.uint8)
        if index < 10:
            image[20 : 20 + SIDE, 5 * index : 5 * index + SIDE] = 255
        writer.write(image)
    writer.release()
    return tmp_path / "clip.mp4"


def frames_of(path: Path) -> list[np.ndarray]:
    capture, found = cv2.VideoCapture(str(path)), []
    while (frame := capture.read())[0]:
        found.append(frame[1])
    return found


def test_frames_have_their_time_and_one_track(seeing: None, clip: Path, weights: Path) -> None:
    frames = list(Video(clip, "clip").frames(Model(weights)))
    results = [frame.result for frame in frames]
    assert [(one.frame, one.seconds) for one in results] == [(index, round(index / 8, 3)) for index in range(12)]
    assert [[one.track for one in result.faces] for result in results] == [[1]] * 10 + [[]] * 2
    assert results[0].to_dict()["faces"][0]["track"] == 1
    assert frames[0].image.shape == (100, 200, 3)


def test_command_writes_a_row_a_face_a_frame_and_the_video(
    seeing: None, clip: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--csv", "f.csv", "--json", "f.json", "--annotate", "--out", "drawn"]
    assert cli._main(["predict", "clip.mp4", "--weights", str(weights), *out]) == 0
    rows = list(csv.DictReader(Path("f.csv").read_text().splitlines()))
    assert [row["track"] for row in rows] == ["1"] * 10 + [""] * 2
    assert [float(row["seconds"]) for row in rows] == [round(index / 8, 3) for index in range(12)]
    assert len(json.loads(Path("f.json").read_text())["photos"]) == 12
    drawn, before = frames_of(tmp_path / "drawn" / "clip.mp4.faces.mp4"), frames_of(clip)
    assert [one.shape for one in drawn] == [one.shape for one in before]
    assert all(np.abs(a.astype(int) - b).max() > 50 for a, b in zip(drawn[:10], before, strict=False))
    assert len(list((tmp_path / "drawn").iterdir())) == 1, "no temporary file is left"
    printed = capsys.readouterr().out.splitlines()
    assert 1 <= len(printed) < 10, "a line when an expression changes"
    assert printed[0].startswith("clip.mp4 0.00 s  face 1")
    with pytest.raises(ValueError, match="exists already"):
        cli._main(["predict", "clip.mp4", "--weights", str(weights), *out])


def test_damaged_video_is_refused_beside_a_good_one(
    seeing: None, clip: Path, weights: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.mov").write_bytes(b"moov" * 100)
    out = ["--csv", "f.csv", "--annotate", "--out", "drawn"]
    assert cli._main(["predict", "bad.mov", "clip.mp4", "--weights", str(weights), *out]) == 3
    rows = list(csv.DictReader(Path("f.csv").read_text().splitlines()))
    assert (rows[0]["file"], rows[0]["refused"], len(rows)) == ("bad.mov", "not_a_video", 13)
    assert [path.name for path in (tmp_path / "drawn").iterdir()] == ["clip.mp4.faces.mp4"]


def test_camera_is_written_until_it_is_stopped(
    seeing: None, clip: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []

    class Camera:
        """Shows the clip, and is stopped at its seventh frame."""

        def __init__(self, source: object) -> None:
            opened.append(source)
            self._frames = iter(frames)

        def get(self, _: int) -> float:
            return 8.0

        def read(self) -> tuple[bool, np.ndarray]:
            if next(left) == 6:
                raise Interrupted(2)
            return True, next(self._frames)

        def release(self) -> None:
            opened.append("released")

    frames, left = frames_of(clip), iter(range(20))
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    with pytest.raises(Interrupted):
        cli._main(["predict", "--camera", "--weights", str(weights), "--json", "f.json", "--annotate", "--out", "o"])
    monkeypatch.undo()
    seen = json.loads((tmp_path / "f.json").read_text())["photos"]
    assert [one["frame"] for one in seen] == list(range(6))
    assert {one["file"] for one in seen} == {"camera 0"}
    assert opened == [0, "released"]
    assert len(frames_of(tmp_path / "o" / "camera0.faces.mp4")) == 6
    assert set(seen[0]["faces"][0]["probabilities"]) == set(LABELS)
