"""`fer submit`: one stage as a job on a Ray cluster, its log here, its own exit code at the end.

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
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from fer import params as parameters
from fer import processes
from fer.cluster.jobs import JobServer
from fer.commands.job_request import (
    COMMAND,
    FOLDER,
    PARAMS,
    Stage,
    entrypoint,
    free_id,
    job_name,
    project_folder,
    running_job,
    runtime_environment,
    stage_command,
)
from fer.console import log
from fer.environment import environment
from fer.io.files import sha256

_PER_MODEL = ("train", "evaluate")


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
    parser.add_argument("--upload", action="store_true", help="copy this code into --project-dir first")
    parser.add_argument("--detach", action="store_true", help="submit and return; the job runs without this terminal")
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
    return submit(
        args.stage,
        arguments,
        args.address or _configured_address(loaded.cluster.address),
        root=loaded.root,
        project_dir=args.project_dir,
        upload=args.upload,
        detach=args.detach,
        python=args.python,
        tracking_uri=environment().mlflow_tracking_uri or loaded.tracking.uri,
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
        upload: copy the code into `project_dir` first.
        detach: return 0 as soon as the job is accepted.
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
            surroundings = runtime_environment(root, folder, digest, upload, tracking_uri)
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
    if code == 0 and Path(folder) == root.resolve() and stage != "repro":
        target = "-".join([arguments[index + 1] for index, word in enumerate(arguments) if word.startswith("--")])
        log.info("record the outputs in DVC: dvc commit --force %s@%s", stage, target)
    return code


def _configured_address(address: str | None) -> str | None:
    # Ray's own variables win over params.yaml; None lets Ray read them.
    return None if environment().ray_address or address == "auto" else address
