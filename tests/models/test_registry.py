"""What every registered model promises, tested over the whole registry."""

import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from fer.models import FerModel, Resize, TrainOutput, create_model, list_models, model_options, register

MODELS = list_models()


def build(name: str, num_classes: int = 7, seed: int = 0, **options: Any) -> FerModel:
    torch.manual_seed(seed)
    return create_model(name, num_classes, **options)


def batch(model: FerModel, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 3, model.input_size, model.input_size, generator=generator)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("num_classes", [7, 8])
def test_training_gives_train_output_and_every_parameter_a_gradient(name: str, num_classes: int) -> None:
    model = build(name, num_classes).train()
    output = model(batch(model, 3))
    assert isinstance(output, TrainOutput)
    assert output.logits.shape == (3, num_classes)
    loss = model.loss(output, torch.tensor([0, 1, num_classes - 1]))
    assert loss.shape == ()
    assert torch.isfinite(loss)
    loss.backward()  # type: ignore[no-untyped-call]
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert [n for n, p in trainable.items() if p.grad is None] == []
    assert [n for n, p in trainable.items() if not torch.isfinite(p.grad).all()] == []  # type: ignore[arg-type]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [1, 5])
def test_eval_gives_logits_that_depend_on_their_own_sample_alone(name: str, size: int) -> None:
    model = build(name).eval()
    x = batch(model, size)
    with torch.inference_mode():
        logits = model(x)
        alone = model(x[:1])
    assert isinstance(logits, Tensor)
    assert logits.shape == (size, 7)
    torch.testing.assert_close(logits[:1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_soft_one_hot_targets_are_the_hard_ones(name: str) -> None:
    model = build(name).train()
    output = model(batch(model, 3))
    hard = torch.tensor([6, 0, 3])
    torch.testing.assert_close(model.loss(output, F.one_hot(hard, 7).double()), model.loss(output, hard))


@pytest.mark.parametrize("name", MODELS)
def test_state_dict_round_trip_restores_the_output(name: str) -> None:
    one, other = build(name, seed=0).train(), build(name, seed=1)
    x = batch(one, 2)
    one(x)  # moves the BatchNorm statistics
    other.load_state_dict(one.state_dict(), strict=True)
    with torch.inference_mode():
        assert torch.equal(one.eval()(x), other.eval()(x))


@pytest.mark.parametrize("name", MODELS)
def test_initial_weights_are_a_function_of_the_seed(name: str) -> None:
    first, again, other = (build(name, seed=seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", MODELS)
def test_exports_with_a_dynamic_batch(name: str) -> None:
    model = build(name).eval()
    program = torch.export.export(
        model, (batch(model, 2),), dynamic_shapes={"x": {0: torch.export.Dim("batch", min=1, max=256)}}
    )
    with torch.inference_mode():
        for size in (1, 3):
            x = batch(model, size)
            torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_trains_under_distributed_data_parallel(name: str, tmp_path: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = build(name).train()
        output = DistributedDataParallel(model)(batch(model, 2))
        assert isinstance(output, TrainOutput)
        model.loss(output, torch.tensor([0, 1])).backward()  # type: ignore[no-untyped-call]
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("name", MODELS)
def test_declares_its_input(name: str) -> None:
    model = build(name)
    assert model.input_size > 0
    assert model.num_classes == 7
    assert len(model.mean) == len(model.std) == 3
    assert all(0 <= m <= 1 for m in model.mean)
    assert all(0 < s <= 1 for s in model.std)
    assert isinstance(model.resize, Resize)


def test_unknown_model_names_the_nearest_and_the_valid() -> None:
    with pytest.raises(ValueError, match=r"unknown model: 'ddamfm'; did you mean 'ddamfn'\?.*ddamfn_nano"):
        create_model("ddamfm")


def test_unknown_option_names_the_nearest_and_the_valid() -> None:
    with pytest.raises(ValueError, match=r"'num_head'; did you mean 'num_heads'\?.*drop_rate"):
        create_model("ddamfn", num_head=3)


def test_what_a_name_stands_for_is_not_an_option() -> None:
    assert "config" not in model_options("ddamfn_nano")
    with pytest.raises(ValueError, match="unknown option"):
        create_model("ddamfn_nano", config=None)


def test_duplicate_registration_is_an_error() -> None:
    with pytest.raises(ValueError, match="'ddamfn' is registered already, by DDAMFN"):
        register("ddamfn")(FerModel)


def test_models_import_only_torch() -> None:
    allowed = {"fer", "torch", "numpy", *sys.stdlib_module_names}
    code = (
        "import sys, torch; before = set(sys.modules); import fer.models;"
        "print(*{m.split('.')[0] for m in set(sys.modules) - before})"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert set(loaded) <= allowed
