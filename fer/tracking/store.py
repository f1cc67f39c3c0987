"""An MLflow store: how a run is found in it or created, and the calls that record something in a run.

Nothing here retries: every failure raises one of `failures()`, and `fer.tracking.run` decides what follows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fer.console import log
from fer.processes import lock
from fer.tracking import compat
from fer.tracking.config import artifact_folder, is_server
from fer.tracking.health import TrackingError
from fer.tracking.registry import Candidate, register

FINGERPRINT_TAG = "fer.fingerprint"
MODEL_TAG = "fer.model_logged"
UNFINISHED = ("RUNNING", "FAILED", "KILLED")

MAX_BATCH = 100
"""Parameters that a store takes at once."""
DIGEST_CHARACTERS = 12
"""Of a dataset: as many as the UI's table has room for."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What identifies a run, in any store.

    Attributes:
        experiment: its name, one a dataset.
        run_name: the model and its recipe.
        key: fingerprint of the training job.
        parent: the run of which this one is a trial, or its id.
        run_id: of this very run, where it is known.
        join: add to a run whatever its status, and leave its status and its end as they are.
    """

    experiment: str
    run_name: str
    key: str
    parent: Identity | str | None = None
    run_id: str | None = None
    join: bool = False

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Identity:
        """The inverse of `dataclasses.asdict`."""
        parent = facts.get("parent")
        return cls(**{**facts, "parent": cls.of(parent) if isinstance(parent, dict) else parent})


def failures() -> tuple[type[Exception], ...]:
    """What is raised by a store that is down, locked or full."""
    return (*compat.store_errors(), TrackingError)


# ------------------------------------------------------------------------------------------------ finding a run


def find_run(uri: str, root: Path, identity: Identity) -> StoredRun:
    """The run of the known id, else the latest of the key that may be added to, else a new one.

    Raises:
        Exception: one of `failures()`.
    """
    # MLflow creates a new database with the client, and two processes that do so at once break it.
    with lock(root / ".work" / "locks" / "mlflow", wait=True):
        client = compat.load_mlflow().MlflowClient(tracking_uri=uri, registry_uri=uri)
        experiment_id = _experiment(client, uri, root, identity.experiment)
    found = _of_id(client, identity.run_id) if identity.run_id else None
    found = found or _of_key(client, experiment_id, identity.key, finished_too=identity.join)
    if found is None:
        return StoredRun(client, uri, _create_run(client, experiment_id, identity), new=True, joined=False)
    if not identity.join:
        client.update_run(found.info.run_id, status="RUNNING")
    return StoredRun(client, uri, found.info.run_id, new=False, joined=identity.join)


def _experiment(client: Any, uri: str, root: Path, name: str) -> str:
    """Id of the experiment, created if it is not there; in a local store with an absolute folder for its artifacts."""
    from mlflow.exceptions import MlflowException

    if (found := client.get_experiment_by_name(name)) is not None:
        return str(found.experiment_id)
    folder = None if is_server(uri) else artifact_folder(root)
    try:
        return str(client.create_experiment(name, artifact_location=folder, tags=compat.EXPERIMENT_KIND))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return str(client.get_experiment_by_name(name).experiment_id)  # another client of the server was first


def _of_id(client: Any, run_id: str) -> Any:
    """The run of this id, or None, with a warning, where the store no longer has it."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        run = None
    if run is None or run.info.lifecycle_stage != "active":
        log.warning("MLflow no longer has run %s; another run of the same fingerprint replaces it", run_id)
        return None
    return run


def _of_key(client: Any, experiment_id: str, key: str, *, finished_too: bool) -> Any:
    """The latest run of a fingerprint, or the latest one that did not finish; None where there is none."""
    runs = client.search_runs(
        [experiment_id],
        filter_string=f"tags.`{FINGERPRINT_TAG}` = '{key}'",
        order_by=["attributes.start_time DESC"],
    )
    return next((run for run in runs if finished_too or run.info.status in UNFINISHED), None)


