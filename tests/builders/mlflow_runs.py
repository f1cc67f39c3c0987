"""Runs that a test opens, and what it finds in an MLflow store."""

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from fer.tracking import Run, TrackingConfig, compat, open_run

Curves = dict[str, list[tuple[int, float]]]


def start(root: Path, key: str, config: TrackingConfig | None = None, **more: Any) -> Run:
    """A run of the experiment "toy" with that fingerprint."""
    arguments: dict[str, Any] = {"params": {"lr": 0.1}, "tags": {"dataset": "toy"}} | more
    return open_run(config or TrackingConfig(), root, experiment="toy", run_name="nano", key=key, **arguments)


@cache
def _empty_store() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        compat.load_mlflow().MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db").search_experiments()
        return Path(folder, "mlflow.db").read_bytes()


def give_store(root: Path) -> Path:
    """Gives a project a local store without runs: MLflow takes seconds to create one, here once a session."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "mlflow.db").write_bytes(_empty_store())
    return root


def client(root: Path, database: str = "mlflow.db") -> Any:
    """MLflow's client of a project's local store."""
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{root / database}")


def runs(root: Path, key: str | None = None, database: str = "mlflow.db") -> list[Any]:
    """All runs of a store, or those of one fingerprint."""
    store = client(root, database)
    wanted = f"tags.`fer.fingerprint` = '{key}'" if key else ""
    return list(store.search_runs([one.experiment_id for one in store.search_experiments()], wanted))


def recorded(root: Path, key: str | None = None, database: str = "mlflow.db") -> list[tuple[str, Curves]]:
    """Status and curves of those runs; a curve's points are (step, value) by step, duplicates included."""
    store = client(root, database)
    return [
        (
            run.info.status,
            {
                name: sorted((point.step, point.value) for point in store.get_metric_history(run.info.run_id, name))
                for name in run.data.metrics
            },
        )
        for run in runs(root, key, database)
    ]
