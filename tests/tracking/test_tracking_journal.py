"""Entries that wait for a tracking store: none is lost, sent twice, or recorded in another run."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from builders.mlflow_runs import client, recorded, runs, start

from fer.tracking import Run, TrackingConfig, TrackingError, journal
from fer.tracking import run as run_module
from fer.tracking.journal import Journal, left_journals, open_journal


def send_journals(root: Path) -> None:
    """Opening any run sends what waits."""
    with start(root, "another"):
        pass


class Failing:
    """A client that fails after a call of that name, although the store took it; without a name, before every call."""

    def __init__(self, client: Any = None, call: str = "") -> None:
        self._client, self._call = client, call

    def __getattr__(self, name: str) -> Any:
        if self._call and name != self._call:
            return getattr(self._client, name)

        def fail(*arguments: Any, **options: Any) -> None:
            if self._call:
                getattr(self._client, name)(*arguments, **options)
            raise OSError("connection reset")

        return fail


def break_client(run: Run, call: str = "") -> None:
    run._stored.client = Failing(run._stored.client, call)


# ------------------------------------------------------------------------------------------------ an evaluation


def evaluate(root: Path, key: str, between: Callable[[Run], None] = lambda _: None, **more: Any) -> Run:
    """All entries of an evaluation, of files that are replaced afterwards."""
    folder = root / f"evaluated {key}"
    (folder / "figures").mkdir(parents=True)
    (folder / "test.json").write_text("first")
    (folder / "figures" / "recall.svg").write_text("drawn first")
    with start(root, key, params={"evaluate": {"tta": "none"}}, tags={"weights": "w"}, **more) as run:
        run.log_metrics({"test_accuracy": 0.5})
        run.log_dataset("toy-test", "a" * 64, source="shards", context="testing", profile={"rows": 3})
        run.log_artifact(folder / "test.json", "evaluation")
        run.log_artifact(folder / "figures")
        (folder / "test.json").write_text("second")
        (folder / "figures" / "recall.svg").write_text("drawn again")
        between(run)
        run.log_table({"class": ["a", "b"], "recall": [0.5, 1.0]}, "per_class.json")
        run.log_json({"a": 1}, "a.json")
    return run


def assert_evaluated(root: Path, key: str) -> Any:
    """The only run of that key, which holds all entries of an evaluation; nothing waits any more."""

    def artifact(name: str) -> str:
        return Path(urlsplit(run.info.artifact_uri).path, name).read_text()

    (run,) = runs(root, key)
    assert run.data.metrics["test_accuracy"] == 0.5
    assert run.data.params["evaluate.tta"] == "none"
    assert run.data.tags["weights"] == "w"
    assert [one.dataset.name for one in run.inputs.dataset_inputs] == ["toy-test"]
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": "per_class.json", "type": "table"}]
    assert json.loads(artifact("per_class.json"))["data"] == [["a", 0.5], ["b", 1.0]]
    assert json.loads(artifact("a.json")) == {"a": 1}
    assert artifact("evaluation/test.json") == "first"
    assert artifact("figures/recall.svg") == "drawn first"
    assert run.info.status == "FINISHED"
    assert not list((root / ".work" / "unsent").iterdir())
    return run


def test_evaluation_that_met_a_dead_store_is_added_to_the_run_of_its_training(root: Path, down: list[bool]) -> None:
    down.clear()
    with start(root, "trained") as training:
        training.log_metrics({"val_accuracy": 0.4}, step=1)
    end = client(root).get_run(training.run_id).info.end_time
    down.append(True)
    evaluation = evaluate(root, "trained", run_id=training.run_id)
    assert (evaluation.active, evaluation.connected, evaluation.run_id) == (True, False, training.run_id)
    assert "test_accuracy" not in client(root).get_run(training.run_id).data.metrics
    down.clear()
    send_journals(root)
    assert assert_evaluated(root, "trained").info.end_time == end, "of the training, not of the evaluation"


def test_training_and_evaluation_that_both_met_a_dead_store_end_in_one_run(root: Path, down: list[bool]) -> None:
    with start(root, "both") as training:
        training.log_metrics({"val_accuracy": 0.4}, step=1)
    assert training.run_id is None
    evaluate(root, "both", join=True)
    assert len(left_journals(root)) == 2
    down.clear()
    send_journals(root)
    assert assert_evaluated(root, "both").data.metrics["val_accuracy"] == 0.4


def test_store_that_responds_again_after_a_minute_gets_all_entries_of_the_evaluation(
    root: Path, down: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    def respond(run: Run) -> None:
        down.clear()
        run.set_tags({"before": "a minute"})
        assert not run.connected
        monkeypatch.setattr(run_module, "RETRY_SECONDS", 0.0)
        run.set_tags({"after": "a minute"})
        assert run.connected

    evaluate(root, "responds again", between=respond)
    assert_evaluated(root, "responds again")


def test_large_file_and_model_cannot_wait_and_are_reported(
    root: Path, down: list[bool], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(journal, "MAX_FILE_BYTES", 10)
    (tmp_path / "large.bin").write_bytes(b"0" * 11)
    (tmp_path / "small.txt").write_text("0" * 10)
    with start(root, "large") as run:
        run.log_artifact(tmp_path / "large.bin")
        run.log_artifact(tmp_path / "small.txt")
        run.log_model(tmp_path / "model.safetensors")
        down.clear()
    assert "large.bin" in caplog.text
    assert "model cannot wait" in caplog.text
    (found,) = runs(root, "large")
    assert [one.path for one in client(root).list_artifacts(found.info.run_id)] == ["small.txt"]


# ------------------------------------------------------------------------------------------------ a training


def test_hours_without_a_store_fill_one_journal_with_one_warning(
    root: Path, down: list[bool], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(run_module, "RETRY_SECONDS", 0.0)
    with start(root, "hours") as run:
        for step in range(5):
            run.log_metrics({"val_loss": 1.0 / (1 + step)}, step=step)
            (path,) = left_journals(root)
            call, arguments = json.loads(path.read_text().splitlines()[-1])
            assert (call, arguments["metrics"]) == ("log_metrics", {"val_loss": 1.0 / (1 + step)})
        assert not run.connected
        down.clear()
    assert recorded(root, "hours") == [("FINISHED", {"val_loss": [(step, 1.0 / (1 + step)) for step in range(5)]})]
    assert caplog.text.count("connection refused") == 1
    assert not left_journals(root)


def test_rest_of_a_run_whose_store_died_is_sent_when_the_next_run_is_opened(root: Path, down: list[bool]) -> None:
    down.clear()
    with start(root, "dying") as run:
        run.log_metrics({"val_loss": 2.0}, step=1)
        break_client(run)
        down.append(True)
        for step in (2, 3):
            run.log_metrics({"val_loss": 2.0 / step}, step=step)
        before = int(time.time() * 1000)
    assert recorded(root, "dying") == [("RUNNING", {"val_loss": [(1, 2.0)]})]
    while int(time.time() * 1000) == before:
        pass
    down.clear()
    send_journals(root)
    assert recorded(root, "dying") == [("FINISHED", {"val_loss": [(1, 2.0), (2, 1.0), (3, 2.0 / 3)]})]
    last = client(root).get_metric_history(run.run_id, "val_loss")[-1]
    assert last.timestamp <= before, "the time at which it was measured"
    assert not left_journals(root)


def test_journal_of_a_killed_writer_is_sent_and_that_of_a_living_one_is_not(root: Path, down: list[bool]) -> None:
    living = start(root, "living")
    killed = start(root, "killed")
    killed.log_metrics({"val_loss": 2.0}, step=1)
    killed._journal.close()  # as the kernel does
    with open(killed._journal.path, "a") as handle:
        handle.write('["log_metrics", {"metr')
    down.clear()
    with start(root, "killed") as again:
        again.log_metrics({"val_loss": 2.0}, step=1)
        again.log_metrics({"val_loss": 1.0}, step=2)
    assert recorded(root, "killed") == [("FINISHED", {"val_loss": [(1, 2.0), (2, 1.0)]})]
    assert recorded(root, "living") == []
    assert len(left_journals(root)) == 1
    living.finish("KILLED")
    assert recorded(root, "living") == [("KILLED", {})]


@pytest.mark.parametrize("call", ["log_batch", "set_terminated"])
@pytest.mark.parametrize("join", [False, True])
def test_lost_response_leaves_one_run_and_no_point_twice(root: Path, call: str, join: bool) -> None:
    key = f"lost response to {call}, {join}"
    with start(root, key, join=join) as run:
        break_client(run, call)
        run.log_metrics({"val_loss": 1.0}, step=1)
    send_journals(root)
    assert recorded(root, key) == [("FINISHED", {"val_loss": [(1, 1.0)]})]
    assert not left_journals(root)


def test_required_store_that_dies_does_not_hide_the_error_of_the_block(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hidden, raised = (start(root, key, TrackingConfig(required=True)) for key in ("hidden", "raised"))
    for run in (hidden, raised):
        break_client(run, "set_terminated")
    with pytest.raises(KeyboardInterrupt), hidden:
        raise KeyboardInterrupt
    assert "connection reset" in caplog.text
    with pytest.raises(TrackingError, match="connection reset"), raised:
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


# ------------------------------------------------------------------------------------------------ the file


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        ("", False),
        ('{"experiment": "to', False),  # its disk had no room for a line
        ('{"experiment": "toy", "run_name": "nano", "key": "damaged"}\nzz\n', True),
    ],
)
def test_damaged_journal_stops_no_run_and_is_named(
    root: Path, content: str, kept: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path = root / ".work" / "unsent" / "00000000000000000001-1.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    with start(root, "beside damage") as run:
        assert run.connected
    assert path.exists() == kept
    assert (str(path) in caplog.text and "remove the file" in caplog.text) == kept
    path.unlink(missing_ok=True)


def test_journal_is_visible_only_once_it_is_locked_and_has_its_first_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = journal.fcntl.flock

    def hidden(*arguments: Any) -> None:
        assert not left_journals(tmp_path)
        flock(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(journal.fcntl, "flock", hidden)
        written = Journal(tmp_path, {"key": "k"})
    assert left_journals(tmp_path) == [written.path]
    with open_journal(written.path) as content:
        assert content is None
    written.close()
    with open_journal(written.path) as content:
        assert content == ({"key": "k"}, [])
    assert not left_journals(tmp_path)


def test_journal_that_another_process_has_just_sent_is_not_sent_again(
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
