"""What MLflow does not promise between versions, one function each; seen with 3.17 (SQLAlchemy 2.1, Alembic 1.20).

`tests/tracking/test_tracking_compat.py` has a canary for each: it says which of them a new version breaks.
"""

from __future__ import annotations

import logging
import sqlite3
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from fer.environment import environment

CHATTY_LOGGERS = ("alembic", "mlflow.store.db.utils", "mlflow.models.model", "mlflow.utils.requirements_utils")
EXPERIMENT_KIND = {"mlflow.experimentKind": "custom_model_development"}
"""The tag by which the UI shows an experiment's runs and metrics instead of its pages for language models."""
ARTIFACTS_TAG = "mlflow.loggedArtifacts"
"""The tag of a run by which the UI finds its tables: JSON, [{"path": ..., "type": "table"}]."""
USER_TAG = "mlflow.user"
"""The tag of the UI's column of users."""
SYSTEM_MONITORS = (
    ("cpu_monitor", "CPUMonitor"), ("disk_monitor", "DiskMonitor"), ("network_monitor", "NetworkMonitor"),
    ("gpu_monitor", "GPUMonitor"),
)  # fmt: skip
"""Module and class of each, in `mlflow.system_metrics.metrics`."""

REQUIREMENTS = ("mlflow", "numpy", "opencv-python-headless", "pillow", "pydantic", "safetensors", "torch")
"""Of a logged model, beside this package, which is on no index: PyPI's `fer` is another one."""
PARAMS = {"detector": None, "detector_weights": None, "tta": "none"}
"""Of a logged model's `predict`, with their defaults: options of `fer.inference.model.Model`, all strings."""

_RUNNING = """
select name, max(start_time, coalesce((select max(timestamp) from metrics where metrics.run_uuid = runs.run_uuid), 0))
from runs where status = 'RUNNING' and lifecycle_stage = 'active'
"""


def load_mlflow() -> Any:
    """The mlflow module, imported on first use (it takes seconds) without the messages of its migrations."""
    import mlflow

    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"mlflow\.")
    for name in CHATTY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    return mlflow


def create_version(client: Any, uri: str, name: str, model_uri: str, run_id: str, tags: Mapping[str, str]) -> str:
    """Registers a logged model, models:/<id>, as a version of `name`; returns its number.

    A local store looks for the logged model at MLflow's global address, which is restored.
    """
    import mlflow

    before = environment().mlflow_tracking_uri
    mlflow.set_tracking_uri(uri)
    try:
        return str(client.create_model_version(name, model_uri, run_id, tags=dict(tags)).version)
    finally:
        mlflow.set_tracking_uri(before)


def system_monitors() -> list[Any]:
    """MLflow's own monitors of processor, memory, disk, network and GPU; none of what this machine cannot tell."""
    from importlib import import_module

    found = []
    for module, name in SYSTEM_MONITORS:
        try:
            found.append(getattr(import_module(f"mlflow.system_metrics.metrics.{module}"), name)())
        except Exception:  # noqa: BLE001 - no GPU, or no driver that tells of it
            continue
    return found


def system_metrics(monitors: Sequence[Any]) -> dict[str, float]:
    """What monitors see now, by the names under which the UI shows them; counters since they were made."""
    values: dict[str, float] = {}
    for monitor in monitors:
        monitor.collect_metrics()
        values |= {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
        monitor.clear_metrics()
    return values


def store_errors() -> tuple[type[Exception], ...]:
    """What MLflow's client raises for a store that is down, locked or full: errors of its database leave it as well."""
    from alembic.util import CommandError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return (MlflowException, CommandError, SQLAlchemyError, OSError)


def running_in_database(path: Path, timeout: float) -> list[tuple[str, int]]:
    """The running runs of MLflow's SQLite file: name, and milliseconds of the clock of the last entry.

    By SQL, since MLflow's client creates a database that is not there, and upgrades an old one.
    """
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=timeout)) as store:
        return [(str(name), int(last)) for name, last in store.execute(_RUNNING).fetchall()]


def record_model(client: Any, run: Any, uri: str, weights: Path, name: str) -> str:
    """Records a weights file in a run, as a pyfunc whose python side is `fer.tracking.models`; nothing is pickled.

    Args:
        client: of the store at `uri`.
        run: as the client returns it.
        weights: of this project.
        name: of the model within the run.

    Returns:
        MLflow's address of the model.
    """
    import mlflow
    from mlflow.models import Model, ModelSignature
    from mlflow.types.schema import ParamSchema, ParamSpec

    from fer.weights.store import read_info

    info = read_info(weights)
    uri_of_environment = environment().mlflow_tracking_uri
    # Models are recorded at MLflow's global address, which it also writes into the environment: both are restored.
    mlflow.set_tracking_uri(uri)
    try:
        warnings.filterwarnings("ignore", message=".*input example was not provided", category=UserWarning)
        # Created here: without it, `Model.log` records the model of a run that is not active in experiment 0.
        entry = client.create_logged_model(
            run.info.experiment_id, name=name, source_run_id=run.info.run_id, params=run.data.params
        )
        with _requirements_unchecked():
            logged = Model.log(
                artifact_path=None,
                model_id=entry.model_id,
                flavor=mlflow.pyfunc,
                run_id=run.info.run_id,
                loader_module="fer.tracking.models",
                data_path=str(weights),
                signature=ModelSignature(params=ParamSchema([ParamSpec(key, "string", PARAMS[key]) for key in PARAMS])),
                pip_requirements=[f"{package}=={metadata.version(package)}" for package in REQUIREMENTS],
                metadata={"labels": list(info.labels), "model": info.model, "synthetic": info.synthetic},
            )
    finally:
        mlflow.set_tracking_uri(uri_of_environment)  # None: as if never set
    return str(logged.model_uri)


@contextmanager
def _requirements_unchecked() -> Iterator[None]:
    """MLflow does not compare a model's requirements with what is installed, from where they were just taken.

    For the names of modules it would read what each installed package consists of: over a second for each model.
    """
    from mlflow.utils import environment as checked

    check = checked.warn_dependency_requirement_mismatches
    checked.warn_dependency_requirement_mismatches = lambda requirements: None
    try:
        yield
    finally:
        checked.warn_dependency_requirement_mismatches = check
