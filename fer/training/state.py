"""All that a run needs to resume, in one object, and the files it is kept in.

A file `state-<global step>.pt` is what `torch.save` writes, followed by a footer of 4 + 32 bytes: a mark, and the
SHA-256 of all before it. Files appear whole and the last two are kept, so that whatever happens to the newest, there is
one whole state to resume from. They lie in a folder on a disk, or in an object store that all machines reach.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fer.console import log
from fer.io.storage import Folder
from fer.training.job import TrainJob, decisive_versions

SCHEMA = 3
KEPT = 2
Record = dict[str, float]
_MARK = b"FER1"
_FOOTER = len(_MARK) + hashlib.sha256().digest_size


class StateError(ValueError):
    """A checkpoint that cannot be used; the message names it and the remedy."""


class VersionsError(StateError):
    """A checkpoint that other versions of the libraries wrote; the message names both, and the commands to continue."""


@dataclass
class TrainState:
    """A run between two updates.

    Data order, augmentation, dropout and learning rate are functions of (seed, epoch, step): they need no field.
    """

    fingerprint: str
    """Of data, recipe, seed and code; a state is never used under another."""
    seed: int
    world_size: int
    """Ranks and CPU threads that computed it: others may resume from it, but end with other bits."""
    threads: int
    schema: int = SCHEMA
    stage: int = 0
    """Index of the stage in progress, over all phases (`fer.training.phases`), and the epoch that it began with."""
    first_epoch: int = 0
    epoch: int = 0
    """Finished epochs of all stages, which is also the index of the one in progress."""
    step: int = 0
    """Finished updates of the epoch in progress, and of the whole training."""
    global_step: int = 0
    totals: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    """Of the epoch in progress, over all ranks: sum of the losses, correct predictions, images."""
    model: dict[str, Tensor] = field(default_factory=dict)
    """Weights and buffers of rank 0."""
    optimizer: dict[str, Any] = field(default_factory=dict)
    ema: dict[str, Any] | None = None
    best_epoch: int = 0
    """The epoch of the stage, counted from 1 over all, with the best selection metric; 0: none yet."""
    best_metric: float | None = None
    """Of that epoch; of a loss the negative, so that more is better."""
    best_model: dict[str, Tensor] = field(default_factory=dict)
    chosen: list[int] = field(default_factory=list)
    """Of each finished stage the number of its epochs up to the best one."""
    history: list[Record] = field(default_factory=list)
    """One row an epoch, as in history.csv: no times, so that it is the same after a resume."""
    timings: list[Record] = field(default_factory=list)
    """One row an epoch: seconds; of its updates images_per_second, and waiting_for_data, the fraction of their time
    that the rank waited for the reader. A record, never part of what is compared."""
    resumes: int = 0
    """How often the run resumed from a file."""
    fallbacks: int = 0
    """How many damaged files were passed over for the one before."""
    versions: dict[str, str] = field(default_factory=decisive_versions)
    """The libraries that computed it (`fer.training.job.decisive_versions`)."""
    accepted: list[dict[str, Any]] = field(default_factory=list)
    """Where the user had it resume under other versions: `epoch`, finished before, and the `changed` ones."""

    def end_step(self, totals: Sequence[float]) -> None:
        """Counts an update; `totals` of its global batch are added."""
        self.step += 1
        self.global_step += 1
        self.totals = [old + new for old, new in zip(self.totals, totals, strict=True)]

    def end_epoch(self, row: Record, chosen_by: str | None, model: nn.Module) -> None:
        """Closes the epoch with its row of history; keeps a copy of the weights where they are the best so far.

        Args:
            chosen_by: the column that decides; None: the last epoch is the best.
        """
        metric = None if chosen_by is None else -row[chosen_by] if chosen_by.endswith("_loss") else row[chosen_by]
        if metric is None or self.best_metric is None or metric > self.best_metric:
            self.best_epoch, self.best_metric = self.epoch + 1, metric
            self.best_model = {key: tensor.detach().cpu().clone() for key, tensor in model.state_dict().items()}
        self.history.append(row)
        self.epoch, self.step, self.totals = self.epoch + 1, 0, [0.0, 0.0, 0.0]

    @property
    def is_fresh(self) -> bool:
        """Whether no update of the stage in progress was made."""
        return self.epoch == self.first_epoch and self.step == 0

    def stage_is_over(self, epochs: int, patience: int | None) -> bool:
        """Whether the stage has had its epochs, or `patience` epochs without a better one."""
        stale = patience is not None and self.best_epoch > 0 and self.epoch - self.best_epoch >= patience
        return stale or self.epoch - self.first_epoch >= epochs

    def begin_next_stage(self, *, from_first_weights: bool = False) -> None:
        """Begins the next stage with the best weights of the one that is over, or with the first ones."""
        self.chosen.append(self.best_epoch - self.first_epoch)
        self.stage, self.first_epoch = self.stage + 1, self.epoch
        self.model, self.optimizer, self.ema = {} if from_first_weights else self.best_model, {}, None
        self.best_epoch, self.best_metric, self.best_model = 0, None, {}

    def train_metrics(self) -> Record:
        """Mean loss and accuracy over the epoch in progress, each image as it was when it was trained on."""
        loss, correct, images = self.totals
        return {"train_loss": loss / images, "train_accuracy": correct / images}

    def records(self) -> list[Record]:
        """The rows of history with their timings."""
        return [{**row, **timing} for row, timing in zip(self.history, self.timings, strict=True)]

    def check(self, job: TrainJob, world_size: int, *, warn: Callable[[str], object] | None) -> None:
        """Whether a run may resume from this. Other ranks or threads are taken over with a warning.

        Raises:
            StateError: it is the state of another run.
        """
        if self.fingerprint != job.fingerprint:
            raise StateError(f"the checkpoint belongs to run {self.fingerprint[:16]}, this is {job.fingerprint[:16]}")
        if self.global_step and (self.world_size, self.threads) != (world_size, job.threads) and warn:
            warn(
                f"this run began with {self.world_size} worker(s) of {self.threads} thread(s) and resumes with "
                f"{world_size} of {job.threads}: the same samples in the same order, but sums are rounded differently"
            )
        self.world_size, self.threads = world_size, job.threads

    def check_versions(self, job: TrainJob, *, warn: Callable[[str], object] | None) -> None:
        """Whether the libraries here are those that wrote it; asked where the run computes, not where it is driven.

        Raises:
            VersionsError: they are others, and `job.accept_versions` is false.
        """
        now = decisive_versions()
        changed = {
            name: f"{self.versions.get(name)} -> {now[name]}" for name in now if self.versions.get(name) != now[name]
        }
        if not changed:
            return
        told = ", ".join(f"{name} {versions}" for name, versions in changed.items())
        if not job.accept_versions:
            raise VersionsError(
                f"{job.work_dir}: versions changed since the checkpoint was written ({told}), and others may round "
                f"differently; it is kept. Resume under the new versions: `{job.command} --accept-versions`. Start "
                f"over: `{job.command} --restart`"
            )
        if warn:
            warn(f"resuming under other versions, as accepted: {told}")
        self.accepted.append({"epoch": self.epoch, "changed": changed})
        self.versions = now

    def save(self, location: str | os.PathLike[str]) -> str:
        """Writes `state-<global step>.pt` to a folder, and removes all but the last two; its name."""
        buffer, folder = io.BytesIO(), Folder(location)
        torch.save({one.name: getattr(self, one.name) for one in fields(self)}, buffer)
        digest = hashlib.sha256(buffer.getbuffer()).digest()
        buffer.seek(0, os.SEEK_END)
        buffer.write(_MARK + digest)
        name = f"state-{self.global_step:08d}.pt"
        folder.write(name, buffer.getvalue())
        _remove_older(folder)
        return name

    @classmethod
    def load(cls, location: str | os.PathLike[str]) -> TrainState | None:
        """The newest whole state of a folder, or None where none was ever saved.

        A damaged file is reported and the one before it is taken. What killed writers left is removed: parts of
        files, and files that the last one has replaced.

        Raises:
            StateError: there are files, and none of them is whole.
        """
        folder = Folder(location)
        folder.sweep()
        names, problems = state_names(folder), []
        for name in names:
            try:
                state = cls.read(folder, name)
            except StateError as error:
                problems.append(str(error))
                continue
            for problem, damaged in zip(problems, names, strict=False):
                log.warning("%s; resuming from %s", problem, name)
                folder.remove(damaged)
            if problems:
                state.fallbacks += len(problems)
                state.save(location)  # else who loads it next would not know
            _remove_older(folder)
            return state
        if names:
            raise StateError(
                "\n".join(problems) + f"\nno whole checkpoint is left: remove {folder.name} to start this run again"
            )
        return None

    @classmethod
    def read(cls, folder: Folder, name: str) -> TrainState:
        """One file. Raises StateError where it is cut, changed, or of another version of the format."""
        data, path = memoryview(folder.read(name)), f"{folder.name}/{name}"
        body, footer = data[:-_FOOTER], data[-_FOOTER:]
        if len(data) < _FOOTER or footer != _MARK + hashlib.sha256(body).digest():
            raise StateError(f"{path}: damaged checkpoint (its SHA-256 does not match)")
        content = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
        if content.get("schema") != SCHEMA:
            raise StateError(f"{path}: checkpoint of schema {content.get('schema')}, this version reads {SCHEMA}")
        return cls(**content)


def inherit(source: str, job: TrainJob) -> None:
    """Gives a run that has not begun the last state, if there is one, of a run whose stages are its own first ones.

    It then ends with the same bits as if it had trained them itself.
    """
    if not state_names(Folder(job.work_dir)) and (state := TrainState.load(source)) is not None:
        replace(state, fingerprint=job.fingerprint).save(job.work_dir)


def _remove_older(folder: Folder) -> None:
    for old in state_names(folder)[KEPT:]:
        folder.remove(old)


def state_names(folder: Folder) -> list[str]:
    """Of the checkpoint files of a folder, newest first."""
    names = [name for name in folder.names() if re.fullmatch(r"state-\d+\.pt", name)]
    return sorted(names, key=lambda name: int(name[6:-3]), reverse=True)


def saved_states(folder: Path) -> list[Path]:
    """The checkpoint files of a folder on a disk, newest first."""
    return [folder / name for name in state_names(Folder(folder))]
