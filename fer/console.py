"""Console output: one plain line an event, and progress bars that appear only in a terminal."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from typing import Any, TextIO

from tqdm import tqdm

log = logging.getLogger("fer")


def require_range(option: str, value: int, least: int, most: int) -> None:
    """ValueError that names an option of a command whose value lies outside of a range."""
    if not least <= value <= most:
        raise ValueError(f"--{option} {value}: {least} to {most} is allowed")


class _LineFormatter(logging.Formatter):
    """The bare message for information; anything more severe is prefixed with its level."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            text = f"{record.levelname.lower()}: {text}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


class BarSafeHandler(logging.StreamHandler[Any]):
    """Writes above a running progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=self.stream)
        self.flush()


def set_up(level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Sends the `fer` logger to standard output, or to `stream`, once; other loggers keep their handlers."""
    log.setLevel(level)
    log.propagate = False
    log.handlers.clear()
    handler = BarSafeHandler(stream or sys.stdout)
    handler.setFormatter(_LineFormatter())
    log.addHandler(handler)


def print_json(value: Any) -> None:
    """A command's result for `--json`: one document on standard output; what is logged goes to standard error."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """`--json`, of commands that list or check something."""
    parser.add_argument("--json", action="store_true", help="print one JSON document instead, for programs")


def progress(total: int | None, label: str, unit: str = "it", initial: int = 0) -> tqdm[Any]:
    """A progress bar on standard error; hidden where that is not a terminal.

    Use as a context manager and call `.update(n)`.
    """
    hidden = not sys.stderr.isatty()
    return tqdm(total=total, desc=label, unit=unit, initial=initial, disable=hidden, leave=False, mininterval=0.5)
