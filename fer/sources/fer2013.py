"""FER2013: 35,887 grey faces of 48 x 48 px with seven labels (Goodfellow et al., "Challenges in Representation
Learning", ICONIP 2013). Its file is not redistributed; `datasets.<name>.path` says where yours is.

Usage maps to splits as the challenge meant it: Training is train, PublicTest validation, PrivateTest test.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import Field

from fer.config import Config
from fer.console import log, progress
from fer.files import FileError, read_json
from fer.labels import DATASET_LABELS, LabelSpace, space, to_canonical
from fer.sources.base import BLOCK_ROWS, AnnotatedFace, Block, RawSample, Reject
from fer.sources.fer2013_rows import SIDE, Line, Row, RowError, csv_rows, form_of, parquet_rows
from fer.transfer import download, public_url

HOME_PAGE = (
    "https://www.kaggle.com/competitions/challenges-in-representation-learning-facial-expression-recognition-challenge"
)
CLASS_NAMES = DATASET_LABELS["fer2013"]

# Rows a class in FER2013's own label order, counted on the published file.
PUBLISHED: dict[str, tuple[int, ...]] = {
    "train": (3995, 436, 4097, 7215, 4830, 3171, 4965),
    "validation": (467, 56, 496, 895, 653, 415, 607),
    "test": (491, 55, 528, 879, 594, 416, 626),
}

_SHOWN_BAD_ROWS = 8


class Fer2013Config(Config):
    """FER2013 (Goodfellow et al. 2013): the original csv, icml_face_data.csv, or a Parquet of encoded pictures."""

    source: Literal["fer2013"]
    label_space: Literal["basic7", "basic8"] = Field(default="basic7", description="FER2013 has no contempt")
    path: str | None = Field(
        default=None,
        description="the file, or its URL: fer2013.csv, icml_face_data.csv or Parquet (image, label, usage)",
    )
    sha256: str | None = Field(
        default=None, pattern=r"^[0-9a-fA-F]{64}$", description="expected digest of the file; null: not checked"
    )
    subset: bool = Field(default=False, description="accept another number of rows than the published 35,887")
    max_bad_fraction: float = Field(
        default=0.001,
        ge=0,
        le=1,
        description="refuse the file where a larger share of its rows is corrupt; 0 refuses any",
    )


class Fer2013Source:
    """Reader of FER2013 in any of its published forms; see `fer.sources.base.Source`."""

    generator = "fer2013"

    def __init__(self, config: Fer2013Config) -> None:
        self.config = config
        self._canonical = to_canonical(CLASS_NAMES, self.label_space)

    @property
    def label_space(self) -> LabelSpace:
        """As configured."""
        return space(self.config.label_space)

    @property
    def request(self) -> dict[str, Any]:
        """The configuration; of a local path only the file's name."""
        path = self.config.path
        return self.config.model_dump() | {"path": path and (public_url(path) if _is_url(path) else _file_name(path))}

    def download(self, out: Path, cache: Path) -> dict[str, Any]:
        """Fetches, recognises and counts the file; see `fer.sources.base.Source.download`."""
        path = self.config.path
        if path is None:
            raise FileError(
                "FER2013 is not part of this project and has no free download link: ask for it at "
                f"{HOME_PAGE} (fer2013.tar.gz, or icml_face_data.csv), then set the key `path` of this dataset in "
                "params.yaml (datasets.<name>.path) to the csv or to its URL"
            )
        name = _file_name(path)
        file = cache / name
        if self.config.sha256 or not (_is_url(path) and file.exists()):
            download(path, file, sha256_hex=self.config.sha256)
        try:
            form = form_of(file)
            counts, bad, index, rows = self._scan(file, form)
        except FileError:
            file.unlink()  # another attempt must fetch it anew
            raise
        _check_counts(name, counts, sum(bad.values()), self.config.subset)
        file.replace(out / name)
        return {
            "file": name,
            "form": form,
            "rows": rows,
            "counts": {split: dict(zip(CLASS_NAMES, row, strict=True)) for split, row in counts.items()},
            "published": {split: dict(zip(CLASS_NAMES, row, strict=True)) for split, row in PUBLISHED.items()},
            "bad_rows": dict(sorted(bad.items())),
            "index": index,
        }

    def _scan(self, path: Path, form: str) -> tuple[dict[str, list[int]], Counter[str], list[list[int]], int]:
        """Reads every row once: counts, corrupt rows by kind, where each block begins, number of lines."""
        counts = {split: [0] * len(CLASS_NAMES) for split in PUBLISHED}
        bad: Counter[str] = Counter()
        examples: list[str] = []
        index: list[list[int]] = []
        rows = blank = 0
        with progress(None, f"check {path.name}", "row") as bar:
            for line, row in csv_rows(path) if form == "csv" else parquet_rows(path):
                if line.position % BLOCK_ROWS == 0:
                    index.append([line.position, line.number, line.offset])
                    bar.update(BLOCK_ROWS)
                rows = line.position + 1
                if isinstance(row, Row):
                    counts[row.split][row.label] += 1
                elif isinstance(row, RowError):
                    bad[row.kind] += 1
                    examples.append(f"{'line' if form == 'csv' else 'row'} {line.number}: {row.kind}: {row}")
                    del examples[_SHOWN_BAD_ROWS:]
                else:
                    blank += 1
        if rows == blank:
            raise FileError(f"{path.name}: a header and no rows: the file is truncated; fetch it again")
        if blank:
            log.info("%s: %d blank lines skipped", path.name, blank)
        self._judge_bad(path.name, bad, examples, rows - blank)
        return counts, bad, index, rows

    def _judge_bad(self, name: str, bad: Counter[str], examples: list[str], rows: int) -> None:
        if not bad:
            return
        total = sum(bad.values())
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(bad.items()))
        listing = "\n  ".join([*examples, *(["..."] if total > len(examples) else [])])
        report = f"{name}: {total} of {rows} rows are corrupt ({kinds}):\n  {listing}"
        if total > self.config.max_bad_fraction * rows:
            raise FileError(
                f"{report}\nThat is more than max_bad_fraction = {self.config.max_bad_fraction:g} of the rows: fetch "
                "the file again, or raise datasets.<name>.max_bad_fraction in params.yaml to leave these rows out"
            )
        log.warning("%s\nThey are left out.", report)

    def blocks(self, raw: Path) -> list[Block]:
        """Runs of rows, from the index that `download` made."""
        body = read_json(raw / "source.json")
        starts = [Line(*entry) for entry in body["index"]]
        stops = [*(line.position for line in starts[1:]), body["rows"]]
        return [
            Block(index=number, file=body["file"], start=line.position, stop=stop, offset=line.offset, line=line.number)
            for number, (line, stop) in enumerate(zip(starts, stops, strict=True))
        ]

    def read(self, raw: Path, block: Block) -> Iterator[RawSample | Reject]:
        """Every row of a block: a sample of (48, 48) grey pixels, or a Reject."""
        path = raw / block.file
        lines: Iterator[tuple[Line, Row | RowError | None]]
        if block.offset:  # a csv: its first row stands behind the header
            lines = csv_rows(path, Line(block.start, block.line, block.offset), block.stop)
        else:
            lines = parquet_rows(path, block.start, block.stop)
        for line, row in lines:
            key = f"fer2013/{line.position:08d}"
            origin = f"{block.file}:{line.number}"
            if isinstance(row, RowError):
                yield Reject(sample_id=key, reason=f"row_{row.kind}", detail=str(row), origin=origin)
            elif row is not None:
                label = self._canonical[row.label]
                face = AnnotatedFace(box=(0.0, 0.0, SIDE, SIDE), landmarks=None, label=label, clean_label=label)
                yield RawSample(key=key, image=row.pixels, split=row.split, faces=(face,), is_crop=True, origin=origin)


