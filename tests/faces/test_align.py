"""Alignment: geometry and pixels of the warp."""

import math

import cv2
import numpy as np
import pytest

from fer.faces import align
from fer.synth.scene import describe


def moved(points: np.ndarray, angle: float, scale: float, shift: tuple[float, float]) -> np.ndarray:
    turn = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return points @ turn.T + np.array(shift)


@pytest.mark.parametrize(("angle", "scale"), [(0.0, 1.0), (0.7, 2.5), (-2.9, 0.3)])
def test_similarity_maps_a_rotated_and_scaled_face_onto_the_template(angle: float, scale: float) -> None:
    target = align.template(112)
    source = moved(target, angle, scale, (30.0, -12.0))
    matrix = align.similarity(source, target)
    assert np.abs(align.transform(matrix, source) - target).max() < 1e-9


def test_similarity_is_the_least_squares_optimum() -> None:
    random = np.random.default_rng(0)
    source, target = random.uniform(0, 100, (5, 2)), align.template(112)
    matrix = align.similarity(source, target)
    a, b = matrix[0, 0], matrix[1, 0]
    assert matrix[0, 1] == pytest.approx(-b)
    assert matrix[1, 1] == pytest.approx(a)

    def error(values: np.ndarray) -> float:
        m = np.array([[values[0], -values[1], values[2]], [values[1], values[0], values[3]]])
        return float(((align.transform(m, source) - target) ** 2).sum())

    best = np.array([a, b, matrix[0, 2], matrix[1, 2]])
    for _ in range(200):
        assert error(best + random.normal(0, 0.01, 4)) >= error(best)


def test_template_is_arcface_s_in_every_size() -> None:
    # Published with pixel centers at integers; ours are half a pixel further.
    assert align.template(112)[2] == pytest.approx([56.0252 + 0.5, 71.7366 + 0.5])
    assert align.template(224) == pytest.approx(align.template(112) * 2)


@pytest.mark.parametrize("points", [np.zeros((5, 2)), np.full((5, 2), np.nan), np.full((5, 2), np.inf)])
def test_degenerate_landmarks_are_refused(points: np.ndarray) -> None:
    with pytest.raises(ValueError, match="landmarks"):
        align.similarity(points, align.template(112))


def test_identity_warp_keeps_every_pixel() -> None:
    image = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    identity = np.array([[1.0, 0, 0], [0, 1, 0]])
    assert (align.warp(image, identity, 64) == image).all()


@pytest.mark.parametrize("factor", [3, 4.7, 9])
def test_strong_shrinking_averages_without_aliasing(factor: float) -> None:
    size, side = 32, int(32 * factor)
    checks = (np.indices((side, side)).sum(axis=0) % 2 * 255).astype(np.uint8)
    crop = align.warp(checks, np.array([[1 / factor, 0, 0], [0, 1 / factor, 0]]), size)
    inner = crop[2:-2, 2:-2].astype(int)
    assert np.abs(inner - 127.5).max() < 40, "a fine checkerboard must shrink to gray"


@pytest.mark.parametrize("factor", [1.5, 2.0, 3.3, 8.0])
def test_shrinking_keeps_positions_of_the_matrix(factor: float) -> None:
    size, side = 48, int(48 * factor) + 40
    image = np.zeros((side, side), np.uint8)
    center = (side * 0.6, side * 0.45)
    cv2.circle(image, (round(center[0] * 16) - 8, round(center[1] * 16) - 8), round(6 * factor * 16), 255, -1, shift=4)
    matrix = np.array([[1 / factor, 0, -3.0], [0, 1 / factor, -5.0]])
    crop = align.warp(image, matrix, size).astype(np.float64)
    rows, columns = np.indices(crop.shape)
    found = (crop * (columns + 0.5)).sum() / crop.sum(), (crop * (rows + 0.5)).sum() / crop.sum()
    assert found == pytest.approx(tuple(align.transform(matrix, np.array([center]))[0]), abs=0.15)


def test_box_fills_the_crop_up_to_its_margin() -> None:
    matrix = align.box_similarity((10.0, 20.0, 50.0, 60.0), 100, 0.125)
    corners = align.transform(matrix, np.array([[10.0, 20.0], [50.0, 60.0]]))
    assert corners == pytest.approx(np.array([[10.0, 10.0], [90.0, 90.0]]))


# ------------------------------------------------------------------------------------------------ five poses


@pytest.mark.parametrize("pose", align.POSES)
@pytest.mark.parametrize("size", [112, 224])
def test_face_takes_the_best_fitting_pose_in_every_size(pose: str, size: int) -> None:
    target = (align.POSES[pose] + 0.5) * (size / 112)
    random = np.random.default_rng(0)
    face = moved(target, 0.3, 2.0, (40.0, 9.0)) + random.uniform(-2, 2, (5, 2))
    assert align.pose_template(face, size) == pytest.approx(target)


