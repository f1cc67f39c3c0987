"""A project small enough to train in seconds: shards of noisy patches, params.yaml, the train stage as a child."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.process
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from datetime import timedelta
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import torch
import torch.distributed as dist
import yaml_text
from limits import patience

from fer import processes
from fer.labels import SPACES
from fer.models import FerModel, TrainOutput, register
from fer.shards.manifest import Manifest
from fer.shards.schema import SCHEMA_VERSION, shard_schema
from fer.shards.table import write_table
from fer.shards.write import describe_part
from fer.training.job import TrainJob
from fer.training.loop import train
from fer.training.recipe import Recipe
from fer.training.sam import Sam
from fer.training.state import TrainState, saved_states

REPOSITORY = Path(__file__).resolve().parents[1]
LABELS = SPACES["basic7"].labels


@register("toy")
class Toy(FerModel):
    """The smallest model with all that a state must hold: BatchNorm's statistics and dropout."""

    def __init__(self, num_classes: int = 7, *, norm: bool = True, drop_rate: float = 0.2) -> None:
        super().__init__(num_classes, input_size=16)
        self.conv = torch.nn.Conv2d(3, 8, 3, stride=2)
        self.norm = torch.nn.BatchNorm2d(8) if norm else torch.nn.Identity()
        self.act = torch.nn.PReLU(8)
        self.drop = torch.nn.Dropout(drop_rate)
        self.fc = torch.nn.Linear(8 * 7 * 7, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor | TrainOutput:
        logits = self.fc(self.drop(self.act(self.norm(self.conv(x))).flatten(1)))
        return TrainOutput(logits, {}) if self.training else logits


TOY = {
    "model": "toy",
    "epochs": 3,
    "batch_size": 16,
    "eval_batch_size": 16,
    "learning_rate": 0.003,
    "weight_decay": 0.01,
    "schedule": {"kind": "cosine", "warmup_epochs": 0.5},
    "label_smoothing": 0.1,
    "ema_decay": 0.9,
    "augment": [{"name": "HorizontalFlip", "p": 0.5}, {"name": "Affine", "rotate": [-10, 10], "p": 0.5}],
}

NANO = {**TOY, "model": "ddamfn_nano", "options": {"drop_rate": 0.2}}
"""For children that do not know the toy."""


def make_shards(
    folder: Path,
    *,
    train: int = 80,
    validation: int = 40,
    test: int = 8,
    size: int = 16,
    seed: int = 0,
    broken: int | None = None,
) -> Path:
    """Shards of grey patches whose pattern tells the class; a quarter is noise. `broken`: a training row of rubbish."""
    random = np.random.default_rng(seed)
    parts = []
    for split, rows, fold in (("train", train, 1), ("validation", validation, 0), ("test", test, None)):
        table = []
        for index in range(rows):
            label = int(random.integers(len(LABELS)))
            wave = np.sin(np.arange(size) * (label + 1) / 4)
            picture = 128 + 60 * np.outer(wave, wave) + random.normal(0, 30, (size, size))
            data = cv2.imencode(".png", np.clip(picture, 0, 255).astype(np.uint8))[1].tobytes()
            if (split, index) == ("train", broken):
                data = b"no picture"
            table.append(
                {
                    "sample_id": f"{folder.name}/{split}-{index:04d}",
                    "image": data,
                    "label": label,
                    "clean_label": label,
                    "subject": None,
                    "pose": None,
                }
            )
        path = folder / f"{split}-0.parquet"
        metadata = {"fer.schema": str(SCHEMA_VERSION), "fer.labels": json.dumps(list(LABELS)), "fer.color": "RGB"}
        write_table(path, table, shard_schema(), metadata=metadata, rows_per_group=32)
        parts.append(describe_part(path, split, fold, [row["label"] for row in table], len(LABELS)))
    Manifest(
        schema_version=SCHEMA_VERSION,
        dataset=folder.name,
        label_space="basic7",
        labels=LABELS,
        colour="RGB",
        image_size=(size, size),
        generator="test",
        synthetic=True,
        source_digest="0" * 64,
        seed=seed,
        folds=2,
        parts=tuple(parts),
        splits={part.split: (part.file,) for part in parts},
        class_histogram={part.split: part.class_histogram for part in parts},
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        rejects={},
        validation_source="fold 0",
        shared_pictures={},
    ).save(folder)
    return folder


def make_project(
    root: Path,
    *,
    epochs: int = 3,
    recipe: Mapping[str, Any] = NANO,
    tracking: Mapping[str, Any] | None = None,
    **train: Any,
) -> Path:
    """A folder with params.yaml and shards, in which `train --dataset tiny --model toy` works."""
    if not (root / "data").exists():
        make_shards(root / "data" / "shards" / "tiny")
    params = {
        "seed": 3,
        "run": {"datasets": ["tiny"], "models": ["toy"]},
        "datasets": {"tiny": {"source": "synthetic"}},
        "crop": {},
        "shard": {},
        "train": {"workers": 0, "threads": 1, "checkpoint_every_steps": 2, "max_failures": 1, **train},
        "models": {"toy": {**recipe, "epochs": epochs}},
        "evaluate": {},
        "report": {},
        "cluster": {"cpus": 2},
        "tracking": {"log_model": False, **(tracking or {})},
        "tune": {},
    }
    (root / "params.yaml").write_text(yaml_text.dump(params))
    return root


def environment() -> dict[str, str]:
    """Of a child that runs in a project: the code under test is importable, and nothing of the user's interferes."""
    kept = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
    return {**kept, "PYTHONPATH": str(REPOSITORY), "DVC_NO_ANALYTICS": "1"}


def start_training(root: Path, *, code: str = "", **variables: str) -> subprocess.Popen[str]:
    """The train stage as a child process; `code` runs in it first, to lay mines; `variables` of its environment."""
    script = f"{code}\nimport sys\nsys.argv[1:] = ['--dataset', 'tiny', '--model', 'toy']\n"
    script += "from fer import processes\nfrom pipelines.train import main\nprocesses.run(main)\n"
    return subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=root,
        env=environment() | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def make_repository(root: Path, *, epochs: int = 6, **train: Any) -> Path:
    """A copy of the code with a tiny dataset and dvc.yaml with plan and train; it trains for some seconds."""
    for folder in ("fer", "pipelines"):
        shutil.copytree(REPOSITORY / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    stages = {name: yaml_text.load((REPOSITORY / "dvc.yaml").read_text())["stages"][name] for name in ("plan", "train")}
    for stage in stages.values():
        stage["cmd"] = stage["cmd"].replace("python ", f"{sys.executable} ", 1)
    make_project(root, epochs=epochs, **train)
    (root / "dvc.yaml").write_text(yaml_text.dump({"stages": stages}))
    run_dvc(root, "init", "--no-scm")
    return root


def run_dvc(root: Path, *arguments: str) -> str:
    """A dvc command in a project, which must end well; its output."""
    done = run_in(root, "-m", "dvc", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_in(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in a project with the project's own copy of the code."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=root,
        env=environment() | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=patience(280),
        check=False,
    )


def finish(child: subprocess.Popen[str], timeout: float = 120) -> str:
    """Waits for a child that must end well; its output. `timeout`: seconds of an idle machine, as all limits here."""
    output, _ = child.communicate(timeout=patience(timeout))
    assert child.returncode == 0, output
    return output


def published(root: Path) -> dict[str, bytes]:
    """The files of the finished training that must not depend on how it went."""
    folder = root / "trained" / "tiny" / "toy"
    return {
        name: (folder / name).read_bytes() for name in ("model.safetensors", "history.csv", "val.json", "train.json")
    }


# ------------------------------------------------------------------------------------------------ the loop alone

_CHILDREN = multiprocessing.get_context("forkserver")


def child(target: Callable[..., None], *arguments: Any) -> multiprocessing.process.BaseProcess:
    """Starts a function in a process of its own, forked from a server that has this module and torch imported."""
    _CHILDREN.set_forkserver_preload(["tiny_preload"])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parent), str(REPOSITORY)]
    )  # for the server's preload
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before
    process = _CHILDREN.Process(target=target, args=arguments)
    process.start()
    return process


