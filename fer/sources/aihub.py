"""AI-Hub set 82 (한국인 감정인식을 위한 복합 영상): half a million photos that Koreans took of themselves, showing
one of seven emotions on request; three annotators then labeled what they see, and where the face is.

The request (folder, file name and `faceExp_uploader`) and the annotators often differ: of the happy images the majority
agrees with the folder in 97.5 %, of the anxious ones in 37.8 %. `labels` decides which counts; the annotators' votes
are kept as soft labels in any case. A person shows all emotions many times, so splits are made between persons.

A record as it is distributed, one of a list per file; AI-Hub's own document calls the three annotators faceBB_A ...:

    {"filename": "<64 hex digits>_여_20_기쁨_숙박 및 거주공간_20210126165538-010-011.jpg", "gender": "여", "age": 20,
     "faceExp_uploader": "기쁨", "bg_uploader": "숙박 및 거주공간",
     "annot_A": {"boxes": {"minX": 1.5, "minY": 2.0, "maxX": 3.0, "maxY": 4.0}, "faceExp": "기쁨"},
     "annot_B": {...}, "annot_C": {...}}

The boxes are in px of the image after its EXIF rotation, as everywhere in this project (measured by others on rotated
and on mirrored photos).
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

from pydantic import Field

from fer.console import log, progress
from fer.hashing import stable_hash
from fer.io.files import FileError, refuse_impostor
from fer.labels import DATASET_LABELS, LabelSpace, named, space
from fer.shards.schema import Split
from fer.sources.archives import open_nested
from fer.sources.base import Box, Entry, Reject, hashed_split, nfc, one_face
from fer.sources.csvfile import RowError
from fer.sources.layout import IMAGE_ENDINGS, ListedImages, in_order, list_files
from fer.sources.tree import Catalogue, Published, TreeConfig, TreeSource

CLASS_NAMES = DATASET_LABELS["aihub82"]
UNKNOWN = "unknown"
"""The vote of an annotator who cannot tell: 알수없음."""

_ANNOTATORS = (("annot_A", "faceBB_A"), ("annot_B", "faceBB_B"), ("annot_C", "faceBB_C"))
_CORNERS = ("minX", "minY", "maxX", "maxY")
_PERSON = re.compile(r"([0-9a-f]{64})_", re.IGNORECASE)
_MAX_COORDINATE = 100_000.0  # px; no camera's image is so wide
_SHOWN_PERSONS = 5

_Count = Annotated[int, Field(ge=1, le=1_000_000)]
_LabelRule = Literal["folder", "majority", "unanimous"]


# ------------------------------------------------------------------------------------------------ records


@dataclass(frozen=True, kw_only=True)
class Record:
    """One image.

    Attributes:
        file: its name in NFC, without folders.
        person: the 64 hex digits that stand for the person who took it.
        uploader: the class that was asked for; also the folder's and the file name's.
        votes: the annotators' classes or UNKNOWN, at most three.
        box: median of each coordinate over the annotators' valid boxes; None where none is valid.
    """

    file: str
    person: str
    uploader: str
    votes: tuple[str, ...]
    box: Box | None

    @property
    def key(self) -> str:
        """The file's name without its ending."""
        return self.file.rpartition(".")[0] or self.file

    def label(self, rule: _LabelRule) -> str | None:
        """The class by a rule, which may be UNKNOWN; None where the annotators do not agree."""
        if rule == "folder":
            return self.uploader
        required = len(self.votes) if rule == "unanimous" else len(self.votes) // 2 + 1
        return next((vote for vote in self.votes if self.votes.count(vote) >= required), None)

    @property
    def distribution(self) -> tuple[float, ...] | None:
        """Share of each of CLASS_NAMES among the annotators who could tell; None where nobody could."""
        known = tuple(vote for vote in self.votes if vote != UNKNOWN)
        return _shares(known) if known else None


