"""FERPlus's votes and the rule that makes labels of them (Barsoum et al., "Training Deep Networks for Facial Expression
Recognition with Crowd-Sourced Label Distribution", ICMI 2016; `src/ferplus.py` of microsoft/FERPlus, which differs from
the paper in details and made the published figures).

Ten people chose one of ten answers for each picture of FER2013: eight expressions, `unknown`, and `NF` for no face.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from fer.io.files import FileError
from fer.labels import DATASET_LABELS
from fer.sources.base import shares
from fer.sources.csvfile import read_records, read_rows

Mode = Literal["majority", "probability", "multi_target", "soft"]

EXPRESSIONS = DATASET_LABELS["ferplus"]
ANSWERS = (*EXPRESSIONS, "unknown", "NF")
_UNKNOWN = len(EXPRESSIONS)
_WHAT = "FERPlus's votes (fer2013new.csv)"
_MOST_VOTES = 100  # ten people were asked; more than this is no count of votes


@dataclass(frozen=True)
class Votes:
    """A line of fer2013new.csv.

    Attributes:
        usage: as in FER2013's file.
        name: of the picture that FERPlus's script writes, empty where it writes none. Its number is no row number.
        counts: votes for each of ANSWERS, or what is wrong with the line.
    """

    usage: str
    name: str
    counts: tuple[int, ...] | str


@dataclass(frozen=True)
class Verdict:
    """What votes make of a picture: a label in FERPlus's order, and shares of the eight expressions that sum to 1."""

    label: int
    distribution: tuple[float, ...]


def judge(counts: Sequence[int], mode: Mode) -> Verdict | str:
    """A label out of votes, by the published rule of a mode, or why the picture is left out.

    Single votes are taken for slips and do not count. Then

    - majority: the answer of more than half of the votes.
    - probability: the answers with the most votes, one count of votes after the other, until they hold three quarters
      of the votes or are three. Equal counts come together; more than three answers, or half of the votes and less,
      leave the picture out. An answer of unknown or NF ends the list, and is dropped from it unless it is alone.
    - multi_target: every answer of at least 30 % of the votes, where they hold more than half of them together.
    - soft: every answer.

    A picture whose leading answer is unknown or NF is left out; else these two are cut off. Of equal answers the first
    in FERPlus's order leads.

    Returns:
        the verdict. Distributions: majority 1 for the label; probability and soft the shares of the votes taken;
        multi_target equal shares, as its loss takes all targets for equally right. Or a reason: "no_votes" (none but
        single ones), "no_agreement" (below the mode's threshold), "unknown" or "not_a_face" (the leading answer).
    """
    votes = [count if count > 1 else 0 for count in counts]
    total = sum(votes)
    if total == 0:
        return "no_votes"
    taken = _TAKE[mode](votes, total)
    if taken is None:
        return "no_agreement"
    label = taken.index(max(taken))
    if label >= _UNKNOWN:
        return "unknown" if label == _UNKNOWN else "not_a_face"
    kept = taken[:_UNKNOWN]
    if mode == "multi_target":
        kept = [min(count, 1) for count in kept]
    return Verdict(label, shares(kept))


def _majority(votes: list[int], total: int) -> list[int] | None:
    most = max(votes)
    return _only(votes, [votes.index(most)]) if 2 * most > total else None


def _probability(votes: list[int], total: int) -> list[int] | None:
    taken: list[int] = []
    left = list(votes)
    while 4 * sum(votes[answer] for answer in taken) < 3 * total and len(taken) < 3:
        most = max(left)
        for answer in [answer for answer, count in enumerate(left) if count == most]:
            left[answer] = 0
            if answer < _UNKNOWN:
                taken.append(answer)
                continue
            if not taken:
                taken.append(answer)
            return _if_enough(votes, taken, total)
    return _if_enough(votes, taken, total)


def _if_enough(votes: list[int], taken: list[int], total: int) -> list[int] | None:
    kept = _only(votes, taken)
    return kept if 2 * sum(kept) > total and len(taken) <= 3 else None


def _multi_target(votes: list[int], total: int) -> list[int] | None:
    kept = _only(votes, [answer for answer, count in enumerate(votes) if 10 * count >= 3 * total])
    return kept if 2 * sum(kept) > total else None


def _soft(votes: list[int], total: int) -> list[int] | None:
    return votes


def _only(votes: list[int], answers: Sequence[int]) -> list[int]:
    return [count if answer in answers else 0 for answer, count in enumerate(votes)]


_TAKE = {
    "majority": _majority,
    "probability": _probability,
    "multi_target": _multi_target,
    "soft": _soft,
}


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
    for record in read_records(path, ("Usage", "Image name", *ANSWERS), _WHAT):
        if record.fields is None:
            lines.append(Votes("", "", record.complaint))
        else:
            counts = parse_counts([record.fields[answer] for answer in ANSWERS])
            lines.append(Votes(record.fields["Usage"], record.fields["Image name"], counts))
    if not lines:
        raise FileError(f"{path}: a header and no votes: the file is truncated; fetch it again")
    return tuple(lines)


def read_labels(path: Path) -> Iterator[tuple[int, str, tuple[int, ...] | str]]:
    """Line, picture and votes of a label.csv that FERPlus's script writes: name, in most copies a box, ten counts."""
    for line, fields in read_rows(path):
        if len(fields) not in (len(ANSWERS) + 1, len(ANSWERS) + 2):
            yield line, fields[0], f"{len(fields)} fields, expected a name, a box and {len(ANSWERS)} counts"
        else:
            yield line, fields[0], parse_counts(fields[-len(ANSWERS) :])


def parse_counts(fields: Sequence[str]) -> tuple[int, ...] | str:
    """Votes for each of ANSWERS, or what is wrong with them."""
    for answer, text in zip(ANSWERS, fields, strict=True):
        if not text.isdecimal() or not text.isascii() or len(text) > 3 or int(text) > _MOST_VOTES:
            return f"{text!r} votes for {answer}, expected a whole number"
    return tuple(map(int, fields))
