"""Ray Train: failures in words, how many workers resume after a loss, and how long they may wait."""

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from builders.projects import NANO

from fer.cluster import fit
from fer.cluster.config import ClusterConfig
from fer.cluster.nodes import missing_paths
from fer.processes import LostError
from fer.training.recipe import Recipe, TrainStageConfig, load_recipe


def recipe(**changes: object) -> Recipe:
    return load_recipe({**NANO, **changes}, Path(), "test")


def test_missing_paths_are_those_that_do_not_exist(tmp_path: Path) -> None:
    assert missing_paths([str(tmp_path), str(tmp_path / "no")]) == [str(tmp_path / "no")]


def test_a_workers_own_error_is_reported_without_rays_wrapping() -> None:
    from ray.train import WorkerGroupError
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

    def explained(*errors: Exception) -> str:
        failures = {rank: UserExceptionWithTraceback(error, "a traceback") for rank, error in enumerate(errors)}
        return str(fit._explained(WorkerGroupError("failed", failures)))

    lost, full = RuntimeError("connection reset"), OSError(28, "No space left on device", "state.pt")
    assert explained(lost, ValueError("sample x: broken")) == "sample x: broken"
    assert explained(lost) == "worker 0: a traceback"  # its last line
    assert explained(pickle.loads(pickle.dumps(full))) == str(full), "the next worker's disk is as full"


@pytest.mark.parametrize(
    ("requested", "room", "batch", "expected"),
    [(4, 9, 16, 4), (4, 3, 16, 2), (4, 3, 12, 3), (2, 1, 16, 1), (2, 0, 16, 2)],
)
def test_after_a_loss_as_many_workers_resume_as_fit_and_divide_a_batch_evenly(
    requested: int, room: int, batch: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [{"Resources": {"CPU": 1.0}}] * room
    monkeypatch.setattr(fit, "answering_nodes", lambda address: nodes)
    assert fit._remaining_workers(recipe(batch_size=batch), TrainStageConfig(workers=requested), None) == expected


def test_workers_without_a_place_are_no_failure_once_after_a_loss_and_wait_shortly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ray.train import ControllerError, WorkerGroupError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    monkeypatch.setenv(fit._START_LIMIT, "300")
    lost, unplaced = WorkerGroupError("gone", {0: RuntimeError("gone")}), WorkerGroupStartupTimeoutError(2)
    ends = iter([lost, ControllerError(unplaced), lost, ControllerError(unplaced), ControllerError(unplaced)])
    waited = []

    def failing(trainer: object, poll: object) -> None:
        waited.append(os.environ[fit._START_LIMIT])
        raise fit._explained(next(ends))

    @contextmanager
    def connect(config: object) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(address=None)

    for name, stand_in in {"connect": connect, "_fit": failing}.items():
        monkeypatch.setattr(fit, name, stand_in)
    for name in ("require", "require_paths", "_trainer", "_remaining_workers"):
        monkeypatch.setattr(fit, name, lambda *_, **__: 1)
    job: Any = SimpleNamespace(shards="", work_dir="", pretrained=(), recipe=recipe())
    stage = TrainStageConfig(workers=2, max_failures=2)
    with pytest.raises(LostError, match=r"timed out after 300.0 seconds waiting for 2 workers\.\n"):
        fit.train_on_ray(job, stage, ClusterConfig(), lambda: None)
    assert waited == ["300", "30", "300", "30", "300"], "two losses, after each of which one short wait is allowed"
    assert os.environ[fit._START_LIMIT] == "300"
