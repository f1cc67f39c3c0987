"""Expressions as action units (AUs): the published tables, and the sampling of one face's AUs from them.

An expression is drawn from Du, Tao & Martinez, "Compound facial expressions of emotion", PNAS 2014, table 1: the AUs
seen in more than 70 % of their subjects are always drawn, the optional ones with the share of subjects who showed
them. Contempt, which the paper lacks, is AU 12 with AU 14 on one side of the face (EMFACS; Lucey et al., CVPR
Workshops 2010, table 1, ask for AU 14).

AU vectors are floats in the order of `ACTION_UNITS`; 0 is absent, 0.2 .. 1.0 are the FACS intensities A .. E, times
`SceneConfig.strength`.
"""

from dataclasses import dataclass

from fer.synth.config import SceneConfig
from fer.synth.streams import Stream

EXPRESSIONS: tuple[str, ...] = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")
"""Label order; the 7-class set is the first seven."""

ACTION_UNITS: tuple[int, ...] = (1, 2, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15, 17, 20, 23, 24, 25, 26)
"""FACS numbers of the AUs the renderer can draw: the order of every AU vector."""

AU_NAMES: dict[int, str] = {
    1: "inner brow raiser", 2: "outer brow raiser", 4: "brow lowerer", 5: "upper lid raiser", 6: "cheek raiser",
    7: "lid tightener", 9: "nose wrinkler", 10: "upper lip raiser", 11: "nasolabial deepener", 12: "lip corner puller",
    14: "dimpler", 15: "lip corner depressor", 17: "chin raiser", 20: "lip stretcher", 23: "lip tightener",
    24: "lip pressor", 25: "lips part", 26: "jaw drop",
}  # fmt: skip

AU_FREQUENCIES: dict[str, dict[int, float]] = {
    "neutral": {},
    "happiness": {12: 1.0, 25: 1.0, 6: 0.51},
    "sadness": {4: 1.0, 15: 1.0, 1: 0.60, 6: 0.50, 11: 0.26, 17: 0.67},
    "surprise": {1: 1.0, 2: 1.0, 25: 1.0, 26: 1.0, 5: 0.66},
    "fear": {1: 1.0, 4: 1.0, 20: 1.0, 25: 1.0, 2: 0.57, 5: 0.63, 26: 0.33},
    "disgust": {9: 1.0, 10: 1.0, 17: 1.0, 4: 0.31, 24: 0.26},
    "anger": {4: 1.0, 7: 1.0, 24: 1.0, 10: 0.26, 17: 0.52, 23: 0.29},
    "contempt": {12: 1.0, 14: 1.0},
}
"""Probability of each AU given the expression."""

NATURAL_COUNTS: tuple[int, ...] = (4965, 7215, 4830, 3171, 4097, 436, 3995, 436)
"""Class imbalance in label order: FER2013's training counts. FER2013 has no contempt; AffectNet's training set holds
as much contempt as disgust (3,750 and 3,803), so contempt is given disgust's count."""

CONFUSED_WITH: dict[str, tuple[str, ...]] = {
    "neutral": ("sadness",),
    "happiness": ("contempt", "neutral"),
    "sadness": ("neutral",),
    "surprise": ("fear",),
    "fear": ("surprise",),
    "disgust": ("anger",),
    "anger": ("disgust",),
    "contempt": ("happiness",),
}
"""Confusion-shaped label noise: a wrong label is the first of these that the label set holds."""

_LEVELS = (0.2, 0.4, 0.6, 0.8, 1.0)
_LEVEL_WEIGHTS = (0.0, 0.07, 0.21, 0.32, 0.40)  # of the face; each of its AUs is up to one level off
_STRAY_UNITS = (1, 2, 4, 5, 6, 7, 12, 14, 15, 17, 24)
_MOUTH_CLOSERS = (17, 23, 24)


@dataclass(frozen=True)
class Expression:
    """What a face shows. `right` and `left` are the AU vectors of the halves of the person's face."""

    label: int
    right: tuple[float, ...]
    left: tuple[float, ...]

    @property
    def aus(self) -> tuple[float, ...]:
        """The face's AU vector: the stronger half, as FACS scores a one-sided action."""
        return tuple(max(pair) for pair in zip(self.right, self.left, strict=True))


def sample_label(stream: Stream, config: SceneConfig) -> int:
    """Draw a true label, an index into `EXPRESSIONS`."""
    classes = range(config.num_classes)
    if config.class_weights == "balanced":
        return stream.choice(classes)
    return stream.choice(classes, NATURAL_COUNTS[: config.num_classes])


def sample_expression(stream: Stream, label: int, config: SceneConfig) -> Expression:
    """Draw the AUs of a face that shows the class `label`: prototype, stray AUs, speech, then the difference of the
    halves."""
    name = EXPRESSIONS[label]
    intensities = dict.fromkeys(ACTION_UNITS, 0.0)
    overall = stream.choice(range(len(_LEVELS)), _LEVEL_WEIGHTS)
    # Every AU takes its draws whether or not it shows, so that a face keeps its other AUs when one probability is
    # changed.
    for unit in ACTION_UNITS:
        present = stream.chance(AU_FREQUENCIES[name].get(unit, 0.0))
        level = min(max(overall + stream.integer(3) - 1, 0), len(_LEVELS) - 1)
        if present:
            intensities[unit] = _LEVELS[level]
    for _ in range(2):
        stray, present, level = stream.choice(_STRAY_UNITS), stream.chance(config.coarticulation), stream.integer(2)
        if present:
            intensities[stray] = max(intensities[stray], _LEVELS[level])
    talks, opening, jaw = stream.chance(config.talking_probability), stream.integer(3), stream.integer(3)
    if talks:
        intensities[25] = max(intensities[25], _LEVELS[opening + 1])
        intensities[26] = max(intensities[26], (0.0, *_LEVELS)[jaw])
        for unit in _MOUTH_CLOSERS:  # lips cannot be pressed together while they speak
            intensities[unit] = min(intensities[unit], _LEVELS[0])
    quiet_side = stream.integer(2) if name == "contempt" else -1
    halves: tuple[list[float], list[float]] = ([], [])
    for unit in ACTION_UNITS:
        tilt = stream.uniform(-config.asymmetry, config.asymmetry)
        for side, half in enumerate(halves):
            gain = 0.1 if side == quiet_side and unit in (12, 14) else min(1.0, 1.0 + tilt * (1 if side else -1))
            half.append(round(intensities[unit] * config.strength * gain, 4))
    return Expression(label, tuple(halves[0]), tuple(halves[1]))


def noisy_label(stream: Stream, label: int, config: SceneConfig) -> int:
    """The label an annotator would have written: wrong with probability `config.label_noise`."""
    wrong, shift = stream.chance(config.label_noise), stream.integer(config.num_classes - 1)
    if not wrong:
        return label
    if config.label_noise_kind == "symmetric":
        return (label + 1 + shift) % config.num_classes
    names = EXPRESSIONS[: config.num_classes]
    return names.index(next(name for name in CONFUSED_WITH[EXPRESSIONS[label]] if name in names))
