"""A cell of a study: one training run, its test split opened once, and what is kept of it.

plan.json                the cells of the study as it was last started
<cell>/result.json       its metrics
<cell>/predictions.npz   `labels` and `predicted` (int8), one a row of the test split, in its order

The driver writes them, of what rank 0 has found. The states are in `job.work_dir`: the same folder, or one in a store.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fer.evaluation.config import TtaName
from fer.evaluation.protocols import both_protocols
from fer.evaluation.tta import WithViews
from fer.io.files import read_json, write_atomic, write_json
from fer.io.storage import Folder, is_store
from fer.models.cost import kept_for_backward, measure
from fer.studies import Kind
from fer.studies.lhc_analysis import probe, size
from fer.training.data import open_data
from fer.training.distributed import Distributed
from fer.training.job import TrainJob
from fer.training.loop import build_model, compute_logits, train
from fer.training.metrics import classification_metrics
from fer.training.phases import validated
from fer.training.progress import changes
from fer.training.recipe import vary
from fer.training.state import TrainState, inherit, saved_states, state_names

RESULT = "result.json"
PREDICTIONS = "predictions.npz"
PLAN = "plan.json"
CONFIDENCE = 0.95
_OWN_RESULT: Mapping[Kind, str] = {"lhc_blocks": "probes", "lhc_sets": "keras_parameters"}
"""What a result has for a study of this kind alone."""
Found = tuple[dict[str, Any], bytes]
"""A cell's result, and the content of its predictions.npz."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training run of a study; picklable.

    Attributes:
        row: of the table.
        dataset: key in params.yaml, and column of the table.
        known_as: the dataset's name in print; None where nobody has published on it.
        fold: that is held out; None without cross-validation.
        job: what it trains; its fingerprint is the name of the cell's folder.
        starts: keys of the cells of which it starts from the best one's weights; empty: from none.
        recipes: keys of the cells of which it has the best one's recipe, with `changes` over it; empty: its own.
        shares: key of the cell whose stages are its own first ones, so that it resumes from there; None: there is none.
    """

    row: str
    dataset: str
    known_as: str | None = None
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
        fold = "" if self.fold is None else f", fold {self.fold}"
        return f"{self.row}, {self.dataset}, seed {self.job.seed}{fold}"

    @property
    def after(self) -> set[str]:
        """Keys of the cells that must be finished before it begins."""
        return {*self.starts, *self.recipes, *((self.shares,) if self.shares else ())}

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

    def place(self, cell: Cell) -> Path:
        """The folder of a cell's results."""
        return Path(self.folder, cell.key)

    def adopt(self) -> None:
        """Takes over what other studies trained: a run that stands in several tables is made once.

        One that others start from is taken over where its weights are still there.
        """
        sources = {key for cell in self.cells for key in cell.starts}
        for cell in self.distinct.values():
            place, work = self.place(cell), Folder(cell.job.work_dir)
            finished = sorted(place.parent.parent.glob(f"study-*/{cell.key}/{RESULT}"))
            if (place / RESULT) in finished:
                continue
            for theirs in finished:
                states = saved_states(theirs.parent)[:1]
                lacks = _OWN_RESULT.get(self.kind, "seconds") not in read_json(theirs)
                if lacks or (cell.key in sources and not (states or state_names(work))):
                    continue
                place.mkdir(parents=True, exist_ok=True)
                for state in states:
                    work.write(state.name, state.read_bytes())
                for name in (PREDICTIONS, RESULT):  # a cell with a result is finished: that comes last
                    write_atomic(place / name, (theirs.parent / name).read_bytes())
                break

    def result(self, cell: Cell) -> dict[str, Any] | None:
        """The metrics of a finished cell, with what tells it from the others."""
        path = self.place(cell) / RESULT
        return {**cell.about, **read_json(path)} if path.is_file() else None

    def finished(self) -> Plan:
        """The cells that have a result; of kinds that compare runs seed by seed those of seeds that have all."""
        done = [cell for cell in self.cells if (self.place(cell) / RESULT).is_file()]
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
        with np.load(self.place(cell) / PREDICTIONS) as arrays:
            return arrays["labels"].astype(np.int64), arrays["predicted"].astype(np.int64)

    def keep(self, cell: Cell, found: Found) -> None:
        """Writes the predictions and the result of a cell, which is finished by that."""
        result, predictions = found
        place = self.place(cell)
        place.mkdir(parents=True, exist_ok=True)
        write_atomic(place / PREDICTIONS, predictions)
        write_json(place / RESULT, {**result, **self.origin(cell)})

    def train(self, cell: Cell, on_ray: Callable[..., Found | None] | None = None) -> None:
        """Trains a cell that is ready, or resumes it, opens the test split, and keeps what was found.

        Args:
            on_ray: trains a job, and calls `then`, as `fer.cluster.fit.train_on_ray` does; None: this process trains.
        """
        job, device = self.resolved(cell).job, "cuda:0" if self.gpu else "cpu"
        measured = partial(measure_cell, kind=self.kind, tta=self.tta)
        _begin(self, cell)
        if on_ray is not None:
            found = on_ray(job, then=measured)
            assert found is not None, "rank 0 returns what it has found"
        else:
            if self.gpu:
                torch.cuda.reset_peak_memory_stats()  # one process trains several cells
            found = measured(job, train(job, device=device), device)
        self.keep(cell, found)


