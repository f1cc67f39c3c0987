"""`fer doctor`: is this machine ready, and are its services? One line a finding, with what to do about it."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import urllib.error
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from fer import params as parameters
from fer.config import ConfigError
from fer.environment import environment
from fer.lineage import redact
from fer.params import Params
from fer.tracking.health import MLFLOW, PORTS, STALE_HOURS, stale_runs, who_listens

Level = Literal["ok", "warn", "fail"]

OLDEST = {
    "torch": (2, 9),
    "ray": (2, 60),
    "mlflow": (3, 10),
    "dvc": (3, 60),
    "albumentations": (2, 0, 8),
    "pyarrow": (20,),
}
_LEAST_GB, _COMFORTABLE_GB = 2.0, 10.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: fail keeps the pipeline from running; warn may.
        what: the thing.
        found: its state.
        remedy: what to do; empty where all is well.
    """

    level: Level
    what: str
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"{self.level:<5} {self.what}: {self.found}"
        return f"{line}\n      -> {self.remedy}" if self.remedy else line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments."""


def main(args: argparse.Namespace) -> int:
    """Prints all findings; 1 where one of them is a fail."""
    loaded: Params | None = None
    try:
        loaded = parameters.load()
        first = Finding("ok", parameters.FILE_NAME, f"valid ({loaded.root})")
    except ConfigError as error:
        first = Finding("fail", parameters.FILE_NAME, str(error), "correct it; `fer check` looks at it again")
    findings = [first, *check(loaded)]
    for finding in findings:
        print(finding)
    return int(any(finding.level == "fail" for finding in findings))


def check(params: Params | None) -> list[Finding]:
    """Looks at everything; what depends on params.yaml is left out where there is none."""
    looks: list[Callable[[], Iterator[Finding]]] = [
        check_versions,
        check_dashboard_packages,
        check_token,
        lambda: check_ports(PORTS),
        check_shared_memory,
    ]
    if params is not None:
        looks += [
            lambda: check_processors(params),
            lambda: check_disk(params.root),
            lambda: check_tracking(params),
            lambda: check_repository(params.root),
        ]
    return [finding for look in looks for finding in look()]


# ------------------------------------------------------------------------------------------------ software


def check_versions() -> Iterator[Finding]:
    """Python and the packages, against the oldest that are supported."""
    yield Finding("ok", "python", ".".join(map(str, sys.version_info[:3])))  # an older one cannot even import this
    for package, oldest in OLDEST.items():
        wanted = ".".join(map(str, oldest))
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            yield Finding("fail", package, "not installed", "pip install -e . in this project")
            continue
        if _numbers(version) < oldest:
            yield Finding(
                "fail", package, f"{version}, at least {wanted} is needed", f"pip install '{package}>={wanted}'"
            )
        else:
            yield Finding("ok", package, version)


def check_dashboard_packages() -> Iterator[Finding]:
    """What ray[default] brings: jobs and searches need it, and Ray starts without a word when it is missing."""
    try:
        wanted = metadata.requires("ray") or []
    except metadata.PackageNotFoundError:
        return
    names = {re.split(r"[^A-Za-z0-9_.-]", line)[0] for line in wanted if re.search(r"extra == ['\"]default['\"]", line)}
    missing = sorted(name for name in names if not _installed(name))
    if missing:
        yield Finding("fail", "ray[default]", f"missing: {', '.join(missing)}", "pip install 'ray[default]'")
    else:
        yield Finding("ok", "ray[default]", "dashboard and jobs can run")


def check_token() -> Iterator[Finding]:
    """Whether a connection to a cluster that asks for a token would carry one."""
    from fer.cluster.health import authentication

    now = authentication()
    address = environment().ray_address
    if now.wanted and not now.token:
        yield Finding(
            "fail" if address else "warn",
            "Ray token",
            "RAY_AUTH_MODE=token, and there is none",
            "set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file that holds it",
        )
    elif now.token and not now.wanted and address:
        yield Finding(
            "warn",
            "Ray token",
            "there is one, and it would not be sent",
            "set RAY_AUTH_MODE=token for a cluster that asks for it",
        )
    elif address and not now.wanted:
        yield Finding("ok", "Ray token", "none; right for a cluster without authentication")
    else:
        yield Finding("ok", "Ray token", "set" if now.wanted else "not needed: local clusters make their own")


# ------------------------------------------------------------------------------------------------ machine


def check_ports(ports: dict[int, str]) -> Iterator[Finding]:
    """Who listens where the dashboard and MLflow's pages would."""
    for port, purpose in ports.items():
        holder = who_listens(port)
        if holder is None:
            yield Finding("ok", f"port {port}", f"free, for {purpose}")
        elif holder.startswith(purpose):
            yield Finding("ok", f"port {port}", f"taken by {holder}")
        else:
            remedy = (
                "fer ui --port N"
                if purpose == MLFLOW
                else "Ray takes the next free port by itself; the printed address counts"
            )
            yield Finding("warn", f"port {port}", f"taken by {holder}; it is meant for {purpose}", remedy)


