"""The promises of every registered model, tested over the whole registry.

The large networks take seconds a pass on two cores, so each model is built, trained for one step and evaluated once;
the tests check the results. By default that is done for the quick ones, what takes more passes for the nano
networks alone; `make test-slow` does all for all.
"""

import copy
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


EXPORTED = ("ddamfn_nano", "dynamic_vit_nano", "lhc_net_nano", "poster_v2_nano")
"""One of each kind of network; the others consist of the same layers."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in EXPORTED else [pytest.mark.slow]) for name in MODELS]
)
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
def test_a_frozen_random_landmark_branch_is_rejected_with_both_remedies(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, landmark_frozen=True).train()
    with pytest.raises(ValueError, match=r"(?s)landmark.*fer weights pull mobilefacenet_landmarks.*landmark_frozen"):
        model(batch(model, 2))


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("ddamfn_nano", {"num_heads": 5}, "num_heads = 5: 0 to 4"),
    ("ddamfn_nano", {"num_heads": "2"}, "num_heads = '2'"),
    ("ddamfn_nano", {"attention_loss": "papre"}, "attention_loss = 'papre': one of"),
    ("ddamfn_nano", {"attention_loss_weight": -0.1}, "attention_loss_weight = -0.1"),
    ("ddamfn_nano", {"drop_rate": 1.5}, "dropout probability"),
    ("ddamfn_nano", {"num_classes": 0}, "num_classes = 0"),
    ("vit_b16", {"attention": "routed"}, "attention = 'routed': one of"),
    ("vit_b16", {"num_regions": 4}, r"num_regions = 4 does not divide the 14 .*allowed: \[1, 2, 7, 14\]"),
    ("vit_b16", {"topk": 50}, r"topk = 50: 1 to 49"),
    ("vit_b16", {"num_classes": 0}, "num_classes = 0"),
    (
        "dynamic_vit_nano",
        {"num_regions": 3},
        r"num_regions = 3 does not divide the 4 tokens .*: 1, 2, 4$",
    ),
    ("dynamic_vit_nano", {"topk": 17}, r"topk = 17: .*1 to 16"),
    ("dynamic_vit_nano", {"topk": (1, 2)}, r"topk = \(1, 2\): one number or three"),
    ("dynamic_vit_nano", {"topk": 0}, "topk = 0"),
    ("dynamic_vit_nano", {"input_size": 100}, "input_size = 100: a multiple of 32"),
    ("dynamic_vit_nano", {"drop_path_rate": 1.0}, "drop path rate = 1.0"),
    ("dynamic_vit_nano", {"num_classes": 0}, "num_classes = 0"),
    ("poster_v2_nano", {"num_classes": 0}, "num_classes = 0"),
    ("poster_v2_nano", {"vit_depth": -1}, "vit_depth = -1"),
    ("poster_v2_nano", {"vit_depth": "2"}, "vit_depth = '2'"),
    ("poster_v2_nano", {"attention": "global"}, "attention = 'global': one of"),
    ("poster_v2_nano", {"window_size": 5}, "window_size = 5: a divisor of the side 12"),
    ("poster_v2_nano", {"window_size": 0}, "window_size = 0"),
    ("poster_v2_nano", {"window_size": 3, "attention": "vanilla"}, "vanilla attention has no windows"),
    ("poster_v2_nano", {"landmark_bn": "thaw"}, "landmark_bn = 'thaw'"),
    ("poster_v2_nano", {"drop_path_rate": 2.0}, "drop path rate"),
    ("btn_nano", {"scale": "heads"}, "scale = 'heads': one of"),
    ("btn_nano", {"class_prediction": "softmax"}, "class_prediction = 'softmax'"),
    ("btn_nano", {"positional_encoding": "rotary"}, "positional_encoding = 'rotary'"),
    ("btn_nano", {"mla_attention": "vanilla"}, "mla_attention = 'vanilla'"),
    ("btn_nano", {"downsample": "stride"}, "downsample = 'stride'"),
    ("btn_nano", {"embedding_kernel": 5}, "embedding_kernel = 5"),
    ("btn_nano", {"attention_batch": 1}, "attention_batch = 1"),
    ("btn_nano", {"attention_batch": 2.0}, "attention_batch = 2.0"),
    ("btn_nano", {"lambda_": 0}, "lambda_ = 0"),
    ("lhc_net_nano", {"num_classes": 0}, "num_classes = 0"),
    ("lhc_net_nano", {"blocks": (True, False)}, r"blocks = \(True, False\): one value for each of the 5 LHC blocks"),
    ("lhc_net_nano", {"num_heads": (8, 8, 7, 7)}, "num_heads = .* one value for each"),
    ("lhc_net_nano", {"num_heads": (5, 8, 4, 4, 1)}, "num_heads = 5 of block 1: a divisor of its 16 x 16 map"),
    ("lhc_net_nano", {"num_heads": (0, 8, 4, 4, 1)}, "num_heads = 0 of block 1"),
    ("lhc_net_nano", {"head_dims": (1, 1, 1, 1, 0)}, "head_dims = 0 of block 5"),
    ("lhc_net_nano", {"pools": (3, 3, 3, 2, 3)}, "pools = 2 of block 4: an odd number"),
    ("lhc_net_nano", {"kernels": (0, 3, 3, 3, 3)}, "kernels = 0 of block 1: an odd number"),
    ("lhc_net_nano", {"scales": (1, 1, -1, 1, 1)}, "scales = -1 of block 3: at least 0"),
    ("lhc_net_nano", {"drop_rate": -1.0}, "dropout probability"),
    ("mfn_arcface_nano", {"scale": 0.0}, "scale = 0.0: more than 0"),
    ("mfn_arcface_nano", {"margin": 1.6}, "margin = 1.6: 0 to pi / 2"),
    ("mfn_arcface_nano", {"margin": -0.1}, "0.1"),
    (
        "dynamic_vit_tiny",
        {"input_size": 256, "num_regions": 7},
        r"num_regions = 7 .* 16 .*: 1, 2, 4, 8, 16$",
    ),
    ("poster_v1_tiny", {"streams": "none"}, r"streams = 'none'.*'both', 'landmark_to_image', 'image_to_landmark'"),
    ("ir50", {"stages": 2}, "stages = 2: 3 or 4"),
    ("ir50", {"num_classes": -1}, r"num_classes = -1: at least 0 \(the embedding\)"),
    ("mobilefacenet", {"num_classes": -1}, r"num_classes = -1: at least 0 \(the embedding\)"),
    ("mobilefacenet_landmarks", {"num_classes": -1}, r"num_classes = -1: at least 0 \(the landmarks\)"),
    ("resnet50", {"num_classes": 0}, "num_classes = 0: at least 1"),
    ("ir18", {"stages": 3}, "unknown option of model 'ir18': 'stages'"),
    ("ddamfn", {"num_head": 3}, r"'num_head'; did you mean 'num_heads'\?.*drop_rate"),
    ("ddamfn_nano", {"config": None}, "unknown option"),
]


def test_unknown_model_is_rejected_with_the_nearest_and_the_valid() -> None:
    with pytest.raises(ValueError, match=r"unknown model: 'ddamfm'; did you mean 'ddamfn'\?.*ddamfn_nano"):
        create_model("ddamfm")


@pytest.mark.parametrize(("name", "options", "message"), WRONG)
def test_wrong_option_is_rejected_with_the_valid_values(name: str, options: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        create_model(name, **options)


def test_what_a_name_stands_for_is_not_an_option() -> None:
    assert "config" not in model_options("ddamfn_nano")


def test_duplicate_registration_is_rejected() -> None:
    with pytest.raises(ValueError, match="'ddamfn' is registered already, by DDAMFN"):
        register("ddamfn")(FerModel)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_with_a_loss_of_its_own_says_what_it_is(name: str) -> None:
    """Else the report would draw it on the axis of the validation's cross-entropy."""
    own = registry._REGISTRY[name].builder.loss is not FerModel.loss
    assert (model_loss(name) != "cross-entropy") == own
