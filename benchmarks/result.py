"""The registry of benchmarks, and the table of results that each returns."""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from fer.lineage import hardware, versions

MODULES = (
    "crop", "detect", "explain", "ingest", "invalidation", "loop", "models", "origin", "predict", "ray_cost",
    "reader", "remote", "report", "scale", "scaling", "serve", "train",
)  # fmt: skip
"""Modules of this package that register benchmarks."""


@dataclass(frozen=True)
class BenchResult:
    """A table of results.

    Attributes:
        title: what was measured, in one line.
        rows: one mapping a line, all with the same keys in the same order; a key names its unit.
        notes: how to read the numbers.
        settings: the options it ran with.
        machine, load: where it was measured, and how many processes competed for a core in the minute before.
    """

    title: str
    rows: list[dict[str, Any]]
    notes: list[str]
    settings: dict[str, Any]
    machine: str = field(default_factory=hardware)
    load: float = field(default_factory=lambda: round(os.getloadavg()[0], 2))
    versions: dict[str, str] = field(default_factory=versions)

    def table(self) -> str:
        """As text for people."""
        columns = list(self.rows[0])
        cells = [columns, *([_text(row[column]) for column in columns] for row in self.rows)]
        widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
        number = [isinstance(self.rows[0][column], int | float) for column in columns]
        lines = [
            "  ".join(
                cell.rjust(width) if right else cell.ljust(width)
                for cell, width, right in zip(line, widths, number, strict=True)
            ).rstrip()
            for line in cells
        ]
        where = f"{self.machine}, load {self.load} at the end; Python {self.versions['python']}"
        return "\n".join([self.title, where, "", *lines, "", *(f"- {note}" for note in self.notes)])


@dataclass(frozen=True)
class Entry:
    """A registered benchmark."""

    help: str
    run: Callable[[argparse.Namespace], BenchResult]
    add_arguments: Callable[[argparse.ArgumentParser], None]


REGISTRY: dict[str, Entry] = {}


def benchmark(
    name: str, *, help: str, arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None
) -> Callable[[Callable[[argparse.Namespace], BenchResult]], Callable[[argparse.Namespace], BenchResult]]:
    """Decorator: makes `run(args) -> BenchResult` the command `fer bench <name>`.

    Args:
        name: of the command; a name taken already is a ValueError.
        help: what it measures, in one line.
        arguments: adds its options to a parser.
    """

    def register(run: Callable[[argparse.Namespace], BenchResult]) -> Callable[[argparse.Namespace], BenchResult]:
        if name in REGISTRY:
            raise ValueError(f"benchmark {name!r} is registered already, by {REGISTRY[name].run.__module__}")
        REGISTRY[name] = Entry(help, run, arguments)
        return run

    return register


def load_all() -> None:
    """Imports the modules that register benchmarks; they import what they measure only when run."""
    for module in MODULES:
        import_module(f"benchmarks.{module}")


def options(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """The named options, for `BenchResult.settings`."""
    return {name: getattr(args, name) for name in names}


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
