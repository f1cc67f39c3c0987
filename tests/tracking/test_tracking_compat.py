"""Canaries: a new MLflow that breaks one of the functions of `fer.tracking.compat` fails here, by its name."""

import importlib
import os
import sqlite3
from pathlib import Path

import pytest

from fer.models import create_model
from fer.tracking import compat
from fer.weights.store import save_model


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compat") / "mlflow.db"


@pytest.fixture
def client(store: Path):  # type: ignore[no-untyped-def]
    return compat.load_mlflow().MlflowClient(tracking_uri=f"sqlite:///{store}")


@pytest.mark.parametrize("name", compat.CHATTY_LOGGERS)
def test_silenced_loggers_exist(name: str) -> None:
    assert importlib.util.find_spec(name), f"{name} is gone: its messages reach the screen; correct CHATTY_LOGGERS"


def test_tags_are_those_that_the_ui_reads() -> None:
    import mlflow.server
    from mlflow.utils import mlflow_tags

    assert mlflow_tags.MLFLOW_LOGGED_ARTIFACTS == compat.ARTIFACTS_TAG, "the tag of a run's tables has moved"
    (tag, kind), *_ = compat.EXPERIMENT_KIND.items()
    scripts = Path(mlflow.server.__file__).parent.rglob("*.js")
    assert any(tag in text and kind in text for text in (path.read_text("utf-8") for path in scripts)), f"{tag}: {kind}"


def test_broken_databases_raise_store_errors(tmp_path: Path) -> None:
    mlflow = compat.load_mlflow()
    (tmp_path / "text.db").write_text("no database " * 100)
    with sqlite3.connect(tmp_path / "newer.db") as database:
        database.execute("create table alembic_version (version_num)")
        database.execute("insert into alembic_version values ('of the future')")
    for path in (tmp_path / "text.db", tmp_path / "newer.db", Path("/proc/version/mlflow.db")):
        try:
            mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
        except compat.store_errors():
            continue
        except Exception as error:  # noqa: BLE001
            pytest.fail(f"{path.name}: {error!r} is none of compat.store_errors()")
        pytest.fail(f"{path.name} was accepted")


def test_sql_finds_running_runs_and_their_last_entry(store: Path, client) -> None:  # type: ignore[no-untyped-def]
    experiment = client.create_experiment("compat")
    active, ended, deleted = (client.create_run(experiment, run_name=name) for name in ("active", "ended", "deleted"))
    client.log_metric(active.info.run_id, "loss", 1.0, timestamp=2**45)
    client.set_terminated(ended.info.run_id)
    client.delete_run(deleted.info.run_id)
    found = compat.running_in_database(store, timeout=5)
    assert found == [("active", 2**45)], "MLflow's schema has changed: correct the SQL of running_in_database"


def test_model_is_recorded_in_its_run_and_the_global_address_restored(  # type: ignore[no-untyped-def]
    store: Path, client, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = client.create_experiment("models", artifact_location=(store.parent / "artifacts").as_uri())
    run = client.create_run(experiment)
    before = os.environ.get("MLFLOW_TRACKING_URI")
    save_model(
        create_model("ddamfn_nano", 2),
        weights := store.parent / "model.safetensors",
        "ab",
        "basic7",
        name="ddamfn_nano",
    )
    read: list[bool] = []
    monkeypatch.setattr("mlflow.utils.requirements_utils._MODULES_TO_PACKAGES", None)
    monkeypatch.setattr("importlib_metadata.packages_distributions", lambda: read.append(True) or {})
    uri = compat.record_model(client, run, f"sqlite:///{store}", weights, "model")
    assert not read, "MLflow reads all installed packages again: correct _requirements_unchecked"
    outputs = client.get_run(run.info.run_id).outputs
    assert [uri] == [f"models:/{output.model_id}" for output in outputs.model_outputs], "it is in another run"
    assert os.environ.get("MLFLOW_TRACKING_URI") == before
    assert not list(store.parent.rglob("*.pkl"))
