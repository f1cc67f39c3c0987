"""Gradient checkpointing keeps less and changes nothing: not a bit of a run, not BatchNorm's statistics."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from builders.runs import assert_same_bits, make_job
from torch import Tensor, nn

from fer.models import create_model
from fer.training.loop import train
from fer.training.recipe import Recipe
from fer.training.recompute import recompute_activations, units

FAMILIES = ["poster_v2_nano", "btn_nano", "lhc_net_nano", "ddamfn_nano", "dynamic_vit_nano"]


def one_pass(name: str, *, recompute: bool) -> tuple[dict[str, Tensor], int]:
    """Gradients and buffers after a training pass with dropout, and the bytes that were kept for the backward pass."""
    torch.manual_seed(0)
    model = create_model(name, 7).train()
    if recompute:
        recompute_activations(model)
    images, labels = torch.randn(8, 3, model.input_size, model.input_size), torch.arange(8) % 7
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model.loss(model(images), labels)
    held = sum(kept.values())
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {**gradients, **dict(model.named_buffers())}, held


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_and_statistics_have_the_same_bits_and_less_is_kept(name: str) -> None:
    (plain, most), (recomputed, least) = one_pass(name, recompute=False), one_pass(name, recompute=True)
    assert plain.keys() == recomputed.keys()
    assert all(torch.equal(plain[key], recomputed[key]) for key in plain)
    assert least < 0.6 * most


@pytest.mark.parametrize("batch_norm", ["both", "first"])
def test_run_under_sam_ends_with_the_same_bits(tmp_path: Path, batch_norm: str) -> None:
    ends = []
    for checkpointing in (False, True):
        job = make_job(
            tmp_path / str(checkpointing),
            model="lhc_net_nano",
            epochs=1,
            sam={"rho": 0.05, "batch_norm": batch_norm},
            gradient_checkpointing=checkpointing,
        )
        ends.append(train(job))
    assert_same_bits(*ends)


def test_units_are_the_blocks_of_the_published_network() -> None:
    with torch.device("meta"):
        names = [type(unit).__name__ for unit in units(create_model("resnet34v2"))]
    assert names == ["PreActivationUnit"] * (3 + 4 + 6 + 3)


def test_model_without_units_is_refused() -> None:
    with pytest.raises(ValueError, match="gradient_checkpointing: Linear has no repeated units"):
        recompute_activations(nn.Linear(2, 2))


def test_torch_compile_is_refused_beside_it() -> None:
    keys = {"model": "ddamfn_nano", "epochs": 1, "batch_size": 8, "learning_rate": 0.1}
    with pytest.raises(ValueError, match="compile and gradient_checkpointing exclude each other"):
        Recipe.model_validate({**keys, "compile": True, "gradient_checkpointing": True})
