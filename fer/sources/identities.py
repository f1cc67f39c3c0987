"""People instead of expressions: what the backbones of expression models are pretrained on.

Two layouts: a folder of images for each person, at any depth; and MS-Celeb-1M as cleaned and published by InsightFace
(faces_emore, faces_glintasia and all others of that form): `train.rec`, `train.idx`, `property`, aligned JPEGs of
112 px. A label is a person: the persons in order of their names, or numbers.

Splits are assigned here, for none are published:

* test: all images of `test_fraction` of the people, by a hash of the name. They are never trained on: `fer verify`
  measures how well their images are distinguished. (Their labels are classes of the network all the same, ones without
  an image.)
* validation: some images of the others, so that everybody is in training. At most 4096, because a validation holds
  the logits of all its images for all classes.
* train: the rest. Folds are assigned by image, so rows name no subject.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field

from fer.hashing import stable_hash
from fer.io.files import FileError
from fer.labels import LabelSpace, identities, space
from fer.shards.schema import SPLITS, Split
from fer.sources.base import Block, Entry, RawSample, Reject, hashed_split, nfc, one_face, read_description
from fer.sources.layout import IMAGE_ENDINGS, folders, list_files
from fer.sources.recordio import holds_records, images, read_image, read_index, read_label, read_property
from fer.sources.tree import Catalogue, TreeConfig, TreeSource

MOST_VALIDATION = 4096
"""Images. With 85,742 people their logits take 1.4 GB."""


class IdentitiesConfig(TreeConfig):
    """A dataset of face recognition."""

    source: Literal["identities"]
    crops: bool = Field(default=True, description="images of one face each; false: the face has to be found")
    min_pictures: int = Field(
        default=2, ge=2, le=1000, description="people with fewer images are left out; one of theirs is always train"
    )
    test_fraction: float = Field(default=0.02, gt=0, lt=1, description="share of the people who are test alone")
    validation_fraction: float = Field(
        default=0.05, gt=0, lt=1, description="share of the other images that are validation, at most 4096"
    )


class _Found(NamedTuple):
    """An image of a person. `offset`: of its record, where `path` is a train.rec."""

    key: str
    path: str
    offset: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Record(Entry):
    """An image in a train.rec."""

    offset: int


class IdentitiesSource(TreeSource):
    """Reader of people; see the module.

    Its label space depends on the people, so that it is known after `download`, `blocks` or `read` alone.
    """

    config: IdentitiesConfig
    title = "identities"
    generator = "identities"
    how_to_get = (
        "Expected a folder of images for each person; or train.rec, train.idx and property, as "
        "https://github.com/deepinsight/insightface/tree/master/recognition/_datasets_ publishes MS-Celeb-1M."
    )

    def __init__(self, config: IdentitiesConfig) -> None:
        super().__init__(config)
        self._space: LabelSpace | None = None

    @property
    def label_space(self) -> LabelSpace:
        """Of the people at hand."""
        assert self._space is not None, "source.json names it, which `blocks` and `read` look at"
        return self._space

    def scan(self, tree: Path) -> Catalogue:
        """One entry an image, person by person; see `TreeSource.scan`."""
        root = self.root_of(tree, lambda folder: holds_records(folder) or _holds_people(folder))
        form = "train.rec" if holds_records(root) else "folders of people"
        people, damaged = self._records(root, tree) if holds_records(root) else (_folders(root, tree), [])
        few = [name for name, shown in people.items() if len(shown) < self.config.min_pictures]
        excluded = {"pictures of people with too few": sum(len(people.pop(name)) for name in few)} if few else {}
        self._space = identities(list(people))
        return Catalogue(
            form=form,
            entries=[*self._assigned(people), *damaged],
            excluded=excluded,
            notes={"label_space": self._space.name, "people": list(people), "people_left_out": len(few)},
        )

    def read_image(self, tree: Path, entry: Entry) -> bytes:
        """A file, or what a record holds."""
        if not isinstance(entry, _Record):
            return super().read_image(tree, entry)
        with (tree / entry.path).open("rb") as handle:
            return read_image(handle, entry.offset)

    def blocks(self, raw: Path) -> list[Block]:
        """The packed files, one block each."""
        self._space = space(read_description(raw, label_space=str)["label_space"])
        return super().blocks(raw)

    def read(self, raw: Path, block: Block) -> Iterator[RawSample | Reject]:
        """As of every packed dataset; the block may be another process's."""
        self._space = space(read_description(raw, label_space=str)["label_space"])
        return super().read(raw, block)

    def _records(self, root: Path, tree: Path) -> tuple[dict[str, list[_Found]], list[Reject]]:
        """Images by person, in order of their numbers, and what is damaged."""
        path = root / "train.rec"
        inside = path.relative_to(tree).as_posix()
        numbered: dict[int, list[_Found]] = {}
        damaged = []
        with path.open("rb") as handle:
            places = read_index(root)
            try:
                shown = images(handle, places)
            except ValueError as error:
                raise FileError(f"{path}: {error}") from None
            for key, offset in shown:
                try:
                    person = read_label(handle, offset)
                except ValueError as error:
                    damaged.append(Reject(f"{key:08d}", "damaged_record", str(error), f"{inside}, record {key}"))
                    continue
                numbered.setdefault(person, []).append(_Found(f"{person:06d}/{key:08d}", inside, offset))
        stated = read_property(root)
        if stated not in (None, len(numbered)) and not self.config.subset:
            raise FileError(
                f"{root}: images of {len(numbered)} people, and `property` says {stated}: complete the data, or set "
                "datasets.<name>.subset: true in params.yaml to work on what there is"
            )
        return {f"{person:06d}": numbered[person] for person in sorted(numbered)}, damaged

    def _assigned(self, people: Mapping[str, Sequence[_Found]]) -> list[Entry]:
        """The images with their splits and labels."""
        unseen = {name for name in people if hashed_split(name, self.config.test_fraction) == "test"}
        # Each person's images in an order that depends on nothing but their names; the first is always train.
        shuffled = [
            sorted((stable_hash("validation picture", one.key), one.key) for one in found)
            for name, found in people.items()
            if name not in unseen
        ]
        most = min(int(self.config.validation_fraction * sum(map(len, shuffled))), MOST_VALIDATION)
        held_out = {key for _, key in nsmallest(most, (place for places in shuffled for place in places[1:]))}
        entries = []
        for label, (name, found) in enumerate(people.items()):
            faces = one_face(label)  # one for all images of a person: there are millions
            for key, path, offset in found:
                split: Split = "test" if name in unseen else "validation" if key in held_out else "train"
                entries.append(
                    Entry(key=key, path=path, split=split, faces=faces, is_crop=self.config.crops)
                    if offset is None
                    else _Record(key=key, path=path, split=split, faces=faces, is_crop=self.config.crops, offset=offset)
                )
        return entries

    def _count(self, entries: Sequence[Entry | Reject]) -> dict[str, dict[str, int]]:
        """Images by split: tens of thousands of people are too many for a line each."""
        counts = Counter(entry.split for entry in entries if isinstance(entry, Entry))
        return {split: {"pictures": counts[split]} for split in SPLITS if counts[split]}


def _holds_people(folder: Path) -> bool:
    """Whether at least two folders in it hold images."""
    held = (any(path.suffix.lower() in IMAGE_ENDINGS for path in inner.iterdir()) for inner in folders(folder))
    return sum(islice(filter(None, held), 2)) == 2


def _folders(root: Path, tree: Path) -> dict[str, list[_Found]]:
    """Images by person, in order of the names."""
    people: dict[str, list[_Found]] = {}
    for folder in sorted(folders(root), key=lambda folder: nfc(folder.name)):
        name = nfc(folder.name)
        if name in people:
            raise FileError(f"{root}: two folders are named {name!r}, in two encodings of accents: join them")
        inside = folder.relative_to(tree)
        files = list_files(folder, IMAGE_ENDINGS)
        people[name] = [_Found(nfc(f"{name}/{file}"), (inside / file).as_posix()) for file in files]
    return people
