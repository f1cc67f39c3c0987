"""Configuration, version and columns of shards and of the tables before them. Imports pyarrow only for the columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from fer.config import Config

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA_VERSION = 2
"""Raised when a reader of the older form would misread the newer one."""

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class ShardError(ValueError):
    """A folder of shards that cannot be trusted; the message names the file and the command that repairs it."""


class ShardConfig(Config):
    """How faces are assigned to splits, folds and parts.

    A part is chosen by a hash, never by a row's position: samples added later rewrite only their own parts, and those
    of the rows that they duplicate.
    """

    folds: int = Field(
        default=10,
        ge=2,
        le=100,
        description="folds of the training rows; fold 0 is the validation set where none is published",
    )
    parts_per_fold: int = Field(
        default=1, ge=1, le=1000, description="files of one fold; raise it where a file grows beyond 1 GB"
    )
    test_parts: int = Field(
        default=2, ge=1, le=1000, description="files of the test split, and of a published validation split"
    )
    duplicates: Literal["off", "report", "drop", "group"] = Field(
        default="report",
        description="images of one photograph. off: only equal pixels are searched for; report: near duplicates and "
        "mirrored ones too; drop: rows of train and validation that show a test image are left out, and duplicates "
        "within train; group: near duplicates are assigned to one fold",
    )
    rows_per_group: int = Field(
        default=512, ge=256, le=1024, description="images of a row group, the unit that is read and shuffled"
    )


# Tables as text: `!` is never null, `[]` a list.
_KNOWN_OF_FACE = "subject string, pose float32[], distribution float32[]"
_SHARD = f"sample_id string!, image binary!, label int32!, clean_label int32!, {_KNOWN_OF_FACE}"
_FACE = (
    f"{_SHARD}, height int16!, width int16!, channels int8!, split string!, box float32[], landmarks float32[], "
    "score float32, origin string!"
)
_REJECT = "sample_id string!, reason string!, detail string!, origin string!"
_PREDICTION = "sample_id string!, label int8!, predicted int8!, probabilities float32[]!, correct bool!"
_IMAGE = "key string!, path string!, split string, image binary, is_crop bool, faces, reason string, detail string"
_IMAGE_FACE = f"box float32[], landmarks float32[], label int32, clean_label int32, {_KNOWN_OF_FACE}"
_SCENE = "index int64!, split string!, image binary!, faces!"
_SCENE_FACE = (
    "label int8, clean_label int8, subject string, box float32[], landmarks float32[], pose float32[], aus float32[]"
)


def shard_schema() -> pa.Schema:
    """Columns of a shard.

    sample_id: unique in the data set. image: PNG or JPEG, 1 or 3 channels. label: index into the labels of the file's
    metadata. clean_label: the true label where label noise was added, else equal to label. subject: null where unknown.
    pose: yaw, pitch, roll in degrees, null where unknown. distribution: probability of each label where several people
    annotated the sample, else null.
    """
    return _schema(_SHARD)


def face_schema() -> pa.Schema:
    """Columns of data/faces: those of a shard, and where the face came from.

    box: x1, y1, x2, y2 in px of the image, half-open. landmarks: five x, y in px of the crop. score: the detector's,
    null for annotated faces. split: the published one. origin: file:row in data/raw.
    """
    return _schema(_FACE)


def reject_schema() -> pa.Schema:
    """Columns of data/faces/<dataset>/rejects.parquet: what was rejected, a short stable reason, and the details."""
    return _schema(_REJECT)


def prediction_schema() -> pa.Schema:
    """Columns of predictions.parquet. label and predicted: indices into the labels; probabilities: one a class."""
    return _schema(_PREDICTION)


def image_schema() -> pa.Schema:
    """Columns of data/raw/<dataset>/pictures-*.parquet: a published image as it is, and what is published of it.

    key: the sample's, without the dataset's name. path: of the image in the public layout. reason, detail: why there
    is no image, else null. is_crop: whether it shows a face alone. faces: box in px of the upright image, null where
    the face has to be found; landmarks: five x, y in the same px.
    """
    return _schema(_IMAGE, _IMAGE_FACE)


def scene_schema() -> pa.Schema:
    """Columns of data/raw/<synthetic>: a scene's image and what is known of its faces.

    landmarks: five x, y in px of the scene. aus: intensities of `fer.synth`'s action units.
    """
    return _schema(_SCENE, _SCENE_FACE)


def _schema(columns: str, of_face: str = "") -> pa.Schema:
    """A table as text; `of_face` is that of the lists in a column without a type."""
    import pyarrow as pa

    def field(column: str) -> pa.Field:
        name, _, kind = column.removesuffix("!").partition(" ")
        value = pa.type_for_alias(kind.removesuffix("[]")) if kind else pa.struct(_schema(of_face))
        is_value = kind and not kind.endswith("[]")
        return pa.field(name, value if is_value else pa.list_(value), nullable=not column.endswith("!"))

    return pa.schema([field(column) for column in columns.split(", ")])
