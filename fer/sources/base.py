"""What all sources of pictures share: configuration, the records they yield, the protocol they follow.

Conventions: boxes are x1, y1, x2, y2 in px, half-open; landmarks are five (x, y) in px in the order right eye, left
eye, nose, right mouth corner, left mouth corner (of the person); labels are indices into the dataset's label space.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from fer.config import Config
from fer.labels import LabelSpace
from fer.shards.schema import Split
from fer.synth.config import ClassWeights, Domain, LabelNoiseKind, SceneConfig

BLOCK_ROWS = 512
"""Samples of a unit of work. Fixed, so that the files of data/faces do not depend on who cut the work."""

LabelSpaceName = Literal["basic7", "basic8"]


class SyntheticConfig(Config):
    """Procedural faces; needs no network. The fields after `scenes` are knobs of `fer.synth.config.SceneConfig`."""

    source: Literal["synthetic"]
    label_space: LabelSpaceName = Field(default="basic7", description="basic8 adds contempt")
    scenes: int = Field(
        default=8000, ge=1, le=100_000_000, description="pictures to render; a picture holds 0 to 3 faces"
    )
    class_weights: ClassWeights = Field(
        default=SceneConfig.class_weights, description="natural: the imbalance of FER2013"
    )
    domain: Domain = Field(default=SceneConfig.domain, description="studio: plain backdrop, soft light, no occluders")
    scene_size: int = Field(default=SceneConfig.scene_size, description="side of a scene in px, 32 .. 2048")
    face_size: tuple[float, float] = Field(
        default=SceneConfig.face_size, description="range of the height in px of a frontal face, 10 .. scene_size"
    )
    train_subjects: int = Field(default=SceneConfig.train_subjects, description="identities of the training scenes")
    test_subjects: int = Field(
        default=SceneConfig.test_subjects, description="identities of the test scenes, unseen in training"
    )
    test_fraction: float = Field(default=SceneConfig.test_fraction, description="share of test scenes, 0 .. 1")
    multi_face_probability: float = Field(default=SceneConfig.multi_face_probability, description="0 .. 1")
    no_face_probability: float = Field(default=SceneConfig.no_face_probability, description="0 .. 1")
    strength: float = Field(
        default=SceneConfig.strength, description="of the expressions, 0.01 .. 1.5: 0.5 is subtle, 1.5 caricature"
    )
    occlusion_probability: float = Field(default=SceneConfig.occlusion_probability, description="0 .. 1")
    blur_probability: float = Field(default=SceneConfig.blur_probability, description="0 .. 1")
    grey_probability: float = Field(default=SceneConfig.grey_probability, description="0 .. 1")
    label_noise: float = Field(default=SceneConfig.label_noise, description="share of wrong training labels, 0 .. 1")
    label_noise_kind: LabelNoiseKind = Field(
        default=SceneConfig.label_noise_kind, description="confusion: wrong labels fall on the class most alike"
    )
    broken_fraction: float = Field(
        default=SceneConfig.broken_fraction, description="share of scenes stored as bytes that no decoder takes, 0 .. 1"
    )

    landmark_error: float = Field(
        default=1.0,
        ge=0,
        le=5,
        description="of the landmarks, as a detector's: 1 is off by 7 % of the eye distance, 5 degrees and 6 % of size "
        "(standard deviations); 0 is exact, and much easier for a linear model",
    )

    @model_validator(mode="after")
    def _renderer_agrees(self) -> SyntheticConfig:
        self.scene_config()
        return self

    def scene_config(self) -> SceneConfig:
        """The renderer's configuration; ValueError where it refuses a value."""
        knobs = self.model_dump(exclude={"source", "label_space", "scenes", "landmark_error"})
        return SceneConfig(num_classes=8 if self.label_space == "basic8" else 7, **knobs)


