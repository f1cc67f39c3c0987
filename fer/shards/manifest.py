"""manifest.json of a folder of shards: written last, so that a folder with a manifest is whole."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fer.files import FileError, read_json, sha256, write_json
from fer.shards.schema import SCHEMA_VERSION, ShardError, Split

FILE_NAME = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One file. `fold` is None for test parts and parts of a published validation split."""

    file: str
    split: Split
    fold: int | None
    rows: int
    bytes: int
    sha256: str
    row_groups: tuple[int, ...]
    class_histogram: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that is known of a dataset's shards.

    Attributes:
        schema_version: `fer.shards.schema.SCHEMA_VERSION` of the writer.
        dataset: its key in params.yaml.
        label_space, labels: what the label column indexes.
        colour: channel order of decoded pictures; grey pictures have one channel.
        image_size: (height, width) in px where all pictures share it, else None.
        generator: what made the pictures, "synthetic/..." or the dataset's name.
        synthetic: whether figures from this data say nothing about accuracy on people.
        source_digest: sha256 of data/raw's source.json.
        seed: that dealt the parts.
        folds: number of folds of the training rows.
        parts: every file.
        splits: files of each split, as training and evaluation use them.
        class_histogram: rows a class of each split.
        mean, std: of the train split's RGB values, 0 .. 1, over all pixels.
        rejects: rows refused by the crop stage, by reason.
        validation_source: "published" or "fold 0".
        shared_pictures: rows of the split before "~" whose pixels also stand in the split behind it.
    """

    schema_version: int
    dataset: str
    label_space: str
    labels: tuple[str, ...]
    colour: str
    image_size: tuple[int, int] | None
    generator: str
    synthetic: bool
    source_digest: str
    seed: int
    folds: int
    parts: tuple[Part, ...]
    splits: dict[Split, tuple[str, ...]]
    class_histogram: dict[Split, tuple[int, ...]]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rejects: dict[str, int]
    validation_source: str
    shared_pictures: dict[str, int]

    def save(self, folder: Path) -> None:
        """Writes folder/manifest.json."""
        write_json(folder / FILE_NAME, dataclasses.asdict(self))

    def rows(self, split: Split) -> int:
        """Number of rows of a split."""
        return sum(self.class_histogram[split])

    def part(self, file: str) -> Part:
        """The part of that file name."""
        return next(part for part in self.parts if part.file == file)


def load_manifest(folder: Path) -> Manifest:
    """The manifest of a folder of shards.

    Raises:
        ShardError: absent, broken, or of another schema version.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise ShardError(f"{path}: no such file; {repair(folder)}")
    try:
        data: dict[str, Any] = read_json(path)
        version = data["schema_version"]
    except (FileError, KeyError, TypeError) as error:
        raise ShardError(f"{path}: not a manifest ({error}); {repair(folder)}") from None
    if version != SCHEMA_VERSION:
        raise ShardError(f"{path}: schema version {version}, this program reads {SCHEMA_VERSION}; {repair(folder)}")
    try:
        size = data.pop("image_size")
        return Manifest(
            labels=tuple(data.pop("labels")),
            image_size=None if size is None else (int(size[0]), int(size[1])),
            parts=tuple(
                Part(**part | {name: tuple(part[name]) for name in ("row_groups", "class_histogram")})
                for part in data.pop("parts")
            ),
            splits={split: tuple(files) for split, files in data.pop("splits").items()},
            class_histogram={split: tuple(counts) for split, counts in data.pop("class_histogram").items()},
            mean=tuple(data.pop("mean")),
            std=tuple(data.pop("std")),
            **data,
        )
    except (KeyError, TypeError, IndexError) as error:
        raise ShardError(f"{path}: not a manifest ({error}); {repair(folder)}") from None


def digest(folder: Path) -> str:
    """sha256 of the manifest: the identity of the data, for it holds the sha256 of every part."""
    return sha256(folder / FILE_NAME)


def repair(folder: Path) -> str:
    """The command that makes a folder of shards anew."""
    return f"repair with `dvc repro -f shard@{folder.name}`"
