"""A number that is none, on one rank, even in SAM's second pass: all stop before the update; samples are named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tiny_training import child, final_state, make_job, patience, train_rank

from fer.training.job import TrainJob
from fer.training.learner import Learner
from fer.training.loop import DivergedError

SECOND_PASS_OF_THE_THIRD_UPDATE = 6


def poisoned_rank(job: TrainJob, rank: int, world_size: int, meeting: str, what: str) -> None:
    """Rank 1 meets a picture of NaN, or a gradient that is infinite, at w + e. Writes what each rank was told."""
    run, calls = Learner.backward, 0

    def poison(learner: Learner, images: torch.Tensor, *arguments: object, **keywords: object):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        if (rank, calls) != (1, SECOND_PASS_OF_THE_THIRD_UPDATE):
            return run(learner, images, *arguments, **keywords)  # type: ignore[arg-type]
        if what == "loss":
            images = images.clone()
            images[2] = float("nan")
            return run(learner, images, *arguments, **keywords)  # type: ignore[arg-type]
        hook = learner.model.fc.bias.register_hook(lambda gradient: gradient * float("inf"))
        try:
            return run(learner, images, *arguments, **keywords)  # type: ignore[arg-type]
        finally:
            hook.remove()

    Learner.backward = poison  # type: ignore[method-assign]
    try:
        train_rank(job, rank, world_size, meeting)
    except DivergedError as error:
        (Path(job.work_dir) / f"told-{rank}").write_text(str(error))


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_nan_in_the_second_pass_of_one_rank_stops_all_before_the_update(what: str, tmp_path: Path) -> None:
    job = make_job(tmp_path, options={"norm": False}, sam={"rho": 0.05})
    ranks = [child(poisoned_rank, job, rank, 2, str(tmp_path / "meeting"), what) for rank in range(2)]
    for rank in ranks:
        rank.join(patience(100))
    assert [rank.exitcode for rank in ranks] == [0, 0]
    told = [(Path(job.work_dir) / f"told-{rank}").read_text() for rank in (0, 1)]
    assert told[0] == told[1]
    assert f"the {what} is NaN or infinite, nothing was updated" in told[0]
    assert len(re.findall(r"shards/train-\d{4}", told[0])) == (1 if what == "loss" else job.recipe.batch_size)
    state = final_state(job)
    assert state.global_step == 2
    assert all(tensor.isfinite().all() for tensor in state.model.values())
