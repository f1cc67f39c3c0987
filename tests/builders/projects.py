"""Projects small enough to train in seconds: params.yaml and shards in a folder, and the stages as child processes."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml_text
from builders.limits import patience
from builders.shards import make_shards

from fer.models import FerModel, TrainOutput, list_models, register, registry

TESTS = Path(__file__).resolve().parents[1]
REPOSITORY = TESTS.parent
PYTHONPATH = os.pathsep.join([str(TESTS), str(REPOSITORY)])
"""For children that import this package."""

MODELS = [name for name in list_models() if registry._entry(name).builder.__module__.startswith("fer.models.")]
"""The project's own models, without those that tests register."""


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

RIGHT = """\
seed: 0
run: {datasets: [toy], models: [nano]}
datasets: {toy: {source: synthetic, scenes: 20}}
crop: {}
shard: {}
train: {workers: 2}
models: {nano: {recipe: ddamfn/nano}}
evaluate: {}
report: {}
cluster: {}
tracking: {}
tune: {}
"""
"""A params.yaml that is valid as it stands, a line for each key, for tests that spoil one."""


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
    sections = {
        "train": {"workers": 0, "threads": 1, "checkpoint_every_steps": 2, "max_failures": 1, **train},
        "cluster": {"cpus": 2},
        "tracking": {"log_model": False, "system_metrics": False, **(tracking or {})},
    }
    return write_params(root, "tiny", {"toy": {**recipe, "epochs": epochs}}, seed=3, **sections)


def write_params(root: Path, dataset: str, models: Mapping[str, Any], *, seed: int = 0, **sections: Any) -> Path:
    """params.yaml of one dataset and some models; sections that are not given are empty."""
    names = ("crop", "shard", "train", "evaluate", "report", "cluster", "tracking", "tune")
    params = {
        "seed": seed,
        "run": {"datasets": [dataset], "models": list(models)},
        "datasets": {dataset: {"source": "synthetic"}},
        "models": dict(models),
        **{name: sections.get(name, {}) for name in names},
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


def run_dvc(root: Path, *arguments: str) -> str:
    """A dvc command in a project, which must end well; its output."""
    done = run_in(root, "-m", "dvc", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_in(root: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Python in a project with the project's own copy of the code; `variables` of its environment."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=root,
        env=environment() | {"PYTHONPATH": str(root)} | variables,
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
