"""The state of a training: whole on disk or not used, whatever happens to its files."""

from __future__ import annotations

import logging
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from builders.stopping import left_part

from fer.console import log
from fer.training.job import TrainJob, decisive_versions
from fer.training.state import StateError, TrainState, VersionsError, saved_states


@pytest.fixture(autouse=True)
def _log_reaches_pytest() -> Iterator[None]:
    propagate, log.propagate = log.propagate, True
    yield
    log.propagate = propagate


def a_state(step: int) -> TrainState:
    state = TrainState(fingerprint="f" * 64, seed=1, world_size=1, threads=1, global_step=step)
    state.model = {"weight": torch.full((3,), float(step))}
    state.optimizer = {"state": {0: {"step": torch.tensor(step)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    state.history = [{"epoch": 1, "val_accuracy": 0.5}]
    return state


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    a_state(7).save(tmp_path)
    loaded = TrainState.load(tmp_path)
    assert loaded is not None
    assert loaded.global_step == 7
    assert torch.equal(loaded.model["weight"], torch.full((3,), 7.0))
    assert loaded.history == [{"epoch": 1, "val_accuracy": 0.5}]


def test_nothing_saved_is_no_error(tmp_path: Path) -> None:
    assert TrainState.load(tmp_path) is None


def test_the_last_two_are_kept_in_order_of_steps(tmp_path: Path) -> None:
    for step in (9, 10, 123456789):
        a_state(step).save(tmp_path)
    assert [path.name for path in saved_states(tmp_path)] == ["state-123456789.pt", "state-00000010.pt"]


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "lengthened"])
def test_a_damaged_file_falls_back_to_the_one_before_with_a_warning(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    a_state(1).save(tmp_path)
    path = tmp_path / a_state(2).save(tmp_path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    whole = path.read_bytes()
    path.write_bytes(
        {"flipped": bytes(data), "truncated": whole[:-1], "empty": b"", "lengthened": whole + b"x"}[damage]
    )
    with caplog.at_level(logging.WARNING, "fer"):
        state = TrainState.load(tmp_path)
    assert state is not None
    assert state.global_step == 1
    assert path.name in caplog.text
    assert saved_states(tmp_path) == [tmp_path / "state-00000001.pt"]


def test_no_whole_file_left_is_an_error_that_names_them_and_keeps_them(tmp_path: Path) -> None:
    for step in (1, 2):
        (tmp_path / a_state(step).save(tmp_path)).write_bytes(b"rubbish")
    with pytest.raises(StateError, match=r"state-00000002\.pt[\s\S]*state-00000001\.pt[\s\S]*remove"):
        TrainState.load(tmp_path)
    assert len(saved_states(tmp_path)) == 2


def test_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    a_state(1).save(tmp_path)
    leftovers = [left_part(tmp_path / name) for name in ("state-00000002.pt", "progress.json")]
    for leftover in leftovers:
        leftover.write_bytes(b"half")
    for step in (2, 3):  # and one that was killed before it removed the oldest
        shutil.copy(tmp_path / "state-00000001.pt", tmp_path / f"state-{step:08d}.pt")
    TrainState.load(tmp_path)
    assert not any(leftover.exists() for leftover in leftovers)
    assert [path.name for path in saved_states(tmp_path)] == ["state-00000003.pt", "state-00000002.pt"]


def test_a_file_that_carries_code_is_not_run(tmp_path: Path) -> None:
    import hashlib

    class Malicious:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (Path(tmp_path / "run"),))  # type: ignore[return-value]

    body = pickle.dumps({"schema": 1, "model": Malicious()})
    (tmp_path / "state-00000001.pt").write_bytes(body + b"FER1" + hashlib.sha256(body).digest())
    with pytest.raises((StateError, pickle.UnpicklingError)):
        TrainState.load(tmp_path)
    assert not (tmp_path / "run").exists()


def a_job(**changes: Any) -> TrainJob:
    return TrainJob(
        **{
            "shards": "", "work_dir": ".work/x", "recipe": None, "labels": (), "seed": 1, "threads": 1,
            "checkpoint_every_steps": 1, "fingerprint": "f" * 64, "command": "train it", **changes,
        }
    )  # fmt: skip


def test_the_state_of_another_run_is_refused() -> None:
    with pytest.raises(StateError, match="belongs to"):
        a_state(1).check(a_job(fingerprint="0" * 64), 1, warn=None)


def test_resuming_with_other_threads_or_workers_warns() -> None:
    told: list[str] = []
    state = a_state(1)
    state.check(a_job(), 1, warn=told.append)
    assert not told
    state.check(a_job(), 2, warn=told.append)
    assert "rounded differently" in told[0]
    assert state.world_size == 2


def test_resuming_under_other_versions_is_refused_unless_they_are_accepted() -> None:
    state, now = a_state(1), decisive_versions()
    state.versions = {**now, "torch": "1.0"}
    change = f"torch 1.0 -> {now['torch']}"
    with pytest.raises(VersionsError, match=rf"\.work/x.*{change}.*train it --accept-versions.*train it --restart"):
        state.check_versions(a_job(), warn=None)
    assert state.versions["torch"] == "1.0"
    state.check_versions(a_job(accept_versions=True), warn=None)
    assert state.versions == now
    assert state.accepted == [{"epoch": 0, "changed": {"torch": f"1.0 -> {now['torch']}"}}]


def test_the_first_of_equally_good_epochs_is_the_best_and_less_loss_is_better() -> None:
    state = a_state(0)
    model = torch.nn.Linear(1, 1)
    for loss in (0.5, 0.4, 0.4, 0.6):
        state.end_epoch({"val_loss": loss}, "val_loss", model)
    assert (state.best_epoch, state.best_metric, state.epoch) == (2, -0.4, 4)
