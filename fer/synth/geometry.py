"""From a subject, an expression and a pose to everything the painter draws, as points of the scene.

The control points are displaced by the action units in the plane, laid on the head's surface, turned in space, and
projected with weak perspective. Points of the scene are whole multiples of 1/1024 px, so that the last bits of a
platform's sine cannot show. Scene coordinates are continuous: the pixel of row r and column c covers [c, c + 1) x [r,
r + 1).
"""

from dataclasses import dataclass
from functools import cached_property
from math import cos, pi, radians, sin, sqrt

import cv2
import numpy as np
from numpy.typing import NDArray

from fer.synth.anatomy import ANATOMY, Array
from fer.synth.expressions import Expression
from fer.synth.features import ANCHORS, JAWLINE, features
from fer.synth.identity import Identity

FIXED_BITS = 10
FIXED = 1 << FIXED_BITS
"""Fixed-point units of a pixel."""

BOX_HEIGHT = 2.78
"""Face units between hairline and chin: the upright frontal face box."""

Fixed = NDArray[np.int32]

_CAMERA = 9.0  # distance of the camera from the head in face units
_HALF_DEPTH, _HALF_WIDTH, _HALF_HEIGHT = 1.25, 1.10, 1.92
_PIVOT = np.array([0.0, 0.25, 0.0])  # the point that stays when the head turns


@dataclass(frozen=True)
class Pose:
    """Where a face is. Degrees: yaw > 0 turns the nose to the right of the image, pitch > 0 down, roll > 0
    clockwise."""

    yaw: float
    pitch: float
    roll: float
    x: float  # scene px of the pivot
    y: float
    scale: float  # px a face unit
    gaze: tuple[float, float] = (0.0, 0.0)  # of the pupils, face units

    @cached_property
    def rotation(self) -> Array:
        """The (3, 3) rotation: pitch, then yaw, then roll."""
        yaw, pitch, roll = radians(self.yaw), radians(self.pitch), radians(self.roll)
        turn = np.array([[cos(yaw), 0, sin(yaw)], [0, 1, 0], [-sin(yaw), 0, cos(yaw)]])
        nod = np.array([[1, 0, 0], [0, cos(pitch), sin(pitch)], [0, -sin(pitch), cos(pitch)]])
        tilt = np.array([[cos(roll), -sin(roll), 0], [sin(roll), cos(roll), 0], [0, 0, 1]])
        rotation: Array = tilt @ turn @ nod
        return rotation


# What does not lie on the skin's front has a depth of its own. Hairline from the left temple over the forehead; jaw;
# ear.
_HAIRLINE = np.array([
    [0.97, -0.50, 0.15], [0.88, -0.74, 0.35], [0.70, -0.92, 0.65], [0.45, -1.02, 0.90], [0.20, -1.07, 1.02],
    [-0.20, -1.07, 1.02], [-0.45, -1.02, 0.90], [-0.70, -0.92, 0.65], [-0.88, -0.74, 0.35], [-0.97, -0.50, 0.15],
])  # fmt: skip
_JAW_DEPTH = JAWLINE @ np.array([0.0, 0.02, 0.08, 0.20, 0.50, 0.72, 0.80, 0.72, 0.50, 0.20, 0.08, 0.02, 0.0])
_EAR = np.array([
    [-0.04, -0.14], [0.02, -0.27], [0.10, -0.30], [0.17, -0.22], [0.18, -0.08], [0.14, 0.08], [0.10, 0.22],
    [0.03, 0.30], [-0.04, 0.20],
])  # fmt: skip
_SKULL_CENTER, _SKULL_RADII = np.array([0.0, -0.42, -0.28]), np.array([1.04, 1.27, 1.36])
_RING = np.stack([np.cos(np.arange(40) * pi / 20), np.sin(np.arange(40) * pi / 20)], axis=1)


@dataclass(frozen=True)
class FaceGeometry:
    """One face, ready to paint. Contours are (points, 2) int32 in 1/1024 px of the scene."""

    contours: dict[str, Fixed]
    """"lids.right", "iris.right", "pupil.right" (and left), "lips", "cavity", "upper_teeth", "lower_teeth", "tongue",
    "nostril.right" (and left), "jaw" (37 from the right temple to the left), "hairline" (10 from left to right),
    "ear.right" (and left), "outline" (hull of the front of the head), "skull"."""
    strokes: dict[str, Fixed]
    """Outlines of the brows, lids and visible folds, by their names in `ANATOMY.ribbons`."""
    fold_depth: dict[str, float]
    """How deep each of the strokes is as a fold, 0 .. 1.1; 0 for brows and lids."""
    anchors: dict[str, Fixed]
    """(2,) points named by `ANCHORS`."""
    cheek_lift: tuple[float, float]
    mouth_open: float
    box: tuple[float, float, float, float]
    """xyxy px, half-open, of the front of the head from hairline to chin; may reach outside the scene."""
    landmarks: tuple[tuple[float, float], ...]
    """Five (x, y) px: right eye, left eye, nose, right and left mouth corner of the person."""
    facing: tuple[float, ...]
    """Cosine between the skin at each landmark and the view axis; 0 and less is turned away."""
    pose: Pose


