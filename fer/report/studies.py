"""The studies that `fer study` left, for the page: their tables and figures, and what is unfinished or not whole.

    studies/<name>/results.json, table.md, *.svg   written when all trainings of a study are done
    .work/study-<name>-<digest>/<cell>/            the trainings, one by one, of finished and unfinished studies

Nothing is trained or measured anew. Whoever wrote a file here, the page is made: what cannot be used is left out, and
that is told.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from pydantic import ConfigDict

from fer.config import Config, parse
from fer.io.files import FileError, read_json, sha256
from fer.params import Params
from fer.report.study_table import Line, StudyFile, read_study_file
from fer.studies.cell import PLAN

RESULTS = "results.json"
MOST_BYTES = 32 * 2**20
"""Of a results.json or a figure; thousands of trainings stay far below."""
_NO_STUDY = re.compile(r"\..*|.*\.(md|ya?ml)", re.DOTALL)  # notes, and studies of one's own
_WORK = re.compile(r"study-(?P<name>.+)-[0-9a-f]{8}", re.DOTALL)
_CELL = re.compile(r"[0-9a-f]{20}")


class _PlannedCell(Config):
    model_config = ConfigDict(extra="ignore")

    key: str


class _Plan(Config):
    """plan.json, as far as the page needs it."""

    model_config = ConfigDict(extra="ignore")

    cells: list[_PlannedCell]


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """A study whose table is written.

    Attributes:
        cells: trainings in the table. planned: of its rows, seeds and folds.
        left_out: rows of the study that were not asked for.
        pictures: name and data URI of each figure.
        links: name and address, from reports/, of its files.
        digest: hex SHA-256 of results.json.
    """

    name: str
    file: StudyFile
    lines: tuple[Line, ...]
    cells: int
    planned: int
    left_out: tuple[str, ...]
    pictures: tuple[tuple[str, str], ...]
    links: tuple[tuple[str, str], ...]
    digest: str


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """Trainings of a study that stand in no table: `done`, and `begun` but not finished, of `planned` where known."""

    name: str
    planned: int | None
    done: int
    begun: int


@dataclass(frozen=True, kw_only=True)
class Studies:
    """All of them; `troubles`: what could not be used, and why, in words."""

    results: tuple[StudyResult, ...] = ()
    unfinished: tuple[Unfinished, ...] = ()
    troubles: tuple[str, ...] = ()


def collect_studies(params: Params) -> Studies:
    """What stands in studies/ and, of unfinished ones, in .work/; empty where there is nothing."""
    results: list[StudyResult] = []
    troubles: list[str] = []
    told: set[str] = set()
    for path in _entries(params.home / "studies", params.home, troubles):
        if _NO_STUDY.fullmatch(path.name):
            continue
        where = _shown(path, params.home)
        try:
            if not path.is_dir():
                raise FileError(f"{where}: no folder of a study; move it elsewhere")
            if not (path / RESULTS).exists():
                raise FileError(
                    f"{where}: no {RESULTS} in it, which `fer study` writes when all its trainings are done"
                )
            file = _read(path / RESULTS, where)
            results.append(_result(params, path, file, _pictures(path, params.home, troubles)))
        except (ValueError, OSError) as error:  # whatever stands there must not cost the page
            troubles.append(_one_line(error, params.home))
        else:
            told |= {cell.key for cell in file.cells}
    unfinished = _unfinished(params.home, told, troubles)
    return Studies(results=tuple(results), unfinished=tuple(unfinished), troubles=tuple(troubles))


def _read(path: Path, where: str) -> StudyFile:
    if path.stat().st_size > MOST_BYTES:
        raise FileError(f"{path}: larger than {MOST_BYTES // 2**20} MiB, so not what `fer study` writes")
    return read_study_file(read_json(path), f"{where}/{RESULTS}")


def _result(params: Params, path: Path, file: StudyFile, pictures: Sequence[tuple[str, str]]) -> StudyResult:
    chosen = file.options.chosen(file.study)
    there = [name for name in ("table.md", RESULTS) if (path / name).is_file()]
    return StudyResult(
        name=_shown(path, path.parent),
        file=file,
        lines=tuple(file.lines(params)),
        cells=len(file.cells),
        planned=len(chosen) * len(file.options.seeds) * (file.folds or 1),
        left_out=tuple(row.row for row in file.study.rows if row not in chosen),
        pictures=tuple(pictures),
        links=tuple((name, f"../studies/{quote(os.fsencode(path.name))}/{name}") for name in there),
        digest=sha256(path / RESULTS),
    )


def _pictures(folder: Path, root: Path, troubles: list[str]) -> list[tuple[str, str]]:
    """The figures, as they stand in the page: as pictures, in which no script runs and no id meets another's."""
    found = []
    for path in sorted(folder.glob("*.svg")):
        try:
            if path.stat().st_size > MOST_BYTES:
                raise FileError(f"{path}: larger than {MOST_BYTES // 2**20} MiB")
            data = path.read_bytes()
            if b"<svg" not in data or not data.rstrip().endswith(b"</svg>"):
                raise FileError(f"{path}: no whole SVG picture")
        except (ValueError, OSError) as error:
            troubles.append(_one_line(error, root))
        else:
            uri = "data:image/svg+xml;base64," + base64.b64encode(data).decode("ascii")
            found.append((_shown(path, folder).removesuffix(".svg"), uri))
    return found


def _unfinished(root: Path, told: set[str], troubles: list[str]) -> list[Unfinished]:
    """The studies with trainings, done or begun, that no table tells of."""
    found = []
    for work in _entries(root / ".work", root, troubles):
        if not (match := _WORK.fullmatch(work.name)):
            continue
        cells = [cell for cell in _entries(work, root, troubles) if _CELL.fullmatch(cell.name)]
        try:
            planned = _planned(work)
            cells = [cell for cell in cells if planned is None or cell.name in planned]
            done = {cell.name for cell in cells if (cell / "result.json").is_file()}
        except (ValueError, OSError) as error:
            troubles.append(_one_line(error, root))
            continue
        begun = len(cells) - len(done)
        if begun or (planned or done) - told:
            name, whole = _shown(Path(match["name"]), Path()), None if planned is None else len(planned)
            found.append(Unfinished(name=name, planned=whole, done=len(done if planned else done - told), begun=begun))
    return found


def _planned(work: Path) -> set[str] | None:
    """Keys of the cells of a study as it was last started; None where it does not say."""
    if not (work / PLAN).is_file():
        return None
    return {cell.key for cell in parse(_Plan, read_json(work / PLAN), str(work / PLAN)).cells}


def _entries(folder: Path, root: Path, troubles: list[str]) -> list[Path]:
    """What a folder holds, in order of name; nothing where there is none."""
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        troubles.append(_one_line(error, root))
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