@cache  # a few hundred of them, shared by half a million records
def _shares(votes: tuple[str, ...]) -> tuple[float, ...]:
    return tuple(votes.count(name) / len(votes) for name in CLASS_NAMES)


def read_json_records(path: Path) -> list[Any]:
    """The records of a file in UTF-8, or in the CP949 or EUC-KR that some copies were converted to.

    Raises:
        FileError: not JSON, or no list of records.
    """
    refuse_impostor(path, str(path))
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        try:
            text = data.decode("cp949")  # holds EUC-KR
        except UnicodeDecodeError as error:
            raise FileError(f"{path}: neither UTF-8 nor CP949 (byte {error.start}): a damaged file") from None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:  # a ValueError too for numbers of thousands of digits
        raise FileError(f"{path}: not valid JSON ({str(error)[:100]}): truncated? extract it again") from None
    if isinstance(found, dict) and "filename" not in found:
        inner = [value for value in found.values() if isinstance(value, list)]
        found = inner[0] if len(inner) == 1 else None
    if isinstance(found, dict):
        return [found]
    if not isinstance(found, list):
        raise FileError(f"{path}: no list of records (filename, faceExp_uploader, annot_A, ...)")
    return found


def parse_record(raw: Any, asked: str | None = None) -> Record:
    """One record; RowError says what is wrong with it.

    Args:
        asked: the class of its label file, where that has one.
    """
    if not isinstance(raw, Mapping):
        raise RowError("bad_record", f"{type(raw).__name__}, expected an object with filename and annot_A ...")
    name = raw.get("filename")
    if not isinstance(name, str) or not name.strip():
        raise RowError("bad_record", "no filename")
    file = nfc(name).replace("\\", "/").rpartition("/")[2].strip()
    match = _PERSON.match(file)
    if match is None:
        raise RowError("bad_name", f"{file[:80]!r} does not begin with a person's 64 hex digits")
    annotations = [raw.get(key, raw.get(other)) for key, other in _ANNOTATORS]
    given = [annotation for annotation in annotations if isinstance(annotation, Mapping)]
    votes = tuple(vote for annotation in given if (vote := _vote(annotation)) is not None)
    boxes = [box for annotation in given if (box := parse_box(annotation)) is not None]
    uploader = _uploader(raw.get("faceExp_uploader"), file)
    if asked not in (None, uploader):
        raise RowError("conflicting_labels", f"an image of {uploader} in the records of {asked}")
    x1, y1, x2, y2 = (median(side) for side in zip(*boxes, strict=True)) if boxes else (0.0,) * 4
    box = (x1, y1, x2, y2) if boxes else None
    return Record(file=file, person=match[1].lower(), uploader=uploader, votes=votes, box=box)


def parse_box(annotation: Mapping[str, Any]) -> Box | None:
    """An annotator's box, cut off at the image's left and top edge; None for one without an area or without numbers.

    The right and bottom edge are not known here: the crop stage measures how far a box reaches beyond them.
    """
    inner = annotation.get("boxes")
    boxes = inner if isinstance(inner, Mapping) else annotation
    values = [_coordinate(boxes.get(corner)) for corner in _CORNERS]
    x1, y1, x2, y2 = (max(0.0, value) if value is not None else 0.0 for value in values)
    return (x1, y1, x2, y2) if None not in values and x2 > x1 and y2 > y1 else None


def _coordinate(value: Any) -> float | None:
    """A finite number of px; None for anything else."""
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        return None
    return number if number is not None and abs(number) <= _MAX_COORDINATE else None


def _vote(annotation: Mapping[str, Any]) -> str | None:
    """An annotator's class; None for no vote. RowError for what is neither a class nor unknown."""
    boxes = annotation.get("boxes")
    inner = boxes.get("label") if isinstance(boxes, Mapping) else None
    text = annotation.get("faceExp", annotation.get("label", inner))
    if text is None or text == "":
        return None
    if isinstance(text, str):
        if nfc(text).replace(" ", "") == "알수없음":
            return UNKNOWN
        if (name := named(text)) in CLASS_NAMES:
            return name
    raise RowError("bad_label", f"an annotator says {str(text)[:40]!r}, expected 기쁨, 당황, ... or 알수없음")


