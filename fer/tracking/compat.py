"""What MLflow does not promise between versions, one function each; seen with 3.17 (SQLAlchemy 2.1, Alembic 1.20).

`tests/tracking/test_tracking_compat.py` has a canary for each: it says which of them a new version breaks.
"""

from __future__ import annotations

import logging
import sqlite3
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer.environment import environment

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

CHATTY_LOGGERS = ("alembic", "mlflow.store.db.utils", "mlflow.models.model", "mlflow.utils.requirements_utils")
EXPERIMENT_KIND = {"mlflow.experimentKind": "custom_model_development"}
"""The tag by which the UI shows an experiment's runs and metrics instead of its pages for language models."""
ARTIFACTS_TAG = "mlflow.loggedArtifacts"
"""The tag of a run by which the UI finds its tables: JSON, [{"path": ..., "type": "table"}]."""
SYSTEM_MONITORS = (
    ("cpu_monitor", "CPUMonitor"), ("disk_monitor", "DiskMonitor"), ("network_monitor", "NetworkMonitor"),
    ("gpu_monitor", "GPUMonitor"),
)  # fmt: skip
"""Module and class of each, in `mlflow.system_metrics.metrics`."""

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


def record_model(
    client: Any, run: Any, uri: str, model: nn.Module, example: np.ndarray[Any, Any], labels: Sequence[str], name: str
) -> str:
    """Records a model in a run, in torch's export format and never as a pickle.

    Args:
        client: of the store at `uri`.
        run: as the client returns it.
        model: exported in evaluation mode; its own mode is restored.
        example: float32 (B >= 2, 3, size, size).
        labels: of the outputs, in their order.
        name: of the model within the run.

    Returns:
        MLflow's address of the model.
    """
    import mlflow
    import numpy as np
    from mlflow.models import Model, ModelSignature
    from mlflow.types.schema import Schema, TensorSpec

    kind = np.dtype(np.float32)
    uri_of_environment = environment().mlflow_tracking_uri
    training = model.training
    model.eval()  # exported in training mode, dropout would become part of the graph
    # Models are recorded at MLflow's global address, which it also writes into the environment: both are restored.
    mlflow.set_tracking_uri(uri)
    try:
        # Created here: without it, `Model.log` records the model of a run that is not active in experiment 0.
        entry = client.create_logged_model(
            run.info.experiment_id, name=name, source_run_id=run.info.run_id, params=run.data.params
        )
        info = Model.log(
            artifact_path=None,
            model_id=entry.model_id,
            flavor=mlflow.pytorch,
            run_id=run.info.run_id,
            pytorch_model=model,
            input_example=example.astype(np.float32),
            signature=ModelSignature(
                inputs=Schema([TensorSpec(kind, (-1, *example.shape[1:]))]),
                outputs=Schema([TensorSpec(kind, (-1, len(labels)))]),
            ),
            serialization_format="pt2",
            pip_requirements=[f"{package}=={metadata.version(package)}" for package in ("torch", "numpy", "mlflow")],
            metadata={"labels": list(labels)},
        )
    finally:
        mlflow.set_tracking_uri(uri_of_environment)  # None: as if never set
        model.train(training)
    return str(info.model_uri)
