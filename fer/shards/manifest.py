"""manifest.json of a folder of shards: written last, so that a folder with a manifest is complete."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from fer.io.files import sha256, write_atomic
from fer.shards.folds import group_folds
from fer.shards.schema import SCHEMA_VERSION, SPLITS, ShardError, Split

FILE_NAME = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One file. `fold` is None for test parts and parts of a published validation split."""

    __pydantic_config__ = ConfigDict(extra="forbid")

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
    """Everything known of a dataset's shards.

    Attributes:
        schema_version: `fer.shards.schema.SCHEMA_VERSION` of the writer.
        dataset: its key in params.yaml.
        label_space, labels: what the label column indexes.
        colour: channel order of decoded images; gray images have one channel.
        image_size: (height, width) in px where all images share it, else None.
        generator: source of the images, "synthetic/..." or the dataset's name.
        synthetic: whether results on this data say nothing about accuracy on people.
        source_digest: sha256 of data/raw's source.json.
        seed: of the assignment to parts.
        folds: number of folds of the training rows.
        parts: every file.
        splits: files of each split, as training and evaluation use them.
        class_histogram: rows a class of each split.
        mean, std: of the train split's RGB values, 0 .. 1, over all pixels.
        rejects: rows rejected by the crop and shard stages, by reason.
        validation_source: "published" or "fold 0".
        shared_pictures: rows of the split before "~" whose pixels also stand in the split behind it.
        near_pictures: rows of the split before "~" of which the split behind it holds another image of the same
            photograph; empty where it was not searched for.
        label_conflicts: images that occur with several labels, within a split and "between splits".
        duplicates: how duplicates were handled: `fer.shards.schema.ShardConfig.duplicates`.
        crop: how the faces were found, aligned and encoded: the `crop` section that made data/faces.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

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
    near_pictures: dict[str, int] = field(default_factory=dict)
    label_conflicts: dict[str, int] = field(default_factory=dict)
    duplicates: str = "off"
    crop: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Writes folder/manifest.json."""
        write_atomic(folder / FILE_NAME, manifest_text(dataclasses.asdict(self)))

    def rows(self, split: Split) -> int:
        """Number of rows of a split."""
        return sum(self.class_histogram[split])

    def files(self, split: str, *, folds: int | None = None, fold: int = 0, repeat: int = 0) -> tuple[str, ...]:
        """Names of a split's parts, in the manifest's order.

        Args:
            split: "train", "validation", "test", or "development": all rows but the test split's.
            folds: None for the manifest's own splits. A number cuts the development rows - the training rows, and the
                validation rows where they are a fold of those - into so many folds: validation is fold `fold`, train
                is the others. Test is the published test split, and a published validation split is in none of them.
            fold: 0 .. folds - 1.
            repeat: another grouping of the same base folds; see `fer.shards.folds.group_folds`.

        Raises:
            ValueError: no such split, or a cross-validation that these shards cannot give; names the possible ones.
        """
        published = {str(name): self.splits[name] for name in SPLITS if self.splits.get(name)}
        if split == "development" and folds is None:
            return tuple(part.file for part in self.parts if part.split != "test")
        if split not in published:
            raise ValueError(f"{self.dataset}: there is no split {split!r}; there are: {', '.join(published)}")
        if folds is None:
            if fold or repeat:
                raise ValueError(f"fold = {fold}, repeat = {repeat}: they mean nothing without folds")
            return published[split]
        groups = group_folds(self.folds, folds, repeat)
        if not 0 <= fold < folds:
            raise ValueError(f"fold = {fold}: of {folds} folds, 0 to {folds - 1} are possible")
        if split == "test":
            return published[split]
        held_out = tuple(part.file for part in self.parts if part.fold in groups[fold])
        others = tuple(part.file for part in self.parts if part.fold is not None and part.file not in held_out)
        if not held_out or not others:
            raise ValueError(
                f"{self.dataset}: fold {fold} of {folds} holds {'no' if not held_out else 'all'} rows; fewer folds, or "
                "more data, is needed"
            )
        return held_out if split == "validation" else others

    def part(self, file: str) -> Part:
        """The part of that file name."""
        return next(part for part in self.parts if part.file == file)


def load_manifest(folder: Path) -> Manifest:
    """The manifest of a folder of shards; see `parse_manifest`.

    Raises:
        ShardError: absent, altered, broken, or of another schema version.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise ShardError(
            f"{path}: no such file; name the dataset under run.datasets in params.yaml, and run "
            f"`dvc repro shard@{folder.name}`"
        )
    return parse_manifest(path.read_bytes(), path)


def parse_manifest(text: bytes, path: Path) -> Manifest:
    """A manifest from the bytes of its file, which must be exactly those that were written.

    Args:
        path: of the file, for messages.

    Raises:
        ShardError: altered, broken, or of another schema version.
    """
    folder = path.parent
    try:
        data: dict[str, Any] = json.loads(text)
        version = data["schema_version"]
        data.pop("digest", None)
        unaltered = manifest_text(data).encode() == text
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ShardError(f"{path}: not a manifest ({error}); {repair(folder)}") from None
    if version != SCHEMA_VERSION:
        raise ShardError(f"{path}: schema version {version}, this program reads {SCHEMA_VERSION}; {repair(folder)}")
    if not unaltered:
        raise ShardError(f"{path}: altered since it was written: its digest is another; {repair(folder)}")
    try:
        return _manifest().validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ShardError(f"{path}: not a manifest ({key}: {first['msg']}); {repair(folder)}") from None


@cache
def _manifest() -> TypeAdapter[Manifest]:
    return TypeAdapter(Manifest)


def manifest_text(data: Mapping[str, Any]) -> str:
    """The one form in which a manifest is written: JSON, keys sorted, with the sha256 of all the rest as `digest`."""
    plain = _json(data)
    return _json({**data, "digest": hashlib.sha256(plain.encode()).hexdigest()})


def _json(value: object) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def digest(folder: Path) -> str:
    """sha256 of the manifest: the identity of the data, for it holds the sha256 of every part."""
    return sha256(folder / FILE_NAME)


def repair(folder: Path) -> str:
    """The command that repairs a folder of shards."""
    return f"repair with `dvc repro -f shard@{folder.name}`"
