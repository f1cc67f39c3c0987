"""The GPU computes what the processor does, within rounding: run by `make gpu-tests`, on any machine that has one.

Both round differently, and atomic sums in an order of their own, so all is compared by a tolerance.
`FER_TEST_DEVICE=cpu pytest -m gpu` shows without a GPU that the tests themselves run, on the small models.
"""

import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from builders.limits import patience
from builders.projects import MODELS
from builders.runs import assert_same_bits, elsewhere, final_state, kill_at_step, make_job, run_child
from builders.shards import LABELS, make_shards
from torch import Tensor

from fer.evaluation.predict import PredictJob, predict_share
from fer.models import FerModel, create_model
from fer.training.job import TrainJob
from fer.training.learner import Learner
from fer.training.loop import train
from fer.training.recipe import Recipe
from fer.weights.store import save_model

pytestmark = pytest.mark.gpu

FAMILIES = ["btn", "ddamfn", "dynamic_vit", "lhc_net", "poster_v2"]
FULL = ["btn", "ddamfn", "dynamic_vit_base", "lhc_net", "poster_v2"]


@pytest.fixture(autouse=True)
def _exact_float32() -> None:
    """Convolutions in float32, as the processor computes them, and not in TF32."""
    torch.backends.cudnn.allow_tf32 = False


def only_small_on_a_processor(name: str, device: str) -> None:
    if device == "cpu" and not name.endswith("_nano"):
        pytest.skip("a model of full size: on a GPU alone")


def build(name: str) -> FerModel:
    """A model with random weights; a landmark network that waits for its weights counts as loaded."""
    torch.manual_seed(0)
    model = create_model(name)
    model.load_state_dict(model.state_dict())
    return model