def make_job(folder: Path, **recipe: Any) -> TrainJob:
    """A training on `folder/shards` that keeps its states in `folder/work`; the keywords override keys of TOY."""
    shards = folder / "shards"
    if not shards.exists():
        make_shards(shards)
    (folder / "work").mkdir(exist_ok=True)
    return TrainJob(
        shards=str(shards),
        work_dir=str(folder / "work"),
        recipe=Recipe.model_validate_json(json.dumps({**TOY, **recipe})),
        labels=LABELS,
        seed=3,
        threads=1,
        checkpoint_every_steps=2,
        fingerprint="f" * 64,
    )


def elsewhere(job: TrainJob, work: Path) -> TrainJob:
    """The same training with another work folder."""
    work.mkdir(exist_ok=True)
    return replace(job, work_dir=str(work))


def kill_at_step(job: TrainJob, step: int) -> None:
    """Trains, and is killed right after the update of that number, counted over the whole training from 1."""
    steps = 0
    first = state.global_step if (state := TrainState.load(Path(job.work_dir))) else 0

    def on_step(_: object) -> None:
        nonlocal steps
        steps += 1
        if first + steps == step:
            os.kill(os.getpid(), signal.SIGKILL)

    train(job, on_step=on_step)


def kill_between_passes(job: TrainJob, step: int) -> None:
    """Trains, and is killed at w + e of the update of that number, counted from 1."""
    perturb, calls = Sam.perturb, 0

    def deadly(sam: Sam) -> torch.Tensor:
        nonlocal calls
        norm, calls = perturb(sam), calls + 1
        if calls == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return norm

    Sam.perturb = deadly  # type: ignore[method-assign]
    train(job)


