"""Parameters of face detection and cropping."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fer.config import Config


class CropConfig(Config):
    """The crop stage. Sources that publish face crops (FER2013) pass through at their own size."""

    size: int = Field(
        default=112, ge=32, le=512, description="side of an aligned crop in px; the largest that any model asks for"
    )
    detector: Literal["annotated", "retinaface", "yunet"] = Field(
        default="annotated",
        description="annotated: the boxes and landmarks that the dataset publishes, every one of them; else a network "
        "finds the faces, and a published box only says which of them has the label",
    )
    detector_weights: str | None = Field(
        default=None, description="the detector's file, or a folder with it; null: the cache of `fer weights pull`"
    )
    detector_side: int | None = Field(
        default=None,
        ge=64,
        le=4096,
        description="px; larger images are shrunk to this longest side for detection: a longer one finds smaller "
        "faces and takes its square in time; null: the detector's default",
    )
    min_score: float | None = Field(
        default=None, gt=0, lt=1, description="detections below it are not faces; null: the detector's default"
    )
    min_overlap: float = Field(
        default=0.3,
        gt=0,
        le=1,
        description="intersection over union from which on a detection is the face of a published box",
    )
    unmatched: Literal["reject", "annotated"] = Field(
        default="reject",
        description="a published box without a detected face: rejected as no_face, or used as it is",
    )
    faces: Literal["all", "largest", "central", "single"] = Field(
        default="largest",
        description="which faces get a label without a box; single: an image with several faces is rejected",
    )
    align: Literal["arcface", "poses", "square"] = Field(
        default="arcface",
        description="arcface: five landmarks to the ArcFace template; poses: to the best of five templates, frontal to "
        "profile; square: the box alone. Faces without landmarks are cropped by their box",
    )
    border: Literal["black", "replicate", "reflect"] = Field(
        default="black", description="what a crop shows beyond its image; replicate: the outermost pixels"
    )
    min_face_size: float = Field(
        default=20.0,
        ge=1,
        le=4096,
        description="shorter side of the box in px of the image; smaller faces are rejected",
    )
    max_outside: float = Field(
        default=0.75, ge=0, le=1, description="fraction of the box beyond the image; faces with more are rejected"
    )
    box_margin: float = Field(
        default=0.1, ge=0, le=1, description="fraction of the box added on each side where a face is cropped by its box"
    )
    color: Literal["source", "gray"] = Field(
        default="source", description="of the crops; gray: for a model of gray faces alone, such as FER2013's"
    )
    jpeg_quality: int = Field(default=95, ge=1, le=100, description="of aligned crops, with 4:4:4 chroma")
    max_bad_fraction: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="the stage fails if a larger fraction of the images cannot be decoded; 0 allows none",
    )
