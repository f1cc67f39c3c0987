"""FERPlus: FER2013's images with ten people's votes each (Barsoum et al., "Training Deep Networks for Facial Expression
Recognition with Crowd-Sourced Label Distribution", ICMI 2016), for eight expressions.

The images come from FER2013 in any layout that keeps the order of its rows, the votes from fer2013new.csv of
github.com/microsoft/FERPlus. The two are joined by the position of the line, never by the number in FERPlus's image
names: that number lags behind the row's, by 1 from row 60 on and by 85 at the end. Or both come from the folders that
FERPlus's own script writes (FER2013Train/, FER2013Valid/, FER2013Test/ with a label.csv each), joined by name.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from fer.io.files import FileError
from fer.labels import DATASET_LABELS, LabelSpace, space, to_canonical
from fer.shards.schema import SPLITS, Split
from fer.sources.base import AnnotatedFace, Entry, Reject, one_face, shares
from fer.sources.csvfile import RowError, read_records, read_rows
from fer.sources.fer2013 import CLASS_NAMES, RowsConfig, RowsSource, contents, fetch_rows, is_ferplus_layout
from fer.sources.fer2013_rows import USAGES, Line, Row
from fer.sources.layout import find_layout
from fer.sources.tree import Catalogue, Published

Mode = Literal["majority", "probability", "multi_target", "soft"]

EXPRESSIONS = DATASET_LABELS["ferplus"]
CHOICES = (*EXPRESSIONS, "unknown", "NF")
"""What a person could vote for; NF: no face."""

VOTES_FILE = "fer2013new.csv"
_FOLDERS: dict[str, Split] = {"FER2013Train": "train", "FER2013Valid": "validation", "FER2013Test": "test"}
_WHAT = f"FERPlus's votes ({VOTES_FILE})"
_UNKNOWN = len(EXPRESSIONS)
_MAX_VOTES = 100  # ten people were asked; more than this is not a count of votes

# Named images that each mode of the published rule keeps in fer2013new.csv: train, validation, test. Those of "soft"
# follow from the same votes by `aggregate_votes`.
KEPT: dict[Mode, tuple[int, int, int]] = {
    "majority": (25060, 3199, 3153),
    "probability": (27956, 3505, 3505),
    "multi_target": (27671, 3472, 3472),
    "soft": (28389, 3553, 3546),
}

# Where more than five people agree, FER2013's label is the same for 71.8 % of the images; one row off, for 18.6 %.
_CLEAR_VOTES = 5
_MIN_AGREEMENT = 0.5
_MIN_ROWS_TO_JUDGE = 50


@dataclass(frozen=True)
class Votes:
    """A line of fer2013new.csv.

    Attributes:
        usage: as in FER2013's file.
        name: of the image that FERPlus's script writes, empty where it writes none. Its number is not a row number.
        counts: votes for each of CHOICES, or what is wrong with the line.
    """

    usage: str
    name: str
    counts: tuple[int, ...] | str


@dataclass(frozen=True)
class VoteLabel:
    """A label in FERPlus's order, and the distribution over the eight expressions, which sums to 1."""

    label: int
    distribution: tuple[float, ...]


