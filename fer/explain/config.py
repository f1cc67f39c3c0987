"""Configuration of the explain stage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from fer.config import Config

Method = Literal["grad_cam", "score_cam"]
"""Class activation maps, see `fer.explain.cam`."""


def _each_once(methods: tuple[Method, ...]) -> tuple[Method, ...]:
    if len(set(methods)) < len(methods):
        raise ValueError("names a method more than once")
    return methods


class ExplainConfig(Config):
    """Which test faces are explained, and how."""

    methods: Annotated[tuple[Method, ...], AfterValidator(_each_once)] = Field(
        default=("grad_cam",),
        min_length=1,
        description="grad_cam (one backward pass) | score_cam (a forward pass for each channel of the layer)",
    )
    layer: str | None = Field(
        default=None, min_length=1, description="dotted name of the module explained; null: the model's default"
    )
    faces_per_class: int = Field(default=2, ge=1, le=50, description="test faces of each class")
    mistakes_per_cell: int = Field(
        default=6,
        ge=0,
        le=50,
        description="most confident mistakes of each confusion cell, for the report",
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="another seed chooses other faces")
    steps: int = Field(
        default=32, ge=2, le=1000, description="points of the deletion and insertion curves, after the first"
    )
    threads: int = Field(default=2, ge=1, le=256, description="CPU threads; other counts give other last bits")
