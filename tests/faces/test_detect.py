"""The interface of the detectors, their weights, and their faces in photographs that were annotated by eye."""

import json
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from benchmarks.detect import Outcome, judge, overlap, sum_of
from fer.faces.detect import DEFAULTS, create_detector
from fer.faces.detection import Detection, Image, detections, shrink, shrunk_size
from fer.faces.weights import PUBLISHED, locate
from fer.io.files import FileError
from fer.io.images import decode_image

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:8f23\nsize 232589\n"
SEEN = json.loads((Path(__file__).parents[1] / "assets" / "photo_faces.json").read_text())
FAST = ("pyfeat_multi_face.jpg", "biubug6_test.jpg", "deepface_selfie-many-people.jpg", "pyfeat_BWPictureHuman.jpg")


# ------------------------------------------------------------------------------------------------ the interface


def test_noise_changes_neither_values_nor_order_of_faces() -> None:
    boxes = np.array([[0.5, 1, 20, 30], [5, 1, 25, 31], [3, 2, 9, 9.03]])
    points, scores = np.arange(30.0).reshape(3, 5, 2), np.array([0.8, 0.8, 0.95123456])
    random = np.random.default_rng(0)
    faces = detections(boxes, points, scores)
    assert [face.box for face in faces] == [(3, 2, 9, 9), (0.5, 1, 20, 30), (5, 1, 25, 31)]
    assert [face.score for face in faces] == [0.9512, 0.8, 0.8]
    assert faces[1].landmarks == ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))
    for _ in range(20):
        order = random.permutation(3)
        noise = random.uniform(-1e-5, 1e-5, 3)
        assert detections((boxes + noise[0])[order], (points + noise[1])[order], (scores + noise[2])[order]) == faces
    assert detections([], [], []) == []


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(480, 640, (480, 640)), (960, 1280, (480, 640)), (3, 4000, (1, 640)), (1, 1, (1, 1)), (700, 100, (640, 91))],
)
def test_images_are_shrunk_in_proportion_and_never_enlarged(height: int, width: int, expected: tuple[int, int]) -> None:
    assert shrunk_size(height, width, 640) == expected


@pytest.mark.parametrize("size", [(1201, 1607), (641, 503), (300, 400), (2571, 2563)], ids=str)
def test_points_of_the_shrunk_image_map_back_to_the_image(size: tuple[int, int]) -> None:
    height, width = size
    y, x = height * 0.83, width * 0.91  # far from the origin, where a wrong scale shows
    rows, columns = np.arange(height)[:, None] + 0.5, np.arange(width) + 0.5
    spot = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * 8.0**2))
    shrunk = shrink((spot * 255).astype(np.uint8), 400)
    gray = shrunk.image[:, :, 0].astype(np.float64)
    assert shrunk.image.shape[2] == 3
    assert max(gray.shape) == 400
    rows, columns = np.arange(gray.shape[0])[:, None] + 0.5, np.arange(gray.shape[1]) + 0.5
    center = np.array([(gray * columns).sum(), (gray * rows).sum()]) / gray.sum()
    assert center * shrunk.back == pytest.approx([x, y], abs=0.1)


