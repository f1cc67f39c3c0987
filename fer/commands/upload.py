"""The code of a project on its way to a cluster: packed here, and placed in a folder on shared storage there.

`python -m fer.commands.upload DIR` runs at the start of a job that was submitted with --upload, inside the copy of the
project that Ray unpacked on the head node. Data and results in DIR stay as they are, recipes in tuned/ that a search
wrote there too; code files of an earlier upload that this one lacks are removed.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from pathspec import GitIgnoreSpec

from fer import processes
from fer.console import log
from fer.io.files import read_json, sha256, write_atomic, write_json
from fer.params import project_root

LIST_NAME = ".fer-upload.json"
_LARGEST = 100 * 2**20
_TUNED = "tuned/"
# As .gitignore writes it. Data, results and caches, which belong on the shared storage; secrets; what only this machine
# can use; and what no job reads. A recipe in tuned/ may be one that params.yaml names.
_LEFT_OUT = GitIgnoreSpec.from_lines([
    "/data", "/downloads", "/trained", "/evaluated", "/explained", "/reports", "/reproductions", "/.work",
    "/.dvc/cache", "/.dvc/tmp", "/dvc.lock", "/dvc_plots", "/mlflow.db*", "/mlartifacts", "/mlruns",
    "/.venv", "/venv", "/.git", "/.gpu", "/bench", "/site", "/build", "/dist", "__pycache__", "*.pyc", "*.egg-info",
    ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis", ".coverage", "/soak.*",
    ".env", ".env.*", "*.env", "/.dvc/config.local",
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
        ValueError: `target` is neither empty, nor a project, nor absent; its list of files names one outside it; or a
            code file was changed there since it was uploaded.
    """
    listing = target / LIST_NAME
    if target.is_dir() and any(target.iterdir()) and not listing.is_file():
        raise ValueError(f"{target}: holds files of no upload; name a separate folder for this project")
    before = _uploaded(listing)
    data = {name: (source / name).read_bytes() for name in sorted(_code(source))}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in data.items()}
    there = {name: sha256(target / name) for name in before.keys() | data.keys() if (target / name).is_file()}
    own = {name for name, digest in there.items() if digest not in {*before.get(name, ()), digests.get(name)}}
    if changed := sorted(name for name in own & data.keys() if not name.startswith(_TUNED)):
        raise ValueError(
            f"{target / changed[0]}: was changed there, after its upload or without one; keep it elsewhere and remove "
            f"it there, then submit again{f' (so were {len(changed) - 1} more)' if changed[1:] else ''}"
        )
    for name in sorted(own):
        log.warning("%s: was changed there, and stays as it is", target / name)
    # The list first: whatever a killed upload has written already is known to the next one.
    ours = {name: [digest] for name, digest in digests.items()}
    write_json(listing, {name: before.get(name, []) + ours.get(name, []) for name in sorted(before | ours)})
    written = [name for name in data if there.get(name) != digests[name] and name not in own]
    for name in written:
        write_atomic(target / name, data[name])
    for name in before.keys() - data.keys() - own:
        (target / name).unlink(missing_ok=True)
    local = target / ".dvc" / "config.local"
    if not (target / ".git").exists() and not local.exists():  # DVC takes no folder that is not a repository else
        write_atomic(local, "[core]\n    no_scm = true\n")
    write_json(listing, ours)
    return len(written)


def _uploaded(listing: Path) -> dict[str, list[str]]:
    """Of each file that was uploaded, the digests it was uploaded with."""
    if not listing.is_file():
        return {}
    found, folder = read_json(listing), listing.parent
    if outside := [name for name in found if not (folder / name).resolve().is_relative_to(folder.resolve())]:
        raise ValueError(f"{listing}: names {outside[0]!r}, which lies outside {folder}; remove or correct the list")
    if isinstance(found, list):  # of an earlier version: names alone
        found = {name: [sha256(folder / name)] for name in found if (folder / name).is_file()}
    return {name: digests for name, digests in found.items() if not _LEFT_OUT.match_file(name)}


def _main() -> None:
    target = Path(sys.argv[1])
    written = place(project_root(), target)
    log.info("%s: %d code files updated", target, written)


if __name__ == "__main__":
    processes.run(_main)