def aggregate_votes(counts: Sequence[int], mode: Mode) -> VoteLabel | str:
    """The label that votes give by the published rule of a mode, or why the image is left out.

    The rule is that of `src/ferplus.py` of microsoft/FERPlus, which differs from the paper in details and made the
    published results. Single votes are taken for slips and do not count. Then

    - majority: the choice of more than half of the votes.
    - probability: the choices with the most votes, one count of votes after the other, until they hold three quarters
      of the votes or are three. Equal counts come together; more than three choices, or half of the votes and less,
      leave the image out. A choice of unknown or NF ends the list, and is dropped from it unless it is alone.
    - multi_target: every choice of at least 30 % of the votes, where they hold more than half of them together.
    - soft: every choice.

    An image whose leading choice is unknown or NF is left out; else these two are cut off. Of equal choices the first
    in FERPlus's order leads.

    Returns:
        the label. Distributions: majority 1 for the label; probability and soft the shares of the votes taken;
        multi_target equal shares, as its loss takes all targets for equally right. Or a reason: "no_votes" (only
        single ones), "no_agreement" (below the mode's threshold), "unknown" or "not_a_face" (the leading choice).
    """
    votes = [count if count > 1 else 0 for count in counts]
    if not any(votes):
        return "no_votes"
    taken = _taken(votes, mode)
    kept = [count if choice in taken else 0 for choice, count in enumerate(votes)]
    if 2 * sum(kept) <= sum(votes) or (mode == "probability" and len(taken) > 3):
        return "no_agreement"
    label = kept.index(max(kept))
    if label >= _UNKNOWN:
        return "unknown" if label == _UNKNOWN else "not_a_face"
    kept = kept[:_UNKNOWN]
    return VoteLabel(label, shares([min(count, 1) for count in kept] if mode == "multi_target" else kept))


def _taken(votes: Sequence[int], mode: Mode) -> Sequence[int]:
    """The choices that count by a mode's rule."""
    total = sum(votes)
    if mode == "majority":
        return [votes.index(max(votes))]
    if mode == "multi_target":
        return [choice for choice, count in enumerate(votes) if 10 * count >= 3 * total]
    if mode == "soft":
        return range(len(votes))
    taken: list[int] = []
    for most in sorted(set(votes), reverse=True):
        if 4 * sum(votes[choice] for choice in taken) >= 3 * total or len(taken) >= 3:
            break
        for choice in (choice for choice, count in enumerate(votes) if count == most):
            if choice >= _UNKNOWN:
                return taken or [choice]
            taken.append(choice)
    return taken


def read_votes(path: Path) -> tuple[Votes, ...]:
    """Every line of fer2013new.csv after the header, in order; a corrupt line keeps its place.

    Raises:
        FileError: no such file.
    """
    found = path.stat() if path.is_file() else None
    return _read_votes(path, found and (found.st_size, found.st_mtime_ns))


@lru_cache(maxsize=2)  # blocks are read one after the other, each with the same votes
def _read_votes(path: Path, _: tuple[int, int] | None) -> tuple[Votes, ...]:
    lines = []
    for record in read_records(path, ("Usage", "Image name", *CHOICES), _WHAT):
        if record.fields is None:
            lines.append(Votes("", "", record.complaint))
        else:
            usage, name, *counts = record.fields.values()
            lines.append(Votes(usage, name, _parse_counts(counts)))
    if not lines:
        raise FileError(f"{path}: a header and no votes: the file is truncated; fetch it again")
    return tuple(lines)


def _parse_counts(fields: Sequence[str]) -> tuple[int, ...] | str:
    """Votes for each of CHOICES, or what is wrong with them."""
    for choice, text in zip(CHOICES, fields, strict=True):
        if not text.isdecimal() or not text.isascii() or len(text) > 3 or int(text) > _MAX_VOTES:
            return f"{text!r} votes for {choice}, expected a whole number"
    return tuple(map(int, fields))


class FerPlusConfig(RowsConfig):
    """FERPlus (Barsoum et al. 2016): FER2013's images, all rows in their order or with a column `row`; with new labels,
    by several rules. Or FERPlus's folders FER2013Train/, FER2013Valid/, FER2013Test/."""

    more_paths: ClassVar[tuple[str, ...]] = ("votes",)

    source: Literal["ferplus"]
    votes: str | None = Field(
        default=None, description="fer2013new.csv, or its URL; not needed where the folders hold label.csv"
    )
    mode: Mode = Field(default="majority", description="the published rule that makes labels of votes, or all votes")
    evaluation_mode: Literal["majority", "same"] = Field(
        default="majority", description="rule for validation and test: majority, as published for every mode"
    )