def kill_at_save(job: TrainJob, number: int, moment: str) -> None:
    """Trains, and is killed in the checkpoint of that number: "half" written, "before" or "after" its rename."""
    rename, sync, saves = os.replace, os.fsync, 0

    def replace_(source: Any, target: Any) -> None:
        nonlocal saves
        is_state = str(target).endswith(".pt")
        saves += is_state
        if is_state and saves == number and moment != "half":
            if moment == "after":
                rename(source, target)
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    def fsync(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if ".pt.tmp-" in name and saves + 1 == number and moment == "half":
            os.truncate(name, os.path.getsize(name) // 2)  # noqa: PTH202
            os.kill(os.getpid(), signal.SIGKILL)
        sync(descriptor)

    os.replace, os.fsync = replace_, fsync  # type: ignore[assignment]
    train(job)


def train_rank(
    job: TrainJob,
    rank: int,
    world_size: int,
    meeting: str,
    kill: tuple[int, int] | None = None,
    signum: int = signal.SIGKILL,
    timeout: float = 60,
) -> None:
    """One of several ranks that meet through a file; `kill`: (rank, number of the update) that gets `signum` after it.

    timeout: seconds that the ranks wait for each other.
    """
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=world_size, timeout=timedelta(seconds=timeout)
    )
    steps = 0

    def on_step(_: object) -> None:
        nonlocal steps
        steps += 1
        if kill == (rank, steps):
            os.kill(os.getpid(), signum)

    train(job, rank=rank, world_size=world_size, on_step=on_step)
    dist.destroy_process_group()


def run_stage(root: str, output: str, code: str = "") -> None:
    """The train stage without Ray, for `child`: it starts at once, and knows the toy. What it says goes to a file."""
    from fer import params
    from fer.stages.train import run_training

    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    exec(code, {})

    def main() -> None:
        run_training(params.load(Path(root) / "params.yaml"), "tiny", "toy")

    processes.run(main)


def run_child(target: Callable[..., None], *arguments: Any, timeout: float = 100) -> int | None:
    """Runs a function in a process of its own; its exit code, negative where a signal ended it."""
    process = child(target, *arguments)
    process.join(patience(timeout))
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"{target.__name__}{arguments[1:]} did not end within {timeout} s")
    return process.exitcode


def run_ranks(job: TrainJob, world_size: int, meeting: Path, kill: tuple[int, int] | None = None) -> list[int | None]:
    """Runs `train_rank` in processes of their own; where one is killed, the others end with an error. Exit codes."""
    common = (world_size, str(meeting), kill, signal.SIGKILL, patience(60))
    processes_ = [child(train_rank, job, rank, *common) for rank in range(world_size)]
    for process in processes_:
        process.join(patience(100))
    codes = [process.exitcode for process in processes_]
    for process in processes_:
        process.kill()
    return codes


def final_state(job: TrainJob) -> TrainState:
    """The last state of a training."""
    state = TrainState.load(Path(job.work_dir))
    assert state is not None
    return state


def assert_same_bits(one: TrainState, other: TrainState) -> None:
    """Every field but the records of how long it took and how often it was resumed."""
    for field in fields(TrainState):
        if field.name not in ("timings", "resumes", "fallbacks"):
            assert_same(getattr(one, field.name), getattr(other, field.name), field.name)


def assert_same(one: Any, other: Any, where: str) -> None:
    """Equal to the last bit, through all nesting."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, Mapping):
        assert sorted(map(str, one)) == sorted(map(str, other)), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_same(left, right, f"{where}[{index}]")
    else:
        assert one == other, where


def still_alive(family: list[psutil.Process], seconds: float) -> list[str]:
    """Names of those that still run after so long. One that has ended and waits for its parent to notice does not."""
    deadline = time.monotonic() + patience(seconds)
    while True:
        names = [name for name in map(_name_if_running, family) if name]
        if not names or time.monotonic() > deadline:
            return names
        time.sleep(0.05)


def _name_if_running(process: psutil.Process) -> str | None:
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else process.name()
    except psutil.NoSuchProcess:
        return None


def no_leftovers(folder: Path) -> bool:
    """Whether nothing half-written lies in a work folder."""
    return not list(folder.glob(".*.tmp-*")) and len(saved_states(folder)) <= 2


processes.quiet_libraries()
