"""muxspace/facial_expressions: faces of LFW and of films, labeled by a few volunteers.

Public on GitHub: `images/`, and `data/legend.csv` with a line for each vote: the volunteer, the image's name, the
emotion in any case and in several spellings. Other lists of the repository have no header and old-Mac line ends. The
list has changed with every contribution, so no counts are published.

Where several people labeled an image, its label is the majority's, and their votes are its distribution; without a
majority the image is left out and counted. No split is published: a person is test or train by a hash of the name at
the beginning of the file's name, and an image without one (`facial-expressions_...`) by its own.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from fer.io.files import FileError
from fer.labels import named
from fer.sources.base import Entry, Reject, hashed_split, nfc, one_face, shares
from fer.sources.csvfile import fold, read_header, read_records, read_rows
from fer.sources.layout import find_layout
from fer.sources.tree import Catalogue, TreeConfig, TreeSource

_COLUMNS = ("user.id", "image", "emotion")
_LEGEND = "data/legend.csv"
_WHAT = f"a list of muxspace labels (columns {', '.join(_COLUMNS)}, or no header)"


class MuxspaceConfig(TreeConfig):
    """muxspace/facial_expressions: a checkout, or an archive of it."""

    source: Literal["muxspace"]
    label_space: Literal["basic7", "basic8"] = Field(
        default="basic8", description="basic7 leaves the images of contempt out"
    )
    legend: str = Field(default=_LEGEND, min_length=1, description="the list of labels, relative to the folder")
    test_fraction: float = Field(default=0.2, gt=0, lt=1, description="share of the people who are test")

    @field_validator("legend")
    @classmethod
    def _inside(cls, legend: str) -> str:
        if legend.startswith("/") or ".." in legend.split("/"):
            raise ValueError("leads out of the dataset's folder; give a path that starts there")
        return legend


class MuxspaceSource(TreeSource):
    """Reader of muxspace/facial_expressions; see the module."""

    config: MuxspaceConfig
    title = "muxspace"
    generator = "muxspace"
    how_to_get = (
        "Clone https://github.com/muxspace/facial_expressions: its folder holds images/ and "
        f"{_LEGEND} with the columns {', '.join(_COLUMNS)}."
    )

    def scan(self, tree: Path) -> Catalogue:
        """One entry per image that the legend names; see `TreeSource.scan`."""
        legend = self.config.legend
        root = find_layout(tree, lambda folder: (folder / "images").is_dir() and (folder / legend).is_file())
        if root is None:
            raise FileError(f"{tree}: no folder in it holds images/ and {legend}. {self.how_to_get}")
        votes: defaultdict[str, dict[str, str]] = defaultdict(dict)  # image -> person -> label; the last one counts
        rejects: dict[str, Reject] = {}
        for line, user, name, emotion in _rows(root / legend):
            origin = f"{legend}:{line}"
            if not name or "/" in name or "\\" in name:
                detail = f"image {name!r}, expected a file's name"
                rejects[f"line {line}"] = Reject(f"line-{line}", "bad_row", detail, origin)
            elif (label := named(emotion)) is None:
                rejects[name] = Reject(name, "unknown_label", f"emotion {emotion!r}", origin)
            else:
                votes[name][user] = label
        entries: list[Entry | Reject] = [one for name, one in rejects.items() if name not in votes]
        excluded: Counter[str] = Counter()
        files = {nfc(path.name): path for path in (root / "images").iterdir() if path.is_file()}
        for name, given in votes.items():
            counts = Counter(given.values())
            (label, most), *others = counts.most_common()
            if others and others[0][1] == most:
                excluded["no_majority"] += 1
            elif label not in self.label_space.labels:
                excluded[f"{label}_not_in_{self.label_space.name}"] += 1
            else:
                path = files.get(name, root / "images" / name).relative_to(tree)
                entries.append(self._entry(name, str(path), counts, label))
        entries.sort(key=lambda entry: entry.sample_id if isinstance(entry, Reject) else entry.key)
        notes = {"pictures_without_label": len(files.keys() - votes.keys() - rejects.keys())}
        return Catalogue(form=f"images/ and {legend}", entries=entries, excluded=excluded, notes=notes)

    def _entry(self, name: str, path: str, counts: Counter[str], label: str) -> Entry:
        subject = person(name)
        votes = tuple(float(counts[one]) for one in self.label_space.labels)
        distribution = shares(votes) if sum(votes) > 1 else None
        faces = one_face(self.label_space.index(label), subject=subject, distribution=distribution)
        split = hashed_split(subject or name, self.config.test_fraction)
        return Entry(key=name, path=path, split=split, faces=faces, is_crop=True)


def person(name: str) -> str | None:
    """The person in an image, by its file's name: LFW's "Al_Gore_0003.jpg", and "KatrinaKaif_12.jpg" of films."""
    match = re.fullmatch(r"(.+)_\d+\.\w+", name)
    return match[1] if match else None


def _rows(legend: Path) -> Iterator[tuple[int, str, str, str]]:
    """Line number, person, image and emotion; a short or long line has no image."""
    if fold("image") in map(fold, read_header(legend, _WHAT)):
        for record in read_records(legend, _COLUMNS, _WHAT):
            user, name, emotion = record.fields.values() if record.fields else ("", "", "")
            yield record.line, user, nfc(name), emotion
        return
    for line, fields in read_rows(legend):
        if line == 1 and (len(fields) != 3 or named(fields[2]) is None):
            raise FileError(f"{legend}: not {_WHAT}: its first line is {','.join(fields)[:80]!r}")
        user, name, emotion = fields if len(fields) == 3 else ("", "", "")
        yield line, user, nfc(name), emotion