def check_shared_memory() -> Iterator[Finding]:
    """/dev/shm, where Ray keeps its objects."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return
    free = shutil.disk_usage(folder).free / 2**30
    if free < 1:
        yield Finding(
            "warn", "shared memory", f"{free:.1f} GiB free in {folder}", "in Docker: --shm-size=2g; else free some"
        )
    else:
        yield Finding("ok", "shared memory", f"{free:.1f} GiB free")


def check_processors(params: Params) -> Iterator[Finding]:
    """Threads that the process may use, against what a training asks of a local cluster."""
    import torch

    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    have = params.cluster.cpus or own
    asked = max(1, params.train.workers) * params.train.threads
    remote = environment().ray_address or params.cluster.address
    where = f"{own} CPU threads, train asks for {params.train.workers} workers of {params.train.threads}"
    if remote:
        yield Finding("ok", "processors", f"{where}, on the cluster at {redact(remote)}")
    elif params.train.workers and asked > have:
        yield Finding(
            "fail",
            "processors",
            where,
            f"lower train.workers or train.threads, or set cluster.cpus to {asked} to share",
        )
    else:
        yield Finding("ok", "processors", where)
    if params.train.gpu and not remote and not torch.cuda.is_available():
        yield Finding(
            "fail", "GPU", "train.gpu is true, torch finds none", "set train.gpu: false, or install torch for your GPU"
        )
    elif torch.cuda.is_available():
        yield Finding(
            "ok", "GPU", torch.cuda.get_device_name(0) + ("" if params.train.gpu else "; unused: train.gpu is false")
        )


def check_disk(root: Path) -> Iterator[Finding]:
    """Free space where data, checkpoints and the DVC cache go."""
    free = shutil.disk_usage(root).free / 1e9
    if free < _LEAST_GB:
        yield Finding(
            "fail", "disk", f"{free:.1f} GB free in {root}", "free some; `dvc gc --workspace` removes unused cache"
        )
    elif free < _COMFORTABLE_GB:
        yield Finding(
            "warn", "disk", f"{free:.1f} GB free in {root}", "enough for the embedded data; real data need more"
        )
    else:
        yield Finding("ok", "disk", f"{free:.0f} GB free")
    if not os.access(root, os.W_OK):
        yield Finding("fail", "disk", f"{root} cannot be written", "change its permissions, or work in a copy")


# ------------------------------------------------------------------------------------------------ services


def check_tracking(params: Params) -> Iterator[Finding]:
    """Whether MLflow's store answers, and runs that nobody ended."""
    from fer.tracking import store_uri

    uri = store_uri(params.tracking, params.home)
    level: Level = "fail" if params.tracking.required else "warn"
    try:
        stale = stale_runs(uri)
    except (OSError, ValueError, sqlite3.Error) as error:
        reason = getattr(error, "reason", None) or error
        remedy = "start it, or correct MLFLOW_TRACKING_URI or tracking.uri; without it, runs are not recorded"
        if isinstance(error, urllib.error.HTTPError) and error.code in (401, 403):
            remedy = (
                "401: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; "
                "403: name this address in the server's --allowed-hosts"
            )
        yield Finding(level, "MLflow", f"{redact(uri)} does not answer: {redact(str(reason))}", remedy)
        return
    yield Finding("ok", "MLflow", redact(uri))
    if stale:
        names = ", ".join(stale[:5]) + (f" and {len(stale) - 5} more" if len(stale) > 5 else "")
        yield Finding(
            "warn",
            "MLflow runs",
            f"RUNNING without a sign of life for {STALE_HOURS:.0f} hours: {names}",
            "run the same training again: it goes on and ends its run; or delete them in MLflow's pages",
        )


def check_repository(root: Path) -> Iterator[Finding]:
    """Git and DVC, as the pipeline needs them."""
    if _output(["git", "-C", str(root), "rev-parse", "HEAD"]) is None:
        yield Finding(
            "warn",
            "git",
            f"{root} is in no git repository with a commit",
            "git init, then commit; runs name their commit",
        )
    else:
        changed = _output(["git", "-C", str(root), "status", "--porcelain"]) or ""
        lines = len(changed.splitlines())
        yield Finding("ok", "git", f"{lines} files not committed" if lines else "all committed")
    if not (root / ".dvc").is_dir():
        yield Finding("fail", "dvc", f"{root} has no .dvc folder", "dvc init")
        return
    locks = [path for path in (root / ".dvc" / "tmp").glob("rwlock*") if path.is_file() and path.stat().st_size > 2]
    if locks and (holders := _lock_holders(locks[0])):
        alive = [pid for pid in holders if Path(f"/proc/{pid}").exists()]
        if alive:
            yield Finding(
                "warn", "dvc", f"in use by process {alive[0]}", "wait for it; two `dvc repro` at once refuse each other"
            )
            return
    yield Finding("ok", "dvc", "ready")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _lock_holders(path: Path) -> set[int]:
    return {int(number) for number in re.findall(r'"pid":\s*(\d+)', path.read_text(encoding="utf-8"))}
