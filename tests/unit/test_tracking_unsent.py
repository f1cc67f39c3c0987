"""Promises of what waits for a tracking store: nothing that was logged is lost, doubled, or recorded elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from torch import nn

from fer.tracking import Run, TrackingConfig, TrackingError, journal, open_run, store
from fer.tracking import run as run_module
from fer.tracking.journal import Journal, left_journals, open_journal


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for the module: making an MLflow database takes seconds."""
    return tmp_path_factory.mktemp("project")


@pytest.fixture(autouse=True)
def _local_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture
def down(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The store answers as soon as this list is empty."""
    is_down, find = [True], store.find_run

    def find_run(*arguments: Any) -> Any:
        if is_down:
            raise OSError("connection refused")
        return find(*arguments)

    monkeypatch.setattr(store, "find_run", find_run)
    return is_down


def start(root: Path, key: str, config: TrackingConfig | None = None, **more: Any) -> Run:
    arguments: dict[str, Any] = {"params": {"lr": 0.1}, "tags": {"dataset": "toy"}} | more
    return open_run(config or TrackingConfig(), root, experiment="toy", run_name="nano", key=key, **arguments)


def client(root: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{root / 'mlflow.db'}")


def runs(root: Path, key: str) -> list[Any]:
    """The runs of a training in the store."""
    its = client(root)
    experiment = its.get_experiment_by_name("toy")
    return list(its.search_runs([experiment.experiment_id], f"tags.`fer.fingerprint` = '{key}'"))


def artifact(run: Any, name: str) -> str:
    return Path(urlsplit(run.info.artifact_uri).path, name).read_text()


def evaluate(root: Path, key: str, **more: Any) -> Run:
    """What an evaluation tells of itself, with files that are replaced afterwards."""
    folder = root / f"evaluated {key}"
    (folder / "figures").mkdir(parents=True)
    (folder / "test.json").write_text("first")
    (folder / "figures" / "recall.svg").write_text("drawn first")
    with start(root, key, params={"evaluate": {"tta": "none"}}, tags={"weights": "w"}, **more) as run:
        run.log_metrics({"test_accuracy": 0.5})
        run.log_dataset("toy-test", "a" * 64, source="shards", context="testing", profile={"rows": 3})
        run.log_table({"class": ["a", "b"], "recall": [0.5, 1.0]}, "per_class.json")
        run.log_json({"a": 1}, "a.json")
        run.log_artifact(folder / "test.json", "evaluation")
        run.log_artifact(folder / "figures")
    (folder / "test.json").write_text("second")
    (folder / "figures" / "recall.svg").write_text("drawn again")
    return run


def check_evaluation(run: Any) -> None:
    assert run.data.metrics["test_accuracy"] == 0.5
    assert run.data.params["evaluate.tta"] == "none"
    assert run.data.tags["weights"] == "w"
    assert [one.dataset.name for one in run.inputs.dataset_inputs] == ["toy-test"]
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": "per_class.json", "type": "table"}]
    assert json.loads(artifact(run, "per_class.json"))["data"] == [["a", 0.5], ["b", 1.0]]
    assert json.loads(artifact(run, "a.json")) == {"a": 1}
    assert artifact(run, "evaluation/test.json") == "first"
    assert artifact(run, "figures/recall.svg") == "drawn first"


def test_all_that_an_evaluation_tells_a_store_that_is_down_is_in_the_run_of_its_training_later(
    root: Path, down: list[bool]
) -> None:
    down.clear()
    with start(root, "trained") as training:
        training.log_metrics({"val_accuracy": 0.4}, step=1)
    before = client(root).get_run(training.run_id)
    down.append(True)
    evaluation = evaluate(root, "trained", run_id=training.run_id)
    assert evaluation.active
    assert not evaluation.connected
    assert evaluation.run_id == training.run_id
    assert "test_accuracy" not in client(root).get_run(training.run_id).data.metrics
    down.clear()
    with start(root, "later"):
        pass
    (run,) = runs(root, "trained")
    check_evaluation(run)
    assert run.info.status == "FINISHED"
    assert run.info.end_time == before.info.end_time, "of the training, not of what was added"
    assert not list((root / ".work" / "unsent").iterdir())


def test_training_and_evaluation_that_both_met_a_store_that_is_down_end_in_one_run(
    root: Path, down: list[bool]
) -> None:
    with start(root, "both") as training:
        training.log_metrics({"val_accuracy": 0.4}, step=1)
    assert training.run_id is None
    evaluate(root, "both", join=True)
    assert len(left_journals(root)) == 2
    down.clear()
    with start(root, "later still"):
        pass
    (run,) = runs(root, "both")
    check_evaluation(run)
    assert run.data.metrics["val_accuracy"] == 0.4
    assert run.info.status == "FINISHED"
    assert not list((root / ".work" / "unsent").iterdir())


def test_store_that_comes_back_during_the_evaluation_gets_all_of_it(
    root: Path, down: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Run.log_table

    def log_table(self: Run, *arguments: Any) -> None:
        down.clear()
        monkeypatch.setattr(run_module, "RETRY_SECONDS", 0.0)
        table(self, *arguments)
        assert self.connected

    monkeypatch.setattr(Run, "log_table", log_table)
    evaluate(root, "back")
    (run,) = runs(root, "back")
    check_evaluation(run)
    assert run.info.status == "FINISHED"
    assert not list((root / ".work" / "unsent").iterdir())


def test_adding_to_a_finished_run_leaves_its_end_alone(root: Path) -> None:
    with start(root, "ended") as training:
        pass
    end = client(root).get_run(training.run_id).info.end_time
    with start(root, "ended", join=True) as added:
        added.log_metrics({"test_accuracy": 0.5})
    assert added.run_id == training.run_id
    assert client(root).get_run(training.run_id).info.end_time == end


def test_file_too_large_to_wait_and_a_model_are_left_out_and_said_so(
    root: Path, down: list[bool], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(journal, "MAX_FILE_BYTES", 10)
    (tmp_path / "large.bin").write_bytes(b"0" * 11)
    (tmp_path / "small.txt").write_text("0" * 10)
    with start(root, "large") as run:
        run.log_artifact(tmp_path / "large.bin")
        run.log_artifact(tmp_path / "small.txt")
        run.log_model(nn.Identity(), np.zeros((2, 3, 4, 4), np.float32), labels=("a", "b"))
        down.clear()
    assert "large.bin: its" in caplog.text
    assert "the model cannot wait" in caplog.text
    (found,) = runs(root, "large")
    assert [one.path for one in client(root).list_artifacts(found.info.run_id)] == ["small.txt"]


def test_hours_without_a_store_fill_one_journal(
    root: Path, down: list[bool], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(run_module, "RETRY_SECONDS", 0.0)
    with start(root, "hours") as run:
        for step in range(5):
            run.log_metrics({"val_loss": 1.0 / (1 + step)}, step=step)
            assert len(left_journals(root)) == 1
        down.clear()
    points = client(root).get_metric_history(run.run_id, "val_loss")
    assert [point.step for point in points] == [0, 1, 2, 3, 4]
    assert caplog.text.count("connection refused") == 1
    assert not left_journals(root)


class Deaf:
    """A client whose first call of a kind reaches the store, while the answer is lost."""

    def __init__(self, client: Any, call: str) -> None:
        self._client, self._call = client, call

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        if name != self._call:
            return found

        def deaf(*arguments: Any, **options: Any) -> None:
            found(*arguments, **options)
            raise OSError("connection reset")

        return deaf


@pytest.mark.parametrize("call", ["log_batch", "set_terminated"])
@pytest.mark.parametrize("join", [False, True])
def test_lost_answer_leaves_one_run_and_no_point_twice(root: Path, call: str, join: bool) -> None:
    key = f"lost answer to {call}, {join}"
    with start(root, key, join=join) as run:
        assert run._stored is not None
        run._stored.client = Deaf(run._stored.client, call)
        run.log_metrics({"val_loss": 1.0}, step=1)
    with start(root, f"after {key}"):
        pass
    (found,) = runs(root, key)
    assert found.info.status == "FINISHED"
    assert len(client(root).get_metric_history(found.info.run_id, "val_loss")) == 1
    assert not left_journals(root)


def test_required_store_that_dies_does_not_hide_what_ended_the_training(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hidden, told = (start(root, key, TrackingConfig(required=True)) for key in ("hidden", "told"))
    for run in (hidden, told):
        assert run._stored is not None
        run._stored.client = Deaf(run._stored.client, "set_terminated")
    with pytest.raises(KeyboardInterrupt), hidden:
        raise KeyboardInterrupt
    assert "connection reset" in caplog.text
    with pytest.raises(TrackingError, match="connection reset"), told:
        pass


def test_trials_find_their_search_when_both_waited(root: Path, down: list[bool]) -> None:
    with start(root, "search") as search:
        with start(root, "trial that waits longer", parent=search):
            pass
        down.clear()
        with start(root, "trial", parent=search):
            pass
    (above,) = runs(root, "search")
    for key in ("trial", "trial that waits longer"):
        (trial,) = runs(root, key)
        assert trial.data.tags.get("mlflow.parentRunId") == above.info.run_id, key


def test_parameter_told_again_with_another_value_stays_and_costs_nothing(root: Path) -> None:
    with start(root, "parameters") as run:
        run.log_params({"lr": 0.2, "more": 1})
        assert run.connected
    assert client(root).get_run(run.run_id).data.params == {"lr": "0.1", "more": "1"}


def test_run_that_cannot_be_asked_for_just_now_is_not_taken_for_gone(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    with start(root, "asked") as training:
        pass

    def busy(*_: Any) -> None:
        raise MlflowException("busy")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "get_run", busy)
        with start(root, "asked", run_id=training.run_id) as evaluation:
            evaluation.log_metrics({"test_accuracy": 0.5})
    with start(root, "asked later"):
        pass
    (run,) = runs(root, "asked")
    assert run.data.metrics == {"test_accuracy": 0.5}


# ------------------------------------------------------------------------------------------------ the file


@pytest.mark.parametrize("content", ["", '{"experiment": "to'])
def test_journal_of_a_writer_without_room_for_a_line_is_put_away(root: Path, content: str) -> None:
    path = root / ".work" / "unsent" / "00000000000000000001-1.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    with start(root, "beside nothing") as run:
        assert run.connected
    assert not path.exists()


def test_damaged_journal_stops_no_training_and_is_named(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = root / ".work" / "unsent" / "00000000000000000001-1.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"experiment": "toy", "run_name": "nano", "key": "damaged"}\nzz\n')
    with start(root, "beside damage") as run:
        assert run.connected
    assert path.exists()
    assert f"{path} cannot be sent" in caplog.text
    assert "remove the file" in caplog.text
    path.unlink()


def test_journal_is_seen_by_others_only_when_it_is_held_and_says_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = journal.fcntl.flock

    def seen(*arguments: Any) -> None:
        assert not left_journals(tmp_path)
        flock(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(journal.fcntl, "flock", seen)
        written = Journal(tmp_path, {"key": "k"})
    assert left_journals(tmp_path) == [written.path]
    with open_journal(written.path) as content:
        assert content is None
    written.close()
    with open_journal(written.path) as content:
        assert content == ({"key": "k"}, [])
    assert not left_journals(tmp_path)


def test_journal_that_another_process_sent_meanwhile_is_not_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Journal(tmp_path, {"key": "k"})
    written.append("log_metrics", {"metrics": {"a": 1.0}})
    written.close()
    flock = journal.fcntl.flock

    def late(*arguments: Any) -> None:
        written.path.unlink()
        flock(*arguments)

    monkeypatch.setattr(journal.fcntl, "flock", late)
    with open_journal(written.path) as content:
        assert content is None
