"""NaN or infinity on one rank, even in SAM's second pass: all ranks stop before the update; samples are named."""

import re
from pathlib import Path

import pytest
import torch
from builders.limits import patience
from builders.runs import child, final_state, make_job, train_rank

from fer.training.job import TrainJob
from fer.training.learner import Learner
from fer.training.loop import DivergedError

SECOND_PASS_OF_THE_THIRD_UPDATE = 6


def poisoned_rank(job: TrainJob, rank: int, world_size: int, meeting: str, what: str) -> None:
    """Rank 1 gets an image of NaN, or an infinite gradient, at w + e. Writes the error of each rank."""
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
        (Path(job.work_dir) / f"error-{rank}").write_text(str(error))


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_nan_in_the_second_pass_of_one_rank_stops_all_before_the_update(what: str, tmp_path: Path) -> None:
    job = make_job(tmp_path, options={"norm": False}, sam={"rho": 0.05})
    ranks = [child(poisoned_rank, job, rank, 2, str(tmp_path / "meeting"), what) for rank in range(2)]
    for rank in ranks:
        rank.join(patience(100))
    assert [rank.exitcode for rank in ranks] == [0, 0]
    errors = [(Path(job.work_dir) / f"error-{rank}").read_text() for rank in (0, 1)]
    assert errors[0] == errors[1]
    assert f"the {what} is NaN or infinite" in errors[0]
    assert len(re.findall(r"shards/train-\d{4}", errors[0])) == (1 if what == "loss" else job.recipe.batch_size)
    state = final_state(job)
    assert state.global_step == 2
    assert all(tensor.isfinite().all() for tensor in state.model.values())
