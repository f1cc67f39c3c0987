"""People who do not exist: the shape, colors and style that all scenes of one subject share."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fer.synth.anatomy import ANATOMY, Array, where
from fer.synth.streams import Stream

Color = tuple[float, float, float]

SKIN_TONES: tuple[Color, ...] = (
    (246, 216, 196), (234, 194, 166), (217, 170, 136), (190, 139, 103), (151, 105, 76), (108, 73, 53), (84, 56, 42),
)  # fmt: skip
HAIR_COLORS: tuple[Color, ...] = (
    (28, 24, 24), (48, 34, 28), (82, 54, 36), (122, 82, 50), (176, 134, 82), (212, 178, 122), (142, 64, 34),
)  # fmt: skip
EYE_COLORS: tuple[Color, ...] = (
    (62, 40, 26),
    (84, 56, 34),
    (110, 84, 50),
    (90, 112, 78),
    (92, 128, 156),
    (120, 134, 142),
)
LIPSTICKS: tuple[Color, ...] = ((170, 38, 56), (96, 24, 44), (222, 132, 138), (200, 84, 70))
GRAY_HAIR: Color = (178, 176, 174)


@dataclass(frozen=True)
class Identity:
    """One subject. Lengths are in face units (see `anatomy`), scales are factors, colors RGB in 0 .. 255."""

    subject: str
    skin: Color
    hair: Color
    eyes: Color
    lips: Color
    brows: Color
    age: float  # 0 young .. 1 old: depth of the lines at rest
    hair_style: str  # bald, short, fringe, parted, long
    hair_volume: float  # scale of the hair about the skull
    hairline: float  # forehead shown; negative is lower
    beard: str  # none, stubble, moustache, full
    glasses: str  # none, round, square
    brow_height: float
    brow_tilt: float  # positive: outer end lower
    brow_width: float
    eye_scale: float
    eye_spacing: float
    eye_tilt: float  # positive: outer corner lower
    nose_width: float
    nose_length: float
    nose_depth: float
    mouth_width: float
    mouth_height: float
    mouth_curve: float  # corners at rest; positive: lower
    lip_fullness: float
    face_width: float
    jaw_width: float
    chin_length: float
    ear_size: float
    length: float  # of the face for its width: features spread down and draw together
    skew: float  # asymmetry of the whole face


def mix(first: Sequence[float], second: Sequence[float], share: float) -> Color:
    """Color between two: `share` 0 is the first, 1 the second."""
    r, g, b = (one + (two - one) * share for one, two in zip(first, second, strict=True))
    return r, g, b


def subject_name(seed: int, split: str, number: int) -> str:
    """What subject `number` of the pool of `split` is called."""
    return f"s{seed}-{split}-{number:04d}"


@lru_cache(maxsize=4096)
def identity(seed: int, split: str, number: int) -> Identity:
    """Subject `number` of the pool of `split`; the two pools have no subject in common."""
    stream = Stream(seed, split, number, "identity")
    tone = stream.uniform(0, len(SKIN_TONES) - 1.001)
    low, high, share = SKIN_TONES[int(tone)], SKIN_TONES[int(tone) + 1], tone % 1
    skin = mix(low, high, share)
    age = stream.unit() ** 1.5
    # Fair hair goes with fair skin: the darker the skin, the fewer colors to choose from.
    shades = len(HAIR_COLORS) if tone < 2.0 else 3 if tone < 3.5 else 2
    hair = mix(HAIR_COLORS[stream.integer(shades)], GRAY_HAIR, min(1.0, max(0.0, stream.uniform(-0.3, 1.5) * age)))
    eyes = EYE_COLORS[stream.integer(len(EYE_COLORS) if tone < 2.0 else 2)]
    masculine = stream.chance(0.5)
    style = stream.choice(
        ("bald", "short", "fringe", "parted", "long"),
        (0.15, 0.5, 0.15, 0.2, 0) if masculine else (0, 0.1, 0.2, 0.25, 0.45),
    )
    beard = stream.choice(("none", "stubble", "moustache", "full"), (0.5, 0.22, 0.08, 0.2))
    # Lips and brows may be darker or lighter than the skin: a pale brow on dark skin, a made-up mouth on any.
    blush = mix(skin, (206, 104, 108) if tone > 3.5 else (176, 62, 70), stream.uniform(0.15, 0.55))
    painted = max(0.0, stream.uniform(-0.4, 0.9))
    return Identity(
        subject=subject_name(seed, split, number),
        skin=skin,
        hair=hair,
        eyes=eyes,
        brows=mix(hair, skin, stream.uniform(0.0, 0.45)),
        lips=blush if masculine else mix(blush, LIPSTICKS[stream.integer(len(LIPSTICKS))], painted),
        age=age,
        hair_style=style,
        hair_volume=stream.uniform(1.0, 1.1),
        hairline=stream.bell(0.14),
        beard=beard if masculine else "none",
        glasses=stream.choice(("none", "round", "square"), (0.84, 0.08, 0.08)),
        brow_height=stream.bell(0.10),
        brow_tilt=stream.bell(0.10),
        brow_width=stream.uniform(0.022, 0.056) + (0.01 if masculine else 0.0),
        eye_scale=1 + stream.bell(0.24),
        eye_spacing=1 + stream.bell(0.12),
        eye_tilt=stream.bell(0.20),
        nose_width=1 + stream.bell(0.25),
        nose_length=1 + stream.bell(0.20),
        nose_depth=stream.uniform(0.26, 0.40),
        mouth_width=1 + stream.bell(0.30),
        mouth_height=stream.bell(0.14),
        mouth_curve=stream.bell(0.035),
        lip_fullness=1 + stream.bell(0.50),
        face_width=1 + stream.bell(0.10),
        jaw_width=1 + stream.bell(0.14),
        chin_length=1 + stream.bell(0.10),
        ear_size=stream.uniform(0.8, 1.2),
        length=1 + stream.bell(0.20),
        skew=stream.bell(0.04),
    )


_BROWS, _EYES = where("brow"), where("lid_upper", "lid_lower", "crease", "bag")
_NOSE, _LIPS = (
    where("nose", "nostril", "ala", "nose_wrinkle", "nose_wrinkle_low"),
    where("upper_outer", "upper_inner", "lower_inner", "lower_outer"),
)
_UPPER_OUTER, _LOWER_OUTER = where("upper_outer"), where("lower_outer")
_BY_MOUTH = where("dimple", "marionette")
_JAW = where("jaw", "chin")
_LOW_JAW = np.array([at for at in _JAW if ANATOMY.rest[at, 1] > 0.5])


@lru_cache(maxsize=4096)
def rest_points(who: Identity) -> Array:
    """The subject's control points at rest, (N, 2) in face units; read-only."""
    points = ANATOMY.rest.copy()
    side = np.sign(points[:, 0])
    x, y = points[:, 0], points[:, 1]

    y[_BROWS] += who.brow_height + who.brow_tilt * (np.abs(x[_BROWS]) - 0.47)
    from_pupil = x[_EYES] - side[_EYES] * 0.46
    y[_EYES] = y[_EYES] * who.eye_scale + who.eye_tilt * from_pupil * side[_EYES]
    x[_EYES] = side[_EYES] * 0.46 * who.eye_spacing + from_pupil * (0.6 + 0.4 * who.eye_scale)

    x[_NOSE] *= who.nose_width
    y[_NOSE] *= who.nose_length

    seam = 1.05
    reach = np.abs(x[_LIPS]) / 0.38
    y[_UPPER_OUTER] = seam + (y[_UPPER_OUTER] - seam) * who.lip_fullness
    y[_LOWER_OUTER] = seam + (y[_LOWER_OUTER] - seam) * who.lip_fullness
    y[_LIPS] += who.mouth_height + who.mouth_curve * reach * reach
    x[_LIPS] *= who.mouth_width
    x[_BY_MOUTH] += side[_BY_MOUTH] * 0.38 * (who.mouth_width - 1)
    y[_BY_MOUTH] += who.mouth_height

    x[_JAW] *= who.face_width
    x[_LOW_JAW] *= who.jaw_width
    y[_LOW_JAW] = 0.5 + (y[_LOW_JAW] - 0.5) * who.chin_length
    x /= who.length**0.5
    y *= who.length**0.5
    y += who.skew * x
    points.setflags(write=False)
    return points
