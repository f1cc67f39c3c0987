"""The results of a finished run: `trained/<dataset>/<model>/`, which appears complete or not at all."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fer.io.files import write_atomic, write_json
from fer.models import FerModel
from fer.outputs import TRAINED
from fer.training.job import TrainJob
from fer.training.phases import validated
from fer.training.state import TrainState
from fer.weights.store import save_model


def publish(
    final: Path,
    model: FerModel,
    job: TrainJob,
    state: TrainState,
    facts: Mapping[str, Any],
    circumstances: Mapping[str, Any],
) -> None:
    """Writes the five files of a finished run as one folder, in place of an earlier one.

    model.safetensors: the weights of the best epoch; history.csv: one row an epoch, nan for a split that was not read;
    val.json: the metrics of the epoch that validation chose, where it did; train.json: `facts`. These four are the same
    bytes for equal runs, however often one was interrupted. run.json: `circumstances`.

    Args:
        model: the recipe's model, for its description; its weights do not matter.
        facts: `dataset`, whether that is `synthetic`, and `label_space`; `crop`, how the faces were cut out, for
            whoever uses the weights; and whatever else decides the result, or follows from it.
        circumstances: what may differ between two equal runs, such as times.
    """
    with TRAINED.publish(final) as folder:
        save_model(
            model,
            folder / "model.safetensors",
            job.labels,
            facts["label_space"],
            {
                "dataset": facts["dataset"],
                "synthetic": facts["synthetic"],
                "fingerprint": job.fingerprint,
                "epoch": state.best_epoch,
                "crop": facts.get("crop", {}),
            },
            name=job.recipe.last.model,
            options=job.recipe.last.options,
            weights=state.best_model,
        )
        table = io.StringIO()
        columns = dict.fromkeys(name for row in state.history for name in row)
        writer = csv.DictWriter(table, list(columns), restval="nan", lineterminator="\n")
        writer.writeheader()
        writer.writerows(state.history)
        write_atomic(folder / "history.csv", table.getvalue())
        chosen = validated(job.recipe, state) or {}
        metrics = {key: value for key, value in chosen.items() if key.startswith("val_")}
        write_json(folder / "val.json", {"best_epoch": chosen.get("epoch", state.best_epoch), **metrics})
        write_json(folder / "train.json", {**facts, "best_epoch": state.best_epoch})
        write_json(folder / "run.json", circumstances)
