"""`fer submit`: one stage, search, study or paper as a job on a Ray cluster: its log here, its exit code at the end.

Ray would run a job in a copy of the code in a session folder of one node, without data, unseen by other nodes and
removed later. So a job here always works in a *project folder that every node sees under one path*:

- by default this very folder (the cluster runs on this machine, or both mount the same storage), where DVC finds the
  outputs;
- `--project-dir DIR` where the cluster mounts it under another path;
- `--project-dir DIR --upload` where it is not there yet: the code, never data or results, is uploaded into DIR.

The folder's params.yaml must be the one that was validated here; the job checks that before it starts.

The same command while its job is running follows that job and starts no second one.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

from fer import params as parameters
from fer import processes
from fer.cluster.jobs import FINAL, JobServer
from fer.commands.upload import pack
from fer.console import log
from fer.environment import environment
from fer.io.files import sha256

Stage = Literal["download", "crop", "shard", "train", "evaluate", "explain", "repro", "tune", "study", "reproduce"]
COMMANDS = {"tune": "fer.stages.tune", "study": "fer.stages.study", "reproduce": "fer.commands.reproduce"}
"""What runs as `fer <name>`, with all of its own options, and no DVC stage."""

COMMAND, PARAMS, FOLDER = "fer.command", "fer.params_sha256", "fer.project_dir"  # metadata of a job
_PREPARATION = "FER_JOB_PREPARATION"  # a variable of its environment
_PER_MODEL = ("train", "evaluate", "explain")


class _Late(argparse.ArgumentParser):
    """The options of one stage, made when it is chosen; `words` are those that the stage itself gets."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        stage, ours = self.prog.split()[-1], argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        _add_options(ours)
        if stage in COMMANDS:
            import_module(COMMANDS[stage]).add_arguments(self)
        elif stage != "repro":
            self.add_argument("--dataset", metavar="NAME", help=f"a key of `datasets` in {parameters.FILE_NAME}")
        if stage in _PER_MODEL:
            self.add_argument("--model", metavar="NAME", help=f"a key of `models` in {parameters.FILE_NAME}")
        found, unknown = super().parse_known_args(args, namespace)
        found.words = ours.parse_known_args(args)[1]
        return found, unknown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where it runs, and what with which options."""
    _add_options(parser)
    kind = type("StageParser", (_Late, type(parser)), {})
    stages: Any = parser.add_subparsers(dest="stage", metavar="STAGE", required=True, parser_class=kind)
    for name in get_args(Stage):
        about = f"`fer {name}`" if name in COMMANDS else "the stage" if name != "repro" else "`dvc repro`, all stages"
        _add_options(stages.add_parser(name, help=about, description=f"{about}, as a job"), argparse.SUPPRESS)


def _add_options(parser: argparse.ArgumentParser, default: Any = None) -> None:
    parser.add_argument(
        "--address",
        default=default,
        metavar="URL",
        help="the cluster's dashboard, http://HEAD:8265 (default: RAY_ADDRESS, then cluster.address)",
    )
    parser.add_argument(
        "--project-dir",
        default=default,
        metavar="DIR",
        help="this project's folder as every node of the cluster sees it (default: as seen here)",
    )
    for name, about in (("upload", "copy this code into --project-dir first"), ("detach", "submit and return")):
        parser.add_argument(f"--{name}", action="store_true", default=default, help=about)
    parser.add_argument("--python", default=default, metavar="PATH", help="Python on the cluster (default: python)")


def main(args: argparse.Namespace) -> int:
    """Validates the request against params.yaml, then submits. Returns the job's exit code."""
    loaded = parameters.load()
    _check(loaded, args)
    return submit(
        args.stage,
        args.words,
        args.address or _configured_address(loaded.cluster.address),
        root=loaded.root,
        project_dir=args.project_dir,
        upload=bool(args.upload),
        detach=bool(args.detach),
        python=args.python or "python",
        target="" if args.stage in COMMANDS or args.stage == "repro" else _target(loaded, args),
        tracking_uri=environment().mlflow_tracking_uri or loaded.tracking.uri,
    )


