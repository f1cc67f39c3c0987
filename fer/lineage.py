"""Provenance of a result: the commit, the versions and the parameters, as they are recorded and shown."""

import csv
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from fer.environment import environment
from fer.io.files import FileError, read_object


def redact(text: str) -> str:
    """`text` without the credentials of any URI in it: scheme://user:password@host becomes scheme://***@host."""
    return re.sub(r"(?<=://)[^/@\s]+@", "***@", text)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested mapping as `{"recipe.schedule.kind": "cosine"}`; lists as JSON."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return flat


def lineage(root: Path) -> dict[str, str]:
    """Tags for the code behind a run: git commit, whether the tree was changed, DVC stage and experiment, versions."""
    tags: dict[str, str] = {}
    if commit := git_output(root, "rev-parse", "HEAD"):
        tags["mlflow.source.git.commit"] = tags["git.commit"] = commit
        tags["git.dirty"] = str(bool(git_output(root, "status", "--porcelain", "--untracked-files=no"))).lower()
    now = environment()
    for tag, value in (("dvc.stage", now.dvc_stage), ("dvc.exp_name", now.dvc_experiment)):
        if value:
            tags[tag] = value
    return tags | {"versions": ", ".join(f"{name} {version}" for name, version in versions().items())}


def training_facts(folder: Path, target: str = "") -> dict[str, Any]:
    """The facts of the run behind trained/<dataset>/<model>: train.json, and run.json beside it.

    In older projects train.json holds the facts of run.json too.

    Args:
        target: what DVC calls the stage that made it, for errors; "": train@<dataset>-<model>.
    """
    again = f"recreate it: {_again(folder, target)}"
    facts = read_object(folder / "train.json", {"data_digest": str, "recipe": dict}, again)
    return facts | read_object(run, {}, again) if (run := folder / "run.json").is_file() else facts


def training_history(folder: Path, target: str = "") -> dict[str, list[float]]:
    """The columns of history.csv in trained/<dataset>/<model>; empty where there is none. `target`: as above.

    Raises:
        FileError: it is not a table of numbers.
    """
    path = folder / "history.csv"
    if not path.is_file():
        return {}
    try:
        with open(path, encoding="utf-8", newline="") as handle:
            rows = list(csv.DictReader(handle, strict=True))
        return {key: [float(row[key]) for row in rows] for key in rows[0]} if rows else {}
    except (ValueError, TypeError, csv.Error) as error:
        raise FileError(f"{path}: not a table of numbers ({error}); recreate it: {_again(folder, target)}") from None


def _again(folder: Path, target: str) -> str:
    return f"dvc repro -sf {target or f'train@{folder.parent.name}-{folder.name}'}"


def versions() -> dict[str, str]:
    """Python and the packages that results depend on, as installed."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in (
        "fer", "torch", "ray", "numpy", "pyarrow", "albumentations", "opencv-python-headless", "pillow", "mlflow",
    ):  # fmt: skip
        found[package] = installed_version(package) or "not installed"
    return found


def installed_version(package: str) -> str | None:
    """The version of an installed package, None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def hardware() -> str:
    """Processor, cores and system of this machine, e.g. "AMD EPYC 7R13, 2 cores, Linux-6.1-x86_64"."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and (match := re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)):
        name = match[1].strip()
    return f"{name}, {os.cpu_count()} cores, {platform.platform()}"


def git_output(root: Path, *arguments: str) -> str | None:
    """Output of a git command; None outside a repository or without git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
