"""What a synthetic data set is made of: one frozen type, checked when made."""

from dataclasses import dataclass
from typing import Literal, get_args

ClassWeights = Literal["balanced", "natural"]
Domain = Literal["wild", "studio"]
LabelNoiseKind = Literal["symmetric", "confusion"]


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """The knobs of the renderer. A bad value raises ValueError naming the field, the value and what is allowed."""

    num_classes: int = 7
    """7 or 8; 8 adds contempt."""

    class_weights: ClassWeights = "balanced"
    """"balanced": every class equally often. "natural": the imbalance of FER2013 (happiness 25 %, disgust 1.5 %)."""

    domain: Domain = "wild"
    """"wild" uses every knob below as it stands. "studio": plain backdrop, soft frontal light, a third of the pose, no
    occluders, blur, grey or distractors; the other half of a cross-data-set experiment."""

    scene_size: int = 160
    """Side of the square scene in px, 32 .. 2048."""

    face_size: tuple[float, float] = (64.0, 120.0)
    """Range of the height in px of an upright frontal face box, hairline to chin; 10 .. scene_size."""

    train_subjects: int = 400
    """Identities in the train pool, >= 1."""

    test_subjects: int = 100
    """Identities in the test pool, >= 1; never in the train pool."""

    test_fraction: float = 0.2
    """Probability in 0 .. 1 that a scene belongs to the test split."""

    multi_face_probability: float = 0.06
    """Probability in 0 .. 1 of a scene with two or three (smaller) faces."""

    no_face_probability: float = 0.02
    """Probability in 0 .. 1 of a scene with no face; with `multi_face_probability` at most 1."""

    strength: float = 1.0
    """Prototype strength, 0.01 .. 1.5: scales every action unit. The difficulty knob: 0.5 is subtle, 1.5 caricature."""

    asymmetry: float = 0.15
    """Largest relative difference, 0 .. 1, between the two halves of the face, drawn per action unit."""

    coarticulation: float = 0.2
    """Probability in 0 .. 1 of each of two stray weak action units that do not belong to the expression."""

    talking_probability: float = 0.1
    """Probability in 0 .. 1 that the mouth is open in speech (AU 25, sometimes 26) whatever the expression."""

    yaw_range: float = 45.0
    """Largest turn of the head in degrees, 0 .. 60; tent-shaped about frontal, standard deviation 0.41 of the
    range."""

    pitch_range: float = 25.0
    """Largest nod in degrees, 0 .. 40; as `yaw_range`."""

    roll_range: float = 30.0
    """Largest tilt in degrees, 0 .. 180; as `yaw_range`."""

    light_contrast: float = 0.6
    """How dark the side away from the light may get, 0 (flat light) .. 1 (black shadow)."""

    occlusion_probability: float = 0.08
    """Probability in 0 .. 1 that a hand, mask, sunglasses or the border of the scene hides part of the face."""

    blur_probability: float = 0.3
    """Probability in 0 .. 1 of defocus or of lost resolution."""

    blur_sigma: float = 1.2
    """Largest standard deviation of the blur in px of the scene, 0 .. 20; lost resolution is scaled alike."""

    noise: float = 6.0
    """Largest standard deviation of the sensor noise in grey levels, 0 .. 64."""

    grey_probability: float = 0.15
    """Probability in 0 .. 1 of a greyscale scene (still three equal channels; stored with one)."""

    distractors: int = 3
    """Largest number of skin-coloured ellipses without features in the backdrop, 0 .. 20."""

    label_noise: float = 0.0
    """Rate in 0 .. 1 of wrong labels, in the train split alone; `Face.clean_label` keeps the true one."""

    label_noise_kind: LabelNoiseKind = "symmetric"
    """"symmetric": any other class. "confusion": the class it is most often taken for, e.g. surprise for fear."""

    broken_fraction: float = 0.0
    """Fraction in 0 .. 1 of scenes that `encode` turns into bytes no decoder accepts."""

    def __post_init__(self) -> None:
        self._member("num_classes", (7, 8))
        self._member("class_weights", get_args(ClassWeights))
        self._member("domain", get_args(Domain))
        self._member("label_noise_kind", get_args(LabelNoiseKind))
        for name, least, most in (
            ("scene_size", 32, 2048), ("train_subjects", 1, None), ("test_subjects", 1, None), ("distractors", 0, 20),
        ):  # fmt: skip
            self._number(name, least, most, whole=True)
        for name in (
            "test_fraction", "multi_face_probability", "no_face_probability", "asymmetry", "coarticulation",
            "talking_probability", "light_contrast", "occlusion_probability", "blur_probability", "grey_probability",
            "label_noise", "broken_fraction",
        ):  # fmt: skip
            self._number(name, 0, 1)
        for name, low, high in (
            ("strength", 0.01, 1.5), ("yaw_range", 0, 60), ("pitch_range", 0, 40), ("roll_range", 0, 180),
            ("blur_sigma", 0, 20), ("noise", 0, 64),
        ):  # fmt: skip
            self._number(name, low, high)
        size = self.face_size
        if not (isinstance(size, tuple) and len(size) == 2 and 10 <= size[0] <= size[1] <= self.scene_size):
            raise ValueError(f"face_size = {size!r}: must be (low, high) with 10 <= low <= high <= scene_size")
        if self.multi_face_probability + self.no_face_probability > 1:
            raise ValueError(
                f"no_face_probability = {self.no_face_probability!r}: must be at most 1 - multi_face_probability "
                f"({self.multi_face_probability!r})"
            )

    def _member(self, name: str, allowed: tuple[object, ...]) -> None:
        if (value := getattr(self, name)) not in allowed:
            raise ValueError(f"{name} = {value!r}: must be one of {', '.join(map(repr, allowed))}")

    def _number(self, name: str, low: float, high: float | None, *, whole: bool = False) -> None:
        value = getattr(self, name)
        right_type = type(value) is int or (not whole and type(value) is float)
        if not (right_type and low <= value and (high is None or value <= high)):
            kind, top = "a whole number" if whole else "a number", "" if high is None else f" and <= {high}"
            raise ValueError(f"{name} = {value!r}: must be {kind} >= {low}{top}")


DEFAULT = SceneConfig()
