"""What MLflow does not promise between versions, one function each; seen with 3.17 (SQLAlchemy 2.1, Alembic 1.20).

`tests/tracking/test_tracking_compat.py` has a canary for each: it says which of them a new version breaks.
"""

from __future__ import annotations

import logging
import sqlite3
import warnings
from collections.abc import Sequence
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
