"""`fer submit`: one stage as a job on a Ray cluster, its log here, its own exit code at the end.

Where a job works. Ray would run it in a copy of the code in a session folder of one node, where no data lies, no other
node looks and nothing lasts. So a job here always works in a *project folder that every node sees under one path*:

- by default this very folder (the cluster runs on this machine, or both mount the same storage): outputs land where DVC
  looks for them;
- `--project-dir DIR` where the cluster mounts it under another path;
- `--project-dir DIR --upload` where it is not there yet: the code, never data or results, is sent along and laid into
  DIR.

The folder's params.yaml must be the one that was validated here; the job checks that before it starts.

The same command while its job is running follows that job and starts no second one.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from fer import params as parameters
from fer import processes
from fer.console import log
from fer.files import sha256
from fer.transfer import public_url

Stage = Literal["download", "crop", "shard", "train", "evaluate", "repro"]

# What never travels: data, results and caches, which belong on the shared storage, and what only this machine can use.
EXCLUDES = (
    "/data", "/trained", "/evaluated", "/reports", "/.work", "/.dvc/cache", "/.dvc/tmp", "/mlflow.db*", "/mlartifacts",
    "/mlruns", "/.venv", "/venv", "/.git", "__pycache__", "*.pyc", "*.egg-info",
    "/bench", "/build", "/dist", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis",
    ".env", "/.dvc/config.local",
)  # fmt: skip
STOP_SECONDS = 40.0
_FINAL = ("SUCCEEDED", "FAILED", "STOPPED")
_PER_MODEL = ("train", "evaluate")
_COMMAND, _PARAMS, _FOLDER = "fer.command", "fer.params_sha256", "fer.project_dir"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The stage, what it works on, and where."""
    parser.add_argument(
        "stage", choices=get_args(Stage), help="the stage; repro: `dvc repro`, the whole pipeline in one job"
    )
    parser.add_argument("--dataset", metavar="NAME", help=f"a key of `datasets` in {parameters.FILE_NAME}")
    parser.add_argument(
        "--model", metavar="NAME", help=f"a key of `models` in {parameters.FILE_NAME} (train, evaluate)"
    )
    parser.add_argument(
        "--address",
        metavar="URL",
        help="the cluster's dashboard, http://HEAD:8265 (default: RAY_ADDRESS, then cluster.address)",
    )
    parser.add_argument(
        "--project-dir",
        metavar="DIR",
        help="this project's folder as every node of the cluster sees it (default: as seen here)",
    )
    parser.add_argument("--upload", action="store_true", help="lay this code into --project-dir first")
    parser.add_argument(
        "--detach", action="store_true", help="submit and return; the job goes on without this terminal"
    )
    parser.add_argument("--python", default="python", metavar="PATH", help="Python on the cluster (default: python)")


def main(args: argparse.Namespace) -> int:
    """Validates the request against params.yaml, then submits. Returns the job's exit code."""
    loaded = parameters.load()
    arguments: list[str] = []
    if args.stage == "repro":
        if args.dataset or args.model:
            raise ValueError("submit repro: runs what params.yaml names under `run`; takes no --dataset and no --model")
    else:
        if not args.dataset:
            raise ValueError(f"submit {args.stage}: --dataset is missing; known: {', '.join(loaded.datasets)}")
        loaded.dataset(args.dataset)
        arguments += ["--dataset", args.dataset]
        if args.stage in _PER_MODEL:
            if not args.model:
                raise ValueError(f"submit {args.stage}: --model is missing; known: {', '.join(loaded.recipes)}")
            loaded.recipe(args.model)
            arguments += ["--model", args.model]
        elif args.model:
            raise ValueError(f"submit {args.stage}: this stage is for all models; leave --model out")
    uri = parameters.environment().mlflow_tracking_uri or loaded.tracking.uri
    return submit(
        args.stage,
        arguments,
        args.address or _configured_address(loaded.cluster.address),
        root=loaded.root,
        project_dir=args.project_dir,
        upload=args.upload,
        detach=args.detach,
        python=args.python,
        tracking_uri=uri,
    )


