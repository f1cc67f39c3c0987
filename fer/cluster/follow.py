"""What people and MLflow see of a running training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fer.console import log, progress
from fer.files import read_json
from fer.tracking import Run
from fer.training.progress import FILE_NAME, Progress
from fer.training.state import Record


class Follower:
    """One line an epoch, a bar on terminals, and the curves in MLflow; told by the loop, or by the file it writes."""

    def __init__(self, title: str, work: Path, epochs: int, run: Run) -> None:
        self._title, self._path, self._epochs, self._run = title, work / FILE_NAME, epochs, run
        self._last_epoch: int | None = None
        self._bar: Any = None

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def on_epoch(self, record: Record) -> None:
        """Tells of a finished epoch."""
        log_record(self._run, record)
        line = (
            f"epoch {record['epoch']}/{self._epochs}: loss {record['train_loss']:.4f}, "
            f"accuracy {record['train_accuracy']:.4f}; "
            f"validation loss {record['val_loss']:.4f}, accuracy {record['val_accuracy']:.4f}, "
            f"balanced {record['val_balanced_accuracy']:.4f}; "
            f"{record['images_per_second']:.0f} images/s, {record['seconds']:.1f} s"
        )
        log.info("%s", line)

    def on_step(self, now: Progress) -> None:
        """Moves the bar."""
        done = now.epoch * now.steps + now.step
        if self._bar is None:
            self._bar = progress(now.epochs * now.steps, self._title, "step", done)
        self._bar.update(done - self._bar.n)

    def look(self) -> None:
        """Reads what rank 0 wrote since the last look."""
        if not self._path.exists():
            return
        content = read_json(self._path)
        records = content.pop("records")
        if self._last_epoch is None:  # epochs that an earlier run has told of
            self._last_epoch = content["epoch"] if content["step"] else max(0, content["epoch"] - 1)
        for record in records[self._last_epoch :]:
            self.on_epoch(record)
        self._last_epoch = max(self._last_epoch, len(records))
        self.on_step(Progress(**content))


def best_metrics(best: Mapping[str, float]) -> dict[str, float]:
    """The row of the best epoch by the names that runs are ranked by: `best_epoch`, `best_val_accuracy`, ..."""
    return {"best_epoch": best["epoch"], **{f"best_{k}": v for k, v in best.items() if k.startswith("val_")}}


def log_record(run: Run, record: Record) -> None:
    """Logs one epoch's row; what the run has already is not logged twice."""
    run.log_metrics({key: value for key, value in record.items() if key != "epoch"}, step=int(record["epoch"]))
