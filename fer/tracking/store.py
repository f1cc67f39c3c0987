"""A store of MLflow: whether it answers, and how a run is found in it.

Nothing here is patient: what fails raises one of `failures()`, and `fer.tracking.run` says what becomes of it.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from fer.console import log
from fer.lineage import redact
from fer.processes import lock
from fer.tracking.config import is_server
from fer.tracking.stored_run import StoredRun

FINGERPRINT_TAG = "fer.fingerprint"
UNFINISHED = ("RUNNING", "FAILED", "KILLED")
PROBE_SECONDS = 5.0


class TrackingError(ValueError):
    """The tracking store cannot be reached or refuses an entry, and `tracking.required` is true."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a run is, wherever it is recorded.

    Attributes:
        experiment: its name, one a data set.
        run_name: the model.
        key: fingerprint of the training.
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


# ------------------------------------------------------------------------------------------------ reaching it


def load_mlflow() -> Any:
    """The mlflow module, imported on first use (it takes seconds) with its migration chatter turned off."""
    import mlflow

    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"mlflow\.")
    for name in ("alembic", "mlflow.store.db.utils", "mlflow.models.model", "mlflow.utils.requirements_utils"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return mlflow


def failures() -> tuple[type[Exception], ...]:
    """What is raised by a store that is down, locked or full."""
    from alembic.util import CommandError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    # The second and third are of a local database that MLflow cannot make or bring up to date.
    return (MlflowException, CommandError, SQLAlchemyError, OSError, TrackingError)


def probe(uri: str) -> None:
    """Asks a server for its health, and leaves other stores alone.

    Raises:
        TrackingError: it does not answer. Told at once: MLflow itself would try again for minutes.
    """
    if not is_server(uri):
        return
    scheme, rest = uri.split("://", 1)
    address = f"{scheme}://{rest.rpartition('@')[2].rstrip('/')}/health"
    try:
        with urlopen(address, timeout=PROBE_SECONDS):
            pass
    except HTTPError:
        pass  # it answers; whether it lets us in, the first real request tells
    except (URLError, OSError, ValueError) as error:
        raise TrackingError(
            f"the MLflow server {redact(uri)} does not answer ({getattr(error, 'reason', error)})"
        ) from error


def artifact_folder(root: Path) -> str:
    """Where a store without a server keeps artifacts, as a URI."""
    return (root.resolve() / "mlartifacts").as_uri()


# ------------------------------------------------------------------------------------------------ finding a run


def find_run(uri: str, root: Path, identity: Identity) -> StoredRun:
    """The run in the store: the one of the known id, else the latest of the key that may be added to, else a new one.

    Raises:
        Exception: one of `failures()`.
    """
    # MLflow makes a new database with the client, and breaks it where two do so at once.
    with lock(root / ".work" / "locks" / "mlflow", wait=True):
        client = load_mlflow().MlflowClient(tracking_uri=uri, registry_uri=uri)
        experiment_id = _experiment(client, uri, root, identity.experiment)
    found = _of_id(client, identity.run_id) if identity.run_id else None
    found = found or _of_key(client, experiment_id, identity.key, finished_too=identity.join)
    if found is None:
        return StoredRun(client, uri, _make_run(client, experiment_id, identity), new=True, joined=False)
    if not identity.join:
        client.update_run(found.info.run_id, status="RUNNING")
    return StoredRun(client, uri, found.info.run_id, new=False, joined=identity.join)


def _experiment(client: Any, uri: str, root: Path, name: str) -> str:
    """Id of the experiment, made if it is not there; in a local store with an absolute folder for its artifacts."""
    if (found := client.get_experiment_by_name(name)) is not None:
        return str(found.experiment_id)
    folder = None if is_server(uri) else artifact_folder(root)
    # The kind makes the UI open on runs and metrics instead of its pages for language models.
    tags = {"mlflow.experimentKind": "custom_model_development"}
    return str(client.create_experiment(name, artifact_location=folder, tags=tags))


def _of_id(client: Any, run_id: str) -> Any:
    """The run of this id, or None, said aloud, where the store has it no more."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        run = None
    if run is None or run.info.lifecycle_stage != "active":
        log.warning("MLflow has no run %s any more; another of the same training takes its place", run_id)
        return None
    return run


def _of_key(client: Any, experiment_id: str, key: str, *, finished_too: bool) -> Any:
    """The latest run of a training, or the latest one that did not finish; None where there is none."""
    runs = client.search_runs(
        [experiment_id],
        filter_string=f"tags.`{FINGERPRINT_TAG}` = '{key}'",
        order_by=["attributes.start_time DESC"],
    )
    return next((run for run in runs if finished_too or run.info.status in UNFINISHED), None)


def _make_run(client: Any, experiment_id: str, identity: Identity) -> str:
    """Id of a new run; its parent is made too where it is not there, which happens where both have waited."""
    tags = {
        FINGERPRINT_TAG: identity.key,
        "mlflow.source.name": "fer",
        "mlflow.source.type": "LOCAL",
        "model": identity.run_name,
    }
    parent = identity.parent
    if isinstance(parent, Identity):
        found = None if parent.run_id else _of_key(client, experiment_id, parent.key, finished_too=True)
        parent = parent.run_id or (found.info.run_id if found else _make_run(client, experiment_id, parent))
    if parent:
        tags["mlflow.parentRunId"] = parent
    return str(client.create_run(experiment_id, run_name=identity.run_name, tags=tags).info.run_id)
