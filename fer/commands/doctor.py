"""`fer doctor`: whether this machine and its services are ready. One line a finding, with its remedy."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import socket
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal
from urllib.error import HTTPError
from urllib.request import urlopen

from fer import params as parameters
from fer import processes
from fer.console import add_json_option, print_json
from fer.environment import environment
from fer.lineage import git_output, installed_version, redact
from fer.params import Params
from fer.tracking.config import store_uri
from fer.tracking.health import STALE_HOURS, stale_runs

Level = Literal["ok", "warn", "fail"]

OLDEST = {
    "torch": (2, 9),
    "ray": (2, 60),
    "mlflow": (3, 10),
    "dvc": (3, 60),
    "albumentations": (2, 0, 8),
    "pyarrow": (20,),
}
RAY, MLFLOW = "Ray's dashboard", "MLflow's UI"
PORTS = {8265: RAY, 5000: MLFLOW}
_LEAST_GB, _COMFORTABLE_GB = 2.0, 10.0
_PROBE_SECONDS = 3.0


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        level: fail keeps the pipeline from running; warn may.
        what: the thing that was checked.
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
    """How the findings are printed."""
    add_json_option(parser)


def main(args: argparse.Namespace) -> int:
    """Prints all findings; 1 where one of them is a fail."""
    loaded: Params | None = None
    try:
        loaded = parameters.load()
        first = Finding("ok", parameters.FILE_NAME, f"valid ({loaded.root})")
    except ValueError as error:
        first = Finding("fail", parameters.FILE_NAME, str(error), "correct it; `fer check` validates it again")
    findings = [first, *check(loaded)]
    if args.json:
        print_json([asdict(finding) for finding in findings])
    else:
        print("\n".join(map(str, findings)))
    return int(any(finding.level == "fail" for finding in findings))


def check(params: Params | None) -> list[Finding]:
    """Runs all checks; those that depend on params.yaml are left out where there is none."""
    checks: list[Callable[[], Iterator[Finding]]] = [
        check_versions,
        check_dashboard_packages,
        check_token,
        lambda: check_ports(PORTS),
        check_shared_memory,
    ]
    if params is not None:
        checks += [
            lambda: check_processors(params),
            lambda: check_inputs(params),
            lambda: check_disk(params.root),
            lambda: check_tracking(params),
            lambda: check_repository(params.root),
        ]
    return [finding for one in checks for finding in one()]


# ------------------------------------------------------------------------------------------------ software


def check_versions() -> Iterator[Finding]:
    """Python and the packages, against the oldest supported versions."""
    yield Finding("ok", "python", ".".join(map(str, sys.version_info[:3])))  # an older one cannot even import this
    for package, oldest in OLDEST.items():
        required, version = ".".join(map(str, oldest)), installed_version(package)
        if version is None:
            yield Finding("fail", package, "not installed", "pip install -e . in this project")
        elif tuple(map(int, re.findall(r"\d+", version.partition("+")[0])[:3])) < oldest:
            remedy = f"pip install '{package}>={required}'"
            yield Finding("fail", package, f"{version}, at least {required} is needed", remedy)
        else:
            yield Finding("ok", package, version)


def check_dashboard_packages() -> Iterator[Finding]:
    """The packages of ray[default]: jobs and searches need them, and Ray starts without a warning when they lack."""
    if installed_version("ray") is None:
        return
    lines = metadata.requires("ray") or []
    names = {re.split(r"[^A-Za-z0-9_.-]", line)[0] for line in lines if re.search(r"extra == ['\"]default['\"]", line)}
    missing = sorted(name for name in names if installed_version(name) is None)
    if missing:
        yield Finding("fail", "ray[default]", f"missing: {', '.join(missing)}", "pip install 'ray[default]'")
    else:
        yield Finding("ok", "ray[default]", "dashboard and jobs can run")


def check_token() -> Iterator[Finding]:
    """Whether a connection to a cluster that requires a token would carry one."""
    from fer.cluster.health import authentication

    now, address = authentication(), environment().ray_address
    if now.required and not now.token:
        remedy = "set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file that holds it"
        yield Finding("fail" if address else "warn", "Ray token", "RAY_AUTH_MODE=token, and there is none", remedy)
    elif now.token and not now.required and address:
        remedy = "set RAY_AUTH_MODE=token for a cluster that requires it"
        yield Finding("warn", "Ray token", "there is one, and it would not be sent", remedy)
    elif address and not now.required:
        yield Finding("ok", "Ray token", "none; right for a cluster without authentication")
    else:
        yield Finding("ok", "Ray token", "set" if now.required else "not needed: local clusters create their own")


# ------------------------------------------------------------------------------------------------ machine


def check_ports(ports: dict[int, str]) -> Iterator[Finding]:
    """What listens on the ports of the dashboard and of MLflow's UI."""
    for port, purpose in ports.items():
        service = listening_service(port)
        if service is None:
            yield Finding("ok", f"port {port}", f"free, for {purpose}")
        elif service.startswith(purpose):
            yield Finding("ok", f"port {port}", f"taken by {service}")
        else:
            remedy = "Ray takes the next free port by itself; the printed address counts"
            remedy = "fer ui --port N" if purpose == MLFLOW else remedy
            yield Finding("warn", f"port {port}", f"taken by {service}; it is meant for {purpose}", remedy)