def _uploader(text: Any, file: str) -> str:
    """The class that was asked for: of the record, else of the file's name."""
    in_name = _class_in(file)
    name = in_name if text is None or text == "" else named(text) if isinstance(text, str) else None
    if name not in CLASS_NAMES:
        raise RowError("bad_label", f"faceExp_uploader {str(text)[:40]!r}, expected 기쁨, 당황, 분노, ...")
    if in_name not in (None, name):
        raise RowError("conflicting_labels", f"faceExp_uploader is {name}, the file's name says {in_name}")
    return str(name)


def _class_in(name: str) -> str | None:
    """The one class whose Korean name is a word of a file's name; None for none or for several."""
    words = re.split(r"[\W_]+", nfc(name))
    found = {label for word in words if not word.isascii() and (label := named(word)) in CLASS_NAMES}
    return found.pop() if len(found) == 1 else None


# ------------------------------------------------------------------------------------------------ dataset


class AiHubConfig(TreeConfig):
    """AI-Hub set 82: folders or archives of images (원천) and of JSON records (라벨)."""

    source: Literal["aihub"]
    labels: _LabelRule = Field(
        default="majority",
        description="folder: the emotion that was asked for; majority: two of three annotators; unanimous: all three",
    )
    missing_boxes: Literal["drop", "find"] = Field(
        default="drop", description="images without a valid box: leave out, or have their faces found"
    )
    split: Literal["published", "person"] = Field(
        default="published", description="published: VALID is the test split; person: by a hash of the person alone"
    )
    test_fraction: float = Field(default=0.1, gt=0, lt=1, description="share of the persons who are test, by `person`")
    per_class: tuple[_Count, _Count] | None = Field(
        default=None,
        description="number of training and test images of each class, by a hash of their names, and no person in "
        "both; [9000, 1000] as in the slides; null: all",
    )


