"""`make shipped`: trains the model that the package ships, from FER2013's images and FERPlus's votes.

    reproductions/shipped/     a DVC project of its own, with the settings below and none of the user's
    fer/inference/shipped/     model.safetensors, card.json, README.md: `fer.load()`

FER2013's frame is the square of YuNet's box: on 600 PublicTest images, enlarged 4 times on a replicated border of 8 px,
the median side of the detected squares is 1.04 of the image. So the published images are used as they are, and photos
are cropped by `box_margin` 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fer.config import read_yaml
from fer.params import Params
from fer.processes import lock
from fer.stages.card import package
from fer.stages.closure import ROOT
from fer.stages.reproduce import repro, write_project

FOLDER = Path("fer", "inference", "shipped")
DATASET, MODEL = "ferplus", "shipped"
_STAGES = ("plan", "download", "crop", "shard", "train", "evaluate")


def settings(fer2013: Path, votes: Path, subset: bool) -> dict[str, Any]:
    """params.yaml of the project.

    Args:
        fer2013: its csv or Parquet. votes: fer2013new.csv. subset: accept other counts than the published ones.
    """
    return {
        "run": {"datasets": [DATASET], "models": [MODEL]},
        "seed": 0,
        "datasets": {
            DATASET: {
                "source": "ferplus",
                "path": str(fer2013.resolve()),
                "votes": str(votes.resolve()),
                "mode": "soft",
                "subset": subset,
            }
        },
        "crop": {
            "size": 48,
            "detector": "yunet",
            "align": "square",
            "box_margin": 0.0,
            "border": "replicate",
            "color": "gray",
        },
        "models": {MODEL: {"recipe": "ddamfn/ferplus_small"}},
        "train": {"workers": 0, "threads": 2},
        "evaluate": {"tta": "flip"},
        **{section: {} for section in ("shard", "report", "cluster", "tracking", "tune")},
    }


def run(params: Params, fer2013: Path, votes: Path, *, subset: bool) -> Path:
    """Trains, evaluates and packs the model, or resumes; returns the folder.

    Raises:
        ConfigError, FileError: as the stages.
        ValueError: a stage failed.
    """
    project = params.root / "reproductions" / MODEL
    with lock(project.with_name(f".{MODEL}.lock")):
        stages: Mapping[str, Any] = read_yaml(ROOT / "dvc.yaml")["stages"]
        write_project(params.root, project, settings(fer2013, votes, subset), {name: stages[name] for name in _STAGES})
        if repro(project):
            raise ValueError(f"{project.relative_to(params.root)}: a stage failed, see above; the same command resumes")
        package(project / "trained" / DATASET / MODEL, ROOT / FOLDER)
    return ROOT / FOLDER