def batch(model: FerModel, size: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(size, 3, model.input_size, model.input_size, generator=generator)
    return images, torch.arange(size) % model.num_classes


def distance(ones: Tensor, others: Tensor) -> float:
    """Root of the mean square of the difference, in standard deviations of `others`."""
    difference = ones.float().cpu() - others.float().cpu()
    return (difference.square().mean().sqrt() / others.float().std()).item()


def without_chance(model: FerModel) -> FerModel:
    """In training mode but for dropout, whose draws differ from device to device."""
    model.train()
    for module in model.modules():
        if "Drop" in type(module).__name__:
            module.eval()
    return model


def one_step(model: FerModel, device: str, **recipe: object) -> tuple[Tensor, Tensor, Learner]:
    """Loss, and the gradient of all parameters in a row, of one step."""
    keys = {"model": "ddamfn_nano", "epochs": 1, "batch_size": 4, "learning_rate": 0.001, **recipe}
    learner = Learner.create(Recipe.model_validate(keys), model, device=device, world_size=1)
    without_chance(learner.model)
    images, labels = (tensor.to(device) for tensor in batch(model))
    loss, _ = learner.backward(images, labels, ("step",))
    gradient = torch.cat([p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None])
    return loss.cpu(), gradient, learner


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_the_processor(name: str, device: str) -> None:
    only_small_on_a_processor(name, device)
    model = build(name).eval()
    images, _ = batch(model)
    with torch.inference_mode():
        expected = model(images)
        assert distance(model.to(device)(images.to(device)), expected) < 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradient_of_a_step_are_those_of_the_processor(name: str, device: str) -> None:
    only_small_on_a_processor(name, device)
    loss, gradient, _ = one_step(build(name), "cpu")
    there, same, learner = one_step(build(name), device)
    torch.testing.assert_close(there, loss, rtol=1e-3, atol=1e-4)
    assert distance(same, gradient) < 0.02
    learner.update()
    assert all(parameter.isfinite().all() for parameter in learner.model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_is_near_float32(name: str, device: str) -> None:
    only_small_on_a_processor(name, device)
    model = build(name).eval().to(device)
    images = batch(model)[0].to(device)
    with torch.inference_mode():
        expected = model(images)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            assert distance(model(images), expected) < 0.3
    loss, _, _ = one_step(build(name), device)
    half, gradient, _ = one_step(build(name), device, precision="bf16")
    torch.testing.assert_close(half, loss, rtol=0.1, atol=0.05)
    assert gradient.isfinite().all()


@pytest.mark.timeout(patience(600))
@pytest.mark.parametrize("name", [f"{family}_nano" for family in FAMILIES])
def test_torch_compile_gives_the_same_step(name: str, device: str) -> None:
    if device == "cpu" and name != "ddamfn_nano":
        pytest.skip("minutes on a processor: one model is enough to show that it runs")
    loss, gradient, _ = one_step(build(name), device)
    compiled, same, _ = one_step(build(name), device, compile=True)
    torch.testing.assert_close(compiled, loss, rtol=1e-3, atol=1e-4)
    assert distance(same, gradient) < 0.02


@pytest.mark.parametrize("name", FULL)
def test_recomputed_activations_and_bfloat16_lower_the_peak_memory(
    name: str, device: str, record_property: Callable[[str, object], None]
) -> None:
    if device == "cpu":
        pytest.skip("torch counts the memory of a GPU alone")
    peak = {}
    for what, options in {"fp32": {}, "bf16": {"precision": "bf16"}, "less": {"gradient_checkpointing": True}}.items():
        model = build(name)
        keys = {"model": name, "epochs": 1, "batch_size": 32, "learning_rate": 0.001, **options}
        learner = Learner.create(Recipe.model_validate(keys), model, device=device, world_size=1)
        learner.train()
        images, labels = (tensor.to(device) for tensor in batch(model, 32))
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        learner.backward(images, labels, ("step",))
        peak[what] = (torch.cuda.max_memory_allocated() - before) / 2**20
        del learner, model, images
    record_property("mebibytes", peak)
    assert peak["bf16"] < peak["fp32"]
    assert peak["less"] < peak["fp32"]


def test_a_killed_run_resumes_to_the_same_result_within_rounding(
    device: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    job = make_job(tmp_path)
    killed = elsewhere(job, tmp_path / "killed")
    assert run_child(train_on, job, device) == 0
    assert run_child(kill_at_step, killed, 8, device) == -signal.SIGKILL
    assert run_child(train_on, killed, device) == 0
    whole, resumed = final_state(job), final_state(killed)
    assert (whole.global_step, whole.epoch, resumed.resumes) == (resumed.global_step, resumed.epoch, 1)
    for key, tensor in whole.model.items():
        torch.testing.assert_close(resumed.model[key], tensor, rtol=1e-2, atol=1e-3)
    for row, other in zip(whole.history, resumed.history, strict=True):
        assert other["train_loss"] == pytest.approx(row["train_loss"], rel=1e-2)
    same = all(torch.equal(resumed.model[key], tensor) for key, tensor in whole.model.items())
    record_property("same_bits", same)  # promised on the processor alone
    if device == "cpu":
        assert_same_bits(resumed, whole)


def train_on(job: TrainJob, device: str) -> None:
    train(job, device=device)


def test_a_state_of_the_gpu_resumes_on_the_processor(device: str, tmp_path: Path) -> None:
    job = make_job(tmp_path)
    assert run_child(kill_at_step, job, 8, device) == -signal.SIGKILL
    assert run_child(train_on, job, "cpu") == 0
    assert final_state(job).epoch == job.recipe.epochs


def test_predictions_of_a_split_are_those_of_the_processor(device: str, tmp_path: Path) -> None:
    shards, weights = make_shards(tmp_path / "shards"), tmp_path / "model.safetensors"
    save_model(build("ddamfn_nano"), weights, LABELS, "basic7", {}, name="ddamfn_nano", options={})
    job = PredictJob(
        shards=str(shards), weights=str(weights), split="test", batch_size=8, threads=1, tta="flip", labels=LABELS
    )
    expected, found = (predict_share(job, device=where) for where in ("cpu", device))
    assert np.array_equal(found.rows, expected.rows)
    np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-2, atol=1e-2)


def test_training_on_the_gpu_learns(device: str, tmp_path: Path) -> None:
    job = make_job(tmp_path, epochs=8, augment=[], ema_decay=None, learning_rate=0.01)
    assert train(job, device=device).history[-1]["val_accuracy"] > 0.7
