"""What every registered model promises, tested over the whole registry.

The large networks take seconds a pass on two cores, so each model is built, trained for one step and evaluated once;
the tests look at what came of it. By default that is done for the quick ones, what takes more passes for the nano
networks alone; `make test-slow` does all for all.
"""

import copy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fer.models import (
    FerModel,
    Resize,
    TrainOutput,
    create_model,
    list_models,
    model_loss,
    model_options,
    register,
    registry,
)

MODELS = list_models()

SIZED = [pytest.param(name, marks=[] if name.endswith("_nano") else [pytest.mark.slow]) for name in MODELS]
"""All names, but for the nano networks marked slow."""

FAMILIES = ["btn", "ddamfn", "dynamic_vit", "lhc_net", "poster_v2"]


def build(name: str, num_classes: int = 7, seed: int = 0, **options: Any) -> FerModel:
    """A model that may be trained as it is: the landmark branch of the published ones is frozen until it is loaded."""
    torch.manual_seed(seed)
    if "landmark_frozen" in model_options(name):
        options.setdefault("landmark_frozen", False)
    return create_model(name, num_classes, **options)


def batch(model: FerModel, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 3, model.input_size, model.input_size, generator=generator)


@dataclass
class Built:
    """A model with fresh weights; what one training step (batch of 3) and then an evaluation (batch of 3) gave."""

    name: str
    model: FerModel
    output: TrainOutput
    hard_loss: Tensor
    soft_loss: Tensor
    gradients: dict[str, Tensor | None]
    x: Tensor
    logits: Tensor


QUICK = ("ddamfn", "ddamfn_small", "mfn", "mobilefacenet", "mobilefacenet_landmarks")
"""With the nano networks, those that take less than a second a pass. The parity tests hold the passes of the others."""


def marked(name: str) -> list[pytest.MarkDecorator]:
    return [] if name.endswith("_nano") or name in QUICK else [pytest.mark.slow]


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=marked(name)) for name in MODELS],
)
def built(request: pytest.FixtureRequest) -> Built:
    model = build(request.param).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 0.9  # so that evaluation normalises much as a trained model's does
    x = batch(model, 3)
    output = model(x)
    targets = torch.tensor([0, 6, 3])
    loss = model.loss(output, targets)
    soft_loss = model.loss(output, F.one_hot(targets, 7).double())
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    with torch.inference_mode():
        logits = model.eval()(x)
    return Built(request.param, model, output, loss.detach(), soft_loss.detach(), gradients, x, logits)


def test_training_gives_train_output_and_every_parameter_a_gradient(built: Built) -> None:
    assert isinstance(built.output, TrainOutput)
    assert built.output.logits.shape == (3, 7)
    assert built.hard_loss.shape == ()
    assert built.hard_loss.isfinite()
    assert [name for name, gradient in built.gradients.items() if gradient is None] == []
    assert [name for name, gradient in built.gradients.items() if not torch.isfinite(gradient).all()] == []  # type: ignore[arg-type]


def test_soft_one_hot_targets_are_the_hard_ones(built: Built) -> None:
    torch.testing.assert_close(built.soft_loss, built.hard_loss)


def test_eval_gives_logits_that_depend_on_their_own_sample_alone(built: Built) -> None:
    assert isinstance(built.logits, Tensor)
    assert built.logits.shape == (3, 7)
    with torch.inference_mode():
        alone = built.model(built.x[:1])
    torch.testing.assert_close(built.logits[:1], alone, rtol=1e-4, atol=1e-5 * built.logits.abs().max().item())


def test_state_dict_round_trip_restores_the_output(built: Built) -> None:
    other = build(built.name, seed=1)
    other.load_state_dict(built.model.state_dict(), strict=True)
    with torch.inference_mode():
        assert torch.equal(other.eval()(built.x), built.logits)


