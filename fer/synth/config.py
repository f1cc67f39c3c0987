"""What a synthetic dataset is made of. A wrong value is a ValueError that names the field, the value and the range."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fer.config import Config

ClassWeights = Literal["balanced", "natural"]
Domain = Literal["wild", "studio"]
LabelNoiseKind = Literal["symmetric", "confusion"]
Share = Annotated[float, Field(ge=0, le=1)]


class SceneOptions(Config):
    """The options of the renderer that params.yaml sets too; lengths are in px of the scene."""

    class_weights: ClassWeights = Field(
        default="balanced", description="natural: the imbalance of FER2013 (happiness 25 %, disgust 1.5 %)"
    )
    domain: Domain = Field(
        default="wild",
        description="wild: every option as it is; studio: plain backdrop, soft frontal light, a third of the pose, no "
        "occluders, blur, gray or distractors; the other half of a cross-dataset experiment",
    )
    scene_size: int = Field(default=160, ge=32, le=2048, description="side of a scene, 32 .. 2048")
    face_size: tuple[float, float] = Field(
        default=(64.0, 120.0),
        description="range of the height of an upright frontal face box, hairline to chin; 10 .. scene_size",
    )
    train_subjects: int = Field(default=400, ge=1, description="identities of the training scenes")
    test_subjects: int = Field(default=100, ge=1, description="identities of the test scenes, unseen in training")
    test_fraction: Share = Field(default=0.2, description="probability that a scene belongs to the test split")
    multi_face_probability: Share = Field(default=0.06, description="of a scene with two or three (smaller) faces")
    no_face_probability: Share = Field(
        default=0.02, description="of a scene with no face; with multi_face_probability at most 1"
    )
    strength: float = Field(
        default=1.0, ge=0.01, le=1.5, description="scales every action unit: 0.5 is subtle and hard, 1.5 caricature"
    )
    occlusion_probability: Share = Field(
        default=0.08, description="that a hand, mask, sunglasses or the border of the scene hides part of the face"
    )
    blur_probability: Share = Field(default=0.3, description="of defocus or of lost resolution")
    grey_probability: Share = Field(
        default=0.15, description="of a grayscale scene (still three equal channels; stored with one)"
    )
    label_noise: Share = Field(
        default=0.0, description="rate of wrong labels, in the train split alone; `clean_label` keeps the true one"
    )
    label_noise_kind: LabelNoiseKind = Field(
        default="symmetric",
        description="symmetric: any other class; confusion: the class most often confused, e.g. surprise for fear",
    )
    broken_fraction: Share = Field(default=0.0, description="share of scenes stored as bytes that no decoder accepts")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        low, high = self.face_size
        if not 10 <= low <= high <= self.scene_size:
            raise ValueError(f"face_size = {self.face_size}: must be low, high with 10 <= low <= high <= scene_size")
        if self.multi_face_probability + self.no_face_probability > 1:
            raise ValueError(
                f"no_face_probability = {self.no_face_probability}: must be at most 1 - multi_face_probability "
                f"({self.multi_face_probability})"
            )
        return self


class SceneConfig(SceneOptions):
    """All options of the renderer."""

    num_classes: Literal[7, 8] = Field(default=7, description="8 adds contempt")
    asymmetry: Share = Field(
        default=0.15, description="largest relative difference of the two halves of the face, drawn per action unit"
    )
    coarticulation: Share = Field(
        default=0.2, description="probability of each of two stray weak action units beside the expression"
    )
    talking_probability: Share = Field(
        default=0.1, description="that the mouth is open in speech (AU 25, sometimes 26) whatever the expression"
    )
    yaw_range: float = Field(
        default=45.0,
        ge=0,
        le=60,
        description="largest turn of the head in degrees; tent-shaped about frontal, standard deviation 0.41 of it",
    )
    pitch_range: float = Field(default=25.0, ge=0, le=40, description="largest nod in degrees; as `yaw_range`")
    roll_range: float = Field(default=30.0, ge=0, le=180, description="largest tilt in degrees; as `yaw_range`")
    light_contrast: Share = Field(
        default=0.6, description="how dark the side away from the light may get: 0 flat light, 1 black shadow"
    )
    blur_sigma: float = Field(
        default=1.2, ge=0, le=20, description="largest standard deviation of the blur; lost resolution is scaled alike"
    )
    noise: float = Field(default=6.0, ge=0, le=64, description="largest standard deviation of the noise in gray levels")
    distractors: int = Field(
        default=3, ge=0, le=20, description="largest number of skin-colored ellipses without features in the backdrop"
    )


DEFAULT = SceneConfig()
