"""A run in a store of MLflow: the calls behind those of `fer.tracking.Run`, made at once or read from a journal."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

MODEL_TAG = "fer.model_logged"

# Limits of the MLflow stores.
MAX_BATCH = 100
MAX_DIGEST_CHARACTERS = 36


class StoredRun:
    """A run in the store. All calls can be repeated: what the store has already is not told twice.

    Args:
        client: MLflow's, of the store at `uri`.
        new: made just now, so that the store knows nothing of it.
        joined: its status and its end stay what they were.
    """

    def __init__(self, client: Any, uri: str, run_id: str, *, new: bool, joined: bool) -> None:
        self.client, self.run_id = client, run_id
        self.joined = joined
        self._uri, self._new = uri, new
        # What the store has, as far as it was asked: points of curves as (step, value), None for NaN; names of params.
        self._points: dict[str, set[tuple[int, float | None]]] = {}
        self._params: set[str] | None = set() if new else None

    def tell(self, call: str, arguments: Mapping[str, Any]) -> None:
        """Calls a method by its name, as `Run` and journals put it."""
        getattr(self, call)(**arguments)

    def finish(self, status: str) -> None:
        """Sets the final status."""
        if not self.joined:
            self.client.set_terminated(self.run_id, status)

    def log_metrics(self, metrics: Mapping[str, float], step: int, at: int) -> None:
        """Adds points to curves; `at`: milliseconds of the clock."""
        from mlflow.entities import Metric

        new = []
        for key, value in metrics.items():
            point = (step, None if math.isnan(value) else value)
            if point not in self._known_points(key):
                new.append(Metric(key, value, at, step))
                self._points[key].add(point)
        if new:
            self.client.log_batch(self.run_id, metrics=new)

    def _known_points(self, key: str) -> set[tuple[int, float | None]]:
        if key not in self._points:
            history = [] if self._new else self.client.get_metric_history(self.run_id, key)
            self._points[key] = {(point.step, None if math.isnan(point.value) else point.value) for point in history}
        return self._points[key]

    def log_params(self, params: Mapping[str, str]) -> None:
        """Adds parameters; those that are there stay as they are."""
        from mlflow.entities import Param

        if self._params is None:
            self._params = set(self.client.get_run(self.run_id).data.params)
        new = [Param(key, value) for key, value in params.items() if key not in self._params]
        for start in range(0, len(new), MAX_BATCH):
            self.client.log_batch(self.run_id, params=new[start : start + MAX_BATCH])
        self._params.update(params)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Sets or overwrites tags."""
        from mlflow.entities import RunTag

        self.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def log_dataset(self, name: str, digest: str, source: str, context: str, profile: Mapping[str, Any]) -> None:
        """Adds the data used."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data = Dataset(
            name=name,
            digest=digest[:MAX_DIGEST_CHARACTERS],
            source_type="local",
            source=json.dumps({"uri": source}),
            profile=json.dumps(profile, sort_keys=True),
        )
        tags = [InputTag("mlflow.data.context", context)]
        self.client.log_inputs(self.run_id, datasets=[DatasetInput(dataset=data, tags=tags)])

    def log_table(self, columns: Mapping[str, Sequence[Any]], name: str) -> None:
        """Adds a table, or replaces it."""
        table = {"columns": list(columns), "data": [list(row) for row in zip(*columns.values(), strict=True)]}
        self.client.log_dict(self.run_id, table, name)
        tag, entry = "mlflow.loggedArtifacts", {"path": name, "type": "table"}  # what the UI's table view goes by
        listed = json.loads(self.client.get_run(self.run_id).data.tags.get(tag, "[]"))
        if entry not in listed:
            self.client.set_tag(self.run_id, tag, json.dumps([*listed, entry]))

    def log_json(self, content: Mapping[str, Any], name: str) -> None:
        """Adds a JSON artifact, or replaces it."""
        self.client.log_dict(self.run_id, dict(content), name)

    def log_artifact(self, path: str, folder: str | None) -> None:
        """Adds a file, or a folder with what is in it, or replaces it."""
        self.client.log_artifact(self.run_id, path, folder)

    def log_model(self, model: nn.Module, example: np.ndarray[Any, Any], labels: Sequence[str], name: str) -> None:
        """Adds the model, unless the run has one."""
        from fer.tracking.model import record_model

        run = self.client.get_run(self.run_id)
        if MODEL_TAG not in run.data.tags:
            uri = record_model(self.client, run, self._uri, model, example, labels=labels, name=name)
            self.client.set_tag(self.run_id, MODEL_TAG, uri)
