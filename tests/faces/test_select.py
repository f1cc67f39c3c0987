"""Assignment of labels to faces: every policy, its refusals, and deterministic ties."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fer.faces.config import CropConfig
from fer.faces.detection import Detection
from fer.faces.select import REASONS, Face, Refusal, choose, match, overlap, unfit
from fer.sources.base import AnnotatedFace

SIZE = (200, 300)
CONFIG = CropConfig()
POINTS = tuple((float(i), float(i)) for i in range(5))


def label(box: tuple[float, float, float, float] | None, number: int = 0) -> AnnotatedFace:
    return AnnotatedFace(box=box, landmarks=None, label=number, clean_label=number)


def found(x: float, y: float, side: float, score: float = 0.9) -> Detection:
    return Detection(box=(x, y, x + side, y + side), landmarks=POINTS, score=score)


def chosen(labels: list[AnnotatedFace], detections: list[Detection] | None, **settings: object) -> list[Face | Refusal]:
    return choose(labels, detections, SIZE, CONFIG.model_copy(update=settings), 0.6)


def boxes(results: list[Face | Refusal]) -> list[tuple[float, float, float, float] | str]:
    return [one.box if isinstance(one, Face) else one.reason for one in results]


def test_published_boxes_are_kept_without_a_detector() -> None:
    faces = [replace(label((10, 10, 50, 50)), landmarks=POINTS), label((100, 10, 150, 60), 1)]
    first, second = chosen(faces, None)
    assert isinstance(first, Face)
    assert (first.box, first.landmarks, first.score) == ((10, 10, 50, 50), POINTS, None)
    assert isinstance(second, Face)
    assert second.annotation.label == 1


def test_label_without_a_box_needs_a_detector() -> None:
    with pytest.raises(ValueError, match=r"crop\.detector to retinaface or yunet"):
        chosen([label(None)], None)


def test_image_without_a_label_has_no_face() -> None:
    assert boxes(chosen([], [found(10, 10, 50)])) == ["no_face"]


def test_published_box_is_refined_by_the_best_overlapping_detection() -> None:
    (face,) = chosen([label((10, 10, 70, 70))], [found(40, 40, 60, 0.99), found(15, 15, 50)])
    assert isinstance(face, Face)
    assert (face.box, face.landmarks, face.score) == ((15, 15, 65, 65), POINTS, 0.9)


def test_each_detection_gets_one_label_and_labels_keep_their_order() -> None:
    results = chosen([label((100, 0, 160, 60), 1), label((0, 0, 60, 60), 2)], [found(5, 0, 60), found(95, 0, 60)])
    assert boxes(results) == [(95, 0, 155, 60), (5, 0, 65, 60)]
    crowded = chosen([label((0, 0, 60, 60), 1), label((10, 0, 70, 60), 2)], [found(8, 0, 60)])
    assert boxes(crowded) == ["no_face", (8, 0, 68, 60)]


@pytest.mark.parametrize(
    ("detections", "settings", "outcome"),
    [
        ([], {}, "no_face"),
        ([found(150, 100, 60)], {}, "no_face"),
        ([found(12, 12, 60, 0.4)], {}, "low_score"),
        ([found(150, 100, 60, 0.4)], {}, "no_face"),
        ([], {"unmatched": "annotated"}, (10, 10, 70, 70)),
        ([found(40, 10, 60)], {"min_overlap": 0.5}, "no_face"),
        ([found(40, 10, 60)], {"min_overlap": 0.3}, (40, 10, 100, 70)),
    ],
)
def test_published_box_without_a_detection_follows_the_policy(
    detections: list[Detection], settings: dict[str, object], outcome: object
) -> None:
    assert boxes(chosen([label((10, 10, 70, 70))], detections, **settings)) == [outcome]


BESIDE, MIDDLE, TINY = found(0, 0, 80, 0.7), found(120, 70, 60, 0.8), found(148, 98, 8, 0.95)
FACES = [TINY, MIDDLE, BESIDE]


@pytest.mark.parametrize(
    ("policy", "detections", "outcome"),
    [
        ("all", FACES, [TINY.box, MIDDLE.box, BESIDE.box]),
        ("largest", FACES, [BESIDE.box]),
        ("central", FACES, [MIDDLE.box]),
        ("single", FACES, ["several_faces"]),
        ("single", [TINY, MIDDLE], [MIDDLE.box]),
        ("largest", [TINY], [TINY.box]),
        ("single", [TINY], [TINY.box]),
        ("single", [], ["no_face"]),
        ("largest", [found(0, 0, 80, 0.4)], ["low_score"]),
        ("largest", [found(0, 0, 80, 0.4), MIDDLE], [MIDDLE.box]),
    ],
)
def test_label_of_an_image_goes_to_the_faces_of_the_policy(
    policy: str, detections: list[Detection], outcome: list[object]
) -> None:
    assert boxes(chosen([label(None)], detections, faces=policy)) == outcome


@pytest.mark.parametrize("policy", ["largest", "central"])
def test_first_of_equal_faces_is_chosen(policy: str) -> None:
    twins = [found(100, 70, 60, 0.8), found(140, 70, 60, 0.8)]
    assert boxes(chosen([label(None)], twins, faces=policy)) == [twins[0].box]


def test_label_without_a_box_gets_no_face_of_another_label() -> None:
    results = chosen([label((0, 0, 80, 80), 1), label(None, 2)], FACES)
    assert boxes(results) == [BESIDE.box, MIDDLE.box]


def test_several_labels_without_a_box_are_refused() -> None:
    assert boxes(chosen([label(None, 1), label(None, 2)], FACES, faces="all")) == ["several_faces"] * 2


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((10, 10, 60, 60), None),
        ((10, 10, 60, 29), "face_too_small"),
        ((float("nan"),) * 4, "face_too_small"),
        ((60, 60, 10, 10), "face_too_small"),
        ((-20, 10, 20, 50), None),
        ((-31, 10, 9, 50), "outside_picture"),
        ((300, 10, 340, 50), "outside_picture"),
        ((10, 210, 50, 250), "outside_picture"),
    ],
)
def test_small_faces_and_faces_beyond_the_image_are_refused(
    box: tuple[float, float, float, float], reason: str | None
) -> None:
    refusal = unfit(box, SIZE, CONFIG)
    assert (refusal and refusal.reason) == reason
    assert reason is None or reason in REASONS


def test_face_completely_outside_is_refused_at_any_max_outside() -> None:
    refusal = unfit((300, 10, 340, 50), SIZE, CONFIG.model_copy(update={"max_outside": 1.0}))
    assert refusal.reason == "outside_picture"


SOME_BOX = st.tuples(*(st.floats(0, 100) for _ in range(4))).map(
    lambda four: (min(four[0], four[2]), min(four[1], four[3]), max(four[0], four[2]), max(four[1], four[3]))
)


@given(SOME_BOX, SOME_BOX)
def test_overlap_is_symmetric_and_at_most_one(one: tuple[float, ...], other: tuple[float, ...]) -> None:
    share = overlap(one, other)  # type: ignore[arg-type]
    assert 0 <= share <= 1 + 1e-12
    assert share == overlap(other, one)  # type: ignore[arg-type]


@given(st.lists(SOME_BOX, max_size=5), st.lists(SOME_BOX, max_size=5), st.floats(0.05, 1))
def test_match_pairs_each_box_once_where_they_overlap_enough(
    ones: list[tuple[float, float, float, float]], others: list[tuple[float, float, float, float]], least: float
) -> None:
    pairs = match(ones, others, least)
    assert len(set(pairs.values())) == len(pairs)
    assert all(overlap(ones[i], others[j]) >= least for i, j in pairs.items())
    free = [(i, j) for i in range(len(ones)) for j in range(len(others)) if i not in pairs and j not in pairs.values()]
    assert all(overlap(ones[i], others[j]) < least for i, j in free), "a pair was left over"