def listening_service(port: int) -> str | None:
    """The service on this machine's port, with its process where the system names it; None where nothing listens."""
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex(("127.0.0.1", port)) != 0:
            return None
    name = "another service"
    for path, sign, service in (("/health", "OK", MLFLOW), ("/api/version", "ray_version", RAY)):
        try:
            with urlopen(f"http://127.0.0.1:{port}{path}", timeout=_PROBE_SECONDS) as response:
                if response.status == 200 and sign in response.read(200).decode("utf-8", "replace"):
                    name = service
                    break
        except HTTPError as error:
            if error.code in (401, 403) and service == RAY and b"token" in error.read().lower():
                name = f"{RAY}, which requires a token"
        except (OSError, ValueError):
            continue
    process = _process_on(port)
    return f"{name} ({process})" if process else name


def _process_on(port: int) -> str | None:
    """`name, process 123` of the process that listens there; None where the system does not say."""
    sockets = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = [line.split() for line in Path(table).read_text().splitlines()[1:]]
        except OSError:
            continue
        sockets |= {
            f"socket:[{row[9]}]" for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port
        }
    for link in Path("/proc").glob("[0-9]*/fd/*") if sockets else ():
        with suppress(OSError):  # another user's process, or a file or process that was just closed
            if str(link.readlink()) in sockets:
                return f"{(link.parents[1] / 'comm').read_text().strip()}, process {link.parts[2]}"
    return None


