"""Promises of experiment tracking: one run a training, no duplicates, honest statuses, no secrets, never in the way."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from fer.lineage import flatten, redact
from fer.tracking import Run, TrackingConfig, TrackingError, open_run, store_uri
from fer.tracking.stored_run import MODEL_TAG


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for the module: making an MLflow database takes seconds."""
    return tmp_path_factory.mktemp("project")


@pytest.fixture(autouse=True)
def _local_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


def start(root: Path, key: str, config: TrackingConfig | None = None, **more: object) -> Run:
    arguments: dict = {"params": {"recipe": {"epochs": 2}}, "tags": {"dataset": "toy"}} | more
    return open_run(config or TrackingConfig(), root, experiment="toy", run_name="nano", key=key, **arguments)


def stored(root: Path, run: Run):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{root / 'mlflow.db'}").get_run(run.run_id)


def history(root: Path, run: Run, key: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    points = MlflowClient(tracking_uri=f"sqlite:///{root / 'mlflow.db'}").get_metric_history(run.run_id, key)
    return [(point.step, point.value) for point in points]


def test_import_stays_light() -> None:
    code = "import sys, fer.tracking; sys.exit('mlflow' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_resumed_training_goes_on_in_its_run_without_duplicate_points(root: Path) -> None:
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
    assert history(root, second, "val_loss") == [(1, 2.0), (2, 1.0)]
    assert len(history(root, second, "gradient")) == 1
    assert stored(root, second).info.status == "FINISHED"
    with start(root, "resumed") as third:
        pass
    assert third.run_id != first.run_id, "a finished run is never opened again"


def test_exception_marks_the_run_failed_and_interruption_killed(root: Path) -> None:
    with pytest.raises(ZeroDivisionError), start(root, "failing") as run:
        raise ZeroDivisionError
    assert stored(root, run).info.status == "FAILED"
    with pytest.raises(SystemExit), start(root, "leaving") as run:
        raise SystemExit(143)
    assert stored(root, run).info.status == "KILLED"


def test_evaluation_joins_the_run_of_its_training_and_leaves_its_status(root: Path) -> None:
    with start(root, "trained") as training:
        pass
    with start(root, "trained", run_id=training.run_id) as evaluation:
        evaluation.log_metrics({"test_accuracy": 0.5})
        evaluation.log_table({"class": ["a", "b"], "recall": [0.5, 1.0]}, "per_class.json")
        evaluation.log_table({"class": ["a", "b"], "recall": [0.5, 0.9]}, "per_class.json")
        evaluation.log_dataset("toy", "a" * 64, source="data/shards/toy", context="testing", profile={"rows": 3})
    run = stored(root, training)
    assert evaluation.run_id == training.run_id
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test_accuracy"] == 0.5
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": "per_class.json", "type": "table"}]
    table = json.loads(next((root / "mlartifacts").rglob("per_class.json")).read_text())
    assert table == {"columns": ["class", "recall"], "data": [["a", 0.5], ["b", 0.9]]}
    assert run.inputs.dataset_inputs[0].dataset.digest == "a" * 36


def test_vanished_run_is_replaced_by_a_new_one_and_said_so(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with start(root, "vanished", run_id="0" * 32) as run:
        pass
    assert run.run_id
    assert run.run_id != "0" * 32
    assert "no run" in caplog.text


def test_params_are_flat_and_artifacts_lie_at_an_absolute_place(root: Path) -> None:
    with start(
        root, "flat", params={"recipe": {"schedule": {"kind": "cosine"}, "betas": [0.9, 0.99]}}, parent="p"
    ) as run:
        run.log_json({"a": 1}, "a.json")
    found = stored(root, run)
    assert found.data.params == {"recipe.schedule.kind": "cosine", "recipe.betas": "[0.9, 0.99]"}
    assert found.data.tags["mlflow.parentRunId"] == "p"
    assert "version.torch" in found.data.tags
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
    config = TrackingConfig(uri="http://user:pa55@127.0.0.1:9")
    with start(root, "down", config) as run:
        run.log_metrics({"a": 1.0}, step=1)
        run.log_params({"a": 1})
        run.set_tags({"a": 1})
    assert run.run_id is None
    assert run.active
    assert not run.connected
    warnings_ = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings_) == 1
    assert "pa55" not in caplog.text


def test_tracking_turned_off_leaves_no_trace(tmp_path: Path) -> None:
    with start(tmp_path, "off", TrackingConfig(enabled=False, required=True)) as run:
        run.log_metrics({"a": 1.0}, step=1)
        run.log_artifact(tmp_path)
    assert not run.active
    assert not list(tmp_path.iterdir())


def test_unreachable_required_server_is_an_error_with_the_remedy(root: Path) -> None:
    with pytest.raises(TrackingError, match=r"tracking\.required"):
        start(root, "down", TrackingConfig(uri="http://127.0.0.1:9", required=True))


def test_store_that_breaks_down_midway_ends_the_recording_not_the_training(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def log_batch(self, *_: object, **__: object) -> None:
            raise OSError("disk full")

    for required in (False, True):
        run = start(root, f"breaking {required}", TrackingConfig(required=required))
        assert run._stored is not None
        run._stored.client = Broken()
        if required:
            with pytest.raises(TrackingError, match="disk full"):
                run.log_metrics({"a": 1.0}, step=1)
        else:
            run.log_metrics({"a": 1.0}, step=1)
            run.log_metrics({"a": 2.0}, step=2)
            assert caplog.text.count("disk full") == 1


def test_environment_wins_over_params(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    assert store_uri(TrackingConfig(uri="http://params"), root) == "http://elsewhere"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert store_uri(TrackingConfig(uri="http://params"), root) == "http://params"
    assert store_uri(TrackingConfig(), root) == f"sqlite:///{root.resolve()}/mlflow.db"


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("sqlite:///runs/mine.db", "sqlite:///{root}/runs/mine.db"),
        ("sqlite:////srv/mine.db", "sqlite:////srv/mine.db"),
        ("mlruns", "{root}/mlruns"),
        ("databricks", "databricks"),
        ("postgresql://host/runs", "postgresql://host/runs"),
    ],
)
def test_a_local_store_lies_in_the_project_whatever_folder_a_command_runs_in(
    uri: str, expected: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert store_uri(TrackingConfig(uri=uri), root) == expected.format(root=root.resolve())


def test_model_is_recorded_once_without_pickle_and_takes_any_batch(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    import torch
    from torch import nn

    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    ).train()
    example = np.random.default_rng(0).random((2, 3, 8, 8), dtype=np.float32)
    monkeypatch.chdir(tmp_path)
    with start(root, "model") as run, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.log_metrics({"val_accuracy": 0.5}, step=0)
        run.log_model(model, example, labels=("a", "b"))
        run.log_model(model, example, labels=("a", "b"))
    assert model.training
    assert not os.environ.get("MLFLOW_TRACKING_URI")
    assert history(root, run, "val_accuracy") == [(0, 0.5)]
    assert not list(tmp_path.iterdir()), "nothing lands where the process happens to stand"
    files = [path.name for path in (root / "mlartifacts" / "models").rglob("*") if path.is_file()]
    assert files.count("model.pt2") == 1
    assert not [name for name in files if name.endswith((".pkl", ".pth", ".pickle"))]
    assert [output.model_id for output in stored(root, run).outputs.model_outputs]
    uri = stored(root, run).data.tags[MODEL_TAG]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    loaded = mlflow.pytorch.load_model(uri)
    five = torch.rand(5, 3, 8, 8)
    assert torch.allclose(loaded(five), model.eval()(five), atol=1e-6)