def _check_counts(name: str, counts: Mapping[str, list[int]], bad: int, subset: bool) -> None:
    """FileError where the rows are not the published ones, but for corrupt rows that were left out."""
    missing = [want - have for split, row in PUBLISHED.items() for have, want in zip(counts[split], row, strict=True)]
    complete = min(missing) >= 0 and sum(missing) == bad
    lines = [f"  {'':<10} {'found':>7} {'published':>10}"]
    for split, row in PUBLISHED.items():
        lines.append(f"  {split:<10} {sum(counts[split]):>7} {sum(row):>10}")
        lines += [
            f"    {label:<10} {have:>5} {want:>10}"
            for label, have, want in zip(CLASS_NAMES, counts[split], row, strict=True)
            if have != want
        ]
    found = sum(map(sum, counts.values()))
    if complete:
        log.info("%s: %d rows, as published", name, found)
    elif subset:
        log.warning(
            "%s: a subset of FER2013, %d of 35887 rows; its figures are not comparable\n%s",
            name,
            found,
            "\n".join(lines),
        )
    else:
        raise FileError(
            f"{name}: not the rows that were published:\n" + "\n".join(lines) + "\nFetch the whole file, or set "
            "datasets.<name>.subset: true in params.yaml to work on this part of it"
        )


def _is_url(path: str) -> bool:
    return urlsplit(path).scheme in ("http", "https", "file")


def _file_name(path: str) -> str:
    name = Path(unquote(urlsplit(path).path) if _is_url(path) else path).name
    return name if name and name not in ("source.json", "..") else "fer2013.data"
