"""Aligned crops by landmarks, and the error that a detector would make in finding them."""

import cv2
import numpy as np
from numpy.typing import NDArray

from fer.synth.streams import Stream

ARCFACE_112 = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""Landmarks of an aligned face of 112 px (Deng et al., ArcFace, CVPR 2019, published code)."""

EYE_DISTANCE = 35.24
"""Between the eyes of the template, px of 112."""


def aligned_crop(image: NDArray[np.uint8], landmarks: NDArray[np.float64], side: int = 112) -> NDArray[np.uint8]:
    """(side, side, 3) RGB crop: the least-squares similarity from the landmarks, (5, 2) px, to the template."""
    factor = _to_template(landmarks) * side / 112
    rotation = np.array([[factor.real, -factor.imag], [factor.imag, factor.real]])
    middle = ARCFACE_112.mean(axis=0) * side / 112
    matrix = np.column_stack([rotation, middle - rotation @ landmarks.mean(axis=0)])
    # cv2 puts pixel centers on whole numbers, landmarks on half ones.
    matrix[:, 2] += matrix[:, :2] @ [0.5, 0.5] - 0.5
    return np.asarray(cv2.warpAffine(image, matrix, (side, side), flags=cv2.INTER_LINEAR), np.uint8)


def misplaced(
    landmarks: NDArray[np.float64], amount: float, *, seed: int, index: int, number: int
) -> NDArray[np.float64]:
    """The landmarks, (5, 2) px, as a detector would report them: off together, as errors of real detectors mostly are.

    With an `amount` of 1 they are off by 7 % of the eye distance each way, 5 degrees and 6 % of size (standard
    deviations); 0 changes nothing. A pure function of seed, scene index and the face's number in the scene.
    """
    error = Stream(seed, index, "detector", number)
    right, down, turn, size = (error.bell(3 * amount) for _ in range(4))
    center = landmarks.mean(axis=0)
    eye_distance = EYE_DISTANCE / abs(_to_template(landmarks))
    angle = np.radians(5 * turn)
    rotation = (1 + 0.06 * size) * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved: NDArray[np.float64] = (landmarks - center) @ rotation.T + center
    return moved + 0.07 * eye_distance * np.array([right, down])


def _to_template(landmarks: NDArray[np.float64]) -> complex:
    """Scale and turn of the least-squares similarity to the template of 112 px, as one complex factor."""
    source, target = landmarks - landmarks.mean(axis=0), ARCFACE_112 - ARCFACE_112.mean(axis=0)
    # In complex numbers a similarity is one factor: the projection of the target on the source.
    a, b = source @ [1, 1j], target @ [1, 1j]
    return complex(np.vdot(a, b) / np.vdot(a, a))
