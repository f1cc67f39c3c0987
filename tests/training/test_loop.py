"""The loop: one result for any number of ranks, and a stop before NaN or infinity does harm."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from builders.runs import (
    assert_same_bits,
    child,
    elsewhere,
    final_state,
    kill_at_step,
    make_job,
    run_child,
    run_ranks,
    train_rank,
)  # fmt: skip
from builders.shards import LABELS

from fer.console import log
from fer.models import create_model
from fer.training import loop
from fer.training.data import open_data
from fer.training.distributed import Distributed
from fer.training.job import TrainJob
from fer.training.loop import DivergedError, prepare, train
from fer.training.metrics import classification_metrics
from fer.training.optimizer import Ema
from fer.training.progress import FILE_NAME
from fer.training.state import TrainState

# Without BatchNorm and dropout, whose values are of a rank's own slice, ranks differ by rounding alone.
EXACT = {"options": {"norm": False, "drop_rate": 0.0}, "epochs": 2, "batch_size": 16}


@pytest.fixture(autouse=True)
def _settings_kept() -> Iterator[None]:
    """Training sets torch's threads and determinism for the whole process."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.mark.parametrize("eval_batch_size", [16, pytest.param(1000, id="no batch of validation for one of them")])
def test_two_ranks_compute_the_gradient_of_the_global_batch(eval_batch_size: int, tmp_path: Path) -> None:
    job = make_job(tmp_path, **{**EXACT, "eval_batch_size": eval_batch_size})
    alone, together = elsewhere(job, tmp_path / "alone"), elsewhere(job, tmp_path / "together")
    assert run_child(train, alone) == 0
    assert run_ranks(together, 2, tmp_path / "meeting") == [0, 0]
    one, two = final_state(alone), final_state(together)
    assert one.global_step == two.global_step == 10
    for key, tensor in one.model.items():
        torch.testing.assert_close(two.model[key], tensor, rtol=1e-4, atol=1e-5)
    for row, other in zip(one.history, two.history, strict=True):
        assert other == pytest.approx(row, rel=1e-4)


def test_validation_is_the_same_to_the_bit_for_any_number_of_ranks(tmp_path: Path) -> None:
    job = make_job(tmp_path, epochs=1, batch_size=12, eval_batch_size=7)
    done = elsewhere(job, tmp_path / "1")
    assert run_child(train, done) == 0
    state = final_state(done)
    expected = {key: value for key, value in state.history[0].items() if key.startswith("val_")}
    for world_size in (2, 3):
        measured = tmp_path / f"measured-{world_size}.txt"
        assert run_children(measure, job, world_size, tmp_path / f"meeting-{world_size}", done.work_dir, str(measured))
        assert measured.read_text() == repr(expected)


def measure(job: TrainJob, rank: int, world_size: int, meeting: str, work_dir: str, result: str) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world_size)
    state = TrainState.load(Path(work_dir))
    assert state is not None
    model, distributed = loop.build_model(job), Distributed(rank, world_size)
    model.load_state_dict(state.best_model)
    data = open_data(job.shards, job.recipe, model, seed=job.seed, distributed=distributed, threads=1)
    metrics = loop.validate(model, data.validation, job.recipe, distributed, "cpu")
    data.close()
    if rank == 0:
        Path(result).write_text(repr(metrics))
    dist.destroy_process_group()


def run_children(target: Callable[..., None], job: TrainJob, world_size: int, meeting: Path, *arguments: Any) -> bool:
    ranks = [child(target, job, rank, world_size, str(meeting), *arguments) for rank in range(world_size)]
    for rank in ranks:
        rank.join(100)
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
    return codes == [0] * world_size


