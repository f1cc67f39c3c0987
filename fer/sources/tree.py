"""Datasets that the user brings as a folder or as archives: the common way from a public layout to data/raw.

A reader says what a layout holds (`TreeSource.scan`); what is common is done here: opening archives, refusing other
counts than the published ones, and packing. The images are packed, byte for byte as published, into a few Parquet
files: DVC takes minutes to check a folder of 300,000 images, and a cluster's file system longer still.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator

from fer.config import Config
from fer.console import log, progress
from fer.io.files import FileError
from fer.labels import LabelSpace, space
from fer.shards.schema import SPLITS
from fer.sources.archives import open_tree, public_name
from fer.sources.base import (
    BLOCK_ROWS,
    AnnotatedFace,
    Block,
    Entry,
    RawSample,
    Reject,
    fetch_again,
    generator_of,
    nfc,
    read_description,
)
from fer.sources.layout import find_layout

BLOCK_BYTES = 64 << 20  # or BLOCK_ROWS images: whichever is reached first fills a packed file
_SHOWN_REJECTS = 8
_SHOWN_FILES = 8

Published = Mapping[str, Mapping[str, int] | int]


class TreeConfig(Config):
    """Where the user's copy of a dataset is, and how far it may differ from the published one."""

    more_paths: ClassVar[tuple[str, ...]] = ()
    """Other fields that name a file or folder of the user's."""

    path: str | list[str] | None = Field(
        default=None,
        description="folder, archive (zip, tar, tar.gz) or URL of one; a list where the dataset comes in several parts",
    )
    sha256: str | None = Field(
        default=None, pattern=r"^[0-9a-fA-F]{64}$", description="expected digest of a single archive; null: not checked"
    )
    subset: bool = Field(default=False, description="accept other counts than the published ones")
    max_bad_fraction: float = Field(
        default=0.001, ge=0, le=1, description="refuse the data where a larger share of it is unusable; 0 refuses any"
    )

    @field_validator("path")
    @classmethod
    def _not_empty(cls, path: str | list[str] | None) -> str | list[str] | None:
        if path is not None and (not path or (isinstance(path, list) and "" in path)):
            raise ValueError("an empty path; give a folder, an archive or a URL, or null")
        return path


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """What a layout holds.

    Attributes:
        form: which of the dataset's layouts it is.
        entries: its images in a stable order, with a Reject in the place of each unusable one.
        excluded: rows that do not belong by the dataset's own rules, by reason: counted, and not an error.
        notes: anything else that source.json should say; plain JSON.
    """

    form: str
    entries: Sequence[Entry | Reject]
    excluded: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