def _check(loaded: parameters.Params, args: argparse.Namespace) -> None:
    """ValueError for what the job itself would refuse, minutes later."""
    from fer.presets import load_preset
    from fer.studies import load_study

    if args.stage in ("study", "reproduce"):
        if (name := args.name if args.stage == "study" else args.paper) is None:
            raise ValueError(f"submit {args.stage}: the name is missing; `fer {args.stage}` lists what there is")
        load_study(name, loaded.root) if args.stage == "study" else load_preset(name)
    elif args.stage != "repro":
        sections = {"dataset": (loaded.datasets, loaded.dataset), "model": (loaded.recipes, loaded.recipe)}
        for key, (known, check) in sections.items():
            if hasattr(args, key):
                if getattr(args, key) is None:
                    raise ValueError(f"submit {args.stage}: --{key} is missing; known: {', '.join(known)}")
                check(getattr(args, key))


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
    target: str = "",
    tracking_uri: str | None = None,
) -> int:
    """Runs a stage, or another command of `Stage`, with these arguments as a Ray job.

    Args:
        address: of the cluster's dashboard (http://HEAD:8265) or of Ray itself (host:6379, ray://host:10001); None
            leaves it to RAY_API_SERVER_ADDRESS, RAY_ADDRESS or a cluster on this machine.
        root: the project's folder here.
        project_dir: the same as the nodes see it; absolute.
        upload: copy the code into `project_dir` first.
        detach: return 0 as soon as the job is accepted.
        target: what DVC calls the stage, where it is one.
        tracking_uri: MLflow's address for the job; not passed on when it holds a password, which a job's description
            would show to everyone.

    Returns:
        The exit code of the stage itself; 128 + n when signal n ended it; 143 when the job was stopped from elsewhere.

    Raises:
        ValueError: the cluster cannot be reached, refuses the token, or runs another job of this name.
        Interrupted, KeyboardInterrupt: stopped here, after the job was stopped too.
    """
    folder = project_folder(root, project_dir, upload)
    command = stage_command(stage, arguments, python)
    digest = sha256(root / parameters.FILE_NAME)
    name = job_name(stage, arguments)
    metadata = {"name": name, COMMAND: " ".join(command), PARAMS: digest, FOLDER: folder}
    server = JobServer(address)
    jobs = server.jobs(name)
    running = running_job(jobs, name, metadata)
    submission = running or free_id(name, jobs)
    try:
        if running:
            log.info("job %s: already running with the same parameters; following it", submission)
        else:
            with TemporaryDirectory() as temporary:
                package = pack(root, Path(temporary) / "code.zip") if upload else None
                surroundings = runtime_environment(folder, digest, package, tracking_uri)
                server.submit(submission, entrypoint(command, folder), surroundings, metadata)
            log.info("job %s: submitted to %s, works in %s", submission, server.address, folder)
        if detach:
            log.info(
                "follow it: the same command without --detach; stop it: ray job stop --address %s %s",
                server.address,
                submission,
            )
            return 0
        code = server.follow(submission)
    except (KeyboardInterrupt, processes.Interrupted):
        server.stop(submission)
        raise
    if code == 0 and Path(folder) == root.resolve() and target:
        log.info("record the outputs in DVC: dvc commit --force %s", target)
    return code


def _target(loaded: parameters.Params, args: argparse.Namespace) -> str:
    if args.stage in _PER_MODEL:
        return loaded.target(args.stage, args.dataset, args.model)
    return f"{args.stage}@{args.dataset}"


def _configured_address(address: str | None) -> str | None:
    # Ray's own variables win over params.yaml; None lets Ray read them.
    return None if environment().ray_address or address == "auto" else address


# ------------------------------------------------------------------------------------------------ what a job is


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
    if stage in COMMANDS:
        return [python, "-m", "fer", stage, *arguments]
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
    place = '"$1" -m fer.commands.upload "$0" || exit 1; ' if upload else ""
    return (
        f"{place}"
        f'cd "$0" 2>/dev/null || {missing}; '
        f"echo '{digest}  {name}' | sha256sum --check --status 2>/dev/null || {other}; "
        'exec "$@"'
    )


def runtime_environment(folder: str, digest: str, package: Path | None, tracking_uri: str | None) -> dict[str, Any]:
    """Ray's `runtime_env` of the job: variables of the environment and, for an upload, the code that is sent."""
    env_vars = {_PREPARATION: preparation(digest, package is not None)}
    if package is None:  # a copy that is sent is on every worker's path by itself
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
    return {"env_vars": env_vars} | ({} if package is None else {"working_dir": str(package)})


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