class FerPlusSource(RowsSource):
    """Reader of FERPlus; see the module."""

    config: FerPlusConfig
    title = "FERPlus"
    generator = "ferplus"
    class_names = EXPRESSIONS
    how_to_get = (
        f"Its votes ({VOTES_FILE}) are at https://github.com/microsoft/FERPlus, for the key `votes`; its images are "
        "FER2013's (see `source: fer2013`), for the key `path`."
    )

    @property
    def label_space(self) -> LabelSpace:
        """The seven basic expressions and contempt."""
        return space("basic8")

    def download(self, out: Path, cache: Path) -> dict[str, Any]:
        """Fetches the votes too, joins and counts; see `fer.sources.base.Source.download`."""
        if self.config.path is None or self.config.votes is None:
            return super().download(out, cache)
        votes = fetch_rows(self.config.votes, cache / "votes", sha256_hex=None)
        if votes.is_dir():
            raise FileError(f"{self.config.votes}: a folder or an archive; set `votes` to {VOTES_FILE} itself")
        shutil.copyfile(votes, out / VOTES_FILE)
        config = self.config.model_copy(update={"votes": str(out / VOTES_FILE)})
        return super(FerPlusSource, FerPlusSource(config)).download(out, cache)

    def row_labels(self, raw: Path) -> _Join:
        """The votes on the lines of the rows."""
        if not (raw / VOTES_FILE).is_file():
            raise FileError(
                f"{self.config.path}: holds FER2013's rows alone; set `votes` to {VOTES_FILE}. {self.how_to_get}"
            )
        return _Join(self, read_votes(raw / VOTES_FILE))

    def describe_labels(self, labels: Any, name: str, excluded: Mapping[str, int]) -> dict[str, Any]:
        """How far votes and FER2013's labels agree; see `_Join.agreement`."""
        return {"excluded": dict(sorted(excluded.items())), "agreement_with_fer2013": labels.agreement(name)}

    def number_of(self, line: Line) -> int | None:
        """The published position, by which votes are joined."""
        return line.published

    def faces(self, vote: Votes, split: Split) -> tuple[AnnotatedFace] | str:
        """The labeled face of an image, or why it is left out."""
        assert not isinstance(vote.counts, str)
        if not vote.name:
            return "unnamed"
        mode = self._mode(split)
        found = aggregate_votes(vote.counts, mode)
        if isinstance(found, str):
            return found
        canonical = to_canonical(EXPRESSIONS, self.label_space)
        distribution = [0.0] * len(EXPRESSIONS)
        for label, share in zip(canonical, found.distribution, strict=True):
            distribution[label] = share
        return one_face(canonical[found.label], distribution=None if mode == "majority" else tuple(distribution))

    def _mode(self, split: Split) -> Mode:
        return self.config.mode if split == "train" or self.config.evaluation_mode == "same" else "majority"

    def scan(self, tree: Path) -> Catalogue:
        """One entry per image that a label.csv names; see `TreeSource.scan`.

        A name that occurs twice counts once, with the votes of its later line: the script that writes the folders
        overwrites the earlier image.
        """
        root = find_layout(tree, is_ferplus_layout)
        if root is None:
            raise FileError(
                f"{tree}: neither a file of FER2013's rows nor FERPlus's folders: found {contents(tree)}; expected "
                "fer2013.csv or Parquet, or FER2013Train/, FER2013Valid/ and FER2013Test/ with fer0000000.png ... and "
                "a label.csv each"
            )
        entries: list[Entry | Reject] = []
        excluded: Counter[str] = Counter()
        for folder, split in ((root / name, split) for name, split in _FOLDERS.items() if (root / name).is_dir()):
            for name, (origin, counts) in self._votes_in(folder, split).items():
                key = f"{folder.name}/{name}"
                if isinstance(counts, str) or "/" in name or "\\" in name:
                    detail = counts if isinstance(counts, str) else f"image {name!r}, expected a file's name"
                    entries.append(Reject(key, "row_votes", detail, origin))
                    continue
                faces = self.faces(Votes("", name, counts), split)
                if isinstance(faces, str):
                    excluded[faces] += 1
                else:
                    path = f"{folder.relative_to(tree).as_posix()}/{name}"
                    entries.append(Entry(key=key, path=path, split=split, faces=faces, is_crop=True))
        return Catalogue(form="FERPlus folders", entries=entries, excluded=excluded)

    def _votes_in(self, folder: Path, split: Split) -> dict[str, tuple[str, tuple[int, ...] | str]]:
        """Line and votes of each image of a folder by its name: of `votes`, or else of its label.csv.

        A line of label.csv has a name, in most copies a box, and ten counts.
        """
        if self.config.votes is not None:
            return {
                vote.name: (f"{VOTES_FILE}:{line}", vote.counts)
                for line, vote in enumerate(read_votes(Path(self.config.votes)), 2)
                if USAGES.get(vote.usage) == split and (folder / vote.name).is_file()
            }
        if not (folder / "label.csv").is_file():
            raise FileError(f"{folder}: no label.csv in it, which holds the votes; put it there, or set `votes`")
        found: dict[str, tuple[str, tuple[int, ...] | str]] = {}
        for line, fields in read_rows(folder / "label.csv"):
            counts: tuple[int, ...] | str = f"{len(fields)} fields, expected a name, a box and {len(CHOICES)} counts"
            if len(fields) in (len(CHOICES) + 1, len(CHOICES) + 2):
                counts = _parse_counts(fields[-len(CHOICES) :])
            found[fields[0]] = (f"{folder.name}/label.csv:{line}", counts)
        return found

    def published(self, catalogue: Catalogue) -> Published:
        """Images that the rule keeps of the published votes."""
        return {split: KEPT[self._mode(split)][index] for index, split in enumerate(SPLITS)}


