"""Aligned crops by ground-truth landmarks, for the sheets and the difficulty measure."""

import cv2
import numpy as np
from numpy.typing import NDArray

from fer.synth.scene import Face, Scene

ARCFACE_112 = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""Landmarks of an aligned face of 112 px (Deng et al., ArcFace, CVPR 2019, published code)."""

EYE_DISTANCE = 35.24
"""Between the eyes of the template, px of 112."""


def aligned_crop(
    scene: Scene,
    face: Face,
    side: int = 112,
    *,
    shift: tuple[float, float] = (0, 0),
    turn: float = 0,
    scale: float = 1,
) -> NDArray[np.uint8]:
    """(side, side, 3) RGB crop: the least-squares similarity from the face's landmarks to the template.

    The face is off by `shift` (right, down, in eye distances), `turn` (degrees) and `scale`, as if a detector had
    erred.
    """
    points = np.array(face.landmarks)
    source, target = points - points.mean(axis=0), ARCFACE_112 - ARCFACE_112.mean(axis=0)
    # In complex numbers a similarity is one factor: the projection of the target on the source.
    a, b = source @ [1, 1j], target @ [1, 1j]
    factor = np.vdot(a, b) / np.vdot(a, a) * scale * np.exp(1j * np.radians(turn)) * side / 112
    rotation = np.array([[factor.real, -factor.imag], [factor.imag, factor.real]])
    middle = (ARCFACE_112.mean(axis=0) + EYE_DISTANCE * np.array(shift)) * side / 112
    matrix = np.column_stack([rotation, middle - rotation @ points.mean(axis=0)])
    # cv2 puts pixel centres on whole numbers, landmarks on half ones.
    matrix[:, 2] += matrix[:, :2] @ [0.5, 0.5] - 0.5
    return np.asarray(cv2.warpAffine(scene.image, matrix, (side, side), flags=cv2.INTER_LINEAR), np.uint8)