class TreeSource(ABC):
    """A reader of layouts; see `fer.sources.base.Source`. Picklable where its configuration is.

    A new one gives `title`, `generator`, `how_to_get` and `scan`; and, where the defaults do not fit, `label_space`,
    `published`, `prepare` and `read_image`.
    """

    title: ClassVar[str]
    """The dataset's name for people, e.g. "RAF-DB"."""
    generator: ClassVar[str]
    """Its name in keys and shards, e.g. "rafdb"."""
    how_to_get: ClassVar[str]
    """Where to request it, and how a folder of it should look; shown where there is none."""

    def __init__(self, config: TreeConfig) -> None:
        self.config = config

    @property
    def label_space(self) -> LabelSpace:
        """What the labels of its faces index: the key `label_space`, where the configuration has one."""
        return space(self.config.label_space)  # type: ignore[attr-defined]

    def prepare(self, tree: Path, cache: Path) -> Path:
        """The folder to scan. Readers whose layouts hold archives open them in `cache` here."""
        return tree

    @abstractmethod
    def scan(self, tree: Path) -> Catalogue:
        """Reads the annotations of a layout, not its images.

        Args:
            tree: folder that holds the layout, itself or one folder further down. Never written to.

        Raises:
            FileError: no layout of this dataset, or a broken one; says what is missing and how it should look.
        """

    def root_of(self, tree: Path, holds: Callable[[Path], bool]) -> Path:
        """The folder of `tree` where the layout begins; FileError where there is none, which shows what was found."""
        root = find_layout(tree, holds)
        if root is None:
            names = [path.name + ("/" if path.is_dir() else "") for path in sorted(tree.iterdir())]
            found = ", ".join([*names[:_SHOWN_FILES], *["..."] * (len(names) > _SHOWN_FILES)]) or "nothing"
            raise FileError(f"{tree}: not a layout of {self.title}: found {found}. {self.how_to_get}")
        return root

    def published(self, catalogue: Catalogue) -> Published:
        """The published number of faces of each split of this form: by class name, or altogether where the classes
        are not published. Empty where nothing is published."""
        return {}

    def read_image(self, tree: Path, entry: Entry) -> bytes:
        """An image as published; OSError or ValueError where there is none. Readers of layouts that keep many in one
        file find it there."""
        return (tree / entry.path).read_bytes()

    def inputs(self) -> Iterator[tuple[str, str, str]]:
        """The user's data that the dataset is made of: a key of the configuration, numbered where it is a list; a name
        below it, "" for the whole; and a path or URL. A folder stands for all in it. Nothing where `path` is null."""
        path = self.config.path
        if path is None:
            return
        if isinstance(path, str):
            yield "path", "", path
        else:
            yield from ((f"path/{index}", "", one) for index, one in enumerate(path))
        for key in self.config.more_paths:
            if other := getattr(self.config, key):
                yield key, "", other

    @property
    def request(self) -> dict[str, Any]:
        """The configuration; of local paths only the last name."""

        def last(path: str | list[str] | None) -> Any:
            return [public_name(one) for one in path] if isinstance(path, list) else path and public_name(path)

        names = {key: last(getattr(self.config, key)) for key in ("path", *self.config.more_paths)}
        return self.config.model_dump(mode="json") | names

    def download(self, out: Path, cache: Path) -> dict[str, Any]:
        """Opens, scans, counts and packs; see `fer.sources.base.Source.download`."""
        if self.config.path is None:
            raise FileError(
                f"{self.title} is not part of this project and must be requested. {self.how_to_get}\nThen set the key "
                "`path` of this dataset in params.yaml (datasets.<name>.path) to the folder or the archive"
            )
        tree = open_tree(self.config.path, cache, sha256_hex=self.config.sha256)
        return self.take(self.prepare(tree, cache), out)

    def take(self, tree: Path, out: Path) -> dict[str, Any]:
        """Scans, counts and packs a folder; returns what `download` does."""
        catalogue = self.scan(tree)
        images = [entry for entry in catalogue.entries if isinstance(entry, Entry)]
        paths: dict[str, str] = {}
        for entry in images:
            if (key := nfc(entry.key)) in paths:
                raise FileError(f"{tree}: {key!r} is there twice, as {paths[key]} and as {entry.path}: keep one")
            paths[key] = entry.path
        found = self._count(catalogue.entries)
        published = self.published(catalogue)
        self._compare(found, published, catalogue)
        blocks, rejects = pack(catalogue.entries, partial(self.read_image, tree), out, self.title)
        self._judge(rejects, len(catalogue.entries))
        return {
            "form": catalogue.form,
            "counts": found,
            "published": published,
            "excluded": +Counter(catalogue.excluded),
            "rejects": dict(sorted(Counter(reject.reason for reject in rejects).items())),
            "faces_to_find": sum(face.box is None for one in images if not one.is_crop for face in one.faces),
            "blocks": blocks,
            **generator_of(self.generator, tree),
            **catalogue.notes,
        }

    def blocks(self, raw: Path) -> list[Block]:
        """The packed files, one block each."""
        body = read_description(raw, blocks=list)
        return [Block(index=index, file=file, start=0, stop=rows) for index, (file, rows) in enumerate(body["blocks"])]

    def read(self, raw: Path, block: Block) -> Iterator[RawSample | Reject]:
        """Every packed image of a block, or why there is none."""
        from fer.shards.schema import image_schema
        from fer.shards.table import TableReader

        for row in TableReader(raw / block.file, image_schema(), remedy=fetch_again(raw)):
            key = f"{self.generator}/{row['key']}"
            if row["reason"] is not None:
                yield Reject(key, row["reason"], row["detail"], row["path"])
                continue
            yield RawSample(
                key=key,
                image=row["image"],
                split=row["split"],
                faces=tuple(_unpacked(face) for face in row["faces"]),
                is_crop=row["is_crop"],
                origin=row["path"],
            )

    def _count(self, entries: Sequence[Entry | Reject]) -> dict[str, dict[str, int]]:
        """Faces by split and class, all classes of the label space named."""
        counts: Counter[tuple[str, int]] = Counter()
        for entry in entries:
            if isinstance(entry, Entry):
                counts.update((entry.split, face.label) for face in entry.faces)
        present = [split for split in SPLITS if any(found == split for found, _ in counts)]
        labels = self.label_space.labels
        return {split: {name: counts[split, index] for index, name in enumerate(labels)} for split in present}

    def _compare(self, found: Mapping[str, Mapping[str, int]], published: Published, catalogue: Catalogue) -> None:
        """Prints the counts beside the published ones; FileError where they differ and the user did not allow it."""
        name = f"{self.title} ({catalogue.form})"
        if not any(found.values()):
            raise FileError(f"{name}: not one labeled image in it. {self.how_to_get}")
        rows: list[tuple[str, int, int | None]] = []
        for split in [split for split in SPLITS if split in found or split in published]:
            classes, expected = found.get(split, {}), published.get(split)
            by_class = expected if isinstance(expected, Mapping) else {}
            total = expected if isinstance(expected, int) or expected is None else sum(by_class.values())
            rows.append((f"  {split:<14}", sum(classes.values()), total))
            for one, count in classes.items():
                rows.append((f"    {one:<12}", count, by_class.get(one, 0) if by_class else None))
        lines = [f"  {'':<14} {'found':>8} {'published':>10}"]
        lines += [f"{label} {count:>8} {'-' if known is None else known:>10}" for label, count, known in rows]
        if excluded := +Counter(catalogue.excluded):
            listing = ", ".join(f"{reason} {count}" for reason, count in sorted(excluded.items()))
            lines.append(f"  left out by the dataset's own rules: {listing}")
        table = "\n".join(lines)
        if not published or all(known in (None, count) for _, count, known in rows):
            log.info("%s:\n%s", name, table)
        elif self.config.subset:
            log.warning("%s: counts differ from the published ones; results are not comparable\n%s", name, table)
        else:
            raise FileError(
                f"{name}: not the counts that were published:\n{table}\nComplete the data, or set "
                "datasets.<name>.subset: true in params.yaml to work on what there is"
            )

    def _judge(self, rejects: Sequence[Reject], total: int) -> None:
        """FileError where too much is unusable; else a warning that names some."""
        if not rejects:
            return
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(Counter(r.reason for r in rejects).items()))
        lines = [f"  {reject.origin}: {reject.reason}: {reject.detail}" for reject in rejects[:_SHOWN_REJECTS]]
        listing = "\n".join(lines + ["  ..."] * (len(rejects) > len(lines)))
        report = f"{self.title}: {len(rejects)} of {total} images are unusable ({kinds}):\n{listing}"
        if len(rejects) > self.config.max_bad_fraction * total:
            raise FileError(
                f"{report}\nThat is more than max_bad_fraction = {self.config.max_bad_fraction:g} of them: repair the "
                "data, or raise datasets.<name>.max_bad_fraction in params.yaml to leave them out"
            )
        log.warning("%s\nThey are left out.", report)