def test_mirrored_face_takes_the_mirrored_pose() -> None:
    opposite = {"left": "right", "left profile": "right profile", "frontal": "frontal"}
    for pose, other in opposite.items():
        mirrored = (align.POSES[pose] * [-1, 1])[[1, 0, 2, 4, 3]]
        assert align.pose_template(mirrored, 112) == pytest.approx(align.POSES[other] + 0.5)


def test_best_pose_has_the_smallest_sum_of_distances() -> None:
    random = np.random.default_rng(1)
    for _ in range(20):
        face = align.POSES["frontal"] + random.uniform(-15, 15, (5, 2))
        sums = {
            pose: np.linalg.norm(align.transform(align.similarity(face, points), face) - points, axis=1).sum()
            for pose, points in align.POSES.items()
        }
        assert align.pose_template(face, 112) == pytest.approx(align.POSES[min(sums, key=sums.__getitem__)] + 0.5)
    with pytest.raises(ValueError, match="landmarks"):
        align.pose_template(np.zeros((5, 2)), 112)


# ------------------------------------------------------------------------------------------------ borders


@pytest.mark.parametrize("border", ["black", "replicate", "reflect"])
@pytest.mark.parametrize("factor", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("shift", [(-20.0, -7.0), (9.0, 30.0), (-200.0, 5.0)], ids=str)
def test_crop_beyond_the_image_equals_that_of_the_padded_image(
    border: align.Border, factor: float, shift: tuple[float, float]
) -> None:
    random = np.random.default_rng(2)
    small = random.integers(0, 256, (11, 14, 3), dtype=np.uint8)
    image = cv2.resize(small, (13 * 14, 11 * 11), interpolation=cv2.INTER_CUBIC)  # smooth, no multiple of 2 or 3
    matrix = np.array([[1 / factor, 0, shift[0]], [0, 1 / factor, shift[1]]])
    crop = align.warp(image, matrix, 64, border)
    kinds = {"black": cv2.BORDER_CONSTANT, "replicate": cv2.BORDER_REPLICATE, "reflect": cv2.BORDER_REFLECT}
    rim = 660  # so wide that the crop is inside; a multiple of every factor keeps the blocks in place
    padded = cv2.copyMakeBorder(image, rim, rim, rim, rim, kinds[border], value=0)
    inside = matrix.copy()
    inside[:, 2] -= rim / factor
    difference = np.abs(align.warp(padded, inside, 64).astype(int) - crop)
    assert difference.mean() < 2.5  # of 255; reflecting at a wrong position gives 10 and more
    if border == "black" and shift == (-200.0, 5.0):
        assert crop.max() == 0


def test_border_is_black_by_default_and_repeats_or_mirrors_on_request() -> None:
    image = np.full((20, 20), 200, np.uint8)
    matrix = np.array([[1.0, 0, 10], [0, 1, 10]])
    crop = align.warp(image, matrix, 40)
    assert crop[12:28, 12:28].min() == 200
    assert crop[:9].max() == crop[:, 32:].max() == 0
    assert (crop == align.warp(image, matrix, 40, "black")).all()
    assert (align.warp(image, matrix, 40, "replicate") == 200).all()
    assert (align.warp(image, matrix, 40, "reflect") == 200).all()
    outside = np.array([[0.1, 0, -500.0], [0, 0.1, -500.0]])
    assert align.warp(np.full((50, 50, 3), 255, np.uint8), outside, 32).max() == 0


# ------------------------------------------------------------------------------------------------ pose


@pytest.mark.parametrize(
    "angles", [(0, 0, 0), (30, 0, 0), (0, -20, 0), (0, 0, 40), (-50, 15, -25), (80, 0, 10)], ids=str
)
def test_pose_of_the_model_head_is_recovered_at_any_size_and_position(angles: tuple[float, ...]) -> None:
    yaw, pitch, roll = np.radians(angles)
    nod = np.array([[1, 0, 0], [0, np.cos(pitch), np.sin(pitch)], [0, -np.sin(pitch), np.cos(pitch)]])
    turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    tilt = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    points = (align._HEAD @ (tilt @ turn @ nod).T)[:, :2] * 37.0 + [500.0, 90.0]
    assert align.pose_of(points.tolist()) == pytest.approx(angles, abs=0.06)


def test_pose_of_synthetic_faces_is_near_the_true_one() -> None:
    faces = [face for index in range(250) for face in describe(3, index).faces]
    true = np.array([face.pose for face in faces])
    estimated = np.array([align.pose_of(face.landmarks) for face in faces])
    yaw, pitch, roll = np.abs(estimated - true).mean(axis=0)
    assert yaw < 3
    assert roll < 2
    assert pitch < 10  # their noses are lower than the model's, which gives 8 degrees of pitch
    assert (estimated - true)[:, 1].std() < 9


def test_degenerate_landmarks_have_a_finite_pose() -> None:
    assert all(math.isfinite(angle) for angle in align.pose_of([(float(x), 2.0 * x) for x in range(5)]))
    assert all(math.isfinite(angle) for angle in align.pose_of([(3.0, 3.0)] * 5))
