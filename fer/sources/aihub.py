"""AI-Hub set 82 (한국인 감정인식을 위한 복합 영상): half a million photos that Koreans took of themselves, showing
one of seven emotions on request; three annotators then said what they see, and where the face is.

The request (folder, file name and `faceExp_uploader`) and the annotators often differ: of the happy pictures the
majority agrees with the folder in 97.5 %, of the anxious ones in 37.8 %. `labels` says whom to believe; the annotators'
shares are kept as soft labels in any case. A person shows all emotions many times, so splits are cut between persons.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from fer.console import log, progress
from fer.hashing import stable_hash
from fer.io.files import FileError
from fer.labels import LabelSpace, space
from fer.shards.schema import Split
from fer.sources.aihub_records import (
    CLASS_NAMES,
    UNKNOWN,
    Record,
    RecordError,
    emotion_in,
    parse_record,
    read_json_records,
)
from fer.sources.archives import open_nested
from fer.sources.base import Entry, Reject, hashed_split, nfc, one_face
from fer.sources.layout import PICTURE_ENDINGS, in_order, list_files
from fer.sources.tree import Catalogue, TreeConfig, TreeSource

_SHOWN = 5
_Count = Annotated[int, Field(ge=1, le=1_000_000)]


class AiHubConfig(TreeConfig):
    """AI-Hub set 82: folders or archives of pictures (원천) and of JSON records (라벨)."""

    source: Literal["aihub"]
    labels: Literal["folder", "majority", "unanimous"] = Field(
        default="majority",
        description="folder: the emotion that was asked for; majority: two of three annotators; unanimous: all three",
    )
    missing_boxes: Literal["drop", "find"] = Field(
        default="drop", description="pictures without one valid box: leave out, or have their faces found"
    )
    split: Literal["published", "person"] = Field(
        default="published", description="published: VALID is the test split; person: by a hash of the person alone"
    )
    test_fraction: float = Field(default=0.1, gt=0, lt=1, description="share of the persons who are test, by `person`")
    per_class: tuple[_Count, _Count] | None = Field(
        default=None,
        description="as many training and test pictures a class, by a hash of their names, and no person in both; "
        "[9000, 1000] as in the slides; null: all",
    )


class AiHubSource(TreeSource):
    """Reader of AI-Hub set 82; see the module."""

    config: AiHubConfig
    title = "AI-Hub 82"
    generator = "aihub"
    how_to_get = (
        "Ask for it at https://www.aihub.or.kr (dataSetSn=82; residents of Korea, after a login). A folder of it looks "
        "like this, the archives unpacked or not:\n"
        "  Training/[라벨]EMOIMG_기쁨_TRAIN/img_emotion_training_data(기쁨).json\n"
        "  Training/[원천]EMOIMG_기쁨_TRAIN_01/<64 hex digits>_여_20_기쁨_..._20210126165538-010-011.jpg\n"
        "  Validation/[라벨]EMOIMG_기쁨_VALID/img_emotion_validation_data(기쁨).json\n"
        "  Validation/[원천]EMOIMG_기쁨_VALID/..."
    )

    @property
    def label_space(self) -> LabelSpace:
        """Its own seven: most have no counterpart among the basic expressions."""
        return space("aihub7")

    def prepare(self, tree: Path, cache: Path) -> Path:
        """AI-Hub delivers archives by emotion, with names in CP949 that nothing marks as such."""
        return open_nested(tree, cache)

    def scan(self, tree: Path) -> Catalogue:
        """One entry a record whose picture is there; see `TreeSource.scan`."""
        files = list_files(tree, (".json",))
        pictures = self._pictures(tree)
        if not files or not pictures:
            what = "no pictures (in [원천] folders)" if files else "no label files (.json, in [라벨] folders)"
            raise FileError(f"{tree}: {what}. {self.how_to_get}")
        entries: list[Entry | Reject] = []
        excluded: Counter[str] = Counter()
        seen: dict[str, str] = {}
        persons: defaultdict[str, set[Split]] = defaultdict(set)
        for file in files:
            published, asked = _published_split(file), emotion_in(file.rpartition("/")[2])
            rows = read_json_records(tree / file)
            with progress(len(rows), f"read {nfc(file.rpartition('/')[2])}", "record") as bar:
                for index, raw in enumerate(rows):
                    bar.update()
                    origin = f"{file}:{index}"
                    try:
                        record = _parse(raw, asked)
                    except RecordError as error:
                        entries.append(Reject(f"{nfc(file)}-{index}", error.reason, str(error), origin))
                        continue
                    if record.file.lower() in seen:
                        excluded["listed_twice"] += 1
                        continue
                    seen[record.file.lower()] = origin
                    found = self._entry(record, published, pictures, origin)
                    if isinstance(found, str):
                        excluded[found] += 1
                    else:
                        entries.append(found)
                        if isinstance(found, Entry):
                            persons[record.person].add(published)
        for name in pictures.keys() - seen.keys():
            entries.append(Reject(name, "no_label", "no label file has a record of it", pictures[name]))
        entries, notes = self._choose(entries, persons, excluded)
        counts = {reason: count for reason, count in excluded.items() if count}
        return Catalogue(form=self._form(), entries=in_order(entries), excluded=counts, notes=notes)

    def published(self, catalogue: Catalogue) -> Mapping[str, Mapping[str, int] | int]:
        """What `per_class` asks for; no counts of the whole are published by class."""
        if self.config.per_class is None:
            return {}
        train, test = self.config.per_class
        return {"train": dict.fromkeys(CLASS_NAMES, train), "test": dict.fromkeys(CLASS_NAMES, test)}

    def _form(self) -> str:
        return f"labels by {self.config.labels}, split {self.config.split}"

    def _pictures(self, tree: Path) -> dict[str, str]:
        """Pictures by their names in NFC and small letters.

        Raises:
            FileError: two of a name.
        """
        found: dict[str, str] = {}
        for file in list_files(tree, PICTURE_ENDINGS):
            name = korean(file.rpartition("/")[2]).lower()
            if found.setdefault(name, file) != file:
                raise FileError(f"{tree}: {name} is there twice, as {found[name]} and as {file}: remove one of them")
        return found

    def _entry(
        self, record: Record, published: Split, pictures: Mapping[str, str], origin: str
    ) -> Entry | Reject | str:
        """A record's entry, or by what rule it does not belong."""
        key = record.file.rpartition(".")[0] or record.file
        path = pictures.get(record.file.lower())
        if path is None:
            absent = Reject(key, "missing_file", "the label file names it, and it is not there", origin)
            return "not_in_this_copy" if self.config.subset else absent
        name: str | None = record.uploader
        if self.config.labels == "majority":
            name = record.majority
        elif self.config.labels == "unanimous":
            name = record.votes[0] if record.votes and len(set(record.votes)) == 1 else None
        if name == UNKNOWN:
            return "annotators_cannot_tell"
        if name is None:
            return "annotators_disagree"
        if record.box is None and self.config.missing_boxes == "drop":
            return "no_valid_box"
        split = published
        if self.config.split == "person":
            split = hashed_split(record.person, self.config.test_fraction)
        label = self.label_space.index(name)
        faces = one_face(label, box=record.box, subject=record.person, distribution=record.distribution)
        return Entry(key=key, path=path, split=split, faces=faces, is_crop=False)

    def _choose(
        self, entries: Sequence[Entry | Reject], persons: Mapping[str, set[Split]], excluded: Counter[str]
    ) -> tuple[list[Entry | Reject], dict[str, int]]:
        """Reports persons in both published splits, and cuts down to `per_class`."""
        both = {person for person, splits in persons.items() if len(splits) > 1}
        notes = {"persons": len(persons), "persons_in_both_published_splits": len(both)}
        if both and self.config.split == "published":
            log.warning(
                "AI-Hub 82: %d of %d persons are in TRAIN and in VALID, e.g. %s; `split: person` keeps them apart",
                len(both),
                len(persons),
                ", ".join(sorted(both)[:_SHOWN]),
            )
        if self.config.per_class is None:
            return list(entries), notes
        kept: list[Entry | Reject] = [entry for entry in entries if isinstance(entry, Reject)]
        groups: defaultdict[tuple[Split, int], list[Entry]] = defaultdict(list)
        for entry in entries:
            if isinstance(entry, Entry):
                if entry.split == "train" and self.config.split == "published" and entry.faces[0].subject in both:
                    excluded["person_in_test_too"] += 1
                else:
                    groups[entry.split, entry.faces[0].label].append(entry)
        for (split, _), group in groups.items():
            wanted = self.config.per_class[0 if split == "train" else 1]
            group.sort(key=lambda entry: stable_hash("aihub selection", entry.key))
            kept += group[:wanted]
            excluded["beyond_per_class"] += max(0, len(group) - wanted)
        return kept, notes


