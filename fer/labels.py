"""Label spaces: one canonical order each, and the published order of every dataset and checkpoint mapped onto it.

Mixed-up label orders are the most common reason for a published model that "does not work" (POSTER V2 issue 6: 11 %).
So the order is part of every shard and every weights file, and a mismatch is an error, never a silent remap.

In face recognition the classes are people: tens of thousands, others in every dataset. The name of such a space
contains their number and a digest of their names, and its labels are numbers: see `identities`.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class LabelSpace:
    """A set of classes in canonical order; a label is an index into `labels`."""

    name: str
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def index(self, label: str) -> int:
        """The index of a class name; ValueError names the space and its labels."""
        if label not in self.labels:
            raise ValueError(f"label {label!r} is not in label space {self.name!r}: {', '.join(self.labels)}")
        return self.labels.index(label)


_BASIC = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger")

_EXPRESSIONS: dict[str, LabelSpace] = {
    # AffectNet's order of the six basic expressions and neutral (Mollahosseini et al. 2017), without contempt.
    "basic7": LabelSpace("basic7", _BASIC),
    "basic8": LabelSpace("basic8", (*_BASIC, "contempt")),
    # AI-Hub set 82 (Korean faces), in the alphabetical order of its seven classes; most have no basic counterpart.
    "aihub7": LabelSpace("aihub7", ("anger", "anxiety", "happiness", "hurt", "neutral", "panic", "sadness")),
}

_IDENTITIES = re.compile(r"identities-([1-9]\d{0,6})-[0-9a-f]{16}")


def identities(names: Sequence[str]) -> LabelSpace:
    """The label space of the people of a dataset; a label is an index into `names`, and its own text.

    Spaces of equal names in the same order are equal, others differ in name. Only the dataset maps numbers to names:
    weights and shards name nobody.
    """
    digest = hashlib.sha256("\0".join(names).encode()).hexdigest()[:16]
    return SPACES[f"identities-{len(names)}-{digest}"]


def is_identities(name: str) -> bool:
    """Whether a label space of that name has people as classes."""
    return _IDENTITIES.fullmatch(name) is not None


@lru_cache(maxsize=8)
def _numbered(name: str, count: int) -> LabelSpace:
    return LabelSpace(name, tuple(map(str, range(count))))


class _Spaces(Mapping[str, LabelSpace]):
    """Every label space by its name. Iteration lists those of expressions; those of people are created on access."""

    def __getitem__(self, name: str) -> LabelSpace:
        if match := _IDENTITIES.fullmatch(name):
            return _numbered(name, int(match[1]))
        return _EXPRESSIONS[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_EXPRESSIONS)

    def __len__(self) -> int:
        return len(_EXPRESSIONS)


SPACES = _Spaces()

# The published order of each dataset's label numbers, in the names used here.
DATASET_LABELS: dict[str, tuple[str, ...]] = {
    # Goodfellow et al. 2013: 0 Angry, 1 Disgust, 2 Fear, 3 Happy, 4 Sad, 5 Surprise, 6 Neutral.
    "fer2013": ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral"),
    # Li et al. 2017, list_patition_label.txt: 1 Surprise ... 7 Neutral.
    "rafdb": ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral"),
    # Mollahosseini et al. 2017: 0 Neutral ... 7 Contempt.
    "affectnet7": _BASIC,
    "affectnet8": (*_BASIC, "contempt"),
    # Barsoum et al. 2016, the columns of fer2013new.csv, without its last two (unknown, NF: no face).
    "ferplus": ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt"),
    "aihub82": ("anger", "anxiety", "happiness", "hurt", "neutral", "panic", "sadness"),
    # Lee et al. 2019: folders by name, which readers number alphabetically.
    "caers": ("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"),
}

# Spellings of class folders and columns in public copies of the datasets, besides the names used here.
SPELLINGS: dict[str, tuple[str, ...]] = {
    "neutral": ("neutrality", "중립"),
    "happiness": ("happy", "happines", "joy", "기쁨"),
    "sadness": ("sad", "슬픔"),
    "surprise": ("surprised", "suprise"),
    "fear": ("fearful", "afraid", "scared"),
    "disgust": ("disgusted",),
    "anger": ("angry", "분노"),
    "contempt": ("contemptuous",),
    # AI-Hub set 82 only; 당황 is flustered embarrassment, which its slides call panic.
    "anxiety": ("anxious", "불안"),
    "hurt": ("상처",),
    "panic": ("embarrassed", "embarrassment", "당황"),
}
_NAMES = {spelling: name for name, others in SPELLINGS.items() for spelling in (name, *others)}


def named(text: str) -> str | None:
    """The class that a name in a public copy stands for: "Angry", "0_anger" and "6 - Anger" are "anger"; else None.

    A number alone is never a class: datasets number the same classes in different orders.
    """
    bare = unicodedata.normalize("NFC", text).strip().casefold()
    return _NAMES.get(re.sub(r"^\d+[\s._-]+", "", bare).strip())


def space(name: str) -> LabelSpace:
    """The label space of that name; ValueError lists the known ones."""
    if name not in SPACES:
        raise ValueError(f"unknown label space {name!r}; known: {', '.join(SPACES)}")
    return SPACES[name]


def to_canonical(dataset_order: Sequence[str], target: LabelSpace) -> tuple[int, ...]:
    """Canonical index of each of a dataset's label numbers.

    Args:
        dataset_order: class names in the order of the dataset's numbers.
        target: the label space to map onto; must hold every name.
    """
    return tuple(target.index(name) for name in dataset_order)