def surface(points: Array, nose_depth: float) -> Array:
    """Height z of the skin above each point (..., 2): an ellipsoid with a nose on it."""
    x, y = points[..., 0], points[..., 1]
    body = 1.0 - (x / _HALF_WIDTH) ** 2 - ((y - 0.05) / _HALF_HEIGHT) ** 2
    ridge = np.clip((y + 0.10) / 0.66, 0.0, 1.0) * np.clip((0.82 - y) / 0.22, 0.0, 1.0)
    across = 1.0 / (1.0 + (x / 0.15) ** 2) ** 2
    height: Array = _HALF_DEPTH * np.sqrt(np.maximum(body, 0.02)) + nose_depth * ridge * across
    return height


def build(who: Identity, expression: Expression, pose: Pose) -> FaceGeometry:
    """All contours of one face in the scene."""
    face = features(who, expression, pose.gaze)
    hairline = _HAIRLINE * [who.face_width, 1.0, 1.0]
    hairline[2:-2, 1] += who.hairline
    # The silhouette of a turned head is the hull of its rim and of a loop further in.
    inner = 0.86 * np.concatenate([face.jaw, hairline[:, :2]])
    on_skin = {**face.contours, "inner": inner, "strokes": face.strokes.reshape(-1, 2)}
    flat = np.concatenate(list(on_skin.values()))
    in_space = {
        "jaw": np.column_stack([face.jaw, _JAW_DEPTH]),
        "hairline": hairline,
        "ear.right": _ear(who, -1),
        "ear.left": _ear(who, 1),
    }
    space = np.concatenate([np.column_stack([flat, surface(flat, who.nose_depth)]), *in_space.values()])
    fixed = np.rint(_project(space, pose) * FIXED).astype(np.int32)

    contours: dict[str, Fixed] = {}
    start = 0
    for name, part in (on_skin | in_space).items():
        contours[name] = fixed[start : start + len(part)]
        start += len(part)
    anchors, strokes = contours.pop("anchors"), contours.pop("strokes")
    names = [ANATOMY.ribbons[row] for row in face.stroke_rows]
    rim = np.concatenate([contours["jaw"], contours["hairline"], contours.pop("inner")])
    contours["outline"] = cv2.convexHull(rim).reshape(-1, 2).astype(np.int32)
    contours["skull"] = _skull(pose, who)
    extent = np.concatenate([contours["outline"], anchors[:5]]) / FIXED
    (left, top), (right, bottom) = extent.min(axis=0).tolist(), extent.max(axis=0).tolist()
    return FaceGeometry(
        contours=contours,
        strokes=dict(zip(names, strokes.reshape(len(names), -1, 2), strict=True)),
        fold_depth=dict(zip(names, face.fold_depth.tolist(), strict=True)),
        anchors=dict(zip(ANCHORS, anchors, strict=True)),
        cheek_lift=face.cheek_lift,
        mouth_open=face.mouth_open,
        box=(left, top, right, bottom),
        landmarks=tuple((x, y) for x, y in (anchors[:5] / FIXED).tolist()),
        facing=_facing(face.contours["anchors"][:5], pose),
        pose=pose,
    )


def _project(space: Array, pose: Pose) -> Array:
    """Points (n, 3) of the head -> px (n, 2) of the scene, with weak perspective."""
    turned = (space - _PIVOT) @ pose.rotation.T
    px: Array = turned[:, :2] * (pose.scale / (1.0 - turned[:, 2:] / _CAMERA)) + [pose.x, pose.y]
    return px


def _ear(who: Identity, side: int) -> Array:
    outwards, down = _EAR[:, 0] * who.ear_size, _EAR[:, 1] * who.ear_size
    return np.column_stack([side * (who.face_width * 1.0 + outwards), 0.18 + down, -0.10 - 0.8 * outwards])


def _skull(pose: Pose, who: Identity) -> Fixed:
    """Outline of an ellipsoid: with semi-axes D turned by R it is the ellipse of the matrix (R D D R^T), first two
    axes."""
    axes = pose.rotation * (_SKULL_RADII * [who.face_width, 1.0, 1.0])
    (xx, xy, _), (_, yy, _), _ = (axes @ axes.T).tolist()
    corner = xy / sqrt(xx)
    root = np.array([[sqrt(xx), 0.0], [corner, sqrt(yy - corner * corner)]])  # its Cholesky factor
    center = _project(_SKULL_CENTER[None], pose)
    outline: Fixed = np.rint((center + pose.scale * _RING @ root.T) * FIXED).astype(np.int32)
    return outline


def _facing(points: Array, pose: Pose) -> tuple[float, ...]:
    """Cosine to the view axis of the ellipsoid's normal at each point (n, 2)."""
    x, y, z = points[:, 0], points[:, 1] - 0.05, surface(points, 0.0)
    normal = np.stack([x / _HALF_WIDTH**2, y / _HALF_HEIGHT**2, z / _HALF_DEPTH**2], axis=1)
    normal /= np.sqrt((normal**2).sum(axis=1, keepdims=True))
    return tuple(round(value, 4) for value in (normal @ pose.rotation[2]).tolist())