def measure_cell(job: TrainJob, state: TrainState, device: str, *, kind: Kind, tta: TtaName) -> Found:
    """Opens the test split of a run that has ended: its result, and the bytes of its predictions."""
    recipe, model = job.recipe.last, build_model(job)
    model.load_state_dict(state.best_model)
    model.to(device)
    data = open_data(
        job.shards, recipe, model, seed=job.seed, distributed=Distributed(), threads=job.threads, test=True
    )
    assert data.test is not None
    more: dict[str, Any] = {}
    try:
        logits, targets, _ = compute_logits(model, data.test, recipe, device)
        if tta != "none":
            found = classification_metrics(*compute_logits(WithViews(model, tta), data.test, recipe, device)[:2])
            more |= {f"test_tta_{name}": value for name, value in found.items()}
        if kind == "lhc_blocks":
            more["probes"] = probe(model, job, data.test, recipe, device)
    finally:
        data.close()
    best = {**(validated(job.recipe, state) or {}), **state.history[state.best_epoch - 1]}
    if protocols := both_protocols(state.history, job.recipe, len(targets), CONFIDENCE):
        more["protocols"] = protocols
    buffer = io.BytesIO()
    labels, predicted = (values.to(torch.int8).numpy() for values in (targets, logits.argmax(1)))
    np.savez_compressed(buffer, labels=labels, predicted=predicted)
    sample = torch.zeros(2, 3, *[model.input_size] * 2, device=device)
    result = {
        "logits": hashlib.sha256(logits.numpy().tobytes()).hexdigest()[:16],
        "best_epoch": state.best_epoch,
        "epochs": state.epoch,
        "history": _columns(state.history),
        **{name: value for name, value in best.items() if name.startswith(("train_", "val_"))},
        **{f"test_{name}": value for name, value in classification_metrics(logits, targets).items()},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **(size(model) if kind == "lhc_sets" else {}),
        "workers": state.world_size,
        "worker_changes": len(changes(job.work_dir)),
        "seconds": round(sum(timing["seconds"] for timing in state.timings), 1),
        "peak_memory_mb": round(torch.cuda.max_memory_allocated() / 1e6) if device != "cpu" else None,
        "gmacs": round(measure(model).operations.macs / 1e9, 4),
        "kept_mb": round(kept_for_backward(model, sample) / 2e6, 2),
        **more,
    }
    return result, buffer.getvalue()


def _columns(history: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """The columns of a history that every epoch has, to five decimals."""
    found = {name: [round(row[name], 5) for row in history if name in row] for name in history[0]}
    return {name: values for name, values in found.items() if len(values) == len(history) and np.isfinite(values).all()}


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
        if cell.job.recipe.selection == "refit":  # its stages come twice, on other rows
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
    work = Folder(cell.job.work_dir)
    if not is_store(work.location):  # each node is asked whether it sees the folder
        Path(work.location).mkdir(parents=True, exist_ok=True)
    if cell.shares:
        inherit(plan.distinct[cell.shares].job.work_dir, cell.job)
    if not cell.starts or state_names(work):
        return
    source, job = plan.best(cell.starts), cell.job
    if (state := TrainState.load(source.job.work_dir)) is None:
        raise ValueError(
            f"the weights of {source.title} are gone from {source.job.work_dir}; start over: `{job.command} --restart`"
        )
    TrainState(
        fingerprint=job.fingerprint, seed=job.seed, world_size=1, threads=job.threads, model=state.best_model
    ).save(work.location)


def tidy(plan: Plan) -> None:
    """Removes the checkpoints of finished cells, but for the weights that later runs start from.

    Those are what unfinished cells depend on, and the hosts that runs with other seeds would start from.
    """
    done = {key for key, cell in plan.distinct.items() if plan.result(cell) is not None}
    kept = {key for cell in plan.cells if cell.key not in done for key in cell.after}
    hosts = [plan.best(cell.starts) for cell in plan.cells if cell.starts and done.issuperset(cell.starts)]
    kept |= {host.key for host in hosts if not host.starts}
    for key in done:
        work = Folder(plan.distinct[key].job.work_dir)
        for name in state_names(work)[1 if key in kept else 0 :]:
            work.remove(name)
        if is_store(work.location) and key not in kept:
            work.clear()
