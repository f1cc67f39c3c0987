"""Where runs are recorded."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from fer.config import Config
from fer.environment import environment

UI_HOST, UI_PORT = "127.0.0.1", 5000
"""Where `fer ui` listens unless told otherwise."""


class TrackingConfig(Config):
    """Where runs are recorded."""

    enabled: bool = Field(default=True, description="false: nothing is recorded, and MLflow is not loaded")
    uri: str | None = Field(
        default=None,
        description="MLflow store, e.g. http://server:5000; null: the environment's MLFLOW_TRACKING_URI, "
        "else sqlite:///<project>/mlflow.db",
    )
    required: bool = Field(
        default=False,
        description="true: an unreachable store is an error; false: a warning, and entries wait in .work/unsent",
    )
    log_model: bool = Field(default=True, description="record the best model of a run: its weights file, as a pyfunc")
    system_metrics: bool = Field(
        default=True, description="record processor, memory, disk and network of the driver's machine during training"
    )


def store_uri(config: TrackingConfig, root: Path) -> str:
    """The store in use: MLFLOW_TRACKING_URI, else `config.uri`, else a SQLite file in the project's root.

    The path of a local store is relative to `root`, and returned absolute.
    """
    uri = environment().mlflow_tracking_uri or config.uri or "sqlite:///mlflow.db"
    scheme = "sqlite:///" if uri.startswith("sqlite:///") else ""
    if not scheme and (":" in uri or uri.startswith("databricks")):
        return uri
    return f"{scheme}{root.resolve() / uri.removeprefix(scheme)}"


def is_server(uri: str) -> bool:
    """Whether a store is an MLflow server; else it is a database or a folder, opened by this process itself."""
    return uri.startswith(("http://", "https://"))


def server_address(uri: str) -> str:
    """A server's URL without credentials."""
    scheme, rest = uri.split("://", 1)
    return f"{scheme}://{rest.rpartition('@')[2].rstrip('/')}"


def pages_address(config: TrackingConfig, root: Path) -> str:
    """Where MLflow's pages are: the server's address, else that of `fer ui`."""
    uri = store_uri(config, root)
    return server_address(uri) if is_server(uri) else f"http://{UI_HOST}:{UI_PORT}"


def artifact_folder(root: Path) -> str:
    """Where a store without a server keeps artifacts, as a URI."""
    return (root.resolve() / "mlartifacts").as_uri()
