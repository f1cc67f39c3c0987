"""A cell of a study: one training, its test split opened once, and what is kept of it.

plan.json                the cells of the study as it was last started
<cell>/result.json       its figures
<cell>/predictions.npz   `labels` and `predicted` (int8), one a row of the test split, in its order
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fer.config import ConfigError
from fer.io.files import read_json, write_atomic, write_json
from fer.studies import Kind, Row, Study, StudyOptions
from fer.training.recipe import Recipe, load_recipe, vary
from fer.weights.parts import PartSource

if TYPE_CHECKING:
    from fer.evaluation.tta import TtaName

RESULT = "result.json"
PREDICTIONS = "predictions.npz"
PLAN = "plan.json"
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training of a study; picklable.

    Attributes:
        row: of the table. key: identity of the training; names its folder.
        dataset, shards, labels: what it is trained on; the folder is absolute.
        recipe, seed, pretrained: as in a training.
    """

    row: str
    key: str
    dataset: str
    shards: str
    labels: tuple[str, ...]
    recipe: Recipe
    seed: int
    fold: int | None
    pretrained: tuple[PartSource, ...]

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.row}, seed {self.seed}" + ("" if self.fold is None else f", fold {self.fold}")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that a worker must know; picklable, paths absolute."""

    name: str
    kind: Kind
    tta: TtaName
    folder: str
    threads: int
    gpu: bool
    checkpoint_every_steps: int
    cells: tuple[Cell, ...]
    accept_versions: bool = False

    def result(self, cell: Cell) -> dict[str, Any] | None:
        """The figures of a finished cell, with what tells it from the others. Rows that are alike share a training."""
        path = Path(self.folder, cell.key, RESULT)
        if not path.is_file():
            return None
        return {"row": cell.row, "seed": cell.seed, "fold": cell.fold, "key": cell.key, **read_json(path)}

    def write(self) -> None:
        """Leaves plan.json in the folder, for the report: what the study as it was last started is made of."""
        cells = [{"row": cell.row, "seed": cell.seed, "fold": cell.fold, "key": cell.key} for cell in self.cells]
        write_json(Path(self.folder, PLAN), {"study": self.name, "cells": cells})

    def predictions(self, cell: Cell) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Labels and predicted classes of a finished cell, int64 (N,) each, in the order of the test split."""
        with np.load(Path(self.folder, cell.key, PREDICTIONS)) as arrays:
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
    """Trains a cell, or goes on with it, opens the test split, and writes its predictions and its result."""
    import torch

    from fer.evaluation.protocols import both_protocols
    from fer.evaluation.tta import WithViews
    from fer.training.data import open_data
    from fer.training.job import TrainJob
    from fer.training.loop import answers, build_model, train
    from fer.training.metrics import classification_metrics
    from fer.training.peers import Peers

    work = Path(plan.folder, cell.key)
    work.mkdir(parents=True, exist_ok=True)
    _inherit(plan, cell)
    job = TrainJob(
        shards=cell.shards,
        work_dir=str(work),
        recipe=cell.recipe,
        labels=cell.labels,
        seed=cell.seed,
        threads=plan.threads,
        checkpoint_every_steps=plan.checkpoint_every_steps,
        fingerprint=cell.key,
        pretrained=cell.pretrained,
        command=f"fer study {plan.name}",
        accept_versions=plan.accept_versions,
    )
    device = "cuda:0" if plan.gpu else "cpu"
    state = train(job, device=device)
    model = build_model(job)
    model.load_state_dict(state.best_model)
    model.to(device)
    recipe = cell.recipe.last
    data = open_data(cell.shards, recipe, model, seed=cell.seed, peers=Peers(), threads=plan.threads, test=True)
    assert data.test is not None
    more: dict[str, Any] = {}
    try:
        logits, targets, _ = answers(model, data.test, recipe, device)
        if plan.tta != "none":
            found = classification_metrics(*answers(WithViews(model, plan.tta), data.test, recipe, device)[:2])
            more |= {f"test_tta_{name}": value for name, value in found.items()}
        if plan.kind == "lhc_blocks":
            from fer.studies.lhc_analysis import probe

            more["probes"] = probe(model, data.test, recipe, device, seed=cell.seed)
    finally:
        data.close()
    best = state.history[state.best_epoch - 1]
    if protocols := both_protocols(state.history, cell.recipe, len(targets), CONFIDENCE):
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
    """Starts a training in stages from a finished one of the same study that is the same up to a stage.

    Both are functions of the seed: the result has the bits that it would have had, without the first stages' hours.
    """
    from fer.training.state import TrainState, saved_states

    work, stages = Path(plan.folder, cell.key), cell.recipe.in_stages
    if len(stages) == 1 or saved_states(work):
        return
    nearest = 0
    for other in plan.cells:
        theirs, folder = other.recipe.in_stages, Path(plan.folder, other.key)
        alike = replace(other, row=cell.row, key=cell.key, recipe=cell.recipe) == cell
        if not alike or not nearest < len(theirs) < len(stages) or theirs != stages[: len(theirs)]:
            continue
        if (folder / RESULT).is_file() and (state := TrainState.load(folder)) is not None:
            state.fingerprint, nearest = cell.key, len(theirs)
            state.save(work)
            for older in saved_states(work)[1:]:
                older.unlink()
