"""The train stage: what it publishes and records, no Ray in this process, no resume under other library versions."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml_text
from builders.mlflow_runs import give_store, runs
from builders.projects import NANO, TOY, finish, make_project, start_training
from builders.runs import run_child, run_stage
from builders.shards import LABELS

from fer import cli
from fer.console import log
from fer.io.files import FileError, sha256
from fer.io.storage import Folder
from fer.labels import SPACES
from fer.models import create_model
from fer.params import Params, load
from fer.processes import Interrupted
from fer.stages import study
from fer.stages import train as stage
from fer.stages.train import run as run_training
from fer.studies import StudyOptions
from fer.training import job, learner, loop
from fer.training.progress import Progress, record_change
from fer.training.recipe import load_recipe
from fer.training.state import TrainState, VersionsError, saved_states
from fer.weights.store import save_model

STUDY = """
title: A table of one
source: A work, Table 1
dataset: tiny
recipe: ddamfn/nano
baseline: plain
set: {epochs: 1, batch_size: 16, augment: [], schedule.warmup_epochs: 0.0}
rows: [{row: plain, published: 90.0}]
smoke: {dataset: tiny, recipe: ddamfn/nano}
"""


class KilledError(Exception):
    """In place of a signal."""


def killed_under_another_torch(run: Callable[[], object]) -> None:
    """Runs what trains, up to its first checkpoint."""
    save, versions = loop._save, job.versions

    def save_and_die(*given: object) -> None:
        save(*given)  # type: ignore[arg-type]
        raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "versions", lambda: {**versions(), "torch": "1.0"})
        patch.setattr(loop, "_save", save_and_die)
        with pytest.raises(KilledError):
            run()


@pytest.fixture
def params(tmp_path: Path) -> Params:
    return load(make_project(tmp_path, epochs=2, recipe=TOY, tracking={"enabled": False}) / "params.yaml")


@pytest.fixture
def interrupted(params: Params) -> Params:
    """A project whose run was killed after its first checkpoint, under another torch."""
    killed_under_another_torch(lambda: run_training(params, "tiny", "toy"))
    return params


def facts(params: Params, name: str) -> dict[str, object]:
    return json.loads((params.root / "trained" / "tiny" / "toy" / name).read_text())  # type: ignore[no-any-return]


def test_resuming_under_other_versions_is_refused_and_the_checkpoint_kept(interrupted: Params) -> None:
    (folder,) = (path.parent for path in interrupted.root.glob(".work/*/lock"))
    before = {path: path.read_bytes() for path in saved_states(folder)}
    assert before
    command = "python -m pipelines.train --dataset tiny --model toy"
    with pytest.raises(VersionsError, match=rf"torch 1\.0 -> .*`{command} --accept-versions`.*`{command} --restart`"):
        run_training(interrupted, "tiny", "toy")
    assert {path: path.read_bytes() for path in saved_states(folder)} == before
    assert not (interrupted.root / "trained").exists()


def test_accepted_versions_are_recorded_beside_the_result(interrupted: Params) -> None:
    run_training(interrupted, "tiny", "toy", accept_versions=True)
    now = job.decisive_versions()
    assert facts(interrupted, "run.json")["accepted_versions"] == [
        {"epoch": 0, "changed": {"torch": f"1.0 -> {now['torch']}"}}
    ]
    assert facts(interrupted, "run.json")["resumes"] == 1
    assert facts(interrupted, "train.json")["decisive_versions"] == now


def test_restart_begins_anew(interrupted: Params) -> None:
    run_training(interrupted, "tiny", "toy", restart=True)
    assert facts(interrupted, "run.json")["accepted_versions"] == []
    assert facts(interrupted, "run.json")["resumes"] == 0


@pytest.mark.parametrize(
    ("fast", "precision", "warned"), [(False, "bf16", True), (False, "fp32", False), (True, "bf16", False)]
)
def test_emulated_bfloat16_is_warned_of_with_its_remedy(
    fast: bool,
    precision: str,
    warned: bool,
    params: Params,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(learner, "has_fast_bf16", lambda: fast)
    monkeypatch.setattr(log, "propagate", True)
    yaml_text.edit(params.root / "params.yaml", "models.toy.precision", precision)
    changed = load(params.root / "params.yaml")
    run_training(changed, "tiny", "toy")
    monkeypatch.chdir(params.root)
    cli._main(["check"])
    hits = [record.message for record in caplog.records if "precision: fp32" in record.message]
    assert [("train toy" in hit, "models.toy" in hit) for hit in hits] == [(True, False), (False, True)] * warned


def test_a_checkpoint_tells_its_versions(interrupted: Params) -> None:
    (folder,) = (path.parent for path in interrupted.root.glob(".work/*/lock"))
    state = TrainState.load(folder)
    assert state.versions == {**job.decisive_versions(), "torch": "1.0"}


def test_a_study_resumes_under_other_versions_only_where_they_are_accepted(params: Params) -> None:
    (params.root / "own.yaml").write_text(STUDY)
    options = StudyOptions(workers=0)
    killed_under_another_torch(lambda: study.run(params, "own.yaml", options))
    command = r"`fer study own\.yaml --accept-versions`.*`fer study own\.yaml --restart`"
    with pytest.raises(ValueError, match=rf"torch 1\.0 -> .*{command}"):
        study.run(params, "own.yaml", options)
    assert (study.run(params, "own.yaml", options, accept_versions=True) / "table.md").is_file()


def test_a_restarted_study_begins_anew(params: Params) -> None:
    (params.root / "own.yaml").write_text(STUDY)
    killed_under_another_torch(lambda: study.run(params, "own.yaml", StudyOptions(workers=0)))
    assert (study.run(params, "own.yaml", StudyOptions(workers=0), restart=True) / "table.md").is_file()


def test_the_published_folder_describes_its_run(tmp_path: Path) -> None:
    from fer.weights.store import load_model

    root = make_project(tmp_path, epochs=1)
    stale = root / "trained" / "tiny" / "toy"
    stale.mkdir(parents=True)
    (stale / "train.json").write_text("of an earlier version")
    told = "import atexit, sys\natexit.register(lambda: print('imported ray:', 'ray' in sys.modules))"
    output = finish(start_training(give_store(root), code=told))
    assert "imported ray: False" in output, "which one process does not need"
    names = {path.name for path in stale.iterdir()}
    assert names == {"history.csv", "model.safetensors", "run.json", "train.json", "val.json"}
    _, info = load_model(stale / "model.safetensors", labels=LABELS)
    facts = json.loads((stale / "train.json").read_text())
    assert info.extra["fingerprint"] == facts["fingerprint"]
    assert facts["recipe"] == load_recipe({**NANO, "epochs": 1}, Path(), "test").model_dump(mode="json")
    circumstances = json.loads((stale / "run.json").read_text())
    assert circumstances["versions"]["torch"]
    assert circumstances["mlflow_run_id"]
    assert circumstances["train"]["workers"] == 0
    assert not facts.keys() & circumstances.keys()
    assert "epoch 1/1: loss" in output


def test_the_record_tells_what_the_model_started_from(params: Params, caplog: pytest.LogCaptureFixture) -> None:
    start = params.root / "start.safetensors"
    save_model(create_model("toy", 8), start, SPACES["basic8"].labels, "basic8", name="toy")
    recipe = params.recipe("toy").model_copy(update={"start_from": start.name, "epochs": 1})
    with caplog.at_level("INFO", logger="fer"):
        run_training(replace(params, recipes={"toy": recipe}), "tiny", "toy")
    random = ["fc.weight", "fc.bias"]
    assert facts(params, "train.json")["start_from"] == {
        "source": start.name, "sha256": sha256(start), "random": random
    }  # fmt: skip
    assert f"starts from {start.name}; at random: fc.weight, fc.bias" in caplog.text
    assert facts(params, "train.json")["pretrained"] == {}


def test_a_start_that_does_not_fit_is_refused_before_anything_is_written(params: Params) -> None:
    recipe = params.recipe("toy").model_copy(update={"start_from": "start.safetensors"})
    changed = replace(params, recipes={"toy": recipe})
    with pytest.raises(FileError, match=r"start_from = 'start\.safetensors'"):
        run_training(changed, "tiny", "toy")
    save_model(create_model("ddamfn_nano"), params.root / "start.safetensors", LABELS, "basic7", name="ddamfn_nano")
    with pytest.raises(ValueError, match=r"start\.safetensors: not weights that toy can start from"):
        run_training(changed, "tiny", "toy")
    assert not (params.root / ".work").exists()
    assert not (params.root / "trained").exists()


def test_a_run_is_ranked_by_its_selected_epoch_and_not_by_its_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = give_store(make_project(tmp_path, epochs=3, recipe={**TOY, "learning_rate": 0.1}))
    assert run_child(run_stage, str(root), str(tmp_path / "output.txt")) == 0, (tmp_path / "output.txt").read_text()
    published = root / "trained" / "tiny" / "toy"
    best = json.loads((published / "val.json").read_text())
    assert best["best_epoch"] < 3
    (run,) = runs(root)
    metrics = run.data.metrics
    for name in ("val_accuracy", "val_balanced_accuracy", "val_loss"):
        assert metrics[f"best_{name}"] == best[name]
    assert metrics["best_epoch"] == best["best_epoch"]
    assert metrics["val_loss"] != best["val_loss"]


def test_a_run_tells_from_its_start_what_it_trains_on_and_is_closed_by_whatever_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    params = load(give_store(make_project(tmp_path, recipe=TOY)) / "params.yaml")
    for error, status in ((KilledError("out of memory"), "FAILED"), (Interrupted(signal.SIGTERM), "KILLED")):

        def fail(*_: object, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(stage, "_announce", fail)
        with pytest.raises(type(error)):
            run_training(params, "tiny", "toy")
        (run,) = runs(tmp_path)
        assert run.info.status == status
        data = {one.dataset.name: one.tags[0].value for one in run.inputs.dataset_inputs}
        assert data == {"tiny-train": "training", "tiny-validation": "validation"}
        assert run.data.metrics.keys() == {"parameters"}
        assert (run.data.tags["model"], run.data.tags["last_error"]) == ("toy", "out of memory")


def test_a_run_tells_each_change_of_its_workers_as_it_happens(tmp_path: Path) -> None:
    class Recorded:
        def __init__(self) -> None:
            self.metrics: list[tuple[int, dict[str, float]]] = []
            self.tags: dict[str, object] = {}

        def log_metrics(self, metrics: dict[str, float], step: int) -> None:
            self.metrics.append((step, metrics))

        def set_tags(self, tags: dict[str, object]) -> None:
            self.tags |= tags

    tracked = Recorded()
    begun = tmp_path / "begun"
    with stage.Recorder("train", Folder(str(tmp_path)), 9, tracked, list, begun) as recorder:  # type: ignore[arg-type]
        recorder.on_step(Progress(1, 9, step=1, steps=4, images_per_second=1.0, pids=(1, 2)))
        record_change(str(tmp_path), why="worker 1: connection reset", workers=2, resumed_with=1)
        recorder.on_change("worker 1: connection reset")
    assert tracked.metrics == [(1, {"worker_changes": 1})]
    ((tag, reason),) = tracked.tags.items()
    assert tag.startswith("worker_change.")
    assert reason == "after epoch 1: worker 1: connection reset"


def test_a_flipped_byte_in_a_shard_stops_before_the_first_step(tmp_path: Path) -> None:
    root = make_project(tmp_path, recipe=TOY, tracking={"enabled": False})
    part = root / "data" / "shards" / "tiny" / "train-0.parquet"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    assert run_child(run_stage, str(root), str(tmp_path / "output")) == 1
    output = (tmp_path / "output").read_text()
    assert "train-0.parquet" in output
    assert "dvc repro -f shard@tiny" in output
    assert "Traceback" not in output
