"""The ledger for people and for spreadsheets: reports/ledger.html and ledger.csv."""

from __future__ import annotations

import csv
import io
from itertools import groupby
from pathlib import Path
from typing import Any

from fer.evaluation.aggregate import markdown_table
from fer.ledger import VERDICTS, Book, Line
from fer.published import PAPERS, WORKS
from fer.report.html import environment

COLUMNS = (
    "work", "table", "row", "dataset", "setting", "metric", "printed", "unit",
    "verdict", "ours", "low", "high", "seeds", "scale", "checked", "differs", "command", "findings",
)  # fmt: skip


def values(line: Line) -> dict[str, Any]:
    """One line by the names of COLUMNS; empty where there is nothing."""
    number, outcome = line.number, line.outcome
    found = {
        **{name: getattr(number, name) for name in COLUMNS[:8]},
        **{name: getattr(outcome, name) for name in ("verdict", "ours", "seeds", "scale", "differs")},
        "low": None if outcome.low is None else f"{outcome.low:.2f}",
        "high": None if outcome.high is None else f"{outcome.high:.2f}",
        "checked": outcome.how,
        "command": line.command,
        "findings": "; ".join(line.findings),
    }
    return {name: "" if found[name] is None else found[name] for name in COLUMNS}


def to_csv(book: Book) -> str:
    """The lines, with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(values, book.lines))
    return text.getvalue()


def is_ledger(path: Path) -> bool:
    """Whether a file holds a ledger, which may be written again."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.readline().decode(errors="replace").strip() == ",".join(COLUMNS)


def to_html(book: Book) -> str:
    """The page: counts, findings, and the lines of each table; one file that needs nothing else."""
    tables = {
        work: [
            (table, [values(line) for line in lines])
            for table, lines in groupby(
                (line for line in book.lines if line.number.work == work), key=lambda line: line.number.table
            )
        ]
        for work in PAPERS
    }
    return (
        environment("fer.ledger")
        .get_template("ledger.html")
        .render(
            book=book,
            tables=tables,
            verdicts=VERDICTS,
            works=WORKS,
        )
    )


def counted(book: Book) -> list[str]:
    """Lines of a table: the verdicts of each work."""
    lines = [f"{'':<20}" + "".join(f"{verdict:>18}" for verdict in VERDICTS) + f"{'lines':>8}"]
    for work in (*PAPERS, None):
        counts = book.counts(work)
        name = WORKS[work] if work else "all"
        lines.append(
            f"{name:<20}" + "".join(f"{counts[verdict]:>18}" for verdict in VERDICTS) + f"{sum(counts.values()):>8}"
        )
    return lines


def findings_table(book: Book) -> list[str]:
    """The findings as a table in Markdown."""
    return markdown_table(["what", "arithmetic"], ([one.title, one.arithmetic] for one in book.findings))