class AiHubSource(TreeSource):
    """Reader of AI-Hub set 82; see the module."""

    config: AiHubConfig
    title = "AI-Hub 82"
    generator = "aihub"
    how_to_get = (
        "Ask for it at https://www.aihub.or.kr (dataSetSn=82; residents of Korea, after a login). Expected layout, the "
        "archives unpacked or not:\n"
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
        """One entry per record whose image is there; see `TreeSource.scan`."""
        files, images = list_files(tree, (".json",)), _images(tree)
        if not files or not images:
            what = "no images (in [원천] folders)" if files else "no label files (.json, in [라벨] folders)"
            raise FileError(f"{tree}: {what}. {self.how_to_get}")
        listed = ListedImages(images, subset=self.config.subset)
        entries: list[Entry] = []
        persons: defaultdict[str, set[Split]] = defaultdict(set)
        for file in files:
            file_name = file.rpartition("/")[2]
            published, asked, records = _published_split(file), _class_in(file_name), read_json_records(tree / file)
            with progress(len(records), f"read {nfc(file_name)}", "record") as bar:
                for index, raw in enumerate(records):
                    bar.update()
                    origin = f"{file}:{index}"
                    try:
                        record = parse_record(raw, asked)
                    except RowError as error:
                        listed.rejects.append(Reject(f"{nfc(file)}-{index}", error.reason, str(error), origin))
                        continue
                    path = listed.path(record.file.lower(), "", origin, key=record.key, row=record.key)
                    if path is None:
                        continue
                    found = self._entry(record, published, path)
                    if isinstance(found, str):
                        listed.excluded[found] += 1
                    else:
                        entries.append(found)
                        persons[record.person].add(published)
        for name, path in listed.unlisted().items():
            listed.rejects.append(Reject(name, "no_label", "no label file has a record of it", path))
        chosen, notes = self._choose(entries, persons, listed.excluded)
        form = f"labels by {self.config.labels}, split {self.config.split}"
        return Catalogue(form=form, entries=in_order([*chosen, *listed.rejects]), excluded=listed.excluded, notes=notes)

    def published(self, catalogue: Catalogue) -> Published:
        """The numbers of `per_class`; no counts of the whole are published by class."""
        return {
            split: dict.fromkeys(CLASS_NAMES, count)
            for split, count in zip(("train", "test"), self.config.per_class or (), strict=False)
        }

    def _entry(self, record: Record, published: Split, path: str) -> Entry | str:
        """A record's entry, or the rule that excludes it."""
        name = record.label(self.config.labels)
        if name is None or name == UNKNOWN:
            return "annotators_disagree" if name is None else "annotators_cannot_tell"
        if record.box is None and self.config.missing_boxes == "drop":
            return "no_valid_box"
        split = published
        if self.config.split == "person":
            split = hashed_split(record.person, self.config.test_fraction)
        label = self.label_space.index(name)
        faces = one_face(label, box=record.box, subject=record.person, distribution=record.distribution)
        return Entry(key=record.key, path=path, split=split, faces=faces, is_crop=False)

    def _choose(
        self, entries: list[Entry], persons: Mapping[str, set[Split]], excluded: Counter[str]
    ) -> tuple[list[Entry], dict[str, int]]:
        """Reports persons in both published splits, and reduces the entries to `per_class`."""
        both = {person for person, splits in persons.items() if len(splits) > 1}
        notes = {"persons": len(persons), "persons_in_both_published_splits": len(both)}
        if both and self.config.split == "published":
            some = ", ".join(sorted(both)[:_SHOWN_PERSONS])
            message = "AI-Hub 82: %d of %d persons are in TRAIN and in VALID, e.g. %s; `split: person` keeps them apart"
            log.warning(message, len(both), len(persons), some)
        if self.config.per_class is None:
            return entries, notes
        groups: defaultdict[tuple[Split, int], list[Entry]] = defaultdict(list)
        for entry in entries:
            if entry.split == "train" and self.config.split == "published" and entry.faces[0].subject in both:
                excluded["person_in_test_too"] += 1
            else:
                groups[entry.split, entry.faces[0].label].append(entry)
        chosen: list[Entry] = []
        for (split, _), group in groups.items():
            count = self.config.per_class[0 if split == "train" else 1]
            group.sort(key=lambda entry: stable_hash("aihub selection", entry.key))
            chosen += group[:count]
            excluded["beyond_per_class"] += max(0, len(group) - count)
        return chosen, notes


def _images(tree: Path) -> dict[str, str]:
    """Images by their names in NFC and lower case.

    Raises:
        FileError: two of a name.
    """
    found: dict[str, str] = {}
    for file in list_files(tree, IMAGE_ENDINGS):
        name = korean(file.rpartition("/")[2]).lower()
        if found.setdefault(name, file) != file:
            raise FileError(f"{tree}: {name} is there twice, as {found[name]} and as {file}: remove one of them")
    return found


def korean(name: str) -> str:
    """An image's name in NFC; also where an archive's CP949 was unpacked as CP437, or as the bytes that it is."""
    raw_bytes = any("\udc80" <= letter <= "\udcff" for letter in name)  # how Python holds bytes that are not UTF-8
    readable = any("가" <= letter <= "힣" or "\u1100" <= letter <= "\u11ff" for letter in name)
    if raw_bytes or not (readable or name.isascii()):
        try:
            data = name.encode("utf-8", "surrogateescape") if raw_bytes else name.encode("cp437")
            return nfc(data.decode("cp949"))
        except UnicodeError:
            return nfc(name)
    return nfc(name)


def _published_split(file: str) -> Split:
    """The split of a label file, by its own name or by its folders': VALID is the test split."""
    for part in reversed(nfc(file).lower().split("/")):
        if "valid" in part:
            return "test"
        if "train" in part:
            return "train"
    raise FileError(f"{file}: training or validation? Its name or its folder must say TRAIN or VALID")
