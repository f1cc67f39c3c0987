"""YuNet: the layout of OpenCV's output, and refused files."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from fer.faces import yunet
from fer.faces.detection import Image
from fer.faces.yunet import YuNet
from fer.io.files import FileError
from fer.io.images import decode_image

WEIGHTS = "weights/yunet/face_detection_yunet_2023mar.onnx"


@pytest.fixture(scope="module")
def detector(test_data: Path) -> YuNet:
    return YuNet(test_data / WEIGHTS, min_score=0.6, longest_side=640)


@pytest.fixture(scope="module")
def people(test_data: Path) -> Image:
    return decode_image((test_data / "photos" / "pyfeat_multi_face.jpg").read_bytes())


class Scripted:
    """Instead of OpenCV's detector: the same rows for every image."""

    def __init__(self, rows: np.ndarray | None) -> None:
        self.rows, self.size = rows, (0, 0)

    def setInputSize(self, size: tuple[int, int]) -> None:  # noqa: N802 - OpenCV's name
        self.size = size

    def detect(self, image: Image) -> tuple[int, np.ndarray | None]:
        assert image.shape == (self.size[1], self.size[0], 3)
        return 1, self.rows


def test_rows_of_opencv_become_boxes_landmarks_and_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Documented order: x, y, w, h; right eye, left eye, nose tip, right and left mouth corner; score.
    row = [10, 20, 30, 40, 15, 30, 31, 30, 23, 40, 17, 50, 29, 50, 0.9]
    scripted = Scripted(np.array([row], dtype=np.float32))
    monkeypatch.setattr(yunet.cv2.FaceDetectorYN, "create", lambda **_: scripted)
    (tmp_path / "model.onnx").write_bytes(b"a model")
    detector = YuNet(tmp_path / "model.onnx", min_score=0.5, longest_side=100)
    ((face,),) = detector.detect([np.zeros((150, 200, 3), np.uint8)])  # shrunk to a half
    assert scripted.size == (100, 75)
    assert face.box == (20, 40, 80, 120)
    assert face.landmarks == ((30, 60), (62, 60), (46, 80), (34, 100), (58, 100))
    assert face.score == 0.9
    scripted.rows = None
    assert detector.detect([np.zeros((150, 200, 3), np.uint8)]) == [[]]


def test_mirrored_image_has_mirrored_faces(detector: YuNet, people: Image) -> None:
    width = people.shape[1]
    faces, mirrored = detector.detect([people, people[:, ::-1]])
    assert len(faces) == len(mirrored) == 5
    for face in faces:
        assert face.landmarks is not None
        there = min(mirrored, key=lambda other: abs(other.box[0] - (width - face.box[2])))
        assert there.landmarks is not None
        flipped = np.array(there.landmarks)[[1, 0, 2, 4, 3]]
        assert np.abs(np.array(face.landmarks) - [width, 0] - flipped * [-1, 1]).max() < 12


def test_opencv_gets_bgr(detector: YuNet, people: Image, test_data: Path) -> None:
    direct = cv2.FaceDetectorYN.create(str(test_data / WEIGHTS), "", (640, 416), 0.6, 0.3, 5000)
    image = cv2.resize(people, (640, 416))
    _, rows = direct.detect(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    (faces,) = detector.detect([image])
    assert [face.score for face in faces] == pytest.approx(sorted(rows[:, 14], reverse=True), abs=1e-4)


def test_threads_share_a_detector_and_find_the_same_faces(detector: YuNet, people: Image) -> None:
    sizes = [(320, 224), (500, 333), (320, 224), (160, 96), (640, 427), (333, 222)] * 3
    images = [cv2.resize(people, size) for size in sizes]
    alone = [detector.detect([image]) for image in images]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda image: detector.detect([image]), images)) == alone
    assert [[face] for face in detector.detect(images)] == alone


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:8f23\nsize 232589\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"", "empty"),
        (b"\x08\x07 not a network at all", "not a YuNet that OpenCV can load.*fer weights pull yunet_2023mar"),
    ],
)
def test_other_files_are_refused_before_the_first_image(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(FileError, match=r"no such file.*fer weights pull yunet_2023mar"):
        YuNet(path, min_score=0.6, longest_side=640)
    path.write_bytes(content)
    with pytest.raises(FileError, match=rf"model\.onnx: .*{words}"):
        YuNet(path, min_score=0.6, longest_side=640)
