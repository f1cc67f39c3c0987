"""A run in the store: one for each training job, no duplicates, true statuses, no credentials, never in the way."""

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from builders.mlflow_runs import client, recorded, start

from fer.lineage import flatten, redact
from fer.tracking import Run, TrackingConfig, TrackingError, store_uri


def stored(root: Path, run: Run) -> Any:
    return client(root).get_run(run.run_id)


def test_import_loads_neither_mlflow_nor_torch() -> None:
    code = "import sys, fer.tracking; sys.exit('mlflow' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_resumed_job_keeps_its_run_without_duplicate_points(root: Path) -> None:
    first = start(root, "resumed")
    first.log_metrics({"val_loss": 2.0, "gradient": float("nan")}, step=1)
    with pytest.raises(KeyboardInterrupt), first:
        raise KeyboardInterrupt
    assert stored(root, first).info.status == "KILLED"
    with start(root, "resumed") as second:
        assert stored(root, second).info.status == "RUNNING"
        second.log_metrics({"val_loss": 2.0, "gradient": float("nan")}, step=1)
        second.log_metrics({"val_loss": 1.0}, step=2)
        second.log_metrics({"val_loss": 1.0}, step=2)
    assert second.run_id == first.run_id
    ((status, curves),) = recorded(root, "resumed")
    assert (status, curves["val_loss"]) == ("FINISHED", [(1, 2.0), (2, 1.0)])
    assert len(curves["gradient"]) == 1
    with start(root, "resumed") as third:
        pass
    assert third.run_id != first.run_id, "a finished run is never opened again"


@pytest.mark.parametrize(
    ("error", "status"), [(ZeroDivisionError(), "FAILED"), (SystemExit(143), "KILLED"), (KeyboardInterrupt(), "KILLED")]
)
def test_error_fails_the_run_and_interruption_kills_it(root: Path, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), start(root, status + str(error)) as run:
        raise error
    assert stored(root, run).info.status == status
    assert ("last_error" in stored(root, run).data.tags) == (status == "FAILED")


@pytest.mark.parametrize("by_id", [True, False])
def test_evaluation_joins_the_run_of_its_training_and_keeps_its_status_and_end(root: Path, by_id: bool) -> None:
    key = f"trained {by_id}"
    with start(root, key) as training:
        pass
    end = stored(root, training).info.end_time
    with start(root, key, **({"run_id": training.run_id} if by_id else {"join": True})) as evaluation:
        evaluation.log_metrics({"test_accuracy": 0.5})
        evaluation.log_table({"class": ["a", "b"], "recall": [0.5, 1.0]}, f"{by_id}.json")
        evaluation.log_table({"class": ["a", "b"], "recall": [0.5, 0.9]}, f"{by_id}.json")
        evaluation.log_dataset("toy", "a" * 64, source="data/shards/toy", context="testing", profile={"rows": 3})
    run = stored(root, training)
    assert evaluation.run_id == training.run_id
    assert (run.info.status, run.info.end_time) == ("FINISHED", end)
    assert run.data.metrics["test_accuracy"] == 0.5
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": f"{by_id}.json", "type": "table"}]
    table = json.loads(next((root / "mlartifacts").rglob(f"{by_id}.json")).read_text())
    assert table == {"columns": ["class", "recall"], "data": [["a", 0.5], ["b", 0.9]]}
    assert run.inputs.dataset_inputs[0].dataset.digest == "a" * 12