def pack(
    entries: Sequence[Entry | Reject], read: Callable[[Entry], bytes], out: Path, title: str
) -> tuple[list[tuple[str, int]], list[Reject]]:
    """Writes pictures-*.parquet into `out`: published images byte for byte, with what is published of them.

    Args:
        read: the bytes of an image; OSError, or ValueError that says what is wrong, where there are none.
        title: of the dataset, for the progress bar.

    Returns:
        name and number of rows of each file, and what could not be packed.
    """
    from fer.shards.schema import image_schema
    from fer.shards.table import write_table

    blocks: list[tuple[str, int]] = []
    rejects: list[Reject] = []
    with progress(len(entries), f"pack {title}", "image") as bar:
        for number, rows in enumerate(_files(_packed(entry, read) for entry in entries)):
            file = f"pictures-{number:05d}.parquet"
            write_table(out / file, rows, image_schema(), rows_per_group=64)
            blocks.append((file, len(rows)))
            rejects += [Reject(r["key"], r["reason"], r["detail"], r["path"]) for r in rows if r["reason"] is not None]
            bar.update(len(rows))
    return blocks, rejects


def _files(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The rows of each packed file."""
    file: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        file.append(row)
        size += len(row["image"] or b"")
        if len(file) == BLOCK_ROWS or size >= BLOCK_BYTES:
            yield file
            file, size = [], 0
    if file:
        yield file


def _packed(entry: Entry | Reject, read: Callable[[Entry], bytes]) -> dict[str, Any]:
    """A row of `fer.shards.schema.image_schema`."""
    empty = dict.fromkeys(("split", "image", "is_crop", "faces", "reason", "detail"))
    if isinstance(entry, Reject):
        said = {"reason": entry.reason, "detail": nfc(entry.detail)}
        return empty | {"key": nfc(entry.sample_id), "path": nfc(entry.origin)} | said
    row = empty | {"key": nfc(entry.key), "path": nfc(entry.path)}
    try:
        image = read(entry)
    except FileNotFoundError:
        return row | {"reason": "missing_file", "detail": "the annotations name it, and it is not there"}
    except (OSError, ValueError) as error:
        detail = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return row | {"reason": "unreadable_file", "detail": detail}
    faces = [
        {
            "box": face.box and list(face.box),
            "landmarks": face.landmarks and [value for point in face.landmarks for value in point],
            "label": face.label,
            "clean_label": face.clean_label,
            "subject": face.subject,
            "pose": face.pose and list(face.pose),
            "distribution": face.distribution and list(face.distribution),
        }
        for face in entry.faces
    ]
    return row | {"split": entry.split, "image": image, "is_crop": entry.is_crop, "faces": faces}


def _unpacked(face: Mapping[str, Any]) -> AnnotatedFace:
    """A face as it is stored in a packed row."""
    flat = face["landmarks"]
    points = flat and tuple(zip(flat[::2], flat[1::2], strict=True))
    sequences = {key: face[key] and tuple(face[key]) for key in ("box", "pose", "distribution")}
    return AnnotatedFace(**{**face, **sequences, "landmarks": points})
