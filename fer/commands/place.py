"""Copies the code that came with a job into the project folder on shared storage: `python -m fer.commands.place DIR`.

Runs at the start of a job that was submitted with --upload, inside the copy of the project that Ray unpacked on the
head node. Data and results in DIR stay as they are; code files of an earlier upload that this one lacks are removed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fer import processes
from fer.console import log
from fer.io.files import read_json, write_atomic, write_json
from fer.params import project_root

LIST_NAME = ".fer-upload.json"


def place(source: Path, target: Path) -> int:
    """Makes `target` hold the files of `source`; returns how many were written.

    Raises:
        ValueError: `target` is neither empty, nor a project, nor absent; or its list of files names one outside it.
    """
    listing = target / LIST_NAME
    if target.is_dir() and any(target.iterdir()) and not listing.is_file():
        raise ValueError(f"{target}: holds files of no upload; name a separate folder for this project")
    files = sorted(
        path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file() and _is_code(path, source)
    )
    before = set(read_json(listing)) if listing.is_file() else set()
    if outside := [name for name in before if not (target / name).resolve().is_relative_to(target.resolve())]:
        raise ValueError(f"{listing}: names {outside[0]!r}, which lies outside {target}; remove or correct the list")
    # The list first: whatever a killed upload has written already is known to the next one.
    write_json(listing, sorted(before | set(files)))
    written = 0
    for name in files:
        data = (source / name).read_bytes()
        goal = target / name
        if not goal.is_file() or goal.read_bytes() != data:
            write_atomic(goal, data)
            written += 1
    for name in before - set(files):
        (target / name).unlink(missing_ok=True)
    write_json(listing, files)
    return written


def _is_code(path: Path, source: Path) -> bool:
    return "__pycache__" not in path.relative_to(source).parts


def _main() -> None:
    target = Path(sys.argv[1])
    written = place(project_root(), target)
    log.info("%s: %d code files updated", target, written)


if __name__ == "__main__":
    processes.run(_main)