def check_shared_memory() -> Iterator[Finding]:
    """/dev/shm, where Ray keeps its objects."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return
    free = shutil.disk_usage(folder).free / 2**30
    if free < 1:
        remedy = "in Docker: --shm-size=2g; else free some"
        yield Finding("warn", "shared memory", f"{free:.1f} GiB free in {folder}", remedy)
    else:
        yield Finding("ok", "shared memory", f"{free:.1f} GiB free")


def check_processors(params: Params) -> Iterator[Finding]:
    """CPU threads that the process may use, against what training requests of a local cluster."""
    import torch

    own = processes.cpus()
    configs = [params.train_of(model) for model in params.run_models]
    # Of the model that asks for the most.
    train = max(configs, key=lambda one: max(1, one.fewest_workers) * one.threads)
    demand, gpu = max(1, train.fewest_workers) * train.threads, any(one.gpu for one in configs)
    remote = environment().ray_address or params.cluster.address
    found = f"{own} CPU threads, train asks for {train.workers} workers of {train.threads}"
    if remote:
        yield Finding("ok", "processors", f"{found}, on the cluster at {redact(remote)}")
    elif train.most_workers and demand > (params.cluster.cpus or own):
        remedy = f"lower train.workers or train.threads, or set cluster.cpus to {demand} to share"
        yield Finding("fail", "processors", found, remedy)
    else:
        yield Finding("ok", "processors", found)
    if torch.cuda.is_available():
        unused = "" if gpu else "; unused: train.gpu is false"
        yield Finding("ok", "GPU", torch.cuda.get_device_name(0) + unused)
    elif gpu and not remote:
        remedy = "set train.gpu: false, or install torch for your GPU"
        yield Finding("fail", "GPU", "train.gpu is true, torch finds none", remedy)


def check_inputs(params: Params) -> Iterator[Finding]:
    """What the runs read of this machine: datasets that are not downloaded yet, detectors, weights to start from."""
    from fer.faces.weights import PUBLISHED
    from fer.sources.origin import missing_paths
    from fer.weights.registry import missing_weights

    missing = False
    for key in params.run.datasets:
        raw = params.root / "data" / "raw" / key
        for path in () if raw.is_dir() else missing_paths(params.dataset(key), params.root):
            missing = True
            yield Finding("fail", f"datasets.{key}", f"{path} is not there", "correct its path in params.yaml")
    detectors = {params.crop_of(key).detector for key in params.run.datasets} - {"annotated"}
    sources = {source for key in params.run_models for source in params.recipe(key).sources.values()}
    for problem in missing_weights(sorted({PUBLISHED[one] for one in detectors} | sources), params.root):
        missing = True
        what, _, remedy = problem.partition(": ")
        yield Finding("fail", what, "not there", remedy)
    if not missing:
        yield Finding("ok", "inputs", "data, detectors and weights of the runs are there")


def check_disk(root: Path) -> Iterator[Finding]:
    """Free space where data, checkpoints and the DVC cache are stored."""
    free = shutil.disk_usage(root).free / 1e9
    if free < _LEAST_GB:
        remedy = "free some; `dvc gc --workspace` removes unused cache"
        yield Finding("fail", "disk", f"{free:.1f} GB free in {root}", remedy)
    elif free < _COMFORTABLE_GB:
        remedy = "enough for the embedded data; real data need more"
        yield Finding("warn", "disk", f"{free:.1f} GB free in {root}", remedy)
    else:
        yield Finding("ok", "disk", f"{free:.0f} GB free")
    if not os.access(root, os.W_OK):
        yield Finding("fail", "disk", f"{root} cannot be written", "change its permissions, or work in a copy")


# ------------------------------------------------------------------------------------------------ services


def check_tracking(params: Params) -> Iterator[Finding]:
    """Whether MLflow's store responds, and whether runs were abandoned."""
    uri = store_uri(params.tracking, params.home)
    try:
        stale = stale_runs(uri)
    except (OSError, ValueError, sqlite3.Error) as error:
        remedy = "start it, or correct MLFLOW_TRACKING_URI or tracking.uri; without it, runs are not recorded"
        if isinstance(error, HTTPError) and error.code in (401, 403):
            remedy = (
                "401: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; "
                "403: name this address in the server's --allowed-hosts"
            )
        found = f"{redact(uri)} does not answer: {redact(str(getattr(error, 'reason', None) or error))}"
        yield Finding("fail" if params.tracking.required else "warn", "MLflow", found, remedy)
        return
    yield Finding("ok", "MLflow", redact(uri))
    if stale:
        names = ", ".join(stale[:5]) + (f" and {len(stale) - 5} more" if len(stale) > 5 else "")
        yield Finding(
            "warn",
            "MLflow runs",
            f"RUNNING, with nothing logged for {STALE_HOURS:.0f} hours: {names}",
            "run the same command again: it resumes and ends its run; or delete them in MLflow's UI",
        )


def check_repository(root: Path) -> Iterator[Finding]:
    """Git and DVC, as the pipeline needs them."""
    if git_output(root, "rev-parse", "HEAD") is None:
        found, remedy = f"{root} is in no git repository with a commit", "git init, then commit; runs name their commit"
        yield Finding("warn", "git", found, remedy)
    else:
        changed = len((git_output(root, "status", "--porcelain") or "").splitlines())
        yield Finding("ok", "git", f"{changed} files not committed" if changed else "all committed")
    if not (root / ".dvc").is_dir():
        yield Finding("fail", "dvc", f"{root} has no .dvc folder", "dvc init")
        return
    locks = (path for path in (root / ".dvc" / "tmp").glob("rwlock*") if path.is_file())
    holders = [pid for path in locks for pid in re.findall(r'"pid":\s*(\d+)', path.read_text("utf-8", "replace"))]
    if alive := [pid for pid in holders if Path(f"/proc/{pid}").exists()]:
        remedy = "wait for it; two `dvc repro` at once refuse each other"
        yield Finding("warn", "dvc", f"in use by process {alive[0]}", remedy)
    else:
        yield Finding("ok", "dvc", "ready")
