"""A model in MLflow's form: torch's export format, never a pickle."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

from fer.environment import environment

if TYPE_CHECKING:
    import numpy as np
    from torch import nn


def record_model(
    client: Any,
    run: Any,
    uri: str,
    model: nn.Module,
    example: np.ndarray[Any, Any],
    *,
    labels: Sequence[str],
    name: str,
) -> str:
    """Records a model in a run.

    Args:
        client: of the store at `uri`.
        run: as the client gives it.
        model: exported in evaluation mode; left in the mode that it had.
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
    named_by_environment = environment().mlflow_tracking_uri
    training = model.training
    model.eval()  # exported in training mode, dropout would be baked in
    # Models go by MLflow's global address, which it also writes into the environment: put both back afterwards.
    mlflow.set_tracking_uri(uri)
    try:
        # Made here: left to itself, `Model.log` puts the model of another than the active run into experiment 0.
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
        mlflow.set_tracking_uri(named_by_environment)  # None: as if never set
        model.train(training)
    return str(info.model_uri)
