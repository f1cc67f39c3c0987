"""FERPlus: FER2013's pictures with ten people's votes each (Barsoum et al., ICMI 2016), for eight expressions.

The pictures come from FER2013 in any layout that keeps the order of its rows, the votes from fer2013new.csv of
github.com/microsoft/FERPlus. The two are joined by the position of the line, never by the number in FERPlus's picture
names: that number lags behind the row's, by 1 from row 60 on and by 85 at the end. Or both come from the folders that
FERPlus's own script writes (FER2013Train/, FER2013Valid/, FER2013Test/ with a label.csv each), joined by name.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from fer.io.files import FileError
from fer.labels import LabelSpace, space, to_canonical
from fer.shards.schema import SPLITS, Split
from fer.sources.base import AnnotatedFace, Block, Entry, RawSample, Reject, one_face
from fer.sources.fer2013 import CLASS_NAMES, is_ferplus_layout
from fer.sources.fer2013_file import RowsSource, block_rows, contents, fetch, file_name, keep_only_good, scan
from fer.sources.fer2013_rows import USAGES, Line, Row, RowError
from fer.sources.ferplus_votes import EXPRESSIONS, Mode, Verdict, Votes, judge, read_labels, read_votes
from fer.sources.layout import find_layout
from fer.sources.tree import Catalogue, TreeConfig

VOTES_FILE = "fer2013new.csv"
_FOLDERS: dict[str, Split] = {"FER2013Train": "train", "FER2013Valid": "validation", "FER2013Test": "test"}

# Pictures with a name that each mode of the published rule leaves in fer2013new.csv: train, validation, test. Those of
# "soft" follow from the same votes by the rule of `ferplus_votes.judge`.
KEPT: dict[Mode, tuple[int, int, int]] = {
    "majority": (25060, 3199, 3153),
    "probability": (27956, 3505, 3505),
    "multi_target": (27671, 3472, 3472),
    "soft": (28389, 3553, 3546),
}

# Where more than five people agree, FER2013's label is the same for 71.8 % of the pictures; one row off, for 18.6 %.
_CLEAR_VOTES = 5
_LEAST_AGREEMENT = 0.5
_ROWS_TO_JUDGE = 50


class FerPlusConfig(TreeConfig):
    """FERPlus (Barsoum et al. 2016): FER2013's pictures with new labels, by several rules."""

    more_paths: ClassVar[tuple[str, ...]] = ("votes",)

    source: Literal["ferplus"]
    path: str | None = Field(
        default=None,
        description="FER2013 as a csv or Parquet with all rows in their order (or with their positions in a column "
        "`row`), its archive, or its URL; or FERPlus's folders FER2013Train/, FER2013Valid/, FER2013Test/",
    )
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
    how_to_get = (
        "Its votes (fer2013new.csv) are at https://github.com/microsoft/FERPlus; its pictures are FER2013's "
        "(see `source: fer2013`)."
    )

    @property
    def label_space(self) -> LabelSpace:
        """The seven basic expressions and contempt."""
        return space("basic8")

    def download(self, out: Path, cache: Path) -> dict[str, Any]:
        """Fetches, joins and counts; see `fer.sources.base.Source.download`."""
        if self.config.path is None:
            raise FileError(
                f"FERPlus is not part of this project. {self.how_to_get} Then set the keys `path` and `votes` of this "
                "dataset in params.yaml (datasets.<name>.path, .votes)"
            )
        place = fetch(self.config.path, cache, sha256_hex=self.config.sha256)
        if self.config.votes is not None:
            fetched = fetch(self.config.votes, cache / "votes", sha256_hex=None)
            if fetched.is_dir():
                raise FileError(f"{self.config.votes}: a folder or an archive; set `votes` to {VOTES_FILE} itself")
            shutil.copyfile(fetched, out / VOTES_FILE)
        if place.is_dir():
            here = str(out / VOTES_FILE) if self.config.votes is not None else None
            return FerPlusSource(self.config.model_copy(update={"votes": here})).take(place, out)
        if self.config.votes is None:
            raise FileError(f"{place.name}: holds FER2013's rows alone; set `votes` to {VOTES_FILE}. {self.how_to_get}")
        votes = read_votes(out / VOTES_FILE)
        join = _Join(votes, self)
        with keep_only_good(cache):
            found = scan(place, self.config.max_bad_fraction, join.add)
            agreement = join.check_agreement(place.name)
        counts: dict[str, dict[str, int]] = {
            split: {name: join.counts[split, self.label_space.index(name)] for name in self.label_space.labels}
            for split in SPLITS
        }
        catalogue = Catalogue(form=f"FER2013 {found.form}, votes by line", entries=(), excluded=join.excluded)
        published = self.published(catalogue)
        self._compare(counts, published, catalogue)
        name = file_name(str(place))
        shutil.copyfile(place, out / name)
        return {
            "file": name,
            "counts": counts,
            "published": published,
            "excluded": dict(sorted(join.excluded.items())),
            "agreement_with_fer2013": agreement,
            **found.description,
        }

    def read_rows(self, raw: Path, block: Block) -> Iterator[RawSample | Reject]:
        """Every labelled picture of a block, as (48, 48) grey pixels; or a Reject."""
        votes = read_votes(raw / VOTES_FILE)
        for line, row in block_rows(raw, block):
            if row is None or line.published is None:
                continue
            key, origin = f"ferplus/{line.published:08d}", f"{block.file}:{line.number}"
            if isinstance(row, RowError):
                yield Reject(sample_id=key, reason=f"row_{row.kind}", detail=str(row), origin=origin)
                continue
            vote = votes[line.published]
            if isinstance(vote.counts, str):
                yield Reject(sample_id=key, reason="row_votes", detail=vote.counts, origin=origin)
                continue
            faces = self.faces(vote, row.split)
            if not isinstance(faces, str):
                yield RawSample(key=key, image=row.pixels, split=row.split, faces=faces, is_crop=True, origin=origin)

    def faces(self, vote: Votes, split: Split) -> tuple[AnnotatedFace] | str:
        """The labelled face of a picture, or why it is left out."""
        assert not isinstance(vote.counts, str)
        if not vote.name:
            return "unnamed"
        mode = self._mode(split)
        verdict = judge(vote.counts, mode)
        if not isinstance(verdict, Verdict):
            return verdict
        canonical = to_canonical(EXPRESSIONS, self.label_space)
        shares = [0.0] * len(EXPRESSIONS)
        for label, share in zip(canonical, verdict.distribution, strict=True):
            shares[label] = share
        return one_face(canonical[verdict.label], distribution=None if mode == "majority" else tuple(shares))

    def _mode(self, split: Split) -> Mode:
        return self.config.mode if split == "train" or self.config.evaluation_mode == "same" else "majority"

    def scan(self, tree: Path) -> Catalogue:
        """One entry a picture that a label.csv names; see `TreeSource.scan`.

        A name that occurs twice counts once, with the votes of its later line: the script that writes the folders
        overwrites the earlier picture.
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
        for folder, split in _FOLDERS.items():
            if not (root / folder).is_dir():
                continue
            prefix = (root / folder).relative_to(tree).as_posix()
            for origin, name, counts in self._named_votes(root / folder, split):
                key = f"{folder}/{name}"
                if isinstance(counts, str) or "/" in name or "\\" in name:
                    detail = counts if isinstance(counts, str) else f"picture {name!r}, expected a file's name"
                    entries.append(Reject(sample_id=key, reason="row_votes", detail=detail, origin=origin))
                    continue
                faces = self.faces(Votes("", name, counts), split)
                if isinstance(faces, str):
                    excluded[faces] += 1
                else:
                    entries.append(Entry(key=key, path=f"{prefix}/{name}", split=split, faces=faces, is_crop=True))
        return Catalogue(form="FERPlus folders", entries=entries, excluded=excluded)

    def _named_votes(self, folder: Path, split: Split) -> Iterator[tuple[str, str, tuple[int, ...] | str]]:
        """Where it stands, name and votes of each picture of a folder: of `votes`, or else of its label.csv."""
        found: dict[str, tuple[str, str, tuple[int, ...] | str]] = {}
        if self.config.votes is not None:
            for line, vote in enumerate(read_votes(Path(self.config.votes)), 2):
                if USAGES.get(vote.usage) == split and (folder / vote.name).is_file():
                    found[vote.name] = (f"{VOTES_FILE}:{line}", vote.name, vote.counts)
        elif not (folder / "label.csv").is_file():
            raise FileError(f"{folder}: no label.csv in it, which holds the votes; put it there, or set `votes`")
        else:
            for line, name, counts in read_labels(folder / "label.csv"):
                found[name] = (f"{folder.name}/label.csv:{line}", name, counts)
        yield from found.values()

    def published(self, catalogue: Catalogue) -> Mapping[str, Mapping[str, int] | int]:
        """Pictures that the rule leaves of the published votes."""
        return {split: KEPT[self._mode(split)][index] for index, split in enumerate(SPLITS)}


class _Join:
    """Counts rows of FER2013 with the votes that stand on their lines."""

    def __init__(self, votes: tuple[Votes, ...], source: FerPlusSource) -> None:
        self._votes, self._source = votes, source
        self._seen: set[int] = set()
        self._clear = self._equal = 0
        self.counts: Counter[tuple[str, int]] = Counter()
        self.excluded: Counter[str] = Counter()

    def add(self, line: Line, row: Row) -> str | None:
        """Takes one row; returns what is wrong with its votes."""
        position = line.published
        if position is None:
            self.excluded["no_position"] += 1
            return None
        if position >= len(self._votes):
            raise FileError(f"row {position} has no line in {VOTES_FILE}, which has {len(self._votes)}")
        if position in self._seen:
            raise FileError(f"row {line.number}: position {position} occurs twice in the column `row`")
        self._seen.add(position)
        vote = self._votes[position]
        if isinstance(vote.counts, str):
            return f"line {position + 2} of {VOTES_FILE}: {vote.counts}"
        if USAGES.get(vote.usage) != row.split:
            raise FileError(
                f"row {position} is of the {row.split} split in FER2013 and {vote.usage!r} in line {position + 2} of "
                f"{VOTES_FILE}: rows and votes are not in the same order; give FER2013's file whole and unsorted"
            )
        expressions = vote.counts[: len(EXPRESSIONS)]
        if max(expressions) > _CLEAR_VOTES:
            self._clear += 1
            self._equal += EXPRESSIONS[expressions.index(max(expressions))] == CLASS_NAMES[row.label]
        faces = self._source.faces(vote, row.split)
        if isinstance(faces, str):
            self.excluded[faces] += 1
        else:
            self.counts[row.split, faces[0].label] += 1
        return None

    def check_agreement(self, name: str) -> float | None:
        """Share of clear votes that FER2013's labels agree with; None of none.

        Raises:
            FileError: so few that rows and votes cannot belong together.
        """
        if self._clear == 0:
            return None
        agreement = self._equal / self._clear
        if self._clear >= _ROWS_TO_JUDGE and agreement < _LEAST_AGREEMENT:
            raise FileError(
                f"{name}: FER2013's labels agree with only {agreement:.1%} of the clear votes of {VOTES_FILE}; where "
                "each row meets its own votes it is 71.8 %: rows are missing or sorted. Give the whole file in its "
                "published order, or Parquet with each row's position in a column `row`"
            )
        return round(agreement, 4)
