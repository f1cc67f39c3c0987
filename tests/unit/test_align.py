"""Alignment: what the warp promises about geometry and about pixels."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from fer.faces import align


def moved(points: np.ndarray, angle: float, scale: float, shift: tuple[float, float]) -> np.ndarray:
    turn = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return points @ turn.T + np.array(shift)


@pytest.mark.parametrize(("angle", "scale"), [(0.0, 1.0), (0.7, 2.5), (-2.9, 0.3)])
def test_landmarks_of_a_turned_and_scaled_face_land_on_the_template(angle: float, scale: float) -> None:
    target = align.template(112)
    source = moved(target, angle, scale, (30.0, -12.0))
    matrix = align.similarity(source, target)
    assert np.abs(align.transform(matrix, source) - target).max() < 1e-9


def test_similarity_is_the_least_squares_optimum_without_reflection_and_shear() -> None:
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


def test_the_template_is_arcface_s_in_every_size() -> None:
    # Published with pixel centres at whole numbers; ours are half a pixel further.
    assert align.template(112)[2] == pytest.approx([56.0252 + 0.5, 71.7366 + 0.5])
    assert align.template(224) == pytest.approx(align.template(112) * 2)


@pytest.mark.parametrize("points", [np.zeros((5, 2)), np.full((5, 2), np.nan), np.full((5, 2), np.inf)])
def test_landmarks_that_determine_nothing_are_a_value_error(points: np.ndarray) -> None:
    with pytest.raises(ValueError, match="landmarks"):
        align.similarity(points, align.template(112))


def test_an_identity_warp_returns_the_very_pixels() -> None:
    image = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    identity = np.array([[1.0, 0, 0], [0, 1, 0]])
    assert (align.warp(image, identity, 64) == image).all()


def test_beyond_the_picture_the_crop_is_black() -> None:
    image = np.full((20, 20), 200, np.uint8)
    crop = align.warp(image, np.array([[1.0, 0, 10], [0, 1, 10]]), 40)
    assert crop[12:28, 12:28].min() == 200
    assert crop[:9].max() == 0
    assert crop[:, 32:].max() == 0


@pytest.mark.parametrize("factor", [3, 4.7, 9])
def test_strong_shrinking_averages_instead_of_aliasing(factor: float) -> None:
    size, side = 32, int(32 * factor)
    checks = (np.indices((side, side)).sum(axis=0) % 2 * 255).astype(np.uint8)
    crop = align.warp(checks, np.array([[1 / factor, 0, 0], [0, 1 / factor, 0]]), size)
    inner = crop[2:-2, 2:-2].astype(int)
    assert np.abs(inner - 127.5).max() < 40, "a fine checkerboard must shrink to grey"


@pytest.mark.parametrize("factor", [1.5, 2.0, 3.3, 8.0])
def test_shrinking_puts_things_where_the_matrix_says(factor: float) -> None:
    size, side = 48, int(48 * factor) + 40
    image = np.zeros((side, side), np.uint8)
    centre = (side * 0.6, side * 0.45)
    cv2.circle(image, (round(centre[0] * 16) - 8, round(centre[1] * 16) - 8), round(6 * factor * 16), 255, -1, shift=4)
    matrix = np.array([[1 / factor, 0, -3.0], [0, 1 / factor, -5.0]])
    crop = align.warp(image, matrix, size).astype(np.float64)
    rows, columns = np.indices(crop.shape)
    found = (crop * (columns + 0.5)).sum() / crop.sum(), (crop * (rows + 0.5)).sum() / crop.sum()
    assert found == pytest.approx(tuple(align.transform(matrix, np.array([centre]))[0]), abs=0.15)


def test_a_crop_outside_the_picture_is_black_and_no_error() -> None:
    image = np.full((50, 50, 3), 255, np.uint8)
    assert align.warp(image, np.array([[0.1, 0, -500.0], [0, 0.1, -500.0]]), 32).max() == 0


def test_a_box_without_landmarks_fills_the_crop_up_to_its_margin() -> None:
    matrix = align.box_similarity((10.0, 20.0, 50.0, 60.0), 100, 0.125)
    corners = align.transform(matrix, np.array([[10.0, 20.0], [50.0, 60.0]]))
    assert corners == pytest.approx(np.array([[10.0, 10.0], [90.0, 90.0]]))