class Fer2013Config(Config):
    """FER2013 (Goodfellow et al. 2013): the original csv, icml_face_data.csv, or a Parquet of encoded pictures."""

    source: Literal["fer2013"]
    label_space: LabelSpaceName = Field(default="basic7", description="FER2013 has no contempt")
    path: str | None = Field(
        default=None,
        description="the file, or its URL: fer2013.csv, icml_face_data.csv or Parquet (image, label, usage)",
    )
    sha256: str | None = Field(
        default=None, pattern=r"^[0-9a-fA-F]{64}$", description="expected digest of the file; null: not checked"
    )
    subset: bool = Field(default=False, description="accept another number of rows than the published 35,887")
    max_bad_fraction: float = Field(
        default=0.001,
        ge=0,
        le=1,
        description="refuse the file where a larger share of its rows is corrupt; 0 refuses any",
    )


DatasetConfig = Annotated[SyntheticConfig | Fer2013Config, Field(discriminator="source")]


@dataclass(frozen=True, kw_only=True)
class AnnotatedFace:
    """What a dataset publishes of one face. `clean_label` differs from `label` where noise was added on purpose."""

    box: tuple[float, float, float, float]
    landmarks: tuple[tuple[float, float], ...] | None
    label: int
    clean_label: int
    subject: str | None = None
    pose: tuple[float, float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class RawSample:
    """One picture of a dataset.

    Attributes:
        key: unique and stable, e.g. "fer2013/00000123".
        image: encoded bytes, or (H, W) uint8 grey or (H, W, 3) uint8 RGB.
        split: as published.
        faces: what is annotated; empty for a picture without a face.
        is_crop: whether the picture is a face crop already; it then has exactly one face.
        origin: file and row in data/raw, for tracing.
    """

    key: str
    image: bytes | npt.NDArray[np.uint8]
    split: Split
    faces: tuple[AnnotatedFace, ...]
    is_crop: bool
    origin: str


@dataclass(frozen=True, kw_only=True)
class Reject:
    """Something refused: a short stable reason for counting, and the details for a person."""

    sample_id: str
    reason: str
    detail: str
    origin: str


@dataclass(frozen=True, kw_only=True)
class Block:
    """A unit of work: rows start .. stop - 1 of one file.

    Attributes:
        index: position among the dataset's blocks.
        offset, line: byte offset and line number of the first row, for text files.
    """

    index: int
    file: str
    start: int
    stop: int
    offset: int = 0
    line: int = 0


class Source(Protocol):
    """A dataset's reader. Picklable: it goes to the workers."""

    @property
    def label_space(self) -> LabelSpace:
        """What the labels of its faces index."""
        ...

    @property
    def generator(self) -> str:
        """What made the pictures, e.g. "fer2013" or "synthetic/1"; part of every shard."""
        ...

    @property
    def request(self) -> dict[str, Any]:
        """What was asked for, without machine-dependent paths: equal requests give equal bytes."""
        ...

    def download(self, out: Path, cache: Path) -> dict[str, Any]:
        """Brings the dataset's files, verified, into the empty folder `out`.

        Args:
            cache: folder where a broken transfer is kept, to go on from.

        Returns:
            what source.json says beside the request and the files: counts, and what `blocks` needs.

        Raises:
            ValueError: no usable data; says why and what to do.
        """
        ...

    def blocks(self, raw: Path) -> list[Block]:
        """The units of work of a downloaded folder, in order."""
        ...

    def read(self, raw: Path, block: Block) -> Iterator[RawSample | Reject]:
        """The samples of a block, in order; a row that cannot be read is a Reject."""
        ...


def get_source(config: SyntheticConfig | Fer2013Config, seed: int) -> Source:
    """The reader of a configured dataset. `seed` matters to generated ones alone."""
    if isinstance(config, SyntheticConfig):
        from fer.sources.synthetic import SyntheticSource

        return SyntheticSource(config, seed)
    from fer.sources.fer2013 import Fer2013Source

    return Fer2013Source(config)