def test_channels_last_gives_the_same(built: Built) -> None:
    model = copy.deepcopy(built.model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.inference_mode():
        logits = model(built.x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(logits, built.logits, rtol=1e-3, atol=1e-4 * built.logits.abs().max().item())


def test_bfloat16_is_close(built: Built) -> None:
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        logits = built.model(built.x[:2]).float()
    # The root mean square, not the largest: routed attention may choose another of two regions that are as relevant.
    assert (logits - built.logits[:2]).square().mean().sqrt() < 0.3 * built.logits.std()


@pytest.mark.parametrize("name", MODELS)
def test_seven_and_eight_classes_differ_in_what_knows_classes_alone(name: str) -> None:
    with torch.device("meta"):
        seven, eight = build(name, 7), build(name, 8)
    shapes = [{key: tuple(t.shape) for key, t in model.state_dict().items()} for model in (seven, eight)]
    differing = [key for key in shapes[0] if shapes[0][key] != shapes[1][key]]
    assert shapes[0].keys() == shapes[1].keys()
    assert 1 <= len(differing) <= 5, differing  # BTN: the classifier, and what it compares of each class
    with torch.inference_mode():
        assert eight.eval()(batch(eight, 2).to("meta")).shape == (2, 8)


@pytest.mark.parametrize("name", SIZED)
def test_initial_weights_are_a_function_of_the_seed(name: str) -> None:
    first, again, other = (build(name, seed=seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", SIZED)
def test_exports_with_a_dynamic_batch(name: str) -> None:
    model = build(name).eval()
    program = torch.export.export(
        model, (batch(model, 2),), dynamic_shapes={"x": {0: torch.export.Dim("batch", min=1, max=256)}}
    )
    with torch.inference_mode():
        for size in (1, 3):
            x = batch(model, size)
            torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SIZED)
def test_trains_under_distributed_data_parallel(name: str, tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = build(name).train()
        output = DistributedDataParallel(model)(batch(model, 2))
        assert isinstance(output, TrainOutput)
        model.loss(output, torch.tensor([0, 1])).backward()  # type: ignore[no-untyped-call]
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("name", SIZED)
def test_the_same_seed_and_step_give_the_same_gradients(name: str) -> None:
    gradients = []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(2):
            model = build(name).train()
            x = batch(model, 2)
            torch.manual_seed(7)  # of dropout and stochastic depth
            model.loss(model(x), torch.tensor([1, 2])).backward()  # type: ignore[no-untyped-call]
            gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    finally:
        torch.use_deterministic_algorithms(False)
    for first, again in zip(*gradients, strict=True):
        assert torch.equal(first, again)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", MODELS)
def test_declares_its_input(name: str) -> None:
    with torch.device("meta"):
        model = build(name)
    assert model.input_size > 0
    assert model.num_classes == 7
    assert len(model.mean) == len(model.std) == 3
    assert all(0 <= m <= 1 for m in model.mean)
    assert all(0 < s <= 1 for s in model.std)
    assert isinstance(model.resize, Resize)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_has_a_nano_of_the_same_architecture(family: str) -> None:
    published, nano = model_options(family if family != "dynamic_vit" else "dynamic_vit_base"), f"{family}_nano"
    assert model_options(nano).keys() == published.keys()
    with torch.device("meta"):
        model = create_model(nano)
    assert sum(p.numel() for p in model.parameters()) < 600_000
    assert any(isinstance(module, nn.Conv2d) for module in model.modules())


@pytest.mark.parametrize("name", [name for name in MODELS if "landmark_frozen" in model_options(name)])
def test_a_frozen_random_landmark_branch_is_refused_with_both_ways_out(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, landmark_frozen=True).train()
    with pytest.raises(ValueError, match=r"(?s)landmark.*fer weights pull mobilefacenet_landmarks.*landmark_frozen"):
        model(batch(model, 2))


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


@pytest.mark.parametrize("name", MODELS)
def test_a_model_with_a_loss_of_its_own_says_what_it_is(name: str) -> None:
    """Else the report would draw it on the axis of the validation's cross-entropy."""
    own = registry._REGISTRY[name].builder.loss is not FerModel.loss
    assert (model_loss(name) != "cross-entropy") == own