def _create_run(client: Any, experiment_id: str, identity: Identity) -> str:
    """Id of a new run; its parent is created too where it is not there, as when both were kept in journals."""
    tags = {
        FINGERPRINT_TAG: identity.key,
        "mlflow.source.name": "fer",
        "mlflow.source.type": "LOCAL",
    }
    parent = identity.parent
    if isinstance(parent, Identity):
        found = None if parent.run_id else _of_key(client, experiment_id, parent.key, finished_too=True)
        parent = parent.run_id or (found.info.run_id if found else _create_run(client, experiment_id, parent))
    if parent:
        tags["mlflow.parentRunId"] = parent
    return str(client.create_run(experiment_id, run_name=identity.run_name, tags=tags).info.run_id)


# ------------------------------------------------------------------------------------------------ adding to a run


class StoredRun:
    """A run in the store. Every call can be repeated: what the store already has is not sent twice.

    The names of the public methods and their arguments are the format of journals.

    Args:
        client: MLflow's, of the store at `uri`.
        new: created just now, so that the store has nothing of it.
        joined: its status and its end stay as they were.
    """

    def __init__(self, client: Any, uri: str, run_id: str, *, new: bool, joined: bool) -> None:
        self.client, self.run_id = client, run_id
        self.joined = joined
        self._uri, self._new = uri, new
        # What the store has, as far as it was read: points of curves as (step, value), None for NaN; parameter names.
        self._points: dict[str, set[tuple[int, float | None]]] = {}
        self._params: set[str] | None = set() if new else None

    def apply(self, call: str, arguments: Mapping[str, Any]) -> None:
        """Calls a method by its name, as `Run` and journals give it."""
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
        """Adds parameters; existing ones are kept."""
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

    def set_origin(self, tags: Mapping[str, str]) -> None:
        """Sets tags of a run that was not joined."""
        if not self.joined:
            self.set_tags(tags)

    def log_dataset(self, name: str, digest: str, source: str, context: str, profile: Mapping[str, Any]) -> None:
        """Adds the dataset used."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data = Dataset(
            name=name,
            digest=digest[:DIGEST_CHARACTERS],
            source_type="local",
            source=json.dumps({"uri": source}),
            profile=json.dumps(profile, sort_keys=True),
        )
        tags = [InputTag("mlflow.data.context", context)]
        self.client.log_inputs(self.run_id, datasets=[DatasetInput(dataset=data, tags=tags)])

    def log_table(self, columns: Mapping[str, Sequence[Any]], name: str) -> None:
        """Adds a table, or replaces it."""
        self.log_json(
            {"columns": list(columns), "data": [list(row) for row in zip(*columns.values(), strict=True)]}, name
        )
        tag, entry = compat.ARTIFACTS_TAG, {"path": name, "type": "table"}
        listed = json.loads(self.client.get_run(self.run_id).data.tags.get(tag, "[]"))
        if entry not in listed:
            self.client.set_tag(self.run_id, tag, json.dumps([*listed, entry]))

    def log_json(self, content: Mapping[str, Any], name: str) -> None:
        """Adds a JSON artifact, or replaces it."""
        self.client.log_dict(self.run_id, dict(content), name)

    def log_artifact(self, path: str, folder: str | None) -> None:
        """Adds a file, or a folder with its content, or replaces it."""
        self.client.log_artifact(self.run_id, path, folder)

    def log_model(self, weights: Path, name: str) -> None:
        """Adds the model, unless the run has one."""
        run = self.client.get_run(self.run_id)
        if MODEL_TAG not in run.data.tags:
            uri = compat.record_model(self.client, run, self._uri, weights, name)
            self.client.set_tag(self.run_id, MODEL_TAG, uri)

    def register(self, candidate: Candidate) -> None:
        """Registers the model that the run has; nothing where it has none."""
        if uri := self.client.get_run(self.run_id).data.tags.get(MODEL_TAG):
            register(self.client, self._uri, self.run_id, uri, candidate)