def test_where_a_run_comes_from_is_told_once_and_by_its_training(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin = {"mlflow.user": "ada", "host": platform.node(), "dvc.stage": "train@toy-nano"}
    monkeypatch.setenv("LOGNAME", "ada")
    monkeypatch.setenv("DVC_STAGE", "train@toy-nano")
    with start(root, "origin") as training:
        pass
    monkeypatch.setenv("DVC_STAGE", "evaluate@toy-nano")
    with start(root, "origin", run_id=training.run_id), start(root, "alone", join=True) as alone:
        pass
    assert origin.items() <= stored(root, training).data.tags.items()
    assert (origin | {"dvc.stage": "evaluate@toy-nano"}).items() <= stored(root, alone).data.tags.items()


def test_the_data_of_a_resumed_run_are_recorded_once(root: Path) -> None:
    for status in ("KILLED", "FINISHED"):
        run = start(root, "data")
        for context in ("training", "validation"):
            run.log_dataset(f"toy-{context}", "a" * 64, source="data/shards/toy", context=context)
        run.finish(status)
    inputs = stored(root, run).inputs.dataset_inputs
    assert sorted(one.dataset.name for one in inputs) == ["toy-training", "toy-validation"]


def test_an_experiment_that_another_client_creates_meanwhile_is_joined(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    with start(root, "first"):
        pass
    find, seen = MlflowClient.get_experiment_by_name, []

    def not_yet(self: Any, name: str) -> Any:
        seen.append(name)
        return find(self, name) if len(seen) > 1 else None

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", not_yet)
    with start(root, "second") as run:
        assert run.connected
    assert stored(root, run).info.status == "FINISHED"


def test_a_run_that_cannot_be_opened_to_the_end_is_closed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise TrackingError("disk full")

    monkeypatch.setattr(Run, "log_params", fail)
    with pytest.raises(TrackingError, match="disk full"):
        start(root, "half open")
    assert recorded(root, "half open") == [("FAILED", {})]


def test_deleted_run_is_replaced_with_a_warning(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with start(root, "deleted", run_id="0" * 32) as run:
        pass
    assert run.run_id
    assert run.run_id != "0" * 32
    assert "0" * 32 in caplog.text


def test_run_of_a_busy_store_is_not_replaced(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    with start(root, "busy") as training:
        pass

    def busy(*_: Any) -> None:
        raise MlflowException("busy")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "get_run", busy)
        with start(root, "busy", run_id=training.run_id) as evaluation:
            evaluation.log_metrics({"test_accuracy": 0.5})
    with start(root, "busy later"):
        pass
    assert recorded(root, "busy") == [("FINISHED", {"test_accuracy": [(0, 0.5)]})]


def test_other_fingerprint_is_another_run(root: Path) -> None:
    runs = [start(root, key) for key in ("of one recipe", "of another")]
    for number, run in enumerate(runs):
        run.log_metrics({"val_loss": float(number)}, step=1)
        run.finish("KILLED")
    assert runs[0].run_id != runs[1].run_id
    assert recorded(root, "of another") == [("KILLED", {"val_loss": [(1, 1.0)]})]


def test_params_are_flat_and_final_and_artifacts_have_an_absolute_path(root: Path) -> None:
    params = {"recipe": {"schedule": {"kind": "cosine"}, "betas": [0.9, 0.99]}}
    with start(root, "flat", params=params, parent="p") as run:
        run.log_json({"a": 1}, "a.json")
        run.log_params({"recipe.betas": [0.5], "more": 1})
        assert run.connected
    found = stored(root, run)
    assert found.data.params == {"recipe.schedule.kind": "cosine", "recipe.betas": "[0.9, 0.99]", "more": "1"}
    assert found.data.tags["mlflow.parentRunId"] == "p"
    assert "torch " in found.data.tags["versions"]
    assert found.info.artifact_uri.startswith((root / "mlartifacts").as_uri())
    assert flatten({"a": {"b": {"c": None}}}) == {"a.b.c": "null"}


def test_credentials_never_reach_the_store(root: Path) -> None:
    secret = "https://user:pa55@host/x.csv"
    with start(root, "secret", params={"source": secret, "list": [secret]}, tags={"from": secret}) as run:
        run.log_dataset("toy", "b" * 64, source=secret, context="training")
    found = stored(root, run)
    assert "pa55" not in str(found.to_dictionary())
    assert found.data.params["source"] == "https://***@host/x.csv"
    assert redact("no credentials in a@b.org") == "no credentials in a@b.org"


def test_unreachable_optional_server_costs_one_warning(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with start(root, "down", TrackingConfig(uri="http://user:pa55@127.0.0.1:9")) as run:
        run.log_metrics({"a": 1.0}, step=1)
        run.log_params({"a": 1})
        run.set_tags({"a": 1})
    assert (run.run_id, run.active, run.connected) == (None, True, False)
    assert [record.levelname for record in caplog.records].count("WARNING") == 1
    assert "pa55" not in caplog.text


def test_unreachable_required_server_is_an_error_with_the_remedy(root: Path) -> None:
    with pytest.raises(TrackingError, match=r"tracking\.required"):
        start(root, "down", TrackingConfig(uri="http://127.0.0.1:9", required=True))


def test_tracking_turned_off_writes_nothing(tmp_path: Path) -> None:
    with start(tmp_path, "off", TrackingConfig(enabled=False, required=True)) as run:
        run.log_metrics({"a": 1.0}, step=1)
        run.log_artifact(tmp_path)
    assert not run.active
    assert not list(tmp_path.iterdir())


def test_store_that_fails_midway_is_one_warning_or_an_error(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def log_batch(self, *_: object, **__: object) -> None:
            raise OSError("disk full")

    for required in (False, True):
        run = start(root, f"failing {required}", TrackingConfig(required=required))
        run._stored.client = Broken()
        if required:
            with pytest.raises(TrackingError, match="disk full"):
                run.log_metrics({"a": 1.0}, step=1)
        else:
            run.log_metrics({"a": 1.0}, step=1)
            run.log_metrics({"a": 2.0}, step=2)
            assert caplog.text.count("disk full") == 1


@pytest.mark.parametrize(
    ("variable", "uri", "expected"),
    [
        (None, None, "sqlite:///{root}/mlflow.db"),
        (None, "http://params", "http://params"),
        ("http://environment", "http://params", "http://environment"),
        (None, "sqlite:///runs/mine.db", "sqlite:///{root}/runs/mine.db"),
        (None, "sqlite:////srv/mine.db", "sqlite:////srv/mine.db"),
        (None, "mlruns", "{root}/mlruns"),
        (None, "databricks", "databricks"),
        (None, "postgresql://host/runs", "postgresql://host/runs"),
    ],
)
def test_store_is_the_environment_s_or_the_configured_one_or_in_the_project(
    variable: str | None, uri: str | None, expected: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
    assert store_uri(TrackingConfig(uri=uri), root) == expected.format(root=root.resolve())
