"""A store that all tests of tracking share: creating an MLflow database takes seconds."""

from pathlib import Path

import pytest

from fer.tracking import TrackingError, health


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a local store."""
    return tmp_path_factory.mktemp("project")


@pytest.fixture(autouse=True)
def _local_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture
def down(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The store responds as soon as this list is empty."""
    is_down = [True]

    def check_server(uri: str) -> None:
        if is_down:
            raise TrackingError("connection refused")

    monkeypatch.setattr(health, "check_server", check_server)
    return is_down