def submit(
    stage: Stage,
    arguments: Sequence[str],
    address: str | None,
    *,
    root: Path,
    project_dir: str | None = None,
    upload: bool = False,
    detach: bool = False,
    python: str = "python",
    tracking_uri: str | None = None,
) -> int:
    """Runs `python -m pipelines.<stage> <arguments>` as a Ray job.

    Args:
        address: of the cluster's dashboard (http://HEAD:8265) or of Ray itself (host:6379, ray://host:10001); None
            leaves it to RAY_API_SERVER_ADDRESS, RAY_ADDRESS or a cluster on this machine.
        root: the project's folder here.
        project_dir: the same as the nodes see it; absolute.
        upload: lay the code into `project_dir` first.
        detach: return 0 as soon as the job is accepted.
        tracking_uri: MLflow's address for the job; not passed on when it holds a password, which a job's description
            would show to everyone.

    Returns:
        The exit code of the stage itself; 128 + n when signal n ended it; 143 when the job was stopped from elsewhere.

    Raises:
        ValueError: the cluster cannot be reached, refuses the token, or runs another job of this name.
        Interrupted, KeyboardInterrupt: stopped here, after the job was stopped too.
    """
    folder = _folder(root, project_dir, upload)
    command = _command(stage, arguments, python)
    digest = sha256(root / parameters.FILE_NAME)
    client = _connect(address)
    name = job_name(stage, arguments)
    metadata = {"name": name, _COMMAND: " ".join(command), _PARAMS: digest, _FOLDER: folder}
    jobs = [job for job in _ask(client.list_jobs) if str(job.submission_id or "").startswith(name)]
    submission = _running(jobs, name, metadata)
    if submission is None:
        submission = _ask(
            client.submit_job,
            entrypoint=_entrypoint(command, folder, digest, python, upload),
            submission_id=_free_id(name, [str(job.submission_id) for job in jobs]),
            runtime_env=_runtime_env(root, folder, upload, tracking_uri),
            metadata=metadata,
        )
        log.info("job %s: submitted to %s, works in %s", submission, public_url(client.get_address()), folder)
    else:
        log.info("job %s: already running with the same parameters; following it", submission)
    if detach:
        log.info(
            "follow it: the same command without --detach; stop it: ray job stop --address %s %s",
            client.get_address(),
            submission,
        )
        return 0
    try:
        code = _follow(client, submission)
    except (KeyboardInterrupt, processes.Interrupted):
        _stop(client, submission)
        raise
    if code == 0 and Path(folder) == root.resolve() and stage != "repro":
        target = "-".join([arguments[index + 1] for index, word in enumerate(arguments) if word.startswith("--")])
        log.info("let DVC take the outputs: dvc commit --force %s@%s", stage, target)
    return code


def job_name(stage: str, arguments: Sequence[str]) -> str:
    """The stable part of a job's id: the same stage of the same dataset and model has the same."""
    words = [word for word in arguments if not word.startswith("--")]
    return "-".join(["fer", stage, *(re.sub(r"[^A-Za-z0-9_.]+", "_", word) for word in words)]) + "-"


def _configured_address(address: str | None) -> str | None:
    # Ray's own variables win over params.yaml; None lets Ray read them.
    return None if parameters.environment().ray_address or address == "auto" else address


def _folder(root: Path, project_dir: str | None, upload: bool) -> str:
    if upload and project_dir is None:
        raise ValueError("--upload needs --project-dir DIR: a folder on storage that every node of the cluster sees")
    if project_dir is not None and not PurePosixPath(project_dir).is_absolute():
        raise ValueError(f"--project-dir {project_dir}: give the absolute path that the cluster's nodes see")
    return project_dir.rstrip("/") or "/" if project_dir else str(root.resolve())


def _command(stage: Stage, arguments: Sequence[str], python: str) -> list[str]:
    if stage == "repro":
        return [python, "-m", "dvc", "repro", *arguments]
    return [python, "-m", f"pipelines.{stage}", *arguments]


def _entrypoint(command: Sequence[str], folder: str, digest: str, python: str, upload: bool) -> str:
    """A line for the shell of the head node: into the folder, make sure it is the right one, become the stage.

    `exec` matters: the stage must be the job's own process, so that its signals and exit code are the job's.
    """
    place = f"{shlex.quote(python)} -m fer.cluster.place {shlex.quote(folder)} && " if upload else ""
    here = shlex.quote(folder)
    name = parameters.FILE_NAME

    def fail(text: str) -> str:
        return f"{{ echo error: {shlex.quote(text)} >&2; exit 1; }}"

    missing = fail(
        f"{folder}: the head node sees no such folder; name the shared one: --project-dir DIR, add --upload to fill it"
    )
    other = fail(
        f"{folder}/{name}: not the one this job was submitted with; add --upload, or submit from a copy of that folder"
    )
    return (
        f"{place}cd {here} 2>/dev/null || {missing}; "
        f"echo '{digest}  {name}' | sha256sum --check --status 2>/dev/null || {other}; "
        f"exec {shlex.join(command)}"
    )


def _runtime_env(root: Path, folder: str, upload: bool, tracking_uri: str | None) -> dict[str, Any]:
    env_vars = {} if upload else {"PYTHONPATH": folder}  # an uploaded copy is on every worker's path by itself
    if parameters.environment().debug:
        env_vars["FER_DEBUG"] = "1"
    if tracking_uri and "@" in tracking_uri:
        log.warning(
            "the MLflow address holds a password and is not passed on; set MLFLOW_TRACKING_URI, "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD on the cluster"
        )
    elif tracking_uri and tracking_uri.startswith(("http://", "https://")):
        env_vars["MLFLOW_TRACKING_URI"] = tracking_uri
    return {"env_vars": env_vars} | ({"working_dir": str(root), "excludes": list(EXCLUDES)} if upload else {})


