"""`fer bench invalidation`: whether the code that a stage executes is the code whose edits make it run again.

Every stage of a tiny project runs once, under a profiler that notes the files of `fer` in which it calls a function.
Then a harmless statement is inserted into each file in turn, in a copy, and the plan is asked which digests change.
The profiler knows nothing of imports: what it saw, and no edit would make run again, is a fault.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from benchmarks.result import BenchResult, benchmark
from fer.console import log, progress
from fer.params import Params
from fer.stages.closure import ROOT, STARTS, Code, left_out
from fer.stages.plan import plan

_CLASSES = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
_NANO: dict[str, Any] = {"epochs": 1, "batch_size": 8}
_MODELS: dict[str, dict[str, Any]] = {
    "btn": {"recipe": "btn/nano", **_NANO},
    "ddamfn": {
        "recipe": "ddamfn/nano", **_NANO, "pretrained": {"features": "mfn_nano.safetensors"}, "sam": {},
        "mix": {"kind": "cutmix"}, "ema_decay": 0.9, "gradient_checkpointing": True, "class_weights": "effective",
    },
    "lhc_net": {"recipe": "lhc_net/nano", **_NANO, "protocol": "published", "sampler": "balanced"},
    "dynamic_vit": {
        "recipe": "dynamic_vit/nano", **_NANO, "trainable": ["*"], "start_from": "dynamic_vit_nano.safetensors",
    },
    "poster_v2": {"recipe": "poster_v2/nano", **_NANO, "augment": [{"name": "CoarseDropout", "p": 0.5}]},
}  # fmt: skip
_STUDY: dict[str, Any] = {
    "title": "One row", "source": "none", "dataset": "drawn", "recipe": "btn/nano", "baseline": "plain", "tta": "flip",
    "rows": [{"row": "plain", "published": 90.0}], "smoke": {"dataset": "drawn", "recipe": "btn/nano"},
    "set": {"epochs": 1, "batch_size": 8, "augment": []},
}  # fmt: skip
_INSERTED = b"\n_INSERTED = None\n"

_LIBRARIES = (
    "torch.utils.checkpoint",
    "cv2",
    "albumentations",
    "pyarrow.parquet",
    "matplotlib.figure",
    "jinja2",
    "mlflow",
)
_HAND_ON = ("fer/cluster/", "pipelines/__init__.py")
_OF_A_MODEL = ("train", "evaluate", "explain")

Item = tuple[str, ...]
"""Stage, and names; or "crop", dataset and detector."""


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", type=Path, metavar="FOLDER", help="detectors' weights: their crops are run too")


@benchmark("invalidation", help="files that a stage executes, and files whose edits re-run it", arguments=_arguments)
def run(args: argparse.Namespace) -> BenchResult:
    """Compares what ran with what an edit would run again.

    Raises:
        ValueError: a stage executes a file that no edit would make it run again for.
    """
    with tempfile.TemporaryDirectory(prefix="fer-bench-") as scratch:
        projects = _projects(Path(scratch), args.weights)
        executed = {item: _executed(item, root) for item, root in projects.items()}
        rerun = _rerun_by_an_edit(Path(scratch) / "code", projects)
    rows, faults, unused = [], [], dict[str, list[str]]()
    for item, files in executed.items():
        stage, name = item[0], " ".join(item)
        observers = {file for file in files if left_out(file, stage)}
        missing = files - rerun[item] - observers
        unused[name] = sorted(file.removeprefix("fer/") for file in rerun[item] - files)
        faults += [f"{name}: {file}" for file in sorted(missing)]
        rows.append(
            {
                "stage": name,
                "executed": len(files),
                "of these left out": len(observers),
                "re-run by an edit": len(rerun[item]),
                "missing": len(missing),
                "re-run, not executed": len(unused[name]),
            }
        )
    if faults:
        raise ValueError("executed, and an edit would not make it run again: " + "; ".join(faults))
    return BenchResult(
        title="Files of each stage: executed in a run, and such that an edit makes it run again",
        rows=rows,
        notes=[
            "executed: a function of the file was called beneath the stage's script and beneath nothing left out",
            "left out: in LEFT_OUT of fer/stages/closure.py, each with its reason",
            *(f"{name} runs again, and did not execute: {', '.join(files)}" for name, files in unused.items() if files),
        ],
        settings={"weights": str(args.weights) if args.weights else None},
    )


# ------------------------------------------------------------------------------------------------ what runs


def _projects(scratch: Path, weights: Path | None) -> dict[Item, Path]:
    """Every item in an order in which it can run, and its project."""
    import numpy as np

    from fer.io import yaml12
    from fer.models import create_model
    from fer.weights.store import save_model

    root = scratch / "project"
    for number, name in enumerate(_CLASSES * 2):
        import cv2

        folder = root / "images" / ("train" if number < len(_CLASSES) else "test") / name
        folder.mkdir(parents=True)
        for index in range(6):
            pixels = np.random.default_rng(100 * number + index).integers(0, 256, (48, 48), np.uint8)
            cv2.imwrite(str(folder / f"{index}.png"), pixels)
    shutil.make_archive(str(root / "images"), "zip", root / "images")
    for name in ("mfn_nano", "dynamic_vit_nano"):
        save_model(create_model(name), root / f"{name}.safetensors", _CLASSES, "basic7", name=name)
    params: dict[str, Any] = {
        "seed": 0,
        "run": {"datasets": ["drawn", "mine"], "models": list(_MODELS)},
        "datasets": {
            "drawn": {"source": "synthetic", "scenes": 40, "scene_size": 96, "face_size": [50.0, 80.0]},
            "mine": {"source": "folders", "path": "images.zip", "label_space": "basic7"},
        },
        "crop": {}, "shard": {"folds": 2}, "train": {"workers": 0}, "models": _MODELS,
        "evaluate": {"tta": "flip", "bootstrap_samples": 100}, "report": {}, "cluster": {"crop_workers": 0},
        "tracking": {"enabled": False}, "tune": {},
    }  # fmt: skip
    (root / "params.yaml").write_text(yaml12.dump(params))
    (root / "own.yaml").write_text(yaml12.dump(_STUDY))
    projects: dict[Item, Path] = {}
    for dataset in ("drawn", "mine"):
        projects |= {(stage, dataset): root for stage in ("download", "crop", "shard")}
    for detector in ("retinaface", "yunet") if weights else ():
        other = scratch / detector
        other.mkdir()
        changed = {**params, "crop": {"detector": detector, "detector_weights": str(weights)}}
        (other / "params.yaml").write_text(yaml12.dump(changed))
        projects["crop", "drawn", detector] = other
    for model in _MODELS:
        projects |= {(stage, "drawn", model): root for stage in _OF_A_MODEL}
    return {**projects, ("study", "own"): root, ("report",): root}


def _executed(item: Item, root: Path) -> set[str]:
    """Runs an item in a process of its own; the files of `fer` and `pipelines` that it executed."""
    raw = root / "data" / "raw"
    if item[0] == "crop" and not raw.exists():
        shutil.copytree(root.parent / "project" / "data" / "raw", raw)
    log.info("running %s", " ".join(item))
    done = subprocess.run(
        [sys.executable, "-c", "from benchmarks.invalidation import trace; trace()", *item],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(item)} failed:\n{done.stderr[-2000:]}")
    return set(json.loads(done.stdout.splitlines()[-1]))


def trace() -> None:
    """Runs the item that the command line names and prints the files that it executed, as JSON."""
    stage, *names = sys.argv[1:]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])  # else another process renders
    for name in _LIBRARIES:  # under the profiler they would take minutes
        import_module(name)
    if stage == "study":
        from fer import params
        from fer.stages import study
        from fer.studies import StudyOptions

        loaded = params.load()
        with _Profile(stage) as profile:
            study.run(loaded, "own.yaml", StudyOptions(workers=0))
    else:
        options = [
            *(["--dataset", names[0]] if names else []),
            *(["--model", names[1]] if stage in _OF_A_MODEL else []),
        ]
        sys.argv[1:] = options
        main = import_module(f"pipelines.{stage}").main
        with _Profile(stage) as profile:
            main()
    print(json.dumps(sorted(profile.files)))


class _Profile:
    """Collects the files in which functions are called beneath the first file of a stage, in any thread."""

    def __init__(self, stage: str) -> None:
        self.files: set[str] = set()
        self._stage, self._start = stage, STARTS.get(stage, f"pipelines/{stage}.py")
        self._decided: set[CodeType] = set()

    def __enter__(self) -> "_Profile":
        threading.setprofile(self._on_event)
        sys.setprofile(self._on_event)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    def _on_event(self, frame: FrameType, event: str, arg: object) -> None:
        code = frame.f_code
        if event != "call" or code in self._decided:
            return
        path = _of_the_checkout(code)
        if path is None or self._counts(frame):
            self._decided.add(code)
            if path is not None:
                self.files.add(path)

    def _counts(self, frame: FrameType) -> bool:
        """Not so what runs while a module is imported, or for what is left out; but for what hands the work on."""
        above: FrameType | None = frame
        while above is not None:
            path = _of_the_checkout(above.f_code) or ""
            if above.f_code.co_name == "<module>":
                return False
            if above is not frame and left_out(path, self._stage) and not path.startswith(_HAND_ON):
                return False
            if path == self._start:
                return True
            above = above.f_back
        return threading.current_thread() is not threading.main_thread()


def _of_the_checkout(code: CodeType) -> str | None:
    """The file of a function, relative to the checkout; None where it is none of `fer` or `pipelines`."""
    path = code.co_filename
    if not path.startswith((f"{ROOT}/fer/", f"{ROOT}/pipelines/")):
        return None
    return path[len(str(ROOT)) + 1 :]


# ------------------------------------------------------------------------------------------------ what an edit re-runs


def _rerun_by_an_edit(folder: Path, projects: Mapping[Item, Path]) -> dict[Item, set[str]]:
    """Of each item the files whose edit changes its plan."""
    from fer import params

    for name in ("fer", "pipelines"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    loaded = {root: params.load(root / "params.yaml") for root in projects.values()}
    code, found = Code(folder), {item: set[str]() for item in projects}
    before = _planned(code, loaded, projects)
    files = sorted(path for name in ("fer", "pipelines") for path in (folder / name).rglob("*") if path.is_file())
    with progress(len(files), "edit", "file") as bar:
        for path in files:
            name, content = path.relative_to(folder).as_posix(), path.read_bytes()
            path.write_bytes(content + (_INSERTED if path.suffix == ".py" else b"\n"))
            code.forget(name)
            after = _planned(code, loaded, projects)
            path.write_bytes(content)
            code.forget(name)
            for item in projects:
                if after[item] != before[item]:
                    found[item].add(name)
            bar.update()
    return found


def _planned(code: Code, loaded: Mapping[Path, Params], projects: Mapping[Item, Path]) -> dict[Item, object]:
    """What the plan says of each item; of the study's cell, which no plan tells of, the digest of its code."""
    found: dict[Item, object] = {}
    for root, params in loaded.items():
        items = {
            item: item if item[0] in _OF_A_MODEL else item[:2] for item, where in projects.items() if where == root
        }
        stages = [key for key in items.values() if key[0] not in ("study", "report")]
        told: dict[Item, object] = dict(plan(params, stages, code))
        told["study", "own"] = code.digest("study", recipes=[params.recipe("btn")])
        found |= {item: told[key] for item, key in items.items()}
    return found