def test_shrinking_averages_all_pixels() -> None:
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[::2] = 200
    assert set(np.unique(shrink(stripes, 128).image)) == {100}


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("retinanet", {}, r"no detector 'retinanet' - did you mean 'retinaface'\?; known: retinaface, yunet"),
        ("yunet", {"min_score": 1.5}, "min_score = 1.5: must be between 0 and 1"),
        ("yunet", {"min_score": math.nan}, "min_score = nan"),
        ("retinaface", {"longest_side": 10}, "longest_side = 10: must be 64 to 4096 px"),
    ],
)
def test_unknown_detector_or_value_out_of_range_is_refused(
    name: str, options: dict[str, float], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        create_detector(name, weights=tmp_path, **options)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ weights


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights"


@pytest.mark.parametrize(
    ("name", "file"), [("retinaface", "mobilenet0.25_Final.pth"), ("yunet", "face_detection_yunet_2023mar.onnx")]
)
def test_missing_or_wrong_weights_are_refused_with_the_command_that_downloads_them(
    name: str, file: str, tmp_path: Path
) -> None:
    with pytest.raises(FileError, match=rf"{file}: not there; run `fer weights pull {PUBLISHED[name]}`"):
        locate(name, None, tmp_path)
    (tmp_path / "mine" / "deep").mkdir(parents=True)
    words = rf"mine.*{file}: no weights of {name} there; `fer weights pull {PUBLISHED[name]}`"
    with pytest.raises(FileError, match=words):
        locate(name, "mine", tmp_path)
    path = tmp_path / "mine" / "deep" / file
    for content, words in ((LFS_POINTER, "Git LFS pointer"), (b"<html>", "web page"), (b"", "empty"), (b"x", "sha256")):
        path.write_bytes(content)
        for given in ("mine", f"mine/deep/{file}", str(path)):
            with pytest.raises(FileError, match=rf"{words}.*`fer weights pull {PUBLISHED[name]}`"):
                locate(name, given, tmp_path)


@pytest.mark.parametrize("name", ["retinaface", "yunet"])
def test_published_weights_are_found_in_a_folder(name: str, test_data: Path, tmp_path: Path) -> None:
    path = locate(name, "weights", test_data)
    assert path.is_relative_to(test_data / "weights" / name)
    assert locate(name, str(path), tmp_path) == path


# ------------------------------------------------------------------------------------------------ counting


def test_judge_counts_found_missed_and_false_faces() -> None:
    faces, beside = [[0, 0, 100, 100], [200, 0, 300, 100], [400, 0, 420, 20]], [[500, 0, 530, 30]]
    boxes = [
        ([5, 0, 100, 95], 0.99),  # the first face
        ([0, 0, 90, 100], 0.98),  # the first again
        ([400, 0, 420, 20], 0.9),  # a face that need not be found: too narrow
        ([500, 0, 530, 33], 0.8),  # another
        ([700, 0, 800, 100], 0.7),  # no face
        ([205, 0, 300, 100], 0.4),  # the second, with too low a score
        ([900, 0, 999, 99], 0.3),
    ]
    outcome = judge([b for b, _ in boxes], [s for _, s in boxes], faces, beside, min_score=0.6, min_width=40)
    assert outcome == Outcome(found=1, false_alarms=2, missed=(([200, 0, 300, 100], 0.4),))
    assert sum_of([outcome, outcome]).false_alarms == 4
    assert overlap([0, 0, 10, 10], [5, 0, 15, 10]) == pytest.approx(1 / 3)
    assert overlap([0, 0, 10, 10], [10, 0, 15, 10]) == 0


# ------------------------------------------------------------------------------------------------ photographs


def outcome_of(name: str, folder: Path, images: tuple[str, ...]) -> Outcome:
    """With the defaults."""
    detector = create_detector(name, weights=locate(name, "weights", folder))
    outcomes = []
    for image in images:
        (found,) = detector.detect([decode_image((folder / "photos" / image).read_bytes())])
        outcomes.append(
            judge(
                [face.box for face in found],
                [face.score or 0.0 for face in found],
                SEEN[image]["faces"],
                SEEN[image]["beside"],
                min_score=DEFAULTS[name].min_score,
                min_width=40,
            )
        )
    return sum_of(outcomes)


def assert_recall(outcome: Outcome, least: float) -> None:
    assert outcome.found >= least * (outcome.found + len(outcome.missed)), outcome
    assert outcome.false_alarms <= outcome.found / 10, outcome


@pytest.mark.parametrize(("name", "least"), [("retinaface", 0.85), ("yunet", 0.85)])
def test_most_faces_of_the_hardest_photographs_are_found(name: str, least: float, test_data: Path) -> None:
    assert_recall(outcome_of(name, test_data, FAST), least)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("retinaface", 0.9), ("yunet", 0.85)])
def test_nine_of_ten_faces_of_all_photographs_are_found(name: str, least: float, test_data: Path) -> None:
    assert {path.name for path in (test_data / "photos").iterdir()} - set(SEEN) == {"index.csv"}
    assert_recall(outcome_of(name, test_data, tuple(SEEN)), least)


def hostile(random: np.random.Generator) -> dict[str, Image]:
    def noise(*shape: int) -> Image:
        return random.integers(0, 256, shape, dtype=np.uint8)

    return {
        "one pixel": noise(1, 1, 3),
        "one gray pixel": noise(1, 1),
        "strip": noise(3, 4000, 3),
        "column": noise(4000, 3, 3),
        "thread": noise(1, 5000, 3),
        "black": np.zeros((480, 640, 3), np.uint8),
        "white": np.full((480, 640), 255, np.uint8),
        "tiny": noise(12, 12, 3),
        "noise": noise(300, 400, 3),
        "read only view": np.broadcast_to(noise(1, 1, 3), (50, 60, 3)),
    }


@pytest.mark.parametrize("name", ["retinaface", "yunet"])
def test_odd_images_have_no_faces_and_no_errors(name: str, test_data: Path) -> None:
    detector = create_detector(name, weights=locate(name, "weights", test_data))
    images = hostile(np.random.default_rng(0))
    assert detector.detect(list(images.values())) == [[] for _ in images]


@pytest.mark.parametrize("name", ["retinaface", "yunet"])
def test_huge_image_costs_little_more_memory_than_itself(name: str, test_data: Path) -> None:
    detector = create_detector(name, weights=locate(name, "weights", test_data))
    image = np.zeros((6000, 8000, 3), np.uint8)
    tracemalloc.start()
    detector.detect([image])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < image.nbytes / 2


@pytest.mark.parametrize("name", ["retinaface", "yunet"])
def test_landmarks_have_the_order_of_a_face(name: str, test_data: Path) -> None:
    detector = create_detector(name, weights=locate(name, "weights", test_data))
    (faces,) = detector.detect([decode_image((test_data / "photos" / "pyfeat_multi_face.jpg").read_bytes())])
    assert len(faces) == 5
    for face in faces:
        assert_upright(face)


def assert_upright(face: Detection) -> None:
    """The person's right is at the left of the image."""
    assert face.landmarks is not None
    (right_x, right_y), (left_x, left_y), (nose_x, nose_y), right_mouth, left_mouth = face.landmarks
    assert face.box[0] < right_x < nose_x < left_x < face.box[2]
    assert max(right_y, left_y) < nose_y < min(right_mouth[1], left_mouth[1]) < face.box[3]
    assert right_mouth[0] < nose_x < left_mouth[0]
