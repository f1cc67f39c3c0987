"""The code of a project on its way to a cluster: packed here, and placed in a folder on shared storage there.

`python -m fer.commands.upload DIR` runs at the start of a job that was submitted with --upload, inside the copy of the
project that Ray unpacked on the head node. Data and results in DIR stay as they are; code files of an earlier upload
that this one lacks are removed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from pathspec import GitIgnoreSpec

from fer import processes
from fer.console import log
from fer.io.files import read_json, write_atomic, write_json
from fer.params import project_root

LIST_NAME = ".fer-upload.json"
_LARGEST = 100 * 2**20
# As .gitignore writes it. Data, results and caches, which belong on the shared storage; what only this machine can use;
# and what no job reads. A recipe in tuned/ may be one that params.yaml names.
_LEFT_OUT = GitIgnoreSpec.from_lines([
    "/data", "/downloads", "/trained", "/evaluated", "/explained", "/reports", "/reproductions", "/.work",
    "/.dvc/cache", "/.dvc/tmp", "/dvc_plots", "/mlflow.db*", "/mlartifacts", "/mlruns",
    "/.venv", "/venv", "/.git", "/.gpu", "/bench", "/site", "/build", "/dist", "__pycache__", "*.pyc", "*.egg-info",
    ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis", ".coverage", "/soak.*", ".env", "/.dvc/config.local",
    "/docs", "/tests", "/benchmarks", "/infra", "/fer/inference/shipped/*.safetensors",
])  # fmt: skip


def pack(root: Path, package: Path) -> Path:
    """Writes the code of a project to a zip file, of which Ray sends equal ones once; returns its path.

    Raises:
        ValueError: it has more than 100 MiB, so that it is no code.
    """
    size = 0
    with ZipFile(package, "w") as archive:
        for name in sorted(_code(root)):
            size += (root / name).stat().st_size
            if size > _LARGEST:
                raise ValueError(
                    f"{root / name}: with it the upload has more than {_LARGEST >> 20} MiB, which is not code alone; "
                    "data belong in data/ or outside of the project, and are never sent"
                )
            entry = ZipInfo(name)  # without a date
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, (root / name).read_bytes(), ZIP_DEFLATED)
    return package


def _code(root: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(root, followlinks=True):
        here = Path(folder).relative_to(root)
        folders[:] = [name for name in folders if not _LEFT_OUT.match_file(f"{here / name}/")]
        yield from (path for path in (str(here / name) for name in files) if not _LEFT_OUT.match_file(path))


def place(source: Path, target: Path) -> int:
    """Makes `target` hold the files of `source`; returns how many were written.

    Raises:
        ValueError: `target` is neither empty, nor a project, nor absent; or its list of files names one outside it.
    """
    listing = target / LIST_NAME
    if target.is_dir() and any(target.iterdir()) and not listing.is_file():
        raise ValueError(f"{target}: holds files of no upload; name a separate folder for this project")
    files = sorted(_code(source))
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


def _main() -> None:
    target = Path(sys.argv[1])
    written = place(project_root(), target)
    log.info("%s: %d code files updated", target, written)


if __name__ == "__main__":
    processes.run(_main)
