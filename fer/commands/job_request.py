"""What a job is: its name, where it works, the line that starts it, and what is sent with it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from fer import params as parameters
from fer.cluster.jobs import FINAL
from fer.console import log
from fer.environment import environment

Stage = Literal["download", "crop", "shard", "train", "evaluate", "repro"]

# What is never sent: data, results and caches, which belong on the shared storage, and what only this machine can use.
EXCLUDES = (
    "/data", "/downloads", "/trained", "/evaluated", "/reports", "/.work", "/.dvc/cache", "/.dvc/tmp", "/mlflow.db*",
    "/mlartifacts", "/mlruns", "/.venv", "/venv", "/.git", "__pycache__", "*.pyc", "*.egg-info",
    "/bench", "/build", "/dist", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis",
    ".env", "/.dvc/config.local",
)  # fmt: skip
COMMAND, PARAMS, FOLDER = "fer.command", "fer.params_sha256", "fer.project_dir"  # metadata of a job
_PREPARATION = "FER_JOB_PREPARATION"  # a variable of its environment


def job_name(stage: str, arguments: Sequence[str]) -> str:
    """The stable part of a job's id, e.g. "fer-train-fer2013-ddamfn-": the same for the same arguments."""
    words = [word for word in arguments if not word.startswith("--")]
    return "-".join(["fer", stage, *(re.sub(r"[^A-Za-z0-9_.]+", "_", word) for word in words)]) + "-"


def project_folder(root: Path, project_dir: str | None, upload: bool) -> str:
    """The folder that the job works in, as every node sees it.

    Args:
        root: the project's folder here.
        project_dir: the same as the nodes see it; None: under the same path.

    Raises:
        ValueError: an upload without a place for it, or a place that is not absolute.
    """
    if upload and project_dir is None:
        raise ValueError("--upload needs --project-dir DIR: a folder on storage that every node of the cluster sees")
    if project_dir is not None and not PurePosixPath(project_dir).is_absolute():
        raise ValueError(f"--project-dir {project_dir}: give the absolute path that the cluster's nodes see")
    return project_dir.rstrip("/") or "/" if project_dir else str(root.resolve())


def stage_command(stage: Stage, arguments: Sequence[str], python: str) -> list[str]:
    """What the job runs, word by word."""
    if stage == "repro":
        return [python, "-m", "dvc", "repro", *arguments]
    return [python, "-m", f"pipelines.{stage}", *arguments]


def entrypoint(command: Sequence[str], folder: str) -> str:
    """A line for the shell of the head node, which Ray writes at the head of the job's log: the folder, the command.

    `exec` matters, here and in `preparation`: the stage must be the job's own process, so that its signals and exit
    code are the job's.

    Args:
        command: of the stage.
        folder: of the project, on the cluster.
    """
    return f'exec sh -c "${_PREPARATION}" {shlex.join([folder, *command])}'


def preparation(digest: str, upload: bool) -> str:
    """The shell's script of that line: into the folder, $0, make sure it is the right one, become the command, $@.

    Args:
        digest: SHA-256 of the params.yaml that was validated here.
        upload: copy the code that came with the job into the folder first.
    """
    name = parameters.FILE_NAME

    def fail(text: str) -> str:
        return f"{{ printf 'error: %s{text}\\n' \"$0\" >&2; exit 1; }}"

    missing = fail(
        ": the head node sees no such folder; name the shared one: --project-dir DIR, add --upload to fill it"
    )
    other = fail(
        f"/{name}: not the one this job was submitted with; add --upload, or submit from a copy of that folder"
    )
    place = '"$1" -m fer.commands.place "$0" || exit 1; ' if upload else ""
    return (
        f"{place}"
        f'cd "$0" 2>/dev/null || {missing}; '
        f"echo '{digest}  {name}' | sha256sum --check --status 2>/dev/null || {other}; "
        'exec "$@"'
    )


def runtime_environment(root: Path, folder: str, digest: str, upload: bool, tracking_uri: str | None) -> dict[str, Any]:
    """Ray's `runtime_env` of the job: variables of the environment and, for an upload, the code that is sent."""
    env_vars = {_PREPARATION: preparation(digest, upload)}
    if not upload:  # a copy that is sent is on every worker's path by itself
        env_vars["PYTHONPATH"] = folder
    if environment().debug:
        env_vars["FER_DEBUG"] = "1"
    if tracking_uri and "@" in tracking_uri:
        log.warning(
            "the MLflow address holds a password and is not passed on; set MLFLOW_TRACKING_URI, "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD on the cluster"
        )
    elif tracking_uri and tracking_uri.startswith(("http://", "https://")):
        env_vars["MLFLOW_TRACKING_URI"] = tracking_uri
    return {"env_vars": env_vars} | ({"working_dir": str(root), "excludes": list(EXCLUDES)} if upload else {})


def running_job(jobs: Sequence[Any], name: str, metadata: Mapping[str, str]) -> str | None:
    """The id of the same job where it is still running.

    Args:
        jobs: Ray's details of the jobs whose id begins with `name`.
        metadata: of the requested job.

    Raises:
        ValueError: a job of this name is running with something else.
    """
    for job in jobs:
        if job.status in FINAL or (job.metadata or {}).get("name") != name:
            continue
        if all((job.metadata or {}).get(key) == value for key, value in metadata.items()):
            return str(job.submission_id)
        raise ValueError(
            f"job {job.submission_id} is running with other parameters or in another folder "
            f"({(job.metadata or {}).get(FOLDER)}); wait for it, or stop it: ray job stop {job.submission_id}"
        )
    return None


def free_id(name: str, jobs: Sequence[Any]) -> str:
    """The next id that begins with `name`: the number of its kind on this cluster."""
    taken = [str(job.submission_id) for job in jobs]
    numbers = [int(one[len(name) :]) for one in taken if one[len(name) :].isdigit()]
    return f"{name}{max(numbers, default=0) + 1}"