class _Join:
    """Labels rows of FER2013 by the votes on their lines, and compares the two labels."""

    def __init__(self, source: FerPlusSource, votes: tuple[Votes, ...]) -> None:
        self._source, self._votes = source, votes
        self._seen: set[int] = set()
        self._clear = self._equal = 0

    def __call__(self, line: Line, row: Row) -> tuple[AnnotatedFace] | str:
        position = line.published
        assert position is not None
        if position >= len(self._votes):
            raise FileError(f"row {position} has no line in {VOTES_FILE}, which has {len(self._votes)}")
        if position in self._seen:
            raise FileError(f"row {line.number}: position {position} occurs twice in the column `row`")
        self._seen.add(position)
        vote, where = self._votes[position], f"line {position + 2} of {VOTES_FILE}"
        if isinstance(vote.counts, str):
            raise RowError("votes", f"{where}: {vote.counts}")
        if USAGES.get(vote.usage) != row.split:
            raise FileError(
                f"row {position} is of the {row.split} split in FER2013 and {vote.usage!r} in {where}: rows and votes "
                "are not in the same order; give FER2013's file whole and unsorted"
            )
        expressions = vote.counts[:_UNKNOWN]
        if max(expressions) > _CLEAR_VOTES:
            self._clear += 1
            self._equal += EXPRESSIONS[expressions.index(max(expressions))] == CLASS_NAMES[row.label]
        return self._source.faces(vote, row.split)

    def agreement(self, name: str) -> float | None:
        """Share of clear votes that FER2013's labels agree with; None of none.

        Raises:
            FileError: so few that rows and votes cannot belong together.
        """
        if self._clear == 0:
            return None
        agreement = self._equal / self._clear
        if self._clear >= _MIN_ROWS_TO_JUDGE and agreement < _MIN_AGREEMENT:
            raise FileError(
                f"{name}: FER2013's labels agree with only {agreement:.1%} of the clear votes of {VOTES_FILE}; where "
                "each row meets its own votes it is 71.8 %: rows are missing or sorted. Give the whole file in its "
                "published order, or Parquet with each row's position in a column `row`"
            )
        return round(agreement, 4)
