"""The studies that `fer study` left, for the page: their tables and figures, and what is unfinished or damaged.

    reports/studies/<name>/results.json, table.md, *.svg   written when all runs of a study are done
    .work/study-<name>-<digest>/<cell>/            the runs, one by one, of finished and unfinished studies

Nothing is trained or computed again. Whoever wrote a file here, the page is made: what cannot be used is left out, and
reported.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from fer.io.files import FileError, read_json, read_object, sha256
from fer.params import Params
from fer.report.study_table import Line, StudyFile, read_study_file
from fer.studies.cell import PLAN

RESULTS = "results.json"
MOST_BYTES = 32 * 2**20
"""Of a results.json or a figure; thousands of runs stay far below."""
_NO_STUDY = re.compile(r"\..*|.*\.(md|ya?ml)", re.DOTALL)  # notes, and studies of one's own
_WORK = re.compile(r"study-(?P<name>.+)-[0-9a-f]{8}", re.DOTALL)
_CELL = re.compile(r"[0-9a-f]{20}")


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """A study whose table is written.

    Attributes:
        cells: runs in the table. planned: of its rows, seeds and folds.
        left_out: rows of the study that were not requested.
        figures: name and data URI of each.
        links: name and address, from reports/, of its files.
        digest: hex SHA-256 of results.json.
    """

    name: str
    file: StudyFile
    lines: tuple[Line, ...]
    cells: int
    planned: int
    left_out: tuple[str, ...]
    figures: tuple[tuple[str, str], ...]
    links: tuple[tuple[str, str], ...]
    digest: str


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """Runs of a study that are in no table: `done`, and `begun` but not finished, of `planned` where known."""

    name: str
    planned: int | None
    done: int
    begun: int


@dataclass(frozen=True, kw_only=True)
class Studies:
    """All of them; `problems`: what could not be used, and why, in words."""

    results: tuple[StudyResult, ...] = ()
    unfinished: tuple[Unfinished, ...] = ()
    problems: tuple[str, ...] = ()


def collect_studies(params: Params) -> Studies:
    """The contents of reports/studies/ and, of unfinished ones, of .work/; empty where there is nothing."""
    results: list[StudyResult] = []
    problems: list[str] = []
    in_tables: set[str] = set()
    for old in sorted((params.home / "studies").glob(f"*/{RESULTS}")):
        problems.append(f"{_shown(old.parent, params.home)}: of an earlier version; move it to reports/studies")
    for path in _entries(params.home / "reports" / "studies", params.home, problems):
        if _NO_STUDY.fullmatch(path.name):
            continue
        where = _shown(path, params.home)
        try:
            if not path.is_dir():
                raise FileError(f"{where}: not a folder of a study; move it elsewhere")
            if not (path / RESULTS).exists():
                raise FileError(f"{where}: no {RESULTS} in it, which `fer study` writes when all its runs are done")
            file = _read(path / RESULTS, where)
            results.append(_result(params, path, file, _figures(path, params.home, problems)))
        except (ValueError, OSError) as error:  # whatever is there must not cost the page
            problems.append(_one_line(error, params.home))
        else:
            in_tables |= {cell.key for cell in file.cells}
    unfinished = _unfinished(params.home, in_tables, problems)
    return Studies(results=tuple(results), unfinished=tuple(unfinished), problems=tuple(problems))


def _read(path: Path, where: str) -> StudyFile:
    if path.stat().st_size > MOST_BYTES:
        raise FileError(f"{path}: larger than {MOST_BYTES // 2**20} MiB, so not what `fer study` writes")
    return read_study_file(read_json(path), f"{where}/{RESULTS}")


def _result(params: Params, path: Path, file: StudyFile, figures: Sequence[tuple[str, str]]) -> StudyResult:
    chosen = file.options.chosen(file.study)
    there = [name for name in ("table.md", RESULTS) if (path / name).is_file()]
    return StudyResult(
        name=_shown(path, path.parent),
        file=file,
        lines=tuple(file.lines(params)),
        cells=len(file.cells),
        planned=sum(len(file.columns(row)) * len(file.options.seeds_of(row)) for row in chosen) * (file.folds or 1),
        left_out=tuple(row.row for row in file.study.rows if row not in chosen),
        figures=tuple(figures),
        links=tuple((name, f"studies/{quote(os.fsencode(path.name))}/{name}") for name in there),
        digest=sha256(path / RESULTS),
    )


def _figures(folder: Path, root: Path, problems: list[str]) -> list[tuple[str, str]]:
    """The figures, as they are in the page: as images, in which no script runs and no id clashes with another's."""
    found = []
    for path in sorted(folder.glob("*.svg")):
        try:
            if path.stat().st_size > MOST_BYTES:
                raise FileError(f"{path}: larger than {MOST_BYTES // 2**20} MiB")
            data = path.read_bytes()
            if b"<svg" not in data or not data.rstrip().endswith(b"</svg>"):
                raise FileError(f"{path}: not a whole SVG image")
        except (ValueError, OSError) as error:
            problems.append(_one_line(error, root))
        else:
            uri = "data:image/svg+xml;base64," + base64.b64encode(data).decode("ascii")
            found.append((_shown(path, folder).removesuffix(".svg"), uri))
    return found


def _unfinished(root: Path, in_tables: set[str], problems: list[str]) -> list[Unfinished]:
    """The studies with runs, done or begun, that are in no table."""
    found = []
    for work in _entries(root / ".work", root, problems):
        if not (match := _WORK.fullmatch(work.name)):
            continue
        cells = [cell for cell in _entries(work, root, problems) if _CELL.fullmatch(cell.name)]
        try:
            planned = _planned(work)
            cells = [cell for cell in cells if planned is None or cell.name in planned]
            done = {cell.name for cell in cells if (cell / "result.json").is_file()}
        except (ValueError, OSError) as error:
            problems.append(_one_line(error, root))
            continue
        begun = len(cells) - len(done)
        if begun or (planned or done) - in_tables:
            name, whole = _shown(Path(match["name"]), Path()), None if planned is None else len(planned)
            found.append(
                Unfinished(name=name, planned=whole, done=len(done if planned else done - in_tables), begun=begun)
            )
    return found


def _planned(work: Path) -> set[str] | None:
    """Keys of the cells of a study as it was last started; None where it does not say."""
    path = work / PLAN
    if not path.is_file():
        return None
    cells = read_object(path, {"cells": list}, "run the study again")["cells"]
    return {str(cell.get("key")) if isinstance(cell, dict) else "" for cell in cells}


def _entries(folder: Path, root: Path, problems: list[str]) -> list[Path]:
    """What a folder holds, in order of name; nothing where there is none."""
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        problems.append(_one_line(error, root))
        return []


def _shown(path: Path, root: Path) -> str:
    """A path for people; names need not be text."""
    return str(path.relative_to(root)).encode(errors="replace").decode()


def _one_line(error: Exception, root: Path) -> str:
    """What went wrong, with paths as from the project's folder."""
    if isinstance(error, OSError):
        text = f"{error.filename}: {error.strerror}"
    else:
        first, *more = str(error).splitlines()
        text = first[:400] + (f" (and {len(more)} more)" if more else "")
    return text.replace(f"{root}/", "").encode(errors="replace").decode()
