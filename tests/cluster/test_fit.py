"""Ray Train: failures in words, how many workers resume after a loss, and how long they may wait."""

import json
import os
import pickle
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from builders.projects import NANO

from fer.cluster import fit, nodes
from fer.cluster.config import ClusterConfig
from fer.cluster.nodes import missing_paths
from fer.config import parse
from fer.io.storage import Folder
from fer.processes import Interrupted, LostError
from fer.training.progress import FILE_NAME, STOP, changes
from fer.training.recipe import Recipe, TrainStageConfig, load_recipe


def recipe(**changes: object) -> Recipe:
    return load_recipe({**NANO, **changes}, Path(), "test")


def test_missing_paths_are_those_that_do_not_exist(tmp_path: Path) -> None:
    assert missing_paths([str(tmp_path), str(tmp_path / "no")]) == [str(tmp_path / "no")]


def test_the_gpus_of_a_cluster_are_named_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu = {"Resources": {"CPU": 8.0, "GPU": 4.0, "accelerator_type:H200": 1.0}}
    monkeypatch.setattr(nodes, "living_nodes", lambda: [with_gpu, {"Resources": {"CPU": 2.0}}, with_gpu])
    assert nodes.gpu_models() == ["H200"]


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


class Run:
    """`train_on_ray` without Ray: attempts that end as told, on a cluster with room for so many workers at each look.

    Attributes:
        attempts: workers of each, and how many seconds they might wait for their places.
        requests: workers that the autoscaler was asked for.
    """

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, ends: list[object], room: list[int]) -> None:
        self.attempts: list[tuple[int, str]] = []
        self.requests: list[int] = []
        self.job: Any = SimpleNamespace(shards="", work_dir=str(folder), pretrained=(), recipe=recipe(batch_size=48))
        left, there = iter(ends), iter(room)

        def attempt(workers: int, *_: object) -> dict[str, str]:
            self.attempts.append((workers, os.environ[fit._START_LIMIT]))
            end = next(left)
            if isinstance(end, Exception):
                raise fit._explained(end)
            assert isinstance(end, dict)
            return end

        @contextmanager
        def connect(config: object) -> Iterator[SimpleNamespace]:
            yield SimpleNamespace(address=None)

        def nodes_with_room(*_: object) -> list[dict[str, Any]]:
            return [{"Resources": {"CPU": 1.0}}] * next(there)

        patch.setenv(fit._START_LIMIT, "300")
        stand_ins = {
            "connect": connect,
            "_trainer": lambda job, stage, workers, *_: workers,
            "_fit": attempt,
            "with_inputs": lambda job, *_: job,
            "answering_nodes": nodes_with_room,
        }
        for name, stand_in in stand_ins.items():
            patch.setattr(fit, name, stand_in)
        patch.setattr(nodes, "living_nodes", nodes_with_room)
        patch.setattr(nodes, "_POLL_SECONDS", 0.001)
        patch.setattr("ray.autoscaler.sdk.request_resources", lambda bundles: self.requests.append(len(bundles)))

    def train(self, workers: object, *, max_failures: int = 2, wait_minutes: float = 0.0) -> None:
        stage = parse(TrainStageConfig, {"workers": workers, "max_failures": max_failures}, "test")
        fit.train_on_ray(self.job, stage, ClusterConfig(wait_minutes=wait_minutes), lambda: None)

    @property
    def workers(self) -> list[int]:
        return [workers for workers, _ in self.attempts]


def lost(rank: int = 0) -> Exception:
    from ray.train import WorkerGroupError

    return WorkerGroupError("gone", {rank: RuntimeError("gone")})


def unplaced() -> Exception:
    from ray.train import ControllerError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    return ControllerError(WorkerGroupStartupTimeoutError(2))


NOTICE = {"stopped": "node a will end"}
ROOM = {"stopped": "there is room"}


@pytest.mark.parametrize(
    ("workers", "room", "attempts"),
    [
        (4, [9, 9], [4, 4]),
        (4, [4, 3], [4, 3]),
        ({"min": 1, "max": 8}, [7, 5], [6, 4]),
        ({"min": 2, "max": 2}, [9, 2], [2, 2]),
    ],
)
def test_as_many_workers_start_and_resume_as_fit_and_divide_the_batch_evenly(
    workers: object, room: list[int], attempts: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, monkeypatch, [lost(), {}], room)
    run.train(workers)
    assert run.workers == attempts