def _parse(raw: Any, asked: str | None) -> Record:
    """A record of the label file of that emotion; RecordError says what is wrong with it."""
    record = parse_record(raw)
    if asked not in (None, record.uploader):
        raise RecordError("conflicting_labels", f"a picture of {record.uploader} in the records of {asked}")
    return record


def korean(name: str) -> str:
    """A picture's name in NFC; also where an archive's CP949 was unpacked as CP437, or as the bytes that it is."""
    raw_bytes = any("\udc80" <= letter <= "\udcff" for letter in name)  # how Python holds bytes that are no UTF-8
    readable = any("가" <= letter <= "힣" or "\u1100" <= letter <= "\u11ff" for letter in name)
    if raw_bytes or not (readable or name.isascii()):
        try:
            data = name.encode("utf-8", "surrogateescape") if raw_bytes else name.encode("cp437")
            return nfc(data.decode("cp949"))
        except UnicodeError:
            return nfc(name)
    return nfc(name)


def _published_split(file: str) -> Split:
    """Of a label file, by its own name or by its folders': VALID is what the set is tested on."""
    for part in reversed(nfc(file).lower().split("/")):
        if "valid" in part:
            return "test"
        if "train" in part:
            return "train"
    raise FileError(f"{file}: training or validation? Its name or its folder must say TRAIN or VALID")