def _running(jobs: Sequence[Any], name: str, metadata: Mapping[str, str]) -> str | None:
    """The id of the same job where it is still running; ValueError where it runs with something else."""
    for job in jobs:
        if job.status in _FINAL or (job.metadata or {}).get("name") != name:
            continue
        if all((job.metadata or {}).get(key) == value for key, value in metadata.items()):
            return str(job.submission_id)
        raise ValueError(
            f"job {job.submission_id} is running with other parameters or in another folder "
            f"({(job.metadata or {}).get(_FOLDER)}); wait for it, or stop it: ray job stop {job.submission_id}"
        )
    return None


def _free_id(name: str, taken: Sequence[str]) -> str:
    numbers = [int(one[len(name) :]) for one in taken if one[len(name) :].isdigit()]
    return f"{name}{max(numbers, default=0) + 1}"


# ------------------------------------------------------------------------------------------------ the cluster


def _connect(address: str | None) -> Any:
    processes.quiet_libraries()
    if address is not None:
        # Ray lets RAY_ADDRESS overrule the argument, and this variable overrule that: what was asked for wins.
        processes.set_environment("RAY_API_SERVER_ADDRESS", address)
    # A tuned recipe that params.yaml names is made by the pipeline, so git ignores it; the job needs it.
    processes.set_environment("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "1")
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)  # it tells of its sockets
    return _ask(JobSubmissionClient, address, shown=address)


def _ask(call: Any, *args: Any, shown: str | None = None, **options: Any) -> Any:
    """One request to the cluster; what goes wrong there becomes a ValueError that says what to set."""
    from ray.exceptions import AuthenticationError

    where = public_url(shown) if shown else "the Ray cluster"
    try:
        return call(*args, **options)
    except AuthenticationError as error:
        if "cannot be opened" in str(error):
            raise ValueError("RAY_AUTH_TOKEN_PATH names a file that cannot be read or is empty") from None
        if "nvalid" in str(error):
            raise ValueError(
                f"{where} refuses the token. Set RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH, a file that holds it) to the "
                "token that the cluster was started with; on its head `ray get-auth-token` prints it"
            ) from None
        raise ValueError(
            f"{where} asks for a token and none was sent. Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or "
            "RAY_AUTH_TOKEN_PATH, a file that holds it); on the cluster's head `ray get-auth-token` prints it"
        ) from None
    except ConnectionError as error:
        raise ValueError(
            f"{where} does not answer ({error}). Give the dashboard's address with --address http://HEAD:8265 or "
            "RAY_ADDRESS; the head must run `ray start --head --dashboard-host 0.0.0.0` with the ray[default] packages"
        ) from None
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"{where}: {error}") from None


def _follow(client: Any, submission: str) -> int:
    """Copies the job's log to standard output until the job ends; its exit code."""
    copy = _LogCopy(client, submission)
    while True:
        try:
            asyncio.run(copy.run())
        except (OSError, RuntimeError) as error:
            log.warning("the log of job %s broke off (%s); taking it up again", submission, error)
            time.sleep(2)
        info = _ask(client.get_job_info, submission)
        if info.status in _FINAL:
            return _exit_code(info, submission)
        time.sleep(0.2)


class _LogCopy:
    """Writes each character of a job's log once, although every connection begins with the first one."""

    def __init__(self, client: Any, submission: str) -> None:
        self._client = client
        self._submission = submission
        self._written = 0

    async def run(self) -> None:
        """One connection, until the job ends or the connection breaks."""
        seen = 0
        async for chunk in self._client.tail_job_logs(self._submission):
            if seen + len(chunk) > self._written:
                sys.stdout.write(chunk[max(0, self._written - seen) :])
                sys.stdout.flush()
            seen += len(chunk)
            self._written = max(self._written, seen)


def _exit_code(info: Any, submission: str) -> int:
    # Ray's own command line turns every failure into 1; the code of the process itself stands in the job's details.
    code = info.driver_exit_code
    if info.status == "STOPPED":
        log.warning("job %s: stopped", submission)
        return 143
    if code is None:
        log.error("job %s: did not start: %s", submission, info.message)
        return 1
    code = int(code) if code >= 0 else 128 - int(code)
    if code:
        log.error("job %s: failed with exit code %d", submission, code)
    else:
        log.info("job %s: done", submission)
    return code


def _stop(client: Any, submission: str) -> None:
    log.warning("stopping job %s", submission)
    deadline = time.monotonic() + STOP_SECONDS
    while True:
        _ask(client.stop_job, submission)  # again and again: one that has not started yet does not hear it
        for _ in range(5):
            if _ask(client.get_job_info, submission).status in _FINAL:
                log.warning("job %s: stopped; nothing half-written was left under an output's name", submission)
                return
            time.sleep(0.2)
        if time.monotonic() > deadline:
            log.error("job %s: not stopped after %.0f s; look at the cluster's dashboard", submission, STOP_SECONDS)
            return
