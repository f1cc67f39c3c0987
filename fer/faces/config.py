"""How faces are found and cut out."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fer.config import Config


class CropConfig(Config):
    """The crop stage. Sources that publish face crops (FER2013) pass through at their own size."""

    size: int = Field(
        default=112, ge=32, le=512, description="side of an aligned crop in px; the largest that any model asks for"
    )
    detector: Literal["annotated"] = Field(
        default="annotated",
        description="annotated: the boxes and landmarks that the dataset publishes, every one of them",
    )
    min_face_size: float = Field(
        default=20.0,
        ge=1,
        le=4096,
        description="shorter side of the box in px of the picture; smaller faces are rejected",
    )
    box_margin: float = Field(
        default=0.1, ge=0, le=1, description="share of the box added on each side where a face has no landmarks"
    )
    jpeg_quality: int = Field(default=95, ge=1, le=100, description="of aligned crops, with 4:4:4 chroma")