def poisoned_rank(job: TrainJob, rank: int, world_size: int, meeting: str) -> None:
    """The third batch of rank 1 holds one image of NaN. Writes the error of each rank."""
    whole, calls = loop.prepare, 0

    def poison(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        images = whole(*arguments)
        if rank == 1 and calls == 3:
            images[2] = float("nan")
        return images

    loop.prepare = poison
    try:
        train_rank(job, rank, world_size, meeting, None)
    except DivergedError as error:
        (Path(job.work_dir) / f"told-{rank}").write_text(str(error))


def test_nan_on_one_rank_stops_all_before_the_update_and_names_the_sample(tmp_path: Path) -> None:
    job = make_job(tmp_path, options={"norm": False})
    assert run_children(poisoned_rank, job, 2, tmp_path / "meeting")
    told = [(Path(job.work_dir) / f"told-{rank}").read_text() for rank in (0, 1)]
    assert told[0] == told[1]
    assert len(re.findall(r"shards/train-\d{4}", told[0])) == 1
    assert final_state(job).global_step == 2
    assert all(tensor.isfinite().all() for tensor in final_state(job).model.values())


def test_infinite_gradient_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(tmp_path, epochs=1)
    real = loop.build_model

    def explosive(job: TrainJob, stage: int) -> Any:
        model = real(job, stage)
        next(model.parameters()).register_hook(lambda grad: grad * float("inf"))
        return model

    monkeypatch.setattr(loop, "build_model", explosive)
    with pytest.raises(DivergedError, match="gradient is NaN or infinite"):
        train(job)


def test_batch_that_cannot_be_split_evenly_is_refused(tmp_path: Path) -> None:
    job = make_job(tmp_path, batch_size=15)
    assert run_ranks(job, 2, tmp_path / "meeting") == [1, 1]
    with pytest.raises(ValueError, match=r"batch_size = 15 .* 2 workers"):
        open_data(job.shards, job.recipe, create_model("toy"), seed=1, distributed=Distributed(0, 2), threads=1)


def test_more_ranks_resume_from_the_same_state_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    job = make_job(tmp_path, **EXACT)
    alone, changed = elsewhere(job, tmp_path / "alone"), elsewhere(job, tmp_path / "changed")
    assert run_child(train, alone) == 0
    assert run_child(kill_at_step, changed, 5) != 0
    assert run_ranks(changed, 2, tmp_path / "meeting") == [0, 0]
    one, two = final_state(alone), final_state(changed)
    assert one.global_step == two.global_step
    for key, tensor in one.model.items():
        torch.testing.assert_close(two.model[key], tensor, rtol=1e-4, atol=1e-5)
    # A finished run is a state as well: resumed, it warns and computes nothing.
    log.propagate = True
    with caplog.at_level(logging.WARNING, "fer"):
        again = train(changed)
    log.propagate = False
    assert "rounded differently" in caplog.text
    assert again.global_step == two.global_step


@pytest.mark.parametrize(
    "recipe",
    [
        {"precision": "bf16"},
        {"optimizer": "sgd", "schedule": {"kind": "step", "step_epochs": 1}},
        {"optimizer": "adam", "gradient_clip": 0.5, "channels_last": False, "ema_decay": None},
        {"sampler": "balanced", "label_smoothing": 0.0, "augment": [], "selection_metric": "loss"},
        {"sam": {"rho": 0.05, "adaptive": True}, "accumulate": 2, "precision": "bf16"},
        {"mix": {"kind": "mixup"}, "class_weights": "inverse", "label_smoothing": 0.0},
        {"mix": {"kind": "cutmix", "alpha": 1.0, "p": 0.5}, "class_weights": "effective"},
    ],
    ids=["bf16", "sgd", "clip", "balanced", "sam", "mixup", "cutmix"],
)
def test_every_option_of_a_recipe_trains_and_reports_progress(recipe: dict[str, Any], tmp_path: Path) -> None:
    job = make_job(tmp_path, epochs=1, **{"schedule": {"kind": "constant"}, **recipe})
    records: list[dict[str, float]] = []
    steps: list[int] = []
    state = train(job, on_epoch=records.append, on_step=lambda progress: steps.append(progress.step))
    assert steps == [1, 2, 3, 4, 5]
    assert list(records[0]) == [
        "epoch", "stage", "learning_rate", "train_loss", "train_accuracy", "val_loss", "val_accuracy",
        "val_balanced_accuracy", "seconds", "images_per_second", "waiting_for_data", "workers",
    ]  # fmt: skip
    assert state.best_epoch == 1
    assert 0 < records[0]["waiting_for_data"] < 1
    progress = (Path(job.work_dir) / FILE_NAME).read_text()
    assert f'"pids": [\n    {os.getpid()}\n  ]' in progress


def test_training_learns(tmp_path: Path) -> None:
    job = make_job(tmp_path, epochs=8, augment=[], ema_decay=None, learning_rate=0.01)
    assert train(job).history[-1]["val_accuracy"] > 0.7


def test_finished_run_is_not_changed(tmp_path: Path) -> None:
    job = make_job(tmp_path, epochs=1)
    first = train(job)
    told: list[object] = []
    assert_same_bits(train(job, on_step=told.append), first)
    assert not told


def test_patience_stops_the_run_and_keeps_the_best_epoch(tmp_path: Path) -> None:
    job = make_job(tmp_path, epochs=6, patience=2, learning_rate=1e-9, ema_decay=None, options={"norm": False})
    state = train(job)  # learns nothing, so that no later epoch is better than the first
    assert (state.best_epoch, state.epoch) == (1, 3)
    told: list[object] = []
    assert_same_bits(train(job, on_step=told.append), state)
    assert not told


def test_balanced_accuracy_is_the_mean_recall_of_the_classes_that_occur() -> None:
    logits = torch.eye(3)[[0, 0, 0, 1]]
    metrics = classification_metrics(logits, torch.tensor([0, 0, 1, 1]))
    assert metrics["accuracy"] == 0.75
    assert metrics["balanced_accuracy"] == 0.75
    assert classification_metrics(logits, torch.tensor([0, 0, 0, 1]))["balanced_accuracy"] == 1.0


def test_images_are_normalized_by_channel(tmp_path: Path) -> None:
    job, model = make_job(tmp_path), create_model("toy")
    x = prepare(torch.full((1, 16, 16, 3), 255, dtype=torch.uint8), model, job.recipe, "cpu")
    assert x.shape == (1, 3, 16, 16)
    assert x.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(x[0, :, 0, 0], (1 - torch.tensor(model.mean)) / torch.tensor(model.std))


def test_moving_average_follows_parameters_and_copies_buffers() -> None:
    model = create_model("toy", len(LABELS))
    ema = Ema(model, 0.9)
    before = ema.model.fc.weight.clone()
    with torch.no_grad():
        model.fc.weight += 1
        model.norm.running_mean += 1
    ema.update(model)
    torch.testing.assert_close(ema.model.fc.weight, before + (1 - 2 / 11))
    assert torch.equal(ema.model.norm.running_mean, model.norm.running_mean)
