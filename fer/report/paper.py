"""The page of a paper: reports/<paper>.html, each table and figure with what was printed and what we have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fer.report.html import environment
from fer.report.studies import StudyResult


@dataclass(frozen=True, kw_only=True)
class Section:
    """A table or figure of the paper.

    Attributes:
        lines: its printed numbers, each with ours: row, dataset, setting, metric, printed, unit, ours, low, high,
            seeds, verdict, scale, checked, differs.
        studies: that fill it, those of an earlier section by `above` alone: name -> title of that section.
        missing: what stops the runs that are not there.
        omitted: why nothing fills it; None where something does.
    """

    name: str
    title: str
    lines: Sequence[Mapping[str, Any]]
    studies: Sequence[StudyResult]
    above: Mapping[str, str]
    missing: Sequence[str]
    omitted: str | None

    @property
    def state(self) -> str:
        """In a few words, for the list of contents."""
        if self.omitted:
            return f"not reproduced: {self.omitted}"
        ours = sum(bool(line["ours"]) for line in self.lines)
        found = [f"{ours} of {len(self.lines)} printed numbers have ours"] if self.lines else []
        rows = sum(len(study.lines) for study in self.studies)
        found += [f"{rows} row{'' if rows == 1 else 's'} trained"] if rows else []
        found += [f"as {where}" for where in dict.fromkeys(self.above.values())]
        return "; ".join(found or ["not run"])


def render(paper: str, title: str, note: str | None, sections: Sequence[Section], *, smoke: bool) -> str:
    """The page; a function of its content alone.

    Args:
        paper: its name in `fer reproduce`.
    """
    return environment("fer.report").get_template("paper.html").render(
        paper=paper, title=title, note=note, sections=sections, smoke=smoke
    )  # fmt: skip
