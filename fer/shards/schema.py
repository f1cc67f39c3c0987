"""What a shard is: configuration, version, columns. Light: pyarrow is imported when the columns are asked for."""

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
    """How faces are dealt into parts.

    A part is chosen by a hash, never by a row's position: samples added later rewrite only the parts they fall in, and
    those of the rows that they turn out to be duplicates of.
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
        description="pictures of one photograph. off: equal pixels alone are looked for; report: near duplicates and "
        "mirrored ones too; drop: rows of train and validation that show a test picture are left out, and doubles in "
        "train; group: near duplicates fall in one fold",
    )
    rows_per_group: int = Field(
        default=512, ge=256, le=1024, description="pictures of a row group, the unit that is read and shuffled"
    )


def shard_schema() -> pa.Schema:
    """Columns of a shard.

    sample_id: unique in the data set. image: PNG or JPEG, 1 or 3 channels. label: index into the labels of the file's
    metadata. clean_label: the true label where label noise was added, else equal to label. subject: null where unknown.
    pose: yaw, pitch, roll in degrees, null where unknown. distribution: share of each label where several people were
    asked, else null.
    """
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("sample_id", pa.string(), nullable=False),
            pa.field("image", pa.binary(), nullable=False),
            pa.field("label", pa.int32(), nullable=False),
            pa.field("clean_label", pa.int32(), nullable=False),
            pa.field("subject", pa.string()),
            pa.field("pose", pa.list_(pa.float32())),
            pa.field("distribution", pa.list_(pa.float32())),
        ]
    )


def face_schema() -> pa.Schema:
    """Columns of data/faces: those of a shard, and where the face came from.

    box: x1, y1, x2, y2 in px of the picture, half-open. landmarks: five x, y in px of the crop. score: the detector's,
    null for annotated faces. split: the published one. origin: file:row in data/raw.
    """
    import pyarrow as pa

    return pa.schema(
        [
            *shard_schema(),
            pa.field("height", pa.int16(), nullable=False),
            pa.field("width", pa.int16(), nullable=False),
            pa.field("channels", pa.int8(), nullable=False),
            pa.field("split", pa.string(), nullable=False),
            pa.field("box", pa.list_(pa.float32())),
            pa.field("landmarks", pa.list_(pa.float32())),
            pa.field("score", pa.float32()),
            pa.field("origin", pa.string(), nullable=False),
        ]
    )


def reject_schema() -> pa.Schema:
    """Columns of data/faces/<dataset>/rejects.parquet: what was refused, a short stable reason, and the details."""
    import pyarrow as pa

    return pa.schema(
        [pa.field(name, pa.string(), nullable=False) for name in ("sample_id", "reason", "detail", "origin")]
    )


def picture_schema() -> pa.Schema:
    """Columns of data/raw/<dataset>/pictures-*.parquet: a published picture as it is, and what is published of it.

    key: the sample's, without the dataset's name. path: of the picture in the public layout. reason, detail: why there
    is no picture, else null. is_crop: whether it shows a face alone. faces: box in px of the upright picture, null
    where the face has to be found; landmarks: five x, y in the same px.
    """
    import pyarrow as pa

    face = pa.struct(
        [
            pa.field("box", pa.list_(pa.float32())),
            pa.field("landmarks", pa.list_(pa.float32())),
            pa.field("label", pa.int32()),
            pa.field("clean_label", pa.int32()),
            pa.field("subject", pa.string()),
            pa.field("pose", pa.list_(pa.float32())),
            pa.field("distribution", pa.list_(pa.float32())),
        ]
    )
    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("path", pa.string(), nullable=False),
            pa.field("split", pa.string()),
            pa.field("image", pa.binary()),
            pa.field("is_crop", pa.bool_()),
            pa.field("faces", pa.list_(face)),
            pa.field("reason", pa.string()),
            pa.field("detail", pa.string()),
        ]
    )


def scene_schema() -> pa.Schema:
    """Columns of data/raw/<synthetic>: a scene's picture and what is known of its faces.

    landmarks: five x, y in px of the scene. aus: intensities of `fer.synth`'s action units.
    """
    import pyarrow as pa

    face = pa.struct(
        [
            pa.field("label", pa.int8()),
            pa.field("clean_label", pa.int8()),
            pa.field("subject", pa.string()),
            pa.field("box", pa.list_(pa.float32())),
            pa.field("landmarks", pa.list_(pa.float32())),
            pa.field("pose", pa.list_(pa.float32())),
            pa.field("aus", pa.list_(pa.float32())),
        ]
    )
    return pa.schema(
        [
            pa.field("index", pa.int64(), nullable=False),
            pa.field("split", pa.string(), nullable=False),
            pa.field("image", pa.binary(), nullable=False),
            pa.field("faces", pa.list_(face), nullable=False),
        ]
    )
