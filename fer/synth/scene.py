"""Scenes: a pure function of (seed, index, config).

`describe` decides everything that has a name (split, subjects, labels, action units, geometry); `render` paints it;
`encode` gives the bytes a dataset would store.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import cos, sin

import cv2
import numpy as np
from numpy.typing import NDArray

from fer.synth.backdrop import backdrop, finish, paint_body
from fer.synth.brush import plane
from fer.synth.config import DEFAULT, SceneConfig
from fer.synth.expressions import Expression, noisy_label, sample_expression, sample_label
from fer.synth.geometry import BOX_HEIGHT, FIXED, FaceGeometry, Fixed, Pose, build
from fer.synth.identity import Identity, identity
from fer.synth.paint import Light, paint_face
from fer.synth.streams import Stream
from fer.synth.wear import hand, mask, paint_occluder, sunglasses

_GRAZING = 0.2  # skin seen at less than about 12 degrees hides its landmark
_OCCLUDERS, _OCCLUDER_WEIGHTS = ("sunglasses", "mask", "hand", "border"), (0.25, 0.2, 0.3, 0.25)
_PAGE = b"<!DOCTYPE html><html><title>404 Not Found</title></html>"


@dataclass(frozen=True)
class Face:
    """What is known of one face. Scene coordinates are continuous px: pixel (row r, column c) covers [c, c+1) x [r,
    r+1)."""

    label: int
    """Index in `EXPRESSIONS`, as an annotator wrote it."""
    clean_label: int
    """Index in `EXPRESSIONS` of the expression that was drawn."""
    aus: tuple[float, ...]
    """Intensity of each of `ACTION_UNITS` on the stronger half of the face: 0 absent, 0.2 .. 1.0 FACS A .. E, times
    strength."""
    box: tuple[float, float, float, float]
    """xyxy, half-open, hairline to chin; reaches outside the scene where the border cuts the face. Holds all
    landmarks."""
    landmarks: tuple[tuple[float, float], ...]
    """Right eye, left eye, nose tip, right and left mouth corner of the person, as (x, y)."""
    landmark_visible: tuple[bool, ...]
    """False where a landmark is outside the scene, behind an occluder, or turned away."""
    pose: tuple[float, float, float]
    """Yaw, pitch, roll in degrees: the nose to the right of the image, the nose down, clockwise."""
    subject: str
    """Identity, e.g. "s0-train-0042"."""
    occluders: tuple[str, ...]
    """Of "sunglasses", "mask", "hand", "border"."""


@dataclass(frozen=True)
class Layout:
    """A scene without its pixels."""

    seed: int
    index: int
    split: str
    """"train" or "test"."""
    faces: tuple[Face, ...]


@dataclass(frozen=True)
class Scene:
    """A rendered scene."""

    image: NDArray[np.uint8]
    """(S, S, 3) RGB."""
    faces: tuple[Face, ...]
    split: str
    """"train" or "test"."""
    index: int
    seed: int
    gray: bool
    """The three channels are equal; stored with one."""
    quality: int
    """JPEG quality of the stored file, 70 .. 95."""
    broken: bool
    """The stored file is damaged on purpose."""


@dataclass(frozen=True)
class _Cast:
    """A face with what the painter needs."""

    face: Face
    who: Identity
    geometry: FaceGeometry
    occluder: str
    parts: list[Fixed]
    tint: int


@lru_cache(maxsize=64)
def _in_domain(config: SceneConfig) -> SceneConfig:
    """The options with the domain applied."""
    if config.domain == "wild":
        return config
    third = {name: getattr(config, name) / 3 for name in ("yaw_range", "pitch_range", "roll_range")}
    none = dict.fromkeys(("occlusion_probability", "blur_probability", "grey_probability"), 0.0)
    return config.model_copy(update={**third, **none, "light_contrast": 0.3 * config.light_contrast, "distractors": 0})


def describe(seed: int, index: int, config: SceneConfig = DEFAULT) -> Layout:
    """Labels and geometry of a scene: what `render` gives, without the pixels (several times faster)."""
    split, cast = _direct(seed, index, _in_domain(config))
    return Layout(seed, index, split, tuple(actor.face for actor in cast))


def render(seed: int, index: int, config: SceneConfig = DEFAULT) -> Scene:
    """Scene `index` of the dataset `seed`; depends on nothing else, so any worker may render any scene in any
    order."""
    config = _in_domain(config)
    split, cast = _direct(seed, index, config)
    canvas = backdrop(Stream(seed, index, "backdrop"), config)
    light = _light(Stream(seed, index, "light"), config)
    for number, actor in enumerate(cast):
        paint_body(canvas, actor.geometry, actor.who, Stream(seed, index, "clothes", number))
        paint_face(canvas, actor.geometry, actor.who, light)
        if actor.parts:
            scale = actor.geometry.pose.scale
            paint_occluder(canvas, actor.occluder, actor.parts, actor.who.skin, actor.tint, scale)
    store = Stream(seed, index, "store")
    gray, quality, broken = store.chance(config.grey_probability), 70 + store.integer(26), store.unit()
    return Scene(
        image=finish(canvas, Stream(seed, index, "camera"), config, gray=gray),
        faces=tuple(actor.face for actor in cast),
        split=split,
        index=index,
        seed=seed,
        gray=gray,
        quality=quality,
        broken=broken < config.broken_fraction,
    )


def encode(scene: Scene) -> bytes:
    """The stored file: JPEG, one channel where the scene is gray; or, where `scene.broken`, bytes no decoder
    accepts."""
    stored = scene.image[..., 0] if scene.gray else cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR)
    done, buffer = cv2.imencode(".jpg", stored, (cv2.IMWRITE_JPEG_QUALITY, scene.quality))
    assert done
    data = buffer.tobytes()
    if not scene.broken:
        return data
    kind = Stream(scene.seed, scene.index, "damage").integer(3)
    return (b"", data[:100], _PAGE)[kind]  # an empty file, a download cut in the header, an error page


def _light(stream: Stream, config: SceneConfig) -> Light:
    x, y = stream.bell(1.2), stream.bell(0.9) - 0.35
    length = (x * x + y * y + 1.0) ** 0.5
    return Light((x / length, y / length, 1.0 / length), stream.uniform(0.35, 1.0) * config.light_contrast)


def _direct(seed: int, index: int, config: SceneConfig) -> tuple[str, list[_Cast]]:
    """Who is in the scene, where, and what they show."""
    cast = Stream(seed, index, "cast")
    split = "test" if cast.chance(config.test_fraction) else "train"
    mark, several = cast.unit(), 2 + cast.integer(2)
    count = 1
    if mark < config.no_face_probability:
        count = 0
    elif mark < config.no_face_probability + config.multi_face_probability:
        count = several
    pool = config.test_subjects if split == "test" else config.train_subjects
    first, actors = cast.integer(pool), []
    for number in range(count):
        # Different people in one scene, as far as the pool has them.
        who = identity(seed, split, (first + number * (1 + pool // 4)) % pool)
        actors.append(_actor(seed, index, number, count, split, who, config))
    return split, actors


def _actor(seed: int, index: int, number: int, count: int, split: str, who: Identity, config: SceneConfig) -> _Cast:
    def stream(purpose: str) -> Stream:
        return Stream(seed, index, purpose, number)

    clean = sample_label(stream("label"), config)
    label = noisy_label(stream("annotator"), clean, config) if split == "train" else clean
    expression = sample_expression(stream("expression"), clean, config)
    occlusion = stream("occlusion")
    occluded, occluder = occlusion.chance(config.occlusion_probability), occlusion.choice(_OCCLUDERS, _OCCLUDER_WEIGHTS)
    if not occluded:
        occluder = ""
    pose = _pose(stream("pose"), number, count, config, at_border=occluder == "border")
    geometry = build(who, expression, pose)
    parts: list[Fixed] = []
    if occluder == "sunglasses":
        parts = sunglasses(geometry, plane(pose))
    elif occluder == "mask":
        parts = mask(geometry)
    elif occluder == "hand":
        angle = occlusion.bell(1.2)
        at = (occlusion.bell(0.9), occlusion.uniform(0.2, 1.2))
        parts = hand(geometry, plane(pose), at, (cos(angle), sin(angle)))
    face = _face(label, clean, expression, geometry, who, (occluder,) if occluder else (), parts, config.scene_size)
    return _Cast(face, who, geometry, occluder, parts, occlusion.integer(12))


def _pose(stream: Stream, number: int, count: int, config: SceneConfig, *, at_border: bool) -> Pose:
    """Turn, size and place: one face anywhere it fits, several side by side."""
    side = config.scene_size
    yaw, pitch, roll = (stream.tent(reach) for reach in (config.yaw_range, config.pitch_range, config.roll_range))
    height = stream.uniform(*config.face_size)
    column = side / max(count, 1)
    if count > 1:
        height = max(10.0, min(height, 1.1 * column))
    free_x, free_y = max(column - 0.8 * height, 0.0), max(side - height, 0.0)
    x = (number + 0.5) * column + stream.uniform(-0.5, 0.5) * free_x
    y = 0.5 * side + stream.uniform(-0.5, 0.5) * free_y
    edge, cut = stream.integer(3), stream.uniform(0.0, 0.22) * height
    if at_border:  # not the upper border: a face cut below the brows is no face
        x, y = ((cut, y), (side - cut, y), (x, side - cut))[edge]
    gaze = (stream.bell(0.075), stream.bell(0.03))
    scale = height / BOX_HEIGHT
    return Pose(yaw=yaw, pitch=pitch, roll=roll, x=x, y=y - 0.06 * scale, scale=scale, gaze=gaze)


def _face(
    label: int, clean: int, expression: Expression, geometry: FaceGeometry, who: Identity, occluders: tuple[str, ...],
    parts: list[Fixed], side: int,
) -> Face:  # fmt: skip
    visible = []
    for (x, y), facing in zip(geometry.landmarks, geometry.facing, strict=True):
        covered = any(cv2.pointPolygonTest(part, (x * FIXED, y * FIXED), measureDist=False) >= 0 for part in parts)
        visible.append(0 <= x < side and 0 <= y < side and facing > _GRAZING and not covered)
    pose = geometry.pose
    return Face(
        label=label,
        clean_label=clean,
        aus=expression.aus,
        box=geometry.box,
        landmarks=geometry.landmarks,
        landmark_visible=tuple(visible),
        pose=(round(pose.yaw, 6), round(pose.pitch, 6), round(pose.roll, 6)),
        subject=who.subject,
        occluders=occluders,
    )