def test_workers_without_a_place_are_no_failure_once_after_a_loss_and_wait_shortly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, monkeypatch, [lost(), unplaced(), lost(), unplaced(), unplaced()], [2] * 9)
    with pytest.raises(LostError, match=r"timed out after 300.0 seconds waiting for 2 workers\.\n"):
        run.train(2, max_failures=2)
    assert [limit for _, limit in run.attempts] == ["300", "30", "300", "30", "300"], "after each loss one short wait"
    assert os.environ[fit._START_LIMIT] == "300"


def test_workers_follow_the_nodes_down_and_up_and_every_change_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, monkeypatch, [NOTICE, lost(1), ROOM, {}], [4, 3, 1, 4])
    (tmp_path / FILE_NAME).write_text(json.dumps({"epoch": 3, "step": 2}))
    run.train({"min": 1, "max": 4}, max_failures=1)
    assert run.workers == [4, 3, 1, 4]
    found = [(one["workers"], one["resumed_with"], one["why"]) for one in changes(str(tmp_path))]
    assert found == [(4, 3, "node a will end"), (3, 1, "worker 1: gone"), (1, 4, "there is room")]
    assert {(one["epoch"], one["step"]) for one in changes(str(tmp_path))} == {(3, 2)}
    assert not run.requests, "no autoscaler is asked where none is awaited"


def test_notices_and_new_nodes_are_no_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, monkeypatch, [NOTICE, NOTICE, ROOM, {}], [2] * 9)
    run.train(2, max_failures=0)
    assert run.workers == [2, 2, 2, 2]


def test_room_that_is_none_is_not_tried_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, monkeypatch, [lost(), ROOM, unplaced(), {}], [4, 1, 4, 4])
    run.train(4)
    assert run.workers == [4, 1, 4, 1]


def test_with_too_few_workers_left_the_run_waits_and_then_ends_with_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, monkeypatch, [lost(), {}], [4, 1, 1, 1, 3])
    run.train({"min": 2, "max": 4}, wait_minutes=60)
    assert run.workers == [4, 3]
    assert run.requests == [4, 0, 4, 0, 4, 0], "during both attempts, and while it waited"
    monkeypatch.setattr(fit, "_LEAST_WAIT_MINUTES", 0.0)
    with pytest.raises(LostError, match=r"2 workers .* room for 1"):
        Run(tmp_path, monkeypatch, [lost()], [4, 1]).train({"min": 2, "max": 4})
    with pytest.raises(ValueError, match=r"2 workers .* room for 1"):
        Run(tmp_path, monkeypatch, [], [1]).train({"min": 2, "max": 4})


@pytest.mark.parametrize(
    ("free", "nodes_with_room", "workers", "larger"),
    [(1, 2, 1, 2), (0, 2, 1, None), (4, 1, 1, None), (5, 9, 2, 6), (9, 9, 8, None)],
)
def test_a_run_grows_to_what_divides_the_batch_where_places_are_free_on_living_nodes(
    free: int, nodes_with_room: int, workers: int, larger: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "free_workers", lambda **_: free)
    monkeypatch.setattr(fit, "living_nodes", lambda: [{"Resources": {"CPU": 2.0}}] * nodes_with_room)
    assert fit._larger([8, 6, 4, 3, 2, 1], workers, cpus=2, gpus=0) == larger


@pytest.mark.parametrize(("signum", "asked"), [(signal.SIGTERM, True), (signal.SIGINT, False)])
def test_workers_are_asked_to_save_where_the_driver_gets_sigterm_while_they_train(
    signum: int, asked: bool, tmp_path: Path
) -> None:
    saved = threading.Event()

    def fitted() -> None:
        while not (tmp_path / STOP).exists() and not saved.wait(0.001):
            pass
        saved.set()

    def stopped() -> None:
        raise Interrupted(signum)

    (tmp_path / FILE_NAME).touch()
    with pytest.raises(Interrupted):
        fit._fit(SimpleNamespace(fit=fitted), stopped, Folder(tmp_path))
    assert saved.is_set() == asked
    saved.set()
