"""Configuration of the evaluate stage."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fer.config import Config

TtaName = Literal["none", "flip", "lhc", "lhc_paper"]
"""Test-time augmentations, see `fer.evaluation.tta`."""


class EvaluateConfig(Config):
    """How the test split is opened. No setting changes which rows count: it is always all of them, once."""

    workers: int = Field(
        default=0, ge=0, le=1024, description="Ray workers that share the batches; 0: this process, without Ray"
    )
    threads: int = Field(
        default=2, ge=1, le=256, description="CPU threads of one worker; other counts give other last bits"
    )
    gpu: bool = Field(default=False, description="one GPU a worker")
    batch_size: int = Field(default=128, ge=1, le=65_536, description="images of one forward pass; changes speed only")
    tta: TtaName = Field(
        default="none",
        description="test-time augmentation, reported beside the plain metrics: "
        "flip (2 views) | lhc (LHC-Net's 60 views, by its code) | lhc_paper (by its text)",
    )
    calibration_bins: int = Field(default=15, ge=2, le=100, description="equal-width confidence bins of the ECE")
    bootstrap_samples: int = Field(
        default=2000, ge=100, le=100_000, description="draws behind the intervals of balanced accuracy and macro F1"
    )
    confidence: float = Field(default=0.95, gt=0.5, lt=1.0, description="coverage of all intervals")
    pose_bins: tuple[Annotated[float, Field(ge=0, le=180)], ...] = Field(
        default=(0.0, 10.0, 20.0, 30.0, 90.0),
        min_length=2,
        max_length=100,
        description="edges in degrees of |yaw| for the table of accuracy by pose, where the dataset knows the pose",
    )

    @model_validator(mode="after")
    def _edges_rise(self) -> Self:
        if any(low >= high for low, high in zip(self.pose_bins, self.pose_bins[1:], strict=False)):
            raise ValueError(f"pose_bins must rise, got {list(self.pose_bins)}")
        return self
