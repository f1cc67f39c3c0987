"""A cell of a study: one training run, its test split opened once, and what is kept of it.

plan.json                the cells of the study as it was last started
<cell>/result.json       its metrics
<cell>/predictions.npz   `labels` and `predicted` (int8), one a row of the test split, in its order
"""

from __future__ import annotations

import hashlib
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
from fer.models.cost import kept_for_backward, measure
from fer.studies import Kind, Row, Study, StudyOptions
from fer.studies.lhc_analysis import probe
from fer.training.data import open_data
from fer.training.distributed import Distributed
from fer.training.job import TrainJob
from fer.training.loop import build_model, compute_logits, train
from fer.training.metrics import classification_metrics
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
        dataset: key in params.yaml, and column of the table.
        known_as: the dataset's name in print; None where nobody has published on it.
        fold: that is held out; None without cross-validation.
        job: what it trains, in the folder of the cell, whose name is its fingerprint.
    """

    row: str
    dataset: str
    known_as: str | None = None
    fold: int | None
    job: TrainJob

    @property
    def key(self) -> str:
        """Identity of the run; rows with the same recipe share it."""
        return self.job.fingerprint

    @property
    def title(self) -> str:
        """For people."""
        fold = "" if self.fold is None else f", fold {self.fold}"
        return f"{self.row}, {self.dataset}, seed {self.job.seed}{fold}"

    @property
    def about(self) -> dict[str, Any]:
        """What tells the cell from the others, as in plan.json and results.json."""
        place = {"row": self.row, "dataset": self.dataset, "known_as": self.known_as}
        return {**place, "seed": self.job.seed, "fold": self.fold, "key": self.key}


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

    def adopt(self) -> None:
        """Takes over what other studies trained: a run that stands in several tables is made once."""
        for cell in self.distinct.values():
            work = Path(cell.job.work_dir)
            finished = sorted(work.parent.parent.glob(f"study-*/{cell.key}/{RESULT}"))
            if (work / RESULT) in finished:
                continue
            for theirs in finished:
                if self.kind == "lhc_blocks" and "probes" not in read_json(theirs):
                    continue
                work.mkdir(parents=True, exist_ok=True)
                for name in (PREDICTIONS, RESULT):  # a cell with a result is finished: that comes last
                    write_atomic(work / name, (theirs.parent / name).read_bytes())
                break

    def result(self, cell: Cell) -> dict[str, Any] | None:
        """The metrics of a finished cell, with what tells it from the others."""
        path = Path(cell.job.work_dir, RESULT)
        return {**cell.about, **read_json(path)} if path.is_file() else None

    def finished(self) -> Plan:
        """The cells that have a result; of kinds that compare runs seed by seed those of seeds that have all."""
        done = [cell for cell in self.cells if Path(cell.job.work_dir, RESULT).is_file()]
        if self.kind not in ("table", "classes"):
            partial = {cell.job.seed for cell in self.cells if cell not in done}
            done = [cell for cell in done if cell.job.seed not in partial]
        return replace(self, cells=tuple(done))

    def results(self) -> list[dict[str, Any]]:
        """The metrics of the cells, all of which are finished."""
        return [result for cell in self.cells if (result := self.result(cell)) is not None]

    def twins(self, same: Mapping[str, str]) -> list[tuple[Cell, Cell]]:
        """Finished cells of different rows with the same logits, bit by bit: what tells the rows apart had no effect.

        Args:
            same: row -> the one that it is meant to be the same as.
        """
        found, first = [], dict[tuple[Any, ...], Cell]()
        for cell in self.cells:
            result = self.result(cell) or {}
            if cell.row not in same and "logits" in result:
                other = first.setdefault((cell.dataset, cell.job.seed, cell.fold, result["logits"]), cell)
                found += [(other, cell)] if other is not cell else []
        return found

    def write(self) -> None:
        """Writes plan.json into the folder, for the report."""
        write_json(Path(self.folder, PLAN), {"study": self.name, "cells": [cell.about for cell in self.cells]})

    def predictions(self, cell: Cell) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Labels and predicted classes of a finished cell, int64 (N,) each, in the order of the test split."""
        with np.load(Path(cell.job.work_dir, PREDICTIONS)) as arrays:
            return arrays["labels"].astype(np.int64), arrays["predicted"].astype(np.int64)


def row_recipe(study: Study, row: Row, options: StudyOptions, root: Path, dataset: str | None = None) -> Recipe:
    """The complete recipe of a row for one of its datasets; None: the first."""
    where, columns = f"study row {row.row!r}", options.columns(study, row)
    base = columns[dataset or next(iter(columns))]
    recipe = load_recipe({"recipe": base}, root, where)
    smoke = {key: value for key, value in {**study.smoke.set, **row.smoke}.items() if key != "recipe"}
    values = {**study.set, **row.set, **(smoke if options.smoke else {}), **options.set}
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
    if plan.gpu:
        torch.cuda.reset_peak_memory_stats()  # one process trains several cells
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
    best = state.history[state.best_epoch - 1]
    if protocols := both_protocols(state.history, job.recipe, len(targets), CONFIDENCE):
        more["protocols"] = protocols
    buffer = io.BytesIO()
    labels, predicted = (values.to(torch.int8).numpy() for values in (targets, logits.argmax(1)))
    np.savez_compressed(buffer, labels=labels, predicted=predicted)
    write_atomic(work / PREDICTIONS, buffer.getvalue())
    write_json(
        work / RESULT,
        {
            "logits": hashlib.sha256(logits.numpy().tobytes()).hexdigest()[:16],
            "best_epoch": state.best_epoch,
            "epochs": state.epoch,
            **{name: value for name, value in best.items() if name.startswith(("train_", "val_"))},
            **{f"test_{name}": value for name, value in classification_metrics(logits, targets).items()},
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "seconds": round(sum(timing["seconds"] for timing in state.timings), 1),
            "peak_memory_mb": round(torch.cuda.max_memory_allocated() / 1e6) if plan.gpu else None,
            "gmacs": round(measure(model).operations.macs / 1e9, 4),
            "kept_mb": round(
                kept_for_backward(model, torch.zeros(2, 3, *[model.input_size] * 2, device=device)) / 2e6, 2
            ),
            **more,
        },
    )


def _inherit(plan: Plan, cell: Cell) -> None:
    """Starts a run in stages from a finished one of the same study that is the same up to a stage.

    Both are functions of the seed: the result has the bits that it would have had, without the first stages' hours.
    """
    job, stages = cell.job, cell.job.recipe.in_stages
    if len(stages) == 1 or saved_states(Path(job.work_dir)):
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
