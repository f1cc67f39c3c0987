"""What a benchmark is, and what it gives."""

import argparse
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

MODULES = ("crop", "detect", "ingest", "invalidation", "models", "origin", "ray_cost", "reader", "remote", "train")
"""Modules of this package that register benchmarks."""

_PACKAGES = ("fer", "torch", "numpy", "pyarrow", "opencv-python-headless", "pillow", "albumentations", "ray")


@dataclass(frozen=True)
class Machine:
    """Where it was measured. Absolute figures mean little elsewhere, or on a machine that others use as well.

    Attributes:
        load: processes that wanted a core, averaged over the minute before.
    """

    processor: str
    cores: int
    memory_gib: float
    load: float
    system: str
    python: str

    @classmethod
    def here(cls) -> "Machine":
        """This machine, now."""
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return cls(
            processor=_processor(),
            cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            memory_gib=round(pages / 2**30, 1),
            load=round(os.getloadavg()[0], 2),
            system=platform.platform(),
            python=platform.python_version(),
        )


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


@dataclass(frozen=True)
class BenchResult:
    """A table of figures.

    Attributes:
        title: what was measured, in one line.
        rows: one mapping a line, all with the same keys in the same order; a key names its unit.
        notes: what to know to read the figures.
        settings: the options it ran with.
    """

    title: str
    rows: list[dict[str, Any]]
    notes: list[str]
    settings: dict[str, Any]
    machine: Machine = field(default_factory=Machine.here)
    versions: dict[str, str] = field(default_factory=_versions)

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
        m = self.machine
        where = f"{m.processor}, {m.cores} cores, load {m.load} at the end; Python {m.python}"
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


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _processor() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
