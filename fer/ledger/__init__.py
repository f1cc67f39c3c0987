"""The ledger: one line for every number that the five papers print, with what can be said about it here and now.

    book = build(params)
    [line for line in book.lines if line.outcome.verdict == "differs"]
    book.findings   # what is wrong in print, each with its arithmetic

`map.yaml` says which rule checks which number; `rules` has them, `results` finds our own runs, `printed` says what a
number says by itself, and `audit` checks the papers against themselves. Nothing is trained: settings are compared with
recipes and models, costs are counted on models without weights, differences and means are computed again from their
tables, and accuracies are those of runs that exist.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from fer import published
from fer.ledger.audit import Finding, findings
from fer.ledger.checks import apply
from fer.ledger.results import commands, measured
from fer.ledger.rules import Outcome, Verdict, load_map, rule_of
from fer.params import Params

VERDICTS: tuple[Verdict, ...] = ("equal", "differs", "measured", "not run", "cited", "not reproducible")
"""equal, differs: ours against the printed number. measured: a run of another size or dataset, beside which the printed
number says little. cited: a number of somebody else's work, or a fact about data that nobody here can count."""


@dataclass(frozen=True)
class Line:
    """A printed number, what became of it, the command that would run what is not run, and the findings about it."""

    number: published.Number
    outcome: Outcome
    command: str
    findings: tuple[str, ...]


@dataclass(frozen=True)
class Book:
    """The whole ledger."""

    lines: tuple[Line, ...]
    findings: tuple[Finding, ...]

    def counts(self, work: str | None = None) -> dict[str, int]:
        """Lines by verdict, of one work or all."""
        found = Counter(line.outcome.verdict for line in self.lines if work in (None, line.number.work))
        return {verdict: found[verdict] for verdict in VERDICTS}


def build(params: Params, papers: Collection[str] = published.PAPERS) -> Book:
    """The ledger with the results that the project has; `params` says what its datasets are.

    Args:
        papers: whose numbers.

    Raises:
        ValueError: a printed number that no rule of `map.yaml` checks.
    """
    rules, runs, how = load_map(), measured(params), commands()
    audited = findings()
    lines = []
    for number in published.numbers():
        if number.work not in papers:
            continue
        outcome = apply(number, rule_of(number, rules), runs)
        command = how(number) if outcome.verdict in ("not run", "measured") else ""
        lines.append(Line(number, outcome, command, tuple(one.name for one in audited if number in one.numbers)))
    return Book(tuple(lines), tuple(audited))
