"""A cell of a study: one training run, its test split opened once, and what is kept of it.

plan.json                the cells of the study as it was last started
<cell>/result.json       its metrics
<cell>/predictions.npz   `labels` and `predicted` (int8), one a row of the test split, in its order
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
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
from fer.studies.lhc_analysis import probe, size
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
        dataset: key in params.yaml.
        fold: that is held out; None without cross-validation.
        job: what it trains, in the folder of the cell, whose name is its fingerprint.
        starts: keys of the cells of which it starts from the best one's weights; empty: from none.
        recipes: keys of the cells of which it has the best one's recipe, with `changes` over it; empty: its own.
        shares: key of the cell whose stages are its own first ones, so that it resumes from there; None: there is none.
    """

    row: str
    dataset: str
    fold: int | None
    job: TrainJob
    starts: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    shares: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Identity of the run; rows with the same recipe share it."""
        return self.job.fingerprint

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.row}, seed {self.job.seed}" + ("" if self.fold is None else f", fold {self.fold}")

    @property
    def after(self) -> set[str]:
        """Keys of the cells that must be finished before it begins."""
        return {*self.starts, *self.recipes, *((self.shares,) if self.shares else ())}

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

    def best(self, keys: Iterable[str]) -> Cell:
        """Of finished cells the one with the highest validation accuracy, the first among equals."""
        cells = [self.distinct[key] for key in keys]
        return max(cells, key=lambda cell: (self.result(cell) or {})["val_accuracy"])

    def is_ready(self, cell: Cell) -> bool:
        """Whether all that it depends on is finished."""
        return all(self.result(self.distinct[key]) is not None for key in cell.after)

    def resolved(self, cell: Cell) -> Cell:
        """A cell that is ready, with the recipe that it takes over."""
        if not cell.recipes:
            return cell
        recipe = vary(self.best(cell.recipes).job.recipe, cell.changes, f"study row {cell.row!r}")
        return replace(cell, job=replace(cell.job, recipe=recipe))

    def origin(self, cell: Cell) -> dict[str, str]:
        """What a cell that is ready takes from others, for people."""
        found = {"starts_from": cell.starts, "recipe_of": cell.recipes}
        return {name: self.best(keys).title for name, keys in found.items() if keys}

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
    if row.start:
        values["pretrained"] = {}  # its weights come from another run
    made = vary(recipe, values, where)
    if row.stages is None:
        return made
    if row.stages > len(made.stages):
        raise ConfigError(f"{where}: stages = {row.stages}, the recipe {base!r} has {len(made.stages)}")
    return vary(made, {"stages": made.stages[: row.stages]}, where)


def train_cell(plan: Plan, cell: Cell) -> None:
    """Trains a cell, or resumes it, opens the test split, and writes its predictions and its result."""
    job = plan.resolved(cell).job
    recipe, device, work = job.recipe.last, "cuda:0" if plan.gpu else "cpu", Path(job.work_dir)
    work.mkdir(parents=True, exist_ok=True)
    _begin(plan, cell)
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
            more["probes"] = probe(model, job, data.test, recipe, device)
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
            "best_epoch": state.best_epoch,
            "epochs": state.epoch,
            **{name: value for name, value in best.items() if name.startswith(("train_", "val_"))},
            **{f"test_{name}": value for name, value in classification_metrics(logits, targets).items()},
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            **(size(model) if plan.kind == "lhc_sets" else {}),
            **plan.origin(cell),
            "seconds": round(sum(timing["seconds"] for timing in state.timings), 1),
            "peak_memory_mb": round(torch.cuda.max_memory_allocated() / 1e6) if plan.gpu else None,
            **more,
        },
    )


def link(cells: Sequence[Cell]) -> list[Cell]:
    """Tells each run in stages which other one is the same up to a stage, the longest of them.

    Both are functions of the seed: the result has the bits that it would have had, without the first stages' hours.
    """

    stages = {cell.key: cell.job.recipe.in_stages for cell in cells}

    def shared(cell: Cell, other: Cell) -> int:
        """Stages of the other run where they are the first ones of this one; 0 where the two differ in anything."""
        own, theirs = stages[cell.key], stages[other.key]
        if not len(theirs) < len(own) or theirs != own[: len(theirs)] or cell.after or other.after:
            return 0
        alike = replace(cell.job, recipe=other.job.recipe, work_dir=other.job.work_dir, fingerprint=other.key)
        return len(theirs) if alike == other.job and other.fold == cell.fold else 0

    linked = []
    for cell in cells:
        nearest = max(cells, key=partial(shared, cell))
        linked.append(replace(cell, shares=nearest.key) if shared(cell, nearest) else cell)
    return linked


def _begin(plan: Plan, cell: Cell) -> None:
    """Gives a run that has not begun the state that it starts from.

    Raises:
        ValueError: the weights that it starts from are gone.
    """
    if not (cell.starts or cell.shares) or saved_states(Path(cell.job.work_dir)):
        return
    source = plan.distinct[cell.shares] if cell.shares else plan.best(cell.starts)
    state = TrainState.load(Path(source.job.work_dir))
    if state is None and cell.starts:
        raise ValueError(
            f"the weights of {source.title} are gone from {source.job.work_dir}; start over: "
            f"`{cell.job.command} --restart`"
        )
    if state is None:  # of an earlier start: then it trains its first stages itself
        return
    if cell.starts:
        weights, job = state.best_model, cell.job
        state = TrainState(fingerprint=job.fingerprint, seed=job.seed, world_size=1, threads=job.threads, model=weights)
    state.fingerprint = cell.job.fingerprint
    state.save(Path(cell.job.work_dir))


def tidy(plan: Plan) -> None:
    """Removes the checkpoints of a finished study, but for the weights that later runs start from."""
    sources = {plan.best(cell.starts).key for cell in plan.cells if cell.starts}
    for cell in plan.cells:
        kept = 1 if cell.key in sources and not cell.starts else 0
        for state in saved_states(Path(cell.job.work_dir))[kept:]:
            state.unlink()
