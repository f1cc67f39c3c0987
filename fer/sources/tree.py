"""Datasets that the user brings as a folder or as archives: the common way from a public layout to data/raw.

A reader says what a layout holds (`TreeSource.scan`); what is common is done here: opening archives, refusing other
counts than the published ones, and packing. The pictures are packed, byte for byte as published, into a few Parquet
files: a folder of 300,000 pictures takes DVC minutes to look at and a cluster's file system longer still.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

from pydantic import Field, field_validator

from fer.config import Config
from fer.console import log
from fer.hashing import stable_hash
from fer.io.files import FileError, sha256
from fer.labels import LabelSpace
from fer.shards.schema import SPLITS
from fer.sources.base import Block, RawSample, Reject, fetch_again, read_description
from fer.sources.pack import Entry, nfc, pack, unpacked

_SHOWN_REJECTS = 8


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
        entries: its pictures in a stable order, and what is wrong with others in their place.
        excluded: rows that do not belong by the dataset's own rules, by reason: counted, and no mistake.
        notes: anything else that source.json should say; plain JSON.
    """

    form: str
    entries: Sequence[Entry | Reject]
    excluded: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


class TreeSource(ABC):
    """A reader of layouts; see `fer.sources.base.Source`. Picklable where its configuration is."""

    title: ClassVar[str]
    """The dataset's name for people, e.g. "RAF-DB"."""
    generator: ClassVar[str]
    """Its name in keys and shards, e.g. "rafdb"."""
    how_to_get: ClassVar[str]
    """Where it is asked for, and how a folder of it should look; shown where there is none."""

    def __init__(self, config: TreeConfig) -> None:
        self.config = config

    @property
    @abstractmethod
    def label_space(self) -> LabelSpace:
        """What the labels of its faces index."""

    def prepare(self, tree: Path, cache: Path) -> Path:
        """The folder to scan. Readers whose layouts hold archives open them in `cache` here."""
        return tree

    @abstractmethod
    def scan(self, tree: Path) -> Catalogue:
        """Reads the annotations of a layout, not its pictures.

        Args:
            tree: folder that holds the layout, itself or one folder further down. Never written to.

        Raises:
            FileError: no layout of this dataset, or a broken one; says what is missing and how it should look.
        """

    @abstractmethod
    def published(self, catalogue: Catalogue) -> Mapping[str, Mapping[str, int] | int]:
        """The published number of faces of each split of this form: by class name, or altogether where the classes
        are not published. Empty where nothing is published."""

    def read_picture(self, tree: Path, entry: Entry) -> bytes:
        """A picture as published. Readers of layouts that keep many in one file find it there."""
        return (tree / entry.path).read_bytes()

    def inputs(self) -> Iterator[tuple[str, str, str]]:
        """What of the user's the dataset is made of: a key of the configuration, numbered where it is a list; a name
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
        path = self.config.path
        names = [_public_name(one) for one in ([path] if isinstance(path, str) else path or [])]
        named: Any = names if isinstance(path, list) else names[0] if names else None
        others = {key: getattr(self.config, key) for key in self.config.more_paths}
        return self.config.model_dump(mode="json") | {
            "path": named,
            **{key: other and _public_name(other) for key, other in others.items()},
        }

    def download(self, out: Path, cache: Path) -> dict[str, Any]:
        """Opens, scans, counts and packs; see `fer.sources.base.Source.download`."""
        if self.config.path is None:
            raise FileError(
                f"{self.title} is not part of this project and must be asked for. {self.how_to_get}\nThen set the key "
                "`path` of this dataset in params.yaml (datasets.<name>.path) to the folder or the archive"
            )
        tree = open_tree(self.config.path, cache, sha256_hex=self.config.sha256)
        return self.take(self.prepare(tree, cache), out)

    def take(self, tree: Path, out: Path) -> dict[str, Any]:
        """Scans, counts and packs a folder; returns what `download` does."""
        catalogue = self.scan(tree)
        doubles = Counter(nfc(entry.key) for entry in catalogue.entries if isinstance(entry, Entry))
        if twice := [key for key, count in doubles.items() if count > 1]:
            raise FileError(f"{self.title}: {len(twice)} names occur twice, e.g. {twice[0]!r}: remove one of each")
        found = self._count(catalogue.entries)
        published = self.published(catalogue)
        self._compare(found, published, catalogue)
        blocks, rejects = pack(catalogue.entries, partial(self.read_picture, tree), out, self.title)
        self._judge(rejects, len(catalogue.entries))
        return {
            "form": catalogue.form,
            "counts": found,
            "published": published,
            "excluded": dict(catalogue.excluded),
            "rejects": dict(sorted(Counter(reject.reason for reject in rejects).items())),
            "faces_to_find": sum(
                face.box is None
                for entry in catalogue.entries
                if isinstance(entry, Entry) and not entry.is_crop
                for face in entry.faces
            ),
            "blocks": blocks,
            **catalogue.notes,
        }

    def blocks(self, raw: Path) -> list[Block]:
        """The packed files, one block each."""
        body = read_description(raw, blocks=list)
        return [Block(index=index, file=file, start=0, stop=rows) for index, (file, rows) in enumerate(body["blocks"])]

    def read(self, raw: Path, block: Block) -> Iterator[RawSample | Reject]:
        """Every packed picture of a block, or why there is none."""
        from fer.shards.schema import picture_schema
        from fer.shards.table import TableReader

        for row in TableReader(raw / block.file, picture_schema(), remedy=fetch_again(raw)):
            key = f"{self.generator}/{row['key']}"
            if row["reason"] is not None:
                yield Reject(sample_id=key, reason=row["reason"], detail=row["detail"], origin=row["path"])
                continue
            yield RawSample(
                key=key,
                image=row["image"],
                split=row["split"],
                faces=tuple(unpacked(face) for face in row["faces"]),
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

    def _compare(
        self,
        found: Mapping[str, Mapping[str, int]],
        published: Mapping[str, Mapping[str, int] | int],
        catalogue: Catalogue,
    ) -> None:
        """Prints the counts beside the published ones; FileError where they differ and nobody allowed it."""
        if not any(found.values()):
            raise FileError(f"{self.title} ({catalogue.form}): not one labelled picture in it. {self.how_to_get}")
        lines = [f"  {'':<14} {'found':>8} {'published':>10}"]
        equal = True
        for split in [split for split in SPLITS if split in found or split in published]:
            classes, want = found.get(split, {}), published.get(split)
            total = sum(classes.values())
            wanted = want if isinstance(want, int) or want is None else sum(want.values())
            lines.append(f"  {split:<14} {total:>8} {wanted if wanted is not None else '-':>10}")
            equal &= want is None or total == wanted
            for name in classes:
                known = want.get(name, 0) if isinstance(want, Mapping) else None
                lines.append(f"    {name:<12} {classes[name]:>8} {known if known is not None else '-':>10}")
                equal &= known is None or classes[name] == known
        table = "\n".join(lines)
        left_out = ", ".join(f"{reason} {count}" for reason, count in sorted(catalogue.excluded.items()))
        table += f"\n  left out by the dataset's own rules: {left_out}" if left_out else ""
        if equal or not published:
            log.info("%s (%s):\n%s", self.title, catalogue.form, table)
        elif self.config.subset:
            log.warning(
                "%s (%s): other counts than the published ones; its figures are not comparable\n%s",
                self.title,
                catalogue.form,
                table,
            )
        else:
            raise FileError(
                f"{self.title} ({catalogue.form}): not the counts that were published:\n{table}\nComplete the data, or "
                "set datasets.<name>.subset: true in params.yaml to work on what there is"
            )

    def _judge(self, rejects: Sequence[Reject], total: int) -> None:
        """FileError where too much is unusable; else a warning that names some."""
        if not rejects:
            return
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(Counter(r.reason for r in rejects).items()))
        shown = [f"  {reject.origin}: {reject.reason}: {reject.detail}" for reject in rejects[:_SHOWN_REJECTS]]
        listing = "\n".join([*shown, *(["  ..."] if len(rejects) > len(shown) else [])])
        report = f"{self.title}: {len(rejects)} of {total} pictures are unusable ({kinds}):\n{listing}"
        if len(rejects) > self.config.max_bad_fraction * total:
            raise FileError(
                f"{report}\nThat is more than max_bad_fraction = {self.config.max_bad_fraction:g} of them: mend the "
                "data, or raise datasets.<name>.max_bad_fraction in params.yaml to leave them out"
            )
        log.warning("%s\nThey are left out.", report)


def open_tree(path: str | Sequence[str], cache: Path, *, sha256_hex: str | None = None) -> Path:
    """The folder that holds a layout: the user's own, or one in `cache` with what his archives hold.

    Args:
        path: folder, archive or URL of one; of several, each has a folder of its own name in the one returned.
        cache: keeps what was fetched and extracted, so that the same call goes on where the last was stopped.
        sha256_hex: of a single archive.

    Raises:
        FileError: absent, no archive, a damaged or a hostile one.
    """
    if not isinstance(path, str):
        joined = cache / "parts"
        joined.mkdir(parents=True, exist_ok=True)
        for one in path:
            link = joined / _stem(_public_name(one))
            link.unlink(missing_ok=True)
            link.symlink_to(open_tree(one, cache / f"of-{link.name}").resolve(), target_is_directory=True)
        return joined
    if "://" not in path and Path(path).is_dir():
        return Path(path)
    from fer.io.archives import extract
    from fer.io.transfer import download

    name = _public_name(path)
    archive = cache / name
    if "://" in path:
        if sha256_hex or not archive.exists():
            download(path, archive, sha256_hex=sha256_hex)
    else:
        archive = Path(path)  # extracted from where it lies: no second copy
        if not archive.exists():
            raise FileError(f"{path}: no such file or folder; set the key `path` of this dataset to where it is")
        if sha256_hex and (digest := sha256(archive)) != sha256_hex.lower():
            raise FileError(f"{path}: sha256 is {digest}, expected {sha256_hex}: another or a damaged file")
    found = archive.stat()
    tree = cache / f"{_stem(name)}-{stable_hash(found.st_size, found.st_mtime_ns, bits=32):08x}.tree"
    if not tree.is_dir():  # an archive that was replaced meanwhile has another name
        try:
            extract(archive, tree)
        except FileError:
            if "://" in path:
                archive.unlink()  # another attempt must fetch it anew
            raise
    return tree


def _public_name(path: str) -> str:
    """The last part of a path or URL."""
    return Path(unquote(urlsplit(path).path) if "://" in path else path).name or "data"


def _stem(name: str) -> str:
    """A file's name without the endings of archives."""
    return re.sub(r"\.(zip|tar|tgz|tbz2|txz|tar\.(gz|bz2|xz))$", "", name, flags=re.IGNORECASE)
