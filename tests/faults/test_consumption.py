"""What the ranks were given, as they write it down: nothing twice, nothing left out, whatever was killed."""

import random
import signal
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from builders.limits import patience
from builders.runs import child, final_state, make_job, train_rank

from fer.shards.order import balanced_weights, epoch_order
from fer.shards.read import ShardSet, TrainBatches
from fer.training.job import TrainJob

UNDER_SAM = {"sampler": "balanced", "sam": {"rho": 0.05}, "epochs": 2, "batch_size": 12}


def recording_rank(
    job: TrainJob, rank: int, world_size: int, meeting: str, kill: tuple[int, int] | None, log: str
) -> None:
    """`train_rank` that writes down each batch it is given: epoch, step, rows."""
    epoch = TrainBatches.epoch

    def told(batches: TrainBatches, number: int, start_step: int = 0):  # type: ignore[no-untyped-def]
        for batch in epoch(batches, number, start_step=start_step):
            with open(log, "a") as handle:
                print(number, batch.index, *batch.rows.tolist(), file=handle)
            yield batch

    TrainBatches.epoch = told  # type: ignore[method-assign]
    train_rank(job, rank, world_size, meeting, kill)


def attempt(job: TrainJob, number: int, world_size: int, kill: tuple[int, int] | None = None) -> list[int | None]:
    folder = Path(job.work_dir).parent
    ranks = [
        child(
            recording_rank, job, rank, world_size, str(folder / f"meeting-{number}"), kill, f"{folder}/{number}-{rank}"
        )
        for rank in range(world_size)
    ]
    for rank in ranks:
        rank.join(patience(100))
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
    return codes


def survivors(folder: Path) -> tuple[dict[tuple[int, int], list[int]], int]:
    """(epoch, step) -> rows of all ranks, by the last attempt that made the step; how many steps were made twice."""
    taken: dict[tuple[int, int], list[int]] = {}
    repeated = 0
    for number in range(len(list(folder.glob("[0-9]-0")))):
        own: dict[tuple[int, int], list[int]] = defaultdict(list)
        for path in sorted(folder.glob(f"{number}-*")):
            for line in path.read_text().splitlines():
                epoch, step, *rows = map(int, line.split())
                own[epoch, step] += rows
        repeated += len(own.keys() & taken.keys())
        taken |= own
    return taken, repeated


@pytest.mark.parametrize("world_sizes", [pytest.param((2, 2), marks=pytest.mark.slow), (2, 1), (1, 2)])
def test_every_sample_of_the_surviving_history_was_consumed_as_often_as_drawn_and_in_order(
    world_sizes: tuple[int, int], tmp_path: Path
) -> None:
    job, draws = make_job(tmp_path, **UNDER_SAM), random.Random(4)
    lost = (draws.randrange(world_sizes[0]), draws.choice([3, 5]))  # after an update that no checkpoint follows
    assert attempt(job, 0, world_sizes[0], kill=lost)[lost[0]] == -signal.SIGKILL
    assert attempt(job, 1, world_sizes[1]) == [0] * world_sizes[1]
    taken, repeated = survivors(tmp_path)
    assert repeated, "the kill came after a checkpoint, and proves nothing"
    split = ShardSet.open(Path(job.shards)).split("train")
    weights, steps = balanced_weights(split.labels()), split.rows // 12
    assert sorted(taken) == [(epoch, step) for epoch in range(2) for step in range(steps)]
    for epoch in range(2):
        rows = [row for step in range(steps) for row in taken[epoch, step]]
        order = epoch_order(split.row_group_sizes, seed=job.seed, epoch=epoch, weights=weights)
        assert np.array_equal(rows, order[: steps * 12])
        assert max(np.bincount(rows)) > 1, "drawn with replacement"
    assert final_state(job).global_step == 2 * steps
