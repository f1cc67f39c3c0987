"""A cell of a study: one training run, its test split opened once, and what is kept of it.

plan.json                the cells of the study as it was last started
<cell>/result.json       its metrics
<cell>/predictions.npz   `labels` and `predicted` (int8), one a row of the test split, in its order
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fer.config import ConfigError
from fer.evaluation.config import TtaName
from fer.evaluation.protocols import both_protocols
from fer.evaluation.tta import WithViews
from fer.io.files import read_json, write_atomic, write_json
from fer.studies import Kind, Row, Study, StudyOptions
from fer.studies.lhc_analysis import probe
from fer.training.data import open_data
from fer.training.distributed import Distributed
from fer.training.job import TrainJob
from fer.training.loop import build_model, compute_logits, train
from fer.training.metrics import classification_metrics
from fer.training.phases import validated
from fer.training.recipe import Recipe, load_recipe, vary
from fer.training.state import TrainState, saved_states

RESULT = "result.json"
PREDICTIONS = "predictions.npz"
PLAN = "plan.json"
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training run of a study; picklable.

    Attributes:
        row: of the table.
        dataset: key in params.yaml.
        fold: that is held out; None without cross-validation.
        job: what it trains, in the folder of the cell, whose name is its fingerprint.
    """

    row: str
    dataset: str
    fold: int | None
    job: TrainJob

    @property
    def key(self) -> str:
        """Identity of the run; rows with the same recipe share it."""
        return self.job.fingerprint

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.row}, seed {self.job.seed}" + ("" if self.fold is None else f", fold {self.fold}")

    @property
    def about(self) -> dict[str, Any]:
        """What tells the cell from the others, as in plan.json and results.json."""
        return {"row": self.row, "seed": self.job.seed, "fold": self.fold, "key": self.key}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that a worker must know; picklable, paths absolute."""

    name: str
    kind: Kind
    tta: TtaName
    folder: str
    gpu: bool
    cells: tuple[Cell, ...]

    @cached_property
    def distinct(self) -> Mapping[str, Cell]:
        """The first cell of each key, in the order of the cells."""
        found: dict[str, Cell] = {}
        for cell in self.cells:
            found.setdefault(cell.key, cell)
        return found

    def result(self, cell: Cell) -> dict[str, Any] | None:
        """The metrics of a finished cell, with what tells it from the others."""
        path = Path(cell.job.work_dir, RESULT)
        return {**cell.about, **read_json(path)} if path.is_file() else None

    def write(self) -> None:
        """Writes plan.json into the folder, for the report."""
        write_json(Path(self.folder, PLAN), {"study": self.name, "cells": [cell.about for cell in self.cells]})

    def predictions(self, cell: Cell) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Labels and predicted classes of a finished cell, int64 (N,) each, in the order of the test split."""
        with np.load(Path(cell.job.work_dir, PREDICTIONS)) as arrays:
            return arrays["labels"].astype(np.int64), arrays["predicted"].astype(np.int64)


def row_recipe(study: Study, row: Row, options: StudyOptions, root: Path) -> Recipe:
    """The complete recipe of a row."""
    where = f"study row {row.row!r}"
    base = options.recipe or (study.smoke.recipe if options.smoke else study.recipe)
    recipe = load_recipe({"recipe": base}, root, where)
    values = {**study.set, **row.set, **(study.smoke.set | row.smoke if options.smoke else {}), **options.set}
    if "model" in values and "options" not in values:
        values = {"options": {}, **values}  # options are a model's own
    made = vary(recipe, values, where)
    if row.stages is None:
        return made
    if row.stages > len(made.stages):
        raise ConfigError(f"{where}: stages = {row.stages}, the recipe {base!r} has {len(made.stages)}")
    return vary(made, {"stages": made.stages[: row.stages]}, where)


def train_cell(plan: Plan, cell: Cell) -> None:
    """Trains a cell, or resumes it, opens the test split, and writes its predictions and its result."""
    job, recipe, device = cell.job, cell.job.recipe.last, "cuda:0" if plan.gpu else "cpu"
    work = Path(job.work_dir)
    work.mkdir(parents=True, exist_ok=True)
    _inherit(plan, cell)
    state = train(job, device=device)
    model = build_model(job)
    model.load_state_dict(state.best_model)
    model.to(device)
    data = open_data(
        job.shards, recipe, model, seed=job.seed, distributed=Distributed(), threads=job.threads, test=True
    )
    assert data.test is not None
    more: dict[str, Any] = {}
    try:
        logits, targets, _ = compute_logits(model, data.test, recipe, device)
        if plan.tta != "none":
            found = classification_metrics(*compute_logits(WithViews(model, plan.tta), data.test, recipe, device)[:2])
            more |= {f"test_tta_{name}": value for name, value in found.items()}
        if plan.kind == "lhc_blocks":
            more["probes"] = probe(model, data.test, recipe, device, seed=job.seed)
    finally:
        data.close()
    best = {**(validated(job.recipe, state) or {}), **state.history[state.best_epoch - 1]}
    if protocols := both_protocols(state.history, job.recipe, len(targets), CONFIDENCE):
        more["protocols"] = protocols
    buffer = io.BytesIO()
    labels, predicted = (values.to(torch.int8).numpy() for values in (targets, logits.argmax(1)))
    np.savez_compressed(buffer, labels=labels, predicted=predicted)
    write_atomic(work / PREDICTIONS, buffer.getvalue())
    write_json(
        work / RESULT,
        {
            "best_epoch": state.best_epoch,
            "epochs": state.epoch,
            **{name: value for name, value in best.items() if name.startswith(("train_", "val_"))},
            **{f"test_{name}": value for name, value in classification_metrics(logits, targets).items()},
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "seconds": round(sum(timing["seconds"] for timing in state.timings), 1),
            "peak_memory_mb": round(torch.cuda.max_memory_allocated() / 1e6) if plan.gpu else None,
            **more,
        },
    )


def _inherit(plan: Plan, cell: Cell) -> None:
    """Starts a run in stages from a finished one of the same study that is the same up to a stage.

    Both are functions of the seed: the result has the bits that it would have had, without the first stages' hours.
    """
    job, stages = cell.job, cell.job.recipe.in_stages
    if len(stages) == 1 or job.recipe.selection == "refit" or saved_states(Path(job.work_dir)):
        return
    nearest = 0
    for other in plan.cells:
        theirs, folder = other.job.recipe.in_stages, Path(other.job.work_dir)
        alike = replace(other.job, recipe=job.recipe, work_dir=job.work_dir, fingerprint=job.fingerprint) == job
        if not alike or other.fold != cell.fold or not nearest < len(theirs) < len(stages):
            continue
        is_done = theirs == stages[: len(theirs)] and (folder / RESULT).is_file()
        if is_done and (state := TrainState.load(folder)) is not None:
            state.fingerprint, nearest = job.fingerprint, len(theirs)
            state.save(Path(job.work_dir))
            for older in saved_states(Path(job.work_dir))[1:]:
                older.unlink()
